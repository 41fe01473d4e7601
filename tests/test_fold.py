"""Scaling channels inside quantize_model: the function stays, scales are shared, what quantizes
inputs travels with the model, and recipes name methods by path."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qlab
from qlab.activations import ACTS, Act
from qlab.methods import METHODS
from qlab.models.judge import quantize_layer
from qlab.models.quantize import quantize_model
from qlab.models.surgery import get, linears, map_linears
from qlab.models.transformer import Linear
from qlab.qtensor import QTensor, dequantize
from qlab.specs import SPECS
from tests.models_for_tests import CONFIG, OPT_CONFIG, random_model, tokens_for, with_biases

# Llama with shared heads, the same with biases, as many keys as queries, OPT with its biases.
MODELS = {
    "llama": random_model(),
    "llama with biases": with_biases(random_model()),
    "llama without sharing": random_model(dataclasses.replace(CONFIG, num_key_value_heads=4)),
    "opt": random_model(OPT_CONFIG),
}
TOKENS = np.asarray(tokens_for(MODELS["llama"], batch=10, time=24))


def run(name, method, spec="int3_g64", batches=TOKENS, **settings):
    return quantize_model(MODELS[name], method, spec, batches, progress=False, **settings)


def change(a, b) -> float:
    """The largest difference of logits, in standard deviations of them."""
    tokens = tokens_for(a, 2, 16, seed=5)
    x, y = np.asarray(a(tokens)), np.asarray(b(tokens))
    return float(np.abs(x - y).max() / x.std())


@pytest.mark.parametrize("name", MODELS)
def test_the_folded_float_model_is_the_same_function(name):
    """All linears but one stay float, so nearly all that changed is folding: undo the one."""
    kept, moved = {}, []

    def note(w, stats, spec, **_):
        kept["w"] = w
        return qlab.quantize(w, spec), {}

    method = lambda w, stats, spec: qlab.rtn(w, stats, spec)  # noqa: E731
    for key in ("supports", "propagate", "with_facts"):
        setattr(method, key, getattr(METHODS["awq"], key))
    method.fold = METHODS["awq"].fold._replace(finish=note)
    for path in linears(MODELS[name]):
        q = run(name, {path: method}, batches=TOKENS)
        undone = map_linears(
            q, lambda p, x, path=path: Linear(kept["w"], x.bias) if p == path else x
        )
        assert change(MODELS[name], undone) < 1e-5, path
        moved.append(any(not np.array_equal(a, b) for a, b in arrays(MODELS[name], undone)))
    assert sum(moved) > len(moved) / 2  # the others keep s = 1


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("alpha", [0.5, "search"])
def test_smoothing_leaves_the_float_model_as_it_was(name, alpha):
    """Every linear as it is just before rounding: columns, gains and biases of norms have moved,
    by factors of up to 20 and more, and the function has not."""
    from qlab.models import with_outliers

    loud, kept = with_outliers(MODELS[name], gain=20.0, share=0.05), []

    def note(w, stats, spec, **_):
        kept.append(w)
        return qlab.quantize(w, spec), {}

    method = lambda w, stats, spec, *, alpha: qlab.rtn(w, stats, spec)  # noqa: E731
    for key in ("supports", "propagate", "with_facts"):
        setattr(method, key, getattr(METHODS["smoothquant"], key))
    method.fold = METHODS["smoothquant"].fold._replace(finish=note)
    q = quantize_model(loud, method, "int8_tensor", TOKENS, alpha=alpha, progress=False)
    found = dict(zip(linears(loud), kept, strict=True))
    for path, layer in linears(q).items():  # the order is the model's
        again = qlab.quantize(found[path], layer.weight.spec)
        np.testing.assert_array_equal(again.codes, layer.weight.codes)
    undone = map_linears(q, lambda path, x: Linear(found[path], x.bias))
    assert change(loud, undone) < 1e-5
    for block, smoothed in zip(loud.layers, undone.layers):
        for feed in block.FEEDS:
            old, new = get(block, feed.feeder), get(smoothed, feed.feeder)
            if isinstance(old, Linear):  # fed by no norm: as it was
                for path in feed.consumers:
                    np.testing.assert_array_equal(
                        get(smoothed, path).weight, get(block, path).weight
                    )
                continue
            ratio = np.asarray(old.weight / new.weight)
            assert ratio.max() > 10 * np.median(ratio)
            if hasattr(old, "bias"):
                np.testing.assert_allclose(new.bias * ratio, old.bias, rtol=1e-5, atol=1e-7)
                assert name != "opt" or np.abs(np.asarray(old.bias)).max() > 0


def arrays(a, b):
    return zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("objective", ["linear", "block"])
def test_the_scales_of_linears_that_read_the_same_input_are_one(name, objective):
    q = run(name, "awq", objective=objective)
    for row, path in zip(q.report.layers, linears(q), strict=True):
        assert row.path == path
        assert row.scaled is not None and 0 <= row.scaled[0] < 1
        weight = linears(q)[path].weight
        assert isinstance(weight, QTensor) and weight.channel_scale is None
    said = {row.path: row.scaled for row in q.report.layers}
    for stage in MODELS[name].layers[1].STAGES:
        assert len({said[f"layers.1.{path}"] for path in stage}) == 1
    assert "input channels of 1" in str(q.report) and "folded into" in str(q.report)
    assert np.isfinite(np.asarray(q(tokens_for(q)))).all()


def test_awq_beats_rtn_where_channels_stand_out():
    """On a model with outliers, on inputs that no method saw."""
    from qlab.models import with_outliers

    loud = with_outliers(MODELS["llama"], gain=20.0, share=0.05)
    batches = np.asarray(tokens_for(loud, batch=32, time=64))
    q = quantize_model(loud, "awq", "int4_g32", batches, progress=False)
    for row in q.report.layers:
        if "o_proj" not in row.path and "down_proj" not in row.path:
            assert row.held_out_loss < 0.9 * row.held_out_rtn_loss, row.path


def test_a_quantizer_by_name_and_its_own_propagation():
    q = run("llama", "awq", quantizer="gptq")
    assert q.report.method == "awq + gptq" and q.label.provenance["propagate"] == "quantized"
    assert q.label.provenance["hyper"]["quantizer"] == "gptq"
    alone = [row.unscaled_loss for row in q.report.layers]
    assert None not in alone
    worse = [r for r in q.report.layers if r.held_out_loss > r.unscaled_loss * 1.001]
    assert len([w for w in q.report.warnings if "without scaling" in w]) == len(worse)
    same = run("llama", "awq", quantizer=qlab.gptq)
    for a, b in arrays(q, same):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="'gpqt' is unknown: did you mean 'gptq'"):
        run("llama", "awq", quantizer="gpqt")


def test_stats_given_do_as_well_as_text():
    stats = qlab.calibrate(MODELS["llama"], TOKENS)
    q = quantize_model(MODELS["llama"], "awq", "int3_g64", stats=stats, progress=False)
    text = run("llama", "awq", held_out=0)
    for a, b in arrays(q, text):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)
    with pytest.raises(ValueError, match="objective='block' runs the blocks on text"):
        quantize_model(
            MODELS["llama"], "awq", "int3_g64", stats=stats, progress=False, objective="block"
        )


def test_the_block_objective_is_the_block():
    """The losses are those of the attention's own output, computed once more by hand."""
    from qlab.models.fold import _whole_losses

    model = MODELS["llama"]
    block, x = model.layers[0], model.embed(jnp.asarray(TOKENS))
    mask = jnp.ones(x.shape[:2], bool).at[:, 20:].set(False)
    takers = block.STAGES[0]
    scales = jnp.exp(0.3 * jax.random.normal(jax.random.key(0), (3, 64)))
    spec = SPECS["int3_g64"]
    found = _whole_losses(block, x, mask, scales, "self_attn", takers, (spec,) * 3)
    normed = block.input_layernorm(x)
    y = block.self_attn(normed, jnp.int32(0), None)[0]
    for loss, s in zip(found, scales, strict=True):
        other = jax.tree.map(lambda leaf: leaf, block.self_attn)
        for path in takers:
            w = get(block, path).weight
            setattr(other, path.split(".")[1], Linear(dequantize(qlab.quantize(w * s, spec)) / s))
        by_hand = ((other(normed, jnp.int32(0), None)[0] - y)[:, :20] ** 2).sum()
        np.testing.assert_allclose(loss, by_hand, rtol=1e-4)


# ---- recipes -------------------------------------------------------------------------------------


def test_methods_by_path():
    q = run("llama", {"*.down_proj": "gptq", "layers.0.*": "awq", "*.up_proj": "rtn"})
    assert q.report.method == "awq, gptq, rtn"
    given = {row.path: row for row in q.report.layers}
    assert "layers.1.self_attn.q_proj" in q.report.float_layers
    assert given["layers.0.mlp.down_proj"].damp is not None  # gptq, though its input was scaled
    assert given["layers.1.mlp.up_proj"].damp is None
    assert q.label.provenance["propagate"] == "quantized"


def test_settings_go_to_the_methods_that_have_them():
    q = run("llama", {"*.down_proj": "gptq", "*": "awq"}, damp=0.5, n_grid=3)
    rows = {row.path: row for row in q.report.layers}
    assert rows["layers.0.mlp.down_proj"].damp == pytest.approx(0.5)
    with pytest.raises(ValueError, match="takes no 'n_gird': did you mean 'n_grid'"):
        run("llama", {"*.down_proj": "gptq", "*": "awq"}, n_gird=3)
    with pytest.raises(ValueError, match="no linear matches '\\*.dwon_proj'"):
        run("llama", {"*.dwon_proj": "gptq"})


def test_objectives_that_do_not_exist_or_say_nothing():
    with pytest.raises(ValueError, match="did you mean 'block'"):
        run("llama", "awq", objective="blok")
    with pytest.raises(ValueError, match="searches no scales"):
        run("llama", "gptq", objective="block")


# ---- inputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", ACTS)
def test_inputs_are_quantized_when_the_model_runs(act, tmp_path):
    q = run("opt", "rtn", "int8_channel", act=act)
    found = {path: layer.act for path, layer in linears(q).items()}
    assert all(isinstance(one, Act) for one in found.values())
    static = ACTS[act].static
    assert all((one.ranges is not None) == static for one in found.values())
    assert any(act in note for note in q.report.notes)
    plain = run("opt", "rtn", "int8_channel")
    assert 1e-6 < change(plain, q) < 2
    qlab.save(q, tmp_path / "q")
    again = qlab.load(str(tmp_path / "q"))
    tokens = tokens_for(q)
    np.testing.assert_array_equal(again(tokens), q(tokens))
    assert q.label.provenance["act"] == [act]


def test_static_ranges_need_text():
    with pytest.raises(ValueError, match="static ranges"):
        run("llama", "rtn", "int8_channel", batches=None, act="int8_static")
    with pytest.raises(ValueError, match="did you mean 'int8_token'"):
        run("llama", "rtn", "int8_channel", act="int8_tokn")


def test_inputs_by_path():
    q = run("llama", "rtn", "int8_channel", act={"*.down_proj": None, "*": "int8_token"})
    found = {path: layer.act is None for path, layer in linears(q).items()}
    assert {path for path, none in found.items() if none} == {
        "layers.0.mlp.down_proj",
        "layers.1.mlp.down_proj",
    }


# ---- a run that is killed ------------------------------------------------------------------------


def test_a_resumed_run_has_the_same_norms_and_ranges(tmp_path, monkeypatch):
    settings = {"act": "int8_static", "cache": tmp_path / "run"}
    whole = run("opt", "awq", "int8_channel", act="int8_static")
    with monkeypatch.context() as patch:

        def stop(path, *rest):
            if path == "layers.1.fc1":
                raise KeyboardInterrupt
            return quantize_layer(path, *rest)

        patch.setattr("qlab.models.quantize.quantize_layer", stop)
        with pytest.raises(KeyboardInterrupt):
            run("opt", "awq", "int8_channel", **settings)
    assert (tmp_path / "run" / "block-0000.json").exists()
    for again in (run("opt", "awq", "int8_channel", **settings) for _ in range(2)):
        for a, b in arrays(whole, again):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match="holds another run"):
        run("opt", "awq", "int8_channel", cache=tmp_path / "run", act="int8_token")
