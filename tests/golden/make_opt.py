"""transformers' OPT: a tiny random folder as the hub's opt-125m has it, and its logits.

Needs torch (CPU build) and transformers. The files of the folder are kept as bytes: config.json, a
pytorch_model.bin of float16 written by torch, and a GPT-2 tokenizer in vocab.json and merges.txt
that puts `</s>` before a text. `logits` are those of the float32 model of these weights.
"""

import copy
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import SEED, save
from transformers import GPT2Tokenizer, OPTConfig, OPTForCausalLM

MERGES = ["t h", "th e", "Ġ the", "i n", "Ġ a", "é ¦"]
TEXTS = ["the cat in the hat", " the</s>the", "안녕, OPT!\n\n= the =", ""]


def model() -> OPTForCausalLM:
    torch.manual_seed(SEED)
    config = OPTConfig(
        vocab_size=272, hidden_size=16, ffn_dim=40, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=24, word_embed_proj_dim=16,
    )  # fmt: skip
    model = OPTForCausalLM(config).eval()
    with torch.no_grad():
        for path, w in model.named_parameters():
            w.copy_(torch.randn_like(w) * 0.5 + (w.ndim == 1 and path.endswith("norm.weight")))
    return model.half().float()  # the numbers that a file of float16 holds


def tokenizer_files() -> dict[str, str]:
    """The four files that facebook/opt-125m has, for a vocabulary of bytes and a few merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet())]
    tokens += [merge.replace(" ", "") for merge in MERGES]

    def special(content: str) -> dict:
        flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
        return {"content": content, **flags}

    end = special("</s>")
    named = {"bos_token": end, "eos_token": end, "unk_token": end}
    settings = {k: {**v, "__type": "AddedToken"} for k, v in named.items()}
    settings |= {"errors": "replace", "add_prefix_space": False, "add_bos_token": True}
    settings["tokenizer_class"] = "GPT2Tokenizer"
    return {
        "vocab.json": json.dumps({token: i for i, token in enumerate(tokens)}),
        "merges.txt": "\n".join(["#version: 0.2", *MERGES, ""]),
        "special_tokens_map.json": json.dumps({**named, "pad_token": special("<pad>")}),
        "tokenizer_config.json": json.dumps(settings),
    }


def main() -> None:
    torch.set_num_threads(1)
    ours = model()
    weights = io.BytesIO()
    torch.save(copy.deepcopy(ours).half().state_dict(), weights)
    files = {"config.json": ours.config.to_json_string(), **tokenizer_files()}
    tokens = np.random.default_rng(SEED).integers(0, 272, (2, 24))
    with torch.no_grad():
        logits = ours(torch.tensor(tokens)).logits.numpy()
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / name).write_text(text)
        tokenizer = GPT2Tokenizer.from_pretrained(folder)
        ids = [tokenizer(text).input_ids for text in TEXTS]
    arrays = {name: np.frombuffer(text.encode(), np.uint8) for name, text in files.items()}
    arrays |= {
        "pytorch_model.bin": np.frombuffer(weights.getvalue(), np.uint8),
        "tokens": tokens.astype(np.int32),
        "logits": logits,
    }
    notes = {"texts": TEXTS, "ids": ids, "dtype": "float32"}
    save("opt", arrays, ["torch", "transformers", "tokenizers"], notes)


if __name__ == "__main__":
    main()
