"""Which tensor llama.cpp gives which type: its own quantizer on SmolLM2 and on small random models.

    pip install llama-cpp-python==0.3.36 gguf
    python make_mixtures.py SmolLM2-135M-Instruct.Q4_1.gguf [--check]

The random models (seeded) reach the rules that SmolLM2 does not: an untied head, heads shared by
four, eighty layers, widths that no block divides. For every model the file holds names, shapes
(0 where there is one axis), the types they had, and `types` (mixtures, tensors), all numbers of
ggml; the mixtures' names are in `meta`, " +imatrix" after one: with an importance matrix of ones.
"""

import ctypes
import sys
import tempfile
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from common import save

FTYPES = {
    "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_S": 11,
    "Q3_K_M": 12, "Q3_K_L": 13, "Q4_K_S": 14, "Q4_K_M": 15, "Q5_K_S": 16, "Q5_K_M": 17, "Q6_K": 18,
    "IQ4_NL": 25, "IQ4_XS": 30, "BF16": 32,
}  # fmt: skip
# name: layers, hidden, ffn, heads, key-value heads, tied
MODELS = {
    "wide": (16, 512, 1024, 8, 2, False),
    "tied": (24, 256, 512, 4, 2, True),
    "deep": (80, 256, 256, 8, 1, False),
    "odd": (8, 80, 160, 5, 5, True),
}
WITH_IMATRIX = ("Q4_0", "Q5_0", "IQ4_NL", "IQ4_XS", "Q4_K_M")


def shapes(layers, hidden, ffn, heads, kv, tied):
    """{name: (rows, columns) or (columns,)} of a Llama model with a vocabulary of 320."""
    narrow = hidden // heads * kv
    found = {"token_embd.weight": (320, hidden), "output_norm.weight": (hidden,)}
    if not tied:
        found["output.weight"] = (320, hidden)
    for i in range(layers):
        found |= {
            f"blk.{i}.attn_norm.weight": (hidden,), f"blk.{i}.ffn_norm.weight": (hidden,),
            f"blk.{i}.attn_q.weight": (hidden, hidden), f"blk.{i}.attn_k.weight": (narrow, hidden),
            f"blk.{i}.attn_v.weight": (narrow, hidden), f"blk.{i}.ffn_down.weight": (hidden, ffn),
            f"blk.{i}.attn_output.weight": (hidden, hidden),
            f"blk.{i}.ffn_gate.weight": (ffn, hidden), f"blk.{i}.ffn_up.weight": (ffn, hidden),
        }  # fmt: skip
    return found


def write(path, name):
    layers, hidden, ffn, heads, kv, _ = MODELS[name]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(layers)
    writer.add_context_length(256)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(320)
    writer.add_rope_dimension_count(hidden // heads)
    rng = np.random.default_rng(0)
    for tensor, shape in shapes(*MODELS[name]).items():
        writer.add_tensor(tensor, rng.normal(0, 0.02, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def facts(reader):
    def get(key):
        return int(reader.fields[f"llama.{key}"].contents())

    return {
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": get("attention.head_count"),
        "num_key_value_heads": get("attention.head_count_kv"),
    }


def ones(reader):
    """An importance matrix of ones for every matrix, and what keeps its memory alive."""
    tensors = [t for t in reader.tensors if len(t.shape) == 2]  # columns first
    arrays = [np.ones(int(t.shape[0]), np.float32) for t in tensors]
    table = (llama_cpp.llama_model_imatrix_data * (len(tensors) + 1))()
    for entry, tensor, array in zip(table, tensors, arrays, strict=False):
        entry.name = tensor.name.encode()
        entry.data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = len(array)
    return table, arrays


def quantized(source, reader, mixture, folder, importance):
    """The types llama.cpp chose, in the order of the source's tensors."""
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = FTYPES[mixture], True, 2
    table, _alive = ones(reader) if importance else (None, None)
    if table is not None:
        params.imatrix = table
    target = folder / "out.gguf"
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params)
    assert failed == 0, (source, mixture)
    found = {t.name: int(t.tensor_type) for t in gguf.GGUFReader(target).tensors}
    target.unlink()
    assert found.keys() == {t.name for t in reader.tensors}
    return [found[t.name] for t in reader.tensors]


def main():
    arrays, configs = {}, {}
    asked = [(m, False) for m in FTYPES] + [(m, True) for m in WITH_IMATRIX]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in ["smollm2", *MODELS]:
            source = Path(sys.argv[1]) if name == "smollm2" else folder / f"{name}.gguf"
            if name != "smollm2":
                write(source, name)
            reader = gguf.GGUFReader(source)
            configs[name] = facts(reader)
            shape = [[0, *(int(n) for n in t.shape[::-1])][-2:] for t in reader.tensors]
            own = [pair for pair in asked if name != "smollm2" or not pair[1]]  # it takes minutes
            types = [quantized(source, reader, m, folder, importance) for m, importance in own]
            arrays[f"{name}/names"] = np.array([t.name for t in reader.tensors])
            arrays[f"{name}/shapes"] = np.array(shape, np.int32)
            arrays[f"{name}/before"] = np.array([t.tensor_type for t in reader.tensors], np.uint8)
            arrays[f"{name}/types"] = np.array(types, np.uint8)
            print(name, arrays[f"{name}/types"].shape, flush=True)
    mixtures = [m + " +imatrix" * importance for m, importance in asked]
    notes = {"configs": configs, "mixtures": mixtures}  # SmolLM2: those without imatrix
    save("mixtures", arrays, ["llama-cpp-python", "gguf"], notes)


if __name__ == "__main__":
    main()
