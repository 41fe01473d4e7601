"""OPT against its equations in numpy, transformers' logits, and everything a model of ours can."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import qlab
from qlab.models import hub, opt
from qlab.models.channels import dither, feeders, scale_channels, with_outliers
from qlab.models.generate import generate_tokens
from qlab.models.load import load
from qlab.models.surgery import dense, linears
from qlab.models.taps import layer_inputs
from qlab.models.tokenizer import from_vocabulary
from qlab.qtensor import QTensor
from tests.models_for_tests import OPT_CONFIG, hub_tensors, random_model, tokens_for
from tests.models_for_tests import write_hub_folder as write_folder
from tests.test_golden import GOLDEN

PATHS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"]
PATHS += ["fc1", "fc2"]


def model(**facts):
    return random_model(opt.OPTConfig(**{**vars(OPT_CONFIG), **facts}))


def change(a, b, time: int = 32) -> float:
    """Largest difference of logits in units of their standard deviation."""
    tokens = tokens_for(a, 2, time)
    x, y = np.asarray(a(tokens)), np.asarray(b(tokens))
    return float(np.abs(x - y).max() / x.std())


# ---- the function ---------------------------------------------------------------------------


def numpy_logits(model, tokens) -> np.ndarray:
    """OPT's equations one position and one head at a time, in float64."""
    c = model.config

    def array(x):
        return np.asarray(x, np.float64)

    def norm(part, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * array(part.weight) + array(part.bias)

    def linear(part, x):
        return x @ array(part.weight).T + array(part.bias)

    def attention(part, x):
        q, k, v = (
            linear(getattr(part, name), x).reshape(len(x), -1, c.head_dim)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        out = np.zeros_like(q)
        for t in range(len(x)):
            for h in range(c.num_attention_heads):
                score = k[: t + 1, h] @ q[t, h] / np.sqrt(c.head_dim)
                weight = np.exp(score - score.max())
                out[t, h] = weight / weight.sum() @ v[: t + 1, h]
        return linear(part.out_proj, out.reshape(len(x), -1))

    found = []
    for row in np.asarray(tokens):
        x = array(model.embed_tokens.weight)[row]
        x = x + array(model.embed_positions.weight)[2 : 2 + len(row)]  # the hub's offset
        for block in model.layers:
            x = x + attention(block.self_attn, norm(block.self_attn_layer_norm, x))
            hidden = linear(block.fc1, norm(block.final_layer_norm, x))
            x = x + linear(block.fc2, np.maximum(hidden, 0))
        head = model.embed_tokens if model.lm_head is None else model.lm_head
        found.append(norm(model.norm, x) @ array(head.weight).T)
    return np.stack(found)


@pytest.mark.parametrize("facts", [{}, {"tie_word_embeddings": False}, {"num_attention_heads": 1}])
def test_equals_the_equations(facts):
    ours = model(**facts)
    tokens = tokens_for(ours, batch=2, time=13)
    expected = numpy_logits(ours, tokens)
    assert np.abs(np.asarray(ours(tokens)) - expected).max() < 2e-5 * expected.std()


def test_every_part_matters():
    """No tensor could be left out unseen: changing any one changes the logits."""
    ours = model()
    for keys, leaf in jax.tree_util.tree_flatten_with_path(ours)[0]:
        path = jax.tree_util.keystr(keys, simple=True, separator=".")
        noise = jnp.asarray(np.random.default_rng(0).normal(0, 0.3, leaf.shape), jnp.float32)
        broken = jax.tree_util.tree_map_with_path(
            lambda k, x, at=keys, d=noise: x + d if k == at else x, ours
        )
        if path.endswith("k_proj.bias"):  # the same number on every score of a query
            assert change(ours, broken) < 1e-5
        else:
            assert change(ours, broken) > 1e-3, path


def test_positions_by_rows_two_further():
    ours = model()
    moved = jax.tree.map(lambda x: x, ours)
    moved.embed_positions = opt.Positions(ours.embed_positions.weight.at[:2, 5].add(1.0))
    assert change(ours, moved) == 0  # the first two rows belong to no position
    moved.embed_positions = opt.Positions(ours.embed_positions.weight.at[2, 5].add(1.0))
    assert change(ours, moved) > 1e-3
    tokens = tokens_for(ours, 2, 8)
    whole = ours.embed(tokens)
    assert whole.shape == (2, 8, 64)
    np.testing.assert_array_equal(ours.embed(tokens[:, 5:], jnp.int32(5)), whole[:, 5:])


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="300 tokens are more than the model's 256 positions"):
        model()(tokens_for(model(), 1, 300))


def test_cached_steps_equal_the_whole():
    ours = model()
    tokens = tokens_for(ours, batch=2, time=21)
    caches, found = ours.caches(2, 32), []
    for start, end in [(0, 8), (8, 9), (9, 10), (10, 21)]:
        hidden, caches = ours.step(tokens[:, start:end], jnp.int32(start), caches)
        found.append(np.asarray(hidden))
    whole = np.asarray(ours.hidden(tokens))
    np.testing.assert_allclose(np.concatenate(found, 1), whole, rtol=0, atol=2e-5)


def test_one_program_for_all_blocks_and_gradients():
    ours = model(num_hidden_layers=5)
    tokens = tokens_for(ours, 1, 7)
    jitted = jax.jit(lambda m, t: m(t))(ours, tokens)
    np.testing.assert_allclose(np.asarray(jitted), np.asarray(ours(tokens)), atol=1e-4)
    structures = {jax.tree.structure(block) for block in ours.layers}
    assert len(structures) == 1
    grad = jax.grad(lambda m: jnp.mean(m(tokens) ** 2))(ours)
    assert all(np.isfinite(np.asarray(g)).all() for g in jax.tree.leaves(grad))


# ---- surgery --------------------------------------------------------------------------------


def test_linears_in_forward_order():
    found = linears(model())
    assert list(found)[:6] == [f"layers.0.{path}" for path in PATHS] and len(found) == 12


def test_taps_see_what_the_linears_read():
    ours = model()
    tokens = tokens_for(ours, 2, 9)
    inputs = layer_inputs(ours, tokens)
    assert list(inputs) == list(linears(ours))
    normed = ours.layers[0].self_attn_layer_norm(ours.embed(tokens))
    # Another compiled program, so another order of rounding.
    np.testing.assert_allclose(inputs["layers.0.self_attn.q_proj"], normed, atol=1e-5)
    assert inputs["layers.1.fc2"].shape == (2, 9, 128)
    assert float(inputs["layers.1.fc2"].min()) == 0.0  # what a ReLU lets through


@pytest.mark.parametrize("feeder", [feed.feeder for feed in opt.Block.FEEDS])
def test_each_feed_keeps_the_function(feeder):
    ours = model()
    path = f"layers.1.{feeder}"
    c = np.exp(np.random.default_rng(0).normal(0, 0.5, feeders(ours)[path]))
    new = scale_channels(ours, {path: c})
    assert change(ours, new) < 1e-5
    part, old = (getattr(m.layers[1], feeder.split(".")[0]) for m in (new, ours))
    if feeder.endswith("v_proj"):
        part, old = part.v_proj, old.v_proj
    np.testing.assert_allclose(part.bias * c, old.bias, rtol=1e-5)  # biases are scaled too
    part.bias = old.bias
    assert change(ours, new) > 1e-3  # and that is seen


def test_all_feeds_at_once_and_outliers():
    ours = model()
    assert len(feeders(ours)) == 8
    new = dither(ours, seed=1)
    assert change(ours, new) < 1e-5
    for path, layer in linears(ours).items():
        ratio = np.asarray(linears(new)[path].weight) / np.asarray(layer.weight)
        assert (ratio != 1).mean() > 0.99, path
    loud = with_outliers(ours)
    assert change(ours, loud) < 3e-5
    after, before = (m.layers[0].final_layer_norm.weight for m in (loud, ours))
    gain = np.asarray(after / before)
    assert sorted(gain.round(3))[-2:] == [1.0, 50.0]


@pytest.mark.parametrize("bad", [-1.0, 0.0, np.nan, np.inf])
def test_a_factor_that_no_relu_commutes_with_is_refused(bad):
    c = np.ones(128)
    c[7] = bad
    with pytest.raises(ValueError, match="'layers.0.fc1' .* positive ones only"):
        scale_channels(model(), {"layers.0.fc1": c})


# ---- what a model of ours can ---------------------------------------------------------------


def test_quantize_evaluate_save_load(tmp_path):
    ours = model()
    q = qlab.quantize_model(ours, "rtn", "int4_g64", progress=False)
    assert all(isinstance(layer.weight, QTensor) for layer in linears(q).values())
    assert [row.path for row in q.report.layers] == list(linears(ours))
    for path, layer in linears(q).items():
        np.testing.assert_array_equal(layer.bias, linears(ours)[path].bias)
    text = {"words": "the cat sat in the hat and the bat " * 40}
    kwargs = {"texts": text, "tokens": 512, "context": 128, "progress": False}
    lost, same = (qlab.evaluate(m, reference=ours, **kwargs) for m in (q, ours))
    assert lost.texts[0].kl.value > 1e-3 > same.texts[0].kl.value >= 0
    qlab.save(q, tmp_path / "q")
    again = load(tmp_path / "q")
    assert json.loads((tmp_path / "q" / "config.json").read_text())["model_type"] == "opt"
    assert again.config == q.config and again.report == q.report
    tokens = tokens_for(q)
    np.testing.assert_array_equal(again(tokens), q(tokens))
    assert jax.tree.structure(dense(again)) == jax.tree.structure(ours)


def test_calibrates_and_gptq_beats_rounding():
    ours = model()
    tokens = np.asarray(tokens_for(ours, 16, 64))
    stats = qlab.calibrate(ours, tokens)
    assert list(stats) == list(linears(ours))
    assert all(found.tokens == 16 * 64 for found in stats.values())
    x = np.asarray(layer_inputs(ours, tokens)["layers.1.fc2"], np.float64).reshape(-1, 128)
    h = np.asarray(stats["layers.1.fc2"].hessian)
    np.testing.assert_allclose(h, x.T @ x / len(x), rtol=1e-4, atol=1e-5 * h.max())
    spec = qlab.specs.gptq(3, None, sym=False)
    q = qlab.quantize_model(ours, "gptq", spec, tokens, held_out=0, progress=False)
    assert all(row.loss < row.rtn_loss for row in q.report.layers)
    rtn = qlab.quantize_model(ours, "rtn", spec, progress=False)
    assert change(ours, q) < change(ours, rtn)


def test_generates_with_a_cache():
    """Greedy tokens equal those of running the whole text anew each time."""
    ours = model()
    prompt = "the cat in the hat"
    ids = ours.tokenizer.encode(prompt)
    expected = []
    for _ in range(12):
        seen = ids + expected
        padded = jnp.array([seen + [0] * (32 - len(seen))])  # one program; later tokens are unseen
        expected.append(int(jnp.argmax(ours(padded)[0, len(seen) - 1])))
    assert 0 not in expected  # no end token, which would stop it sooner
    found = qlab.generate(ours, prompt, max_new_tokens=12)
    assert found == ours.tokenizer.decode(expected)


def test_generates_up_to_the_last_position():
    """With fewer positions than the power of two that a prompt is padded to."""
    ours = model(max_position_embeddings=21)
    assert len(list(generate_tokens(ours, list(range(1, 19)), 50))) == 3
    with pytest.raises(ValueError, match="the model's context 21"):
        qlab.generate(ours, "the cat in the hat " * 4)


# ---- the hub's folders ----------------------------------------------------------------------


@pytest.mark.parametrize("facts", [{}, {"tie_word_embeddings": False}])
@pytest.mark.parametrize("shards", [1, 3])
def test_folder(facts, shards, tmp_path):
    ours = model(**facts)
    write_folder(ours, tmp_path / "some-opt", shards)
    found = load(tmp_path / "some-opt")
    assert found.config == ours.config and found.name == "some-opt"
    assert change(ours, found) == 0
    assert found.label.provenance["model_type"] == "opt"


@pytest.mark.parametrize("prefix", ["model.decoder.", "decoder.", ""])
def test_names_of_older_and_newer_files(prefix):
    for name, ours in (
        ("layers.0.self_attn.q_proj.weight", "layers.0.self_attn.q_proj.weight"),
        ("layers.11.final_layer_norm.bias", "layers.11.final_layer_norm.bias"),
        ("final_layer_norm.bias", "norm.bias"),
        ("embed_positions.weight", "embed_positions.weight"),
    ):
        assert opt.hub_path(prefix + name) == ours
    assert opt.hub_path("lm_head.weight") == "lm_head.weight"


@pytest.mark.parametrize(
    "facts, sentence",
    [
        (
            {"word_embed_proj_dim": 32, "do_layer_norm_before": False},
            "word_embed_proj_dim 32 is not hidden_size 64.*OPT-350m",
        ),
        ({"do_layer_norm_before": False}, "do_layer_norm_before False is not supported"),
        ({"activation_function": "gelu"}, "activation_function 'gelu'.*'relu'"),
        ({"enable_bias": False}, "enable_bias False"),
        ({"_remove_final_layer_norm": True}, "_remove_final_layer_norm True"),
        ({"num_attention_heads": 5}, "hidden_size 64 is not a multiple of .* 5"),
        ({"max_position_embeddings": 254}, r"shape \(258, 64\), the config says \(256, 64\)"),
        ({"quantization_config": {"quant_method": "gptq"}}, r"already quantized \(gptq\)"),
        ({"num_hidden_layers": 1}, "belong to no part of the model: 'layers.1"),
    ],
)
def test_refused_configs(facts, sentence, tmp_path):
    write_folder(model(), tmp_path, **facts)
    with pytest.raises(ValueError, match=sentence):
        load(tmp_path)


def test_a_missing_bias_or_key_is_named(tmp_path):
    write_folder(model(), tmp_path)
    tensors = hub_tensors(model())
    del tensors["model.decoder.layers.1.fc2.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="'layers.1.fc2.bias' is missing"):
        load(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    del facts["ffn_dim"]
    (tmp_path / "config.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="has no value 'ffn_dim'"):
        load(tmp_path)


def test_unknown_artifact_architecture_is_named(tmp_path):
    qlab.save(model(), tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(path.read_text().replace('"opt"', '"oqt"'))
    with pytest.raises(ValueError, match="model_type 'oqt'; did you mean 'opt'"):
        load(tmp_path / "m")


# ---- as transformers has it (tests/golden/make_opt.py) --------------------------------------


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """The folder that the script wrote, its arrays and notes."""
    folder = tmp_path_factory.mktemp("opt") / "opt-tiny"
    folder.mkdir()
    with np.load(GOLDEN / "opt.npz") as file:
        arrays = {name: file[name] for name in file.files}
    for name, value in arrays.items():
        if "." in name:
            (folder / name).write_bytes(value.tobytes())
    return folder, arrays, json.loads(str(arrays["meta"]))


def test_logits_of_transformers(golden):
    folder, arrays, _ = golden
    ours = load(folder)
    found = np.asarray(ours(jnp.asarray(arrays["tokens"])))
    # float32 against float32 in another order of sums; measured 2e-6.
    assert np.abs(found - arrays["logits"]).max() < 2e-5 * arrays["logits"].std()
    assert found.shape[1] == ours.config.max_position_embeddings  # every position was used


def test_token_ids_of_transformers(golden):
    folder, _, notes = golden
    tokenizer = hub.read_tokenizer(folder)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (2, (2,))
    for text, ids in zip(notes["texts"], notes["ids"], strict=True):
        assert tokenizer.encode(text, special=True) == ids
        assert tokenizer.encode(text) == ids[1:]  # perplexity's windows have no begin of text
        assert tokenizer.decode(ids[1:]) == text


def test_pickled_shards(golden, tmp_path):
    folder = shutil.copytree(golden[0], tmp_path / "sharded")
    shard = "pytorch_model-00001-of-00001.bin"
    (folder / "pytorch_model.bin").rename(folder / shard)
    names = [f"model.decoder.{name}.weight" for name in ("embed_tokens", "embed_positions")]
    index = {"weight_map": dict.fromkeys(names, shard)}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert change(load(golden[0]), load(folder), time=20) == 0
    index["weight_map"]["model.decoder.more"] = shard
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="promises 'model.decoder.more', which no shard holds"):
        load(folder)


def test_the_tokenizer_survives_saving(golden, tmp_path):
    ours = load(golden[0])
    again = load(qlab.save(ours, tmp_path / "saved"))
    assert again.tokenizer.fingerprint == ours.tokenizer.fingerprint
    assert (again.tokenizer.bos_id, again.tokenizer.eos_ids) == (2, (2,))
    for text, ids in zip(golden[2]["texts"], golden[2]["ids"], strict=True):
        assert again.tokenizer.encode(text, special=True) == ids
    tokens = tokens_for(ours, 2, 20)
    np.testing.assert_array_equal(again(tokens), ours(tokens))


def test_a_tokenizer_without_merges_is_one_sentence(golden, tmp_path):
    (tmp_path / "vocab.json").write_bytes((golden[0] / "vocab.json").read_bytes())
    with pytest.raises(ValueError, match=r"merges.txt in .* are no BPE"):
        from_vocabulary(tmp_path)
    (tmp_path / "merges.txt").write_bytes((golden[0] / "merges.txt").read_bytes())
    plain = from_vocabulary(tmp_path)  # no settings: nothing is special, nothing is added
    assert plain.encode("the", special=True) == plain.encode("the")
    assert plain.bos_id is None and plain.token_id("</s>") == 2


def test_pickles_are_fetched_only_where_there_is_nothing_else(golden, tmp_path, monkeypatch):
    asked = []

    def snapshot(name, allow_patterns):
        asked.append("pytorch_model*.bin" in allow_patterns)
        return str(golden[0])

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert load("some-org/opt-tiny").config.model_type == "opt"
    assert asked == [False, True]
    write_folder(model(), tmp_path)
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, allow_patterns: str(tmp_path)
    )
    load("some-org/opt-tiny")
    assert "vocab.json" in hub.WANTED and "merges.txt" in hub.WANTED
