"""Models as GGUF files: what is written is the model that was there, and llama.cpp's own words for
it."""

import dataclasses
import json

import gguf as peer
import jax.numpy as jnp
import numpy as np
import pytest

import qlab
from qlab.io import gguf
from qlab.io.gguf_values import Value
from qlab.io.imatrix import Imatrix
from qlab.models import architectures, mixtures
from qlab.models.export_gguf import encode, gguf_metadata, plan_of, tensors_of, to_gguf
from qlab.models.load import NOTES, load, smollm2_file
from qlab.models.surgery import linears
from qlab.models.tokenizer import Tokenizer
from qlab.models.transformer import Label
from tests.fuzz_for_tests import outcomes
from tests.models_for_tests import (
    CONFIG,
    OPT_CONFIG,
    byte_tokenizer,
    random_model,
    tokens_for,
    with_biases,
    write_hub_folder,
)

CONFIGS = {
    "tied": CONFIG,
    "untied": dataclasses.replace(CONFIG, tie_word_embeddings=False),
    "wide heads": dataclasses.replace(CONFIG, head_dim=32),
    "one key-value head": dataclasses.replace(CONFIG, num_key_value_heads=1, rope_theta=1e5),
}


@pytest.fixture
def encoder(monkeypatch):
    """A record of what the encoder was asked: (type, shape, importance) a call."""
    asked, real = [], gguf.encode

    def spy(w, kind, importance=None):
        asked.append((kind, w.shape, importance))
        return real(w, kind, importance)

    monkeypatch.setattr(gguf, "encode", spy)
    return asked


def same(a, b) -> bool:
    return bool(np.array_equal(a(tokens_for(a)), b(tokens_for(b))))


@pytest.mark.parametrize("name", list(CONFIGS))
def test_floats_are_the_same_model(name, tmp_path):
    model = random_model(CONFIGS[name])
    path = qlab.save(model, tmp_path / "m.gguf")
    found = load(path)
    assert found.config == model.config and same(model, found)
    assert found.tokenizer.eos_ids == model.tokenizer.eos_ids
    text = "the cat in the hat, 안녕 123"
    assert found.tokenizer.encode(text) == model.tokenizer.encode(text)
    assert found.notes[0] == "random weights"
    assert ("output.weight" in gguf.read(path).tensors) != model.config.tie_word_embeddings


def test_biases_go_along(tmp_path):
    model = with_biases(random_model())
    assert same(model, load(qlab.save(model, tmp_path / "m.gguf")))


def test_names_are_each_others_inverse():
    names = [s.name for s in tensors_of(random_model(CONFIGS["untied"]))[1]]
    assert len(names) == len(set(names)) == 3 + 9 * CONFIG.num_hidden_layers
    for name in names:
        assert architectures.gguf_name(architectures.gguf_path(name)) == name
    with pytest.raises(ValueError, match="'layers.0.fc1.weight' has no name"):
        architectures.gguf_name("layers.0.fc1.weight")


def test_metadata_are_what_llama_cpp_asks_for(tmp_path):
    """Keys and kinds as its converter writes them, read by its own package."""
    path = qlab.save(random_model(CONFIGS["wide heads"]), tmp_path / "m.gguf")
    fields = peer.GGUFReader(path).fields
    wanted = {
        "general.architecture": ("STRING", "llama"),
        "general.type": ("STRING", "model"),
        "general.file_type": ("UINT32", 0),
        "general.quantization_version": ("UINT32", 2),
        peer.Keys.LLM.BLOCK_COUNT: ("UINT32", 2),
        peer.Keys.LLM.CONTEXT_LENGTH: ("UINT32", 256),
        peer.Keys.LLM.EMBEDDING_LENGTH: ("UINT32", 64),
        peer.Keys.LLM.FEED_FORWARD_LENGTH: ("UINT32", 128),
        peer.Keys.LLM.VOCAB_SIZE: ("UINT32", 320),
        peer.Keys.Attention.HEAD_COUNT: ("UINT32", 4),
        peer.Keys.Attention.HEAD_COUNT_KV: ("UINT32", 2),
        peer.Keys.Attention.KEY_LENGTH: ("UINT32", 32),
        peer.Keys.Attention.VALUE_LENGTH: ("UINT32", 32),
        peer.Keys.Attention.LAYERNORM_RMS_EPS: ("FLOAT32", np.float32(1e-5)),
        peer.Keys.Rope.DIMENSION_COUNT: ("UINT32", 32),
        peer.Keys.Rope.FREQ_BASE: ("FLOAT32", 1e4),
        peer.Keys.Tokenizer.MODEL: ("STRING", "gpt2"),
        peer.Keys.Tokenizer.PRE: ("STRING", "gpt-2"),
        peer.Keys.Tokenizer.EOS_ID: ("UINT32", 0),
        peer.Keys.Tokenizer.BOS_ID: ("UINT32", 0),
        peer.Keys.Tokenizer.ADD_BOS: ("BOOL", False),
    }
    for key, (kind, value) in wanted.items():
        field = fields[key.format(arch="llama")]
        assert field.types[0].name == kind and field.contents() == value, key
    tokens = fields[peer.Keys.Tokenizer.LIST].contents()
    kinds = fields[peer.Keys.Tokenizer.TOKEN_TYPE].contents()
    assert len(tokens) == len(kinds) == 320 and tokens[0] == "<|endoftext|>"
    real = random_model().tokenizer.vocab_size
    assert kinds == [3] + [1] * (real - 1) + [5] * (320 - real) and tokens[-1] == "[PAD319]"
    assert fields[peer.Keys.Tokenizer.MERGES].contents()[:2] == ["t h", "th e"]


def test_tiny_keeps_its_tokenizer(tmp_path):
    """Cut as SmolLM2's: every digit alone, then GPT-2's. The fingerprint is the whole of it."""
    tiny = qlab.load("tiny")
    values = gguf_metadata(tiny)
    assert values["tokenizer.ggml.pre"].value == "smollm"
    found = load(qlab.save(tiny, tmp_path / "tiny.gguf"))
    assert found.tokenizer.fingerprint == tiny.tokenizer.fingerprint
    assert found.config == tiny.config and same(found, tiny)


def test_a_tokenizer_that_begins_texts(tmp_path):
    """Llama's post-processor becomes add_bos_token; a user's token is no control token."""
    from tokenizers import AddedToken, processors

    definition = byte_tokenizer().definition
    definition.add_special_tokens(["<s>"])
    definition.add_tokens([AddedToken("<tool>", normalized=False)])
    begin = definition.token_to_id("<s>")
    definition.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    model = random_model()
    model.label = Label("begins", Tokenizer(definition, (0,), begin))
    values = gguf_metadata(model)
    assert values["tokenizer.ggml.add_bos_token"].value is True
    assert values["tokenizer.ggml.bos_token_id"].value == begin
    assert values["tokenizer.ggml.token_type"].value[begin : begin + 2] == [3, 4]
    found = load(qlab.save(model, tmp_path / "m.gguf")).tokenizer
    assert found.bos_id == begin and found.encode("a<tool>") == model.tokenizer.encode("a<tool>")


def test_what_a_file_brought_goes_on(tmp_path, encoder):
    """Values of a GGUF file survive loading, quantizing and saving, bit for bit."""
    first = qlab.save(random_model(), tmp_path / "first.gguf")
    file = gguf.read(first)
    own = {
        "general.license": Value.of("str", "apache-2.0"),
        "tokenizer.chat_template": Value.of("str", "{{ messages }}"),
        "general.tags": Value.of("[str]", ["a"]),
        "split.no": Value.of("u16", 0),
        "quantize.imatrix.file": Value.of("str", "old"),
    }
    copies = [(t.name, t.type, t.shape, t.raw) for t in file.tensors.values()]
    gguf.write(first, file.values | own, copies, overwrite=True)
    model = load(first)
    for source in (model, qlab.quantize_model(model, "rtn", "int4_g64", progress=False), first):
        path = tmp_path / "again.gguf"
        to_gguf(source, path, "Q8_0", overwrite=True)
        found = gguf.read(path).values
        for key in ("general.license", "tokenizer.chat_template", "general.tags"):
            assert found[key] == own[key]
        assert "split.no" not in found and "quantize.imatrix.file" not in found
        assert found["general.file_type"].value == 7
        for key, value in file.values.items():
            if not key.startswith(("general.file_type", NOTES)):
                assert found[key] == value, key


def test_a_hub_folder_brings_its_chat_template(tmp_path):
    write_hub_folder(random_model(), tmp_path / "m")
    template = {"chat_template": "{{ x }}"}
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(template))
    values = gguf_metadata(load(tmp_path / "m"))
    assert values["tokenizer.chat_template"].value == "{{ x }}"


@pytest.mark.parametrize("mixture, most", [("F16", 1e-3), ("BF16", 8e-3), ("Q8_0", 1e-2)])
def test_mixtures_of_a_model(mixture, most, tmp_path, encoder):
    model = random_model()
    path = qlab.save(model, tmp_path / "m.gguf", mixture=mixture)
    file, found = gguf.read(path), qlab.models.dense(load(path))
    assert file.tensors["blk.0.ffn_norm.weight"].type == "F32"
    assert file.tensors["token_embd.weight"].type == mixture
    for (name, a), b in zip(linears(model).items(), linears(found).values(), strict=True):
        error = jnp.abs(a.weight - b.weight).max() / jnp.abs(a.weight).max()
        assert 0 < error < most, name
    asked = [shape for kind, shape, _ in encoder if kind == "Q8_0"]
    assert len(asked) == (15 if mixture == "Q8_0" else 0)


def test_bfloat16_rounds_to_even():
    w = np.random.default_rng(0).normal(0, 1, (64, 64)).astype(np.float32)
    w[0, :4] = np.array([0x3F808000, 0x3F818000, 0x80000001, 0x00008000], np.uint32).view("<f4")
    expected = np.asarray(jnp.asarray(w).astype(jnp.bfloat16)).view(np.uint16)
    np.testing.assert_array_equal(encode(w, "BF16").view(np.uint16), expected)


def test_what_cannot_be_encoded_is_refused(tmp_path, encoder):
    with pytest.raises(ValueError, match="'w' reaches 70000, half precision 65504"):
        encode(np.array([[7e4]], np.float32), "F16")
    with pytest.raises(ValueError, match="'v' holds NaN or Inf"):
        encode(np.array([[np.nan]], np.float32), "F32", name="v")
    with pytest.raises(ValueError, match="would be IQ2_XXS, which is read, not written"):
        to_gguf(qlab.load("tiny"), tmp_path / "x.gguf", "IQ2_XXS")
    assert not encoder and not list(tmp_path.iterdir())  # before any work


def test_importance_reaches_the_encoder(tmp_path, encoder):
    model = random_model()
    found = qlab.imatrix(model, tokens_for(model), progress=False)
    rows = to_gguf(model, tmp_path / "m.gguf", "Q8_0", imatrix=found)
    by_name = dict(
        zip(
            [row.name for row in rows if row.type == "Q8_0"],
            [a for a in encoder if a[0] == "Q8_0"],
            strict=True,
        )
    )
    means = found.means()
    assert set(means) == {name for name, (_, _, given) in by_name.items() if given is not None}
    for name, mean in means.items():
        np.testing.assert_array_equal(by_name[name][2], mean)
    values = gguf.read(tmp_path / "m.gguf").metadata
    assert values["quantize.imatrix.entries_count"] == 14
    assert values["quantize.imatrix.dataset"] == "token ids"
    one = {"blk.0.attn_q.weight": np.ones((1, 32), np.float32)}
    count = {"blk.0.attn_q.weight": np.array([1])}
    with pytest.raises(ValueError, match="32 columns of 'blk.0.attn_q.weight', the model 64"):
        to_gguf(model, tmp_path / "x.gguf", "Q8_0", imatrix=Imatrix(one, count, 1, 1))
    other = Imatrix({"blk.9.x": one.popitem()[1]}, {"blk.9.x": np.array([1])}, 1, 1)
    with pytest.raises(ValueError, match="imatrix is of another model: 'blk.9.x'"):
        to_gguf(model, tmp_path / "x.gguf", "Q8_0", imatrix=other)


def test_a_file_goes_through_as_stored(tmp_path, encoder):
    """From file to file: what has the wanted type is copied, the rest decoded and rounded again."""
    model = random_model()
    first = qlab.save(model, tmp_path / "a.gguf", mixture="Q8_0")
    encoder.clear()
    to_gguf(first, tmp_path / "b.gguf", "Q8_0")
    assert not encoder
    a, b = gguf.read(first), gguf.read(tmp_path / "b.gguf")
    assert list(a.tensors) == list(b.tensors) and a.values == b.values
    for name, tensor in a.tensors.items():
        np.testing.assert_array_equal(tensor.raw, b.tensors[name].raw)
    to_gguf(first, tmp_path / "c.gguf", "Q4_0")
    notes = gguf.read(tmp_path / "c.gguf").metadata[NOTES]
    assert notes[-1] == "14 tensors were Q8_0 before and were rounded again"
    assert any("rounded again" in note for note in load(tmp_path / "c.gguf").notes)
    to_gguf(first, tmp_path / "d.gguf")
    assert gguf.read(tmp_path / "d.gguf").tensors["blk.0.attn_q.weight"].type == "Q8_0"
    assert gguf.read(tmp_path / "d.gguf").metadata["general.file_type"] == 7


@pytest.mark.parametrize("spec", ["q8_0", "q4_1", "iq4_nl"])
def test_blocks_of_a_quantized_model_are_kept(spec, tmp_path):
    """What is in one of ggml's containers goes into the file as it is, rows of q and k in order."""
    q = qlab.quantize_model(random_model(), "rtn", spec, progress=False)
    path = qlab.save(q, tmp_path / "m.gguf")
    assert gguf.read(path).tensors["blk.0.attn_k.weight"].type == spec.upper()
    assert (
        gguf.read(path).metadata["general.file_type"] == {"q8_0": 7, "q4_1": 3, "iq4_nl": 25}[spec]
    )
    assert same(q, load(path))


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="no architecture 'opt'.*Llama family"):
        qlab.save(random_model(OPT_CONFIG), tmp_path / "m.gguf")
    bare = random_model()
    bare.label = Label("bare")
    with pytest.raises(ValueError, match="'bare' has no tokenizer"):
        qlab.save(bare, tmp_path / "m.gguf")
    q = qlab.quantize_model(random_model(), "rtn", "int4_g64", progress=False)
    with pytest.raises(ValueError, match="is int4_g64, which no GGUF file holds"):
        qlab.save(q, tmp_path / "m.gguf")
    acts = qlab.quantize_model(random_model(), "rtn", "int8_channel", act="int8_token",
                               progress=False)  # fmt: skip
    with pytest.raises(ValueError, match="self_attn.q_proj quantizes its inputs"):
        qlab.save(acts, tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="'Q4_K_N'; did you mean 'Q4_K_"):
        qlab.save(random_model(), tmp_path / "m.gguf", mixture="Q4_K_N")
    with pytest.raises(ValueError, match="imatrix= needs a mixture"):
        qlab.save(random_model(), tmp_path / "m.gguf", imatrix="x.dat")
    with pytest.raises(ValueError, match="'m' does not end in .gguf"):
        qlab.save(random_model(), tmp_path / "m", mixture="Q4_K_M")
    assert not list(tmp_path.iterdir())
    qlab.save(random_model(), tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="overwrite=True"):
        qlab.save(random_model(), tmp_path / "m.gguf")


def small_file(folder):
    """A whole model in a small file: one layer of width 8, the bytes as tokens."""
    config = dataclasses.replace(
        CONFIG, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    return qlab.save(random_model(config), folder / "small.gguf")


@pytest.mark.parametrize("count", [150, pytest.param(2_000, marks=pytest.mark.slow)])
def test_mutated_models_load_or_are_refused(count, tmp_path):
    """Damage anywhere in the header: whatever `load` makes of it, it is a model or a ValueError."""
    good = small_file(tmp_path).read_bytes()
    end = good.index(b"output_norm") + 40
    found = outcomes(good[:end], tmp_path, load, count, limits=False, rest=good[end:])
    assert found["read"] + found["refused"] == count and found["refused"] > count // 4


WRONG = {
    "llama.block_count": ("str", "two"),
    "llama.attention.head_count": ("u32", 0),
    "llama.embedding_length": ("[u32]", [64]),
    "llama.attention.layer_norm_rms_epsilon": ("f32", float("nan")),
    "llama.rope.freq_base": ("bool", True),
    "tokenizer.ggml.tokens": ("u32", 3),
    "tokenizer.ggml.merges": ("[u32]", [1]),
    "tokenizer.ggml.token_type": ("[i32]", [1]),
    "tokenizer.ggml.eos_token_id": ("str", "</s>"),
    "tokenizer.ggml.pre": ("[str]", ["gpt-2"]),
}


@pytest.mark.parametrize("key", list(WRONG))
def test_metadata_of_another_kind_are_refused(key, tmp_path):
    path = qlab.save(random_model(), tmp_path / "m.gguf")
    file = gguf.read(path)
    copies = [(t.name, t.type, t.shape, t.raw) for t in file.tensors.values()]
    gguf.write(path, file.values | {key: Value.of(*WRONG[key])}, copies, overwrite=True)
    with pytest.raises(ValueError):
        load(path)


@pytest.mark.network
def test_smollm2_planned_and_carried(tmp_path):
    try:
        path = smollm2_file()
    except ConnectionError as error:
        pytest.skip(str(error))
    config, tensors = tensors_of(path)
    rows = plan_of(tensors, config, "Q4_K_M")
    counts = {kind: sum(row.type == kind for row in rows) for kind in ("Q5_0", "Q4_K", "Q6_K")}
    assert counts == {"Q5_0": 166, "Q4_K": 16, "Q6_K": 14}
    assert mixtures.bits_per_weight(rows) == pytest.approx(6.17, abs=0.01)
    values = gguf_metadata(qlab.load("smollm2-135m", as_stored=True))
    own = gguf.read(path).values
    assert {*values, "general.file_type"} == {*own, NOTES}
    assert all(value == own[key] for key, value in values.items() if key != NOTES)
    assert any("4-bit grid" in note for note in values[NOTES].value)
