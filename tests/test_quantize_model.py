"""quantize_model: which linear gets which Spec, what the report says, and every refusal."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qlab
from qlab.formats import INT4, UINT4
from qlab.methods import rtn
from qlab.models.calibrate import calibrate
from qlab.models.provenance import code_hash
from qlab.models.quantize import quantize_model
from qlab.models.report import Report
from qlab.models.surgery import linears, map_linears
from qlab.models.transformer import Linear
from qlab.qtensor import QTensor, Spec, dequantize, quantize
from qlab.rules import absmax_full
from qlab.specs import SPECS, name_of
from qlab.stats import Stats, output_error
from tests.models_for_tests import random_model, tokens_for, with_biases

MODEL = random_model()


def run(spec, model=MODEL, method="rtn", **settings):
    return quantize_model(model, method, spec, progress=False, **settings)


def kinds(model) -> dict[str, str]:
    found = {}
    for path, layer in linears(model).items():
        q = isinstance(layer.weight, QTensor)
        found[path] = name_of(layer.weight.spec) if q else "float"
    return found


def test_every_linear_is_rounded_and_nothing_else_moves():
    q = run("int4_g64")
    for path, layer in linears(q).items():
        expected = quantize(linears(MODEL)[path].weight, SPECS["int4_g64"])
        np.testing.assert_array_equal(layer.weight.codes, expected.codes)
        np.testing.assert_array_equal(layer.weight.scale, expected.scale)
    np.testing.assert_array_equal(q.embed_tokens.weight, MODEL.embed_tokens.weight)
    assert set(kinds(MODEL).values()) == {"float"}  # the old model is untouched
    assert q(tokens_for(q)).shape == (2, 24, 320)


def test_biases_stay():
    model = with_biases(MODEL)
    for path, layer in linears(run("int4_g64", model)).items():
        np.testing.assert_array_equal(layer.bias, linears(model)[path].bias)


def test_rules():
    by_glob = kinds(run({"*.down_proj": "int8_channel", "layers.0.*": SPECS["int4_g32"]}))
    assert by_glob["layers.0.mlp.down_proj"] == "int8_channel"  # the first match decides
    assert by_glob["layers.0.mlp.up_proj"] == "int4_g32"
    assert by_glob["layers.1.mlp.up_proj"] == "float"  # no match: left float, and said
    by_function = kinds(run(lambda path: "int4_g64" if "q_proj" in path else None))
    assert {path for path, kind in by_function.items() if kind != "float"} == {
        "layers.0.self_attn.q_proj",
        "layers.1.self_attn.q_proj",
    }
    skipped = run("int4_g64", skip=["*.o_proj", "layers.1.mlp.*"])
    assert skipped.report.float_layers == (
        "layers.0.self_attn.o_proj",
        "layers.1.self_attn.o_proj",
        "layers.1.mlp.gate_proj",
        "layers.1.mlp.up_proj",
        "layers.1.mlp.down_proj",
    )


def test_report_numbers():
    report = run("int4_g64").report
    assert [row.path for row in report.layers] == list(linears(MODEL))
    row = report.layers[3]
    w = np.asarray(linears(MODEL)[row.path].weight, np.float64)
    w_hat = np.asarray(dequantize(quantize(jnp.asarray(w, jnp.float32), SPECS["int4_g64"])))
    assert row.shape == w.shape == (64, 64)
    assert row.error == pytest.approx(np.linalg.norm(w - w_hat) / np.linalg.norm(w), rel=1e-4)
    assert row.max_error == pytest.approx(np.abs(w - w_hat).max(), rel=1e-4)
    assert row.bits_per_weight == report.bits_per_weight == 4.25
    assert row.clipped == 0 and row.loss is None and row.notes == ()
    assert report.method == "rtn" and report.spec == "int4_g64" and report.model == "random"


def test_report_shows_itself_and_survives_json():
    report = run({"*.down_proj": "int8_channel", "*": "int4_g64"}, skip=["*.k_proj"]).report
    text = str(report)
    assert "2 specs" in text and "down_proj" in text and "int8_channel" in text
    assert "2 linears stay float" in text and "embedding and head are not quantized" in text
    assert "random weights" in text  # the model's own notes
    assert "<table>" in report._repr_html_() and "layers.1.mlp.up_proj" in report._repr_html_()
    assert Report.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_provenance_says_how_to_do_it_again():
    q = run("int4_g64")
    assert q.name == "random rtn int4_g64"
    p = q.label.provenance
    assert p["method"] == "rtn" and p["spec"] == ["int4_g64"] and p["model"]["name"] == "random"
    assert p["versions"]["jax"] == jax.__version__
    assert q.notes == MODEL.notes and q.tokenizer is MODEL.tokenizer


def test_clipped_weights_are_counted():
    """Ranges fitted to halved weights leave the large ones outside."""

    def narrow(w, stats, spec):
        return quantize(w, quantize(w / 2, spec))

    share = run("int4_g64", method=narrow).report.layers[0].clipped
    w = np.asarray(linears(MODEL)["layers.0.self_attn.q_proj"].weight)
    step = np.abs(w).max(1, keepdims=True) / 2 / 7  # the grid goes from −8 to 7 steps
    assert share == pytest.approx(((w > 7.5 * step) | (w < -8.5 * step)).mean(), abs=1e-3)
    assert share > 0.02
    # max / 8 puts a positive extreme a whole step beyond 7; a negative scale turns the range round.
    full = run(Spec(INT4, 64, rule=absmax_full)).report
    assert 0 < full.layers[0].clipped < 0.02
    assert run("q4_0").report.layers[0].clipped < 0.01


def test_oddities_are_noted():
    def change(path, layer):
        w = layer.weight.at[:, 3].set(0.0).at[5].set(0.25).at[6].set(0.0)
        return Linear(w if path.endswith("0.mlp.up_proj") else layer.weight)

    q = run("int4_g64", map_linears(MODEL, change))
    (noted,) = [row for row in q.report.layers if row.notes]
    assert noted.path == "layers.0.mlp.up_proj"
    # Row 5 is constant, row 6 zero; so column 3 is zero but for row 5.
    assert "2 rows are constant" in noted.notes
    assert "2 rows are constant" in str(q.report)


def test_stats_give_a_loss():
    path = "layers.0.self_attn.q_proj"
    x = jax.random.normal(jax.random.key(0), (200, 64)) * jnp.linspace(0.1, 3, 64)
    stats = Stats.from_inputs(x)
    q = run("int4_g64", stats={path: stats})
    row = q.report.layers[0]
    w = linears(MODEL)[path].weight
    expected = output_error(w, dequantize(linears(q)[path].weight), stats)
    assert row.loss == pytest.approx(float(expected), rel=1e-5)
    assert q.report.layers[1].loss is None


def test_floored_importances_are_told():
    """Dead channels, by a norm's gain of zero: counted for every layer that reads them, and in
    sum."""
    gain = MODEL.layers[0].input_layernorm.weight
    state = jax.tree.map(lambda x: x, MODEL)
    state.layers[0].input_layernorm.weight = gain.at[jnp.array([3, 40])].set(0.0)
    stats = calibrate(state, tokens_for(state))
    q = run("q4_0", state, "kquants", stats=stats)
    found = {row.path: (row.floored, row.dead) for row in q.report.layers}
    for name, expected in (("q_proj", (2, 2)), ("v_proj", (2, 2)), ("o_proj", (0, 0))):
        assert found[f"layers.0.self_attn.{name}"] == expected
    said = str(q.report)
    assert "the importance of 6 columns in 3 linears was below 10⁻⁶ of the mean" in said
    assert "layers.0.self_attn.q_proj 2 of 64" in said
    assert "floored" in said and '<th scope="col">floored</th>' in q.report._repr_html_()
    assert Report.from_dict(json.loads(json.dumps(q.report.to_dict()))) == q.report
    rounded = run("q8_0", state, "kquants", stats=stats).report  # nothing is weighed there
    assert rounded.layers[0].floored is None and "importance" not in str(rounded)
    assert run("q4_0", state, "kquants").report.layers[0].floored is None  # nor without a text


def test_own_method_and_hyper_parameters():
    seen = []

    def shrink(w, stats, spec, *, by):
        seen.append(by)
        return rtn(w * by, stats, spec)

    q = run("int4_g64", method=shrink, by=0.5)
    assert seen == [0.5] * 14 and q.label.provenance["hyper"] == {"by": "0.5"}
    assert q.report.method == "shrink" and q.report.layers[0].error > 0.4


def test_quantized_models_are_quantized_again():
    eight = run("int8_channel")
    four = run("int4_g64", eight)
    w = dequantize(linears(eight)["layers.0.mlp.up_proj"].weight)
    expected = quantize(w, SPECS["int4_g64"]).codes
    np.testing.assert_array_equal(linears(four)["layers.0.mlp.up_proj"].weight.codes, expected)


def refuse(spec, sentence, error=ValueError, **settings):
    with pytest.raises(error, match=sentence):
        run(spec, **settings)


def test_block_that_does_not_divide_names_layer_numbers_and_the_way_out():
    refuse("int4_g128", r"q_proj has 64 inputs, no multiple of block 128: skip=\['\*.q_proj'\]")
    only_down = {"*.down_proj": "int4_g128", "*": "int4_g64"}
    assert kinds(run(only_down))["layers.0.mlp.down_proj"] == "int4_g128"


def test_one_linear_is_no_linears():
    report = run({"layers.0.mlp.up_proj": "int4_g64"}).report
    assert " 1 linear at 4.25 bits" in str(report)
    assert "<summary>1 layer</summary>" in report._repr_html_()
    first = run({"layers.0.mlp.up_proj": "int4_g64"})
    both = run({"layers.0.mlp.gate_proj": "int4_g64"}, model=first).report
    assert "1 linear keeps the codes it came with: layers.0.mlp.up_proj" in both.notes


def test_unknown_names_suggest_the_nearest():
    refuse("int4_g46", "no Spec is called 'int4_g46': did you mean 'int4_g64'")
    refuse("int4_g64", "'rnt' is unknown: did you mean 'rtn'", method="rnt")
    refuse("int4_g64", "no linear matches 'layers.0.mlp.dwn_proj'", skip=["layers.0.mlp.dwn_proj"])
    refuse({"*.kproj": "int4_g64"}, "no linear matches '.*kproj'")
    refuse(lambda path: 4, "a Spec, a name in SPECS or None is needed, not 4")


def test_nan_and_inf_name_the_layer():
    def poison(path, layer):
        bad = path == "layers.1.mlp.gate_proj"
        return Linear(layer.weight.at[2, 2].set(jnp.nan) if bad else layer.weight)

    refuse("int4_g64", r"layers.1.mlp.gate_proj: .*1 NaN", model=map_linears(MODEL, poison))


def test_unsupported_pairs_name_both():
    def only_signed(w, stats, spec):
        return rtn(w, stats, spec)

    only_signed.supports = lambda spec: spec.format is not UINT4
    refuse("uint4_g64", "'only_signed' cannot fill spec 'uint4_g64'", method=only_signed)
    assert run("int4_g64", method=only_signed).report.method == "only_signed"


def test_a_method_of_ones_own_is_checked():
    refuse("int4_g64", "not a QTensor", method=lambda w, stats, spec: w)
    refuse("int4_g64", "shape", method=lambda w, stats, spec: rtn(w[:-1], stats, spec))

    def broken(w, stats, spec):
        q = rtn(w, stats, spec)
        return q.replace(scale=q.scale.at[0].set(jnp.nan))

    refuse("int4_g64", r"returned NaN or Inf in \d+ weights", method=broken)


def test_a_method_that_changes_the_spec_is_reported():
    def other(w, stats, spec):
        return rtn(w, stats, dataclasses.replace(spec, block=32))

    notes = run("int4_g64", method=other).report.layers[0].notes
    assert notes == ("the method used int4_g32, not int4_g64",)


# ---- a folder of finished blocks and a method of one's own ---------------------------------------


def times(by):
    return lambda w, stats, spec: rtn(w * by, stats, spec)


def edited(source):
    """A function as a notebook cell makes it: no file holds its source."""
    place = {"rtn": rtn, "by": 0.5}
    exec(source, place)
    return place["cell"]


class Times:
    def __init__(self, by):
        self.by = by

    def __call__(self, w, stats, spec):
        return rtn(w * self.by, stats, spec)


def scaled(w, stats, spec, *, by):
    return rtn(w * jnp.mean(jnp.asarray(by)), stats, spec)


CELL = "def cell(w, stats, spec):\n    return rtn(w * {}, stats, spec)"


@pytest.mark.parametrize(
    ("old", "same", "new"),
    [
        (edited(CELL.format(0.5)), edited(CELL.format(0.5)), edited(CELL.format(0.25))),
        (edited(CELL.format("by")), edited(CELL.format("by")), edited(CELL.format("0.5"))),
        (times(0.5), times(0.5), times(0.25)),
        (times(np.ones(1)), times(np.ones(1)), times(np.zeros(1))),
        (partial(scaled, by=0.5), partial(scaled, by=0.5), partial(scaled, by=0.25)),
        (Times(0.5), Times(0.5), Times(0.25)),
        (jax.tree_util.Partial(times(0.5)), times(0.5), jax.tree_util.Partial(times(0.25))),
    ],
    ids=["cell", "global", "closure", "array", "partial", "object", "jax"],
)
def test_a_method_that_changed_is_not_taken_for_the_old_one(old, same, new):
    if type(old) is type(same):
        assert code_hash(old) == code_hash(same)
    assert code_hash(old) != code_hash(new)


def test_changed_arrays_and_methods_do_not_get_the_old_result(tmp_path):
    a = np.ones(5000, np.float32)
    b = a.copy()
    b[2500] = 2  # repr leaves the middle out
    run("int4_g64", method=scaled, by=a, cache=tmp_path / "array")
    run("int4_g64", method=scaled, by=a.copy(), cache=tmp_path / "array")
    refuse("int4_g64", "another run: hyper", method=scaled, by=b, cache=tmp_path / "array")
    run("int4_g64", method=times(0.5), cache=tmp_path / "closure")
    refuse("int4_g64", "another run: code", method=times(0.2), cache=tmp_path / "closure")
    hidden = times(np.random.default_rng(0))
    refuse(
        "int4_g64", "cannot tell whether method '<lambda>' changed", method=hidden, cache=tmp_path
    )


@pytest.mark.parametrize("call", [
    lambda: qlab.quantize_kv("tiny", "kivi2"),
    lambda: qlab.with_kernels("tiny"),
    lambda: qlab.quantize_model("tiny", "rtn", "int4_g64"),
    lambda: qlab.qat("tiny", "int4_g64", "english"),
    lambda: qlab.evaluate("tiny"),
    lambda: qlab.calibrate("tiny", "english"),
    lambda: qlab.calibration_batches("tiny"),
    lambda: qlab.imatrix("tiny", "english"),
    lambda: qlab.generate("tiny", "the"),
    lambda: qlab.save("tiny", "folder"),
    lambda: qlab.models.convert("tiny"),
])  # fmt: skip
def test_a_name_is_no_model(call):
    with pytest.raises(ValueError, match=r"='tiny' is a name: qlab.load\('tiny'\) gives the model"):
        call()


def test_a_model_rounded_twice_says_so():
    once = quantize_model(MODEL, "rtn", "int8_channel", progress=False)
    twice = quantize_model(once, "rtn", "int4_channel", progress=False)
    assert "came quantized (int8_channel) and were rounded again" in str(twice.report)
    assert "came quantized" not in str(once.report)
