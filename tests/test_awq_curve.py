"""The curve that is looked at is AWQ's own: its losses, its choice, its grids."""

import inspect
import re

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("anywidget")

import qlab
from qlab.models.load import load
from qlab.plots.widget_awq_curve import draw_awq_curve, sentence
from qlab.widgets.awq_curve import awq_curve
from qlab.widgets.awq_curve_data import (
    CODE,
    RATIOS,
    AwqCurveState,
    awq_curve_data,
    groups,
    kept_in_float,
    loud,
    search,
    steps,
    tried,
)
from qlab.widgets.source import Source

LAYER, DOWN = "layers.1.self_attn.q_proj", "layers.2.mlp.down_proj"


@pytest.fixture(scope="module")
def source():
    return Source(load("tiny"))


@pytest.mark.parametrize("layer, bits, group", [(LAYER, 3, 64), (DOWN, 2, 128)])
def test_the_curve_is_the_librarys(source, layer, bits, group):
    w, stats = jnp.asarray(source.weight(layer)), source.stats(layer)
    spec = qlab.specs.awq(bits, group)
    found = search(source, layer, bits, group)
    q, facts = qlab.METHODS["awq"].with_facts(w, stats, spec, clip=False)
    assert found.ratios[found.best] == pytest.approx(float(facts["ratio"]))
    np.testing.assert_array_equal(found.scales[found.best], q.channel_scale)
    for place, made in ((found.best, q), (0, qlab.rtn(w, None, spec))):
        error = qlab.output_error(w, qlab.dequantize(made), stats)
        assert found.errors[place] == pytest.approx(float(error), rel=1e-4)
    assert found.errors[found.best] < found.errors[0]  # what the picture is about


def test_one_percent_kept_in_float(source):
    w, stats = source.weight(LAYER), source.stats(LAYER)
    rounded = np.asarray(qlab.dequantize(qlab.rtn(w, None, qlab.specs.awq(3, 64))))
    kept = kept_in_float(w, rounded, stats)
    restored = rounded.copy()
    salient = np.argsort(np.asarray(stats.mean_abs))[-3:]
    restored[:, salient] = w[:, salient]
    whole = float(jnp.vdot(w @ stats.hessian, w))
    error = float(qlab.output_error(jnp.asarray(w), jnp.asarray(restored), stats))
    assert np.sqrt(kept["activation"] / whole) == pytest.approx(error, rel=1e-3)
    # in this model large inputs meet large weights, so both choices find about the same channels
    assert max(kept["activation"], kept["weight norm"]) < 0.8 * kept["random"]


def test_steps_and_grids(source):
    """The steps are those of the quantized tensor divided by s, and the lines are its levels."""
    state = AwqCurveState(outliers=False, ratio=0.4, place=2, row=5)
    data = awq_curve_data(source, state)
    spec, w = qlab.specs.awq(3, 64), jnp.asarray(source.weight(LAYER))
    s = jnp.asarray(data.search.scales[data.ratio])
    before, after = (qlab.quantize(v, spec) for v in (w, w * s))
    np.testing.assert_array_equal(steps(source, LAYER, 3, 64, data.ratio), after.scale)
    j = data.channel
    ratio = after.scale[:, j // 64] / before.scale[:, j // 64] / s[j]
    assert data.finer[2] == pytest.approx(float(np.exp(np.log(ratio).mean())), rel=1e-4)
    for line, q, c in ((data.lines[0], before, 1.0), (data.lines[1], after, s[j])):
        assert line.weight * float(c) == pytest.approx(float(w[5, j] * c), rel=1e-5)
        assert line.rounded == pytest.approx(float(qlab.dequantize(q)[5, j] / c), rel=1e-4)
        assert np.isclose(line.levels, line.rounded, rtol=1e-4, atol=1e-7).any()
    assert (np.abs(data.finer[:3]) < 1).all() and data.finer[-1] > 1


def test_no_scaling_is_plain_rounding(source):
    data = awq_curve_data(source, AwqCurveState(ratio=0.0))
    np.testing.assert_allclose(data.finer, 1.0, rtol=1e-5)
    np.testing.assert_array_equal(data.lines[0].levels, data.lines[1].levels)
    assert sentence(data, "en").startswith("r = 0: no channel is scaled")


def test_outliers_make_the_inputs_louder(source):
    plain, made = source.stats(LAYER), loud(source).stats(LAYER)
    assert loud(source) is loud(source)
    assert float(made.mean_abs.max()) > 2 * float(plain.mean_abs.max())
    assert float(jnp.median(made.mean_abs)) == pytest.approx(
        float(jnp.median(plain.mean_abs)), 0.05
    )
    assert groups(source, LAYER) == (32, 64, 128)
    assert all(line in inspect.getsource(tried) for line in CODE)


def test_a_move_of_r_is_a_lookup(source):
    awq_curve_data(source, AwqCurveState(ratio=0.1))
    before = search.cache_info().misses
    for ratio in RATIOS:
        awq_curve_data(source, AwqCurveState(ratio=ratio, place=7, row=3))
    assert search.cache_info().misses == before


@pytest.mark.parametrize("state", [{}, {"bits": 8, "group": 128, "ratio": 0.95, "place": 255}])
@pytest.mark.parametrize("lang", ["en", "ko"])
def test_drawn(source, state, lang):
    picture = draw_awq_curve(awq_curve_data(source, AwqCurveState(**state)), lang)
    svg = picture.svg()
    assert "NaN" not in svg and "nan" not in svg and len(svg) < 60_000 and picture.label
    assert set(re.findall(r'data-pick="(\w+)"', svg)) == {"curve", "channels", "bars"}


def test_moved_by_hand(source):
    widget = awq_curve(source, outliers=False)
    widget.picked("curve", 0.5, 0.5, "")
    assert widget.state.ratio == 0.5 and "r = 0.50" in widget.view.svg
    widget.picked("curve", 0, 0, "ArrowRight")
    assert widget.state.ratio == 0.55
    widget.picked("channels", 0.999, 0.5, "")
    widget.picked("channels", 0, 0, "ArrowRight")
    assert widget.state.place == 255
    widget.picked("bars", 0.5, 0.5, "")
    best = awq_curve_data(source, widget.state).search.best
    assert widget.state.ratio == RATIOS[best]
    widget.controls["layer"].value = DOWN
    assert widget.controls["place"].max == 767 and widget.controls["row"].max == 255
    widget.controls["place"].value = 767
    widget.controls["layer"].value = LAYER
    assert widget.state.place == 255
