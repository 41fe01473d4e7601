"""The steps that are looked at are those of `qlab.hqq`, bit for bit; costs are what they say."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("anywidget")

import qlab
from qlab import specs
from qlab.methods.hqq import hqq_step
from qlab.models.load import load
from qlab.plots.widget_hqq_steps import draw_hqq_steps, group_at, percent, sentence
from qlab.widgets import hqq_steps
from qlab.widgets.hqq_steps_data import (
    CODE,
    ITERS,
    LAYER,
    HqqStepsState,
    group,
    hqq_steps_data,
    neighbour,
    search,
    sizes,
)
from qlab.widgets.source import Source

UP, DOWN = "layers.1.mlp.up_proj", "layers.2.mlp.down_proj"
V = "layers.3.self_attn.v_proj"


@pytest.fixture(scope="module")
def source():
    return Source(load("tiny"))


@pytest.mark.parametrize(
    "layer, bits, block, p, beta",
    [(LAYER, 2, 64, 0.7, 10.0), (LAYER, 3, 64, 0.7, 10.0), (LAYER, 3, 64, 0.7, 1000.0),
     (UP, 4, 128, 1.0, 100.0), (DOWN, 8, 32, 0.3, 10.0)],
)  # fmt: skip
def test_every_step_is_the_librarys(source, layer, bits, block, p, beta):
    """After k steps the picture shows what `hqq` returns with iters=k; the last is its result."""
    w, spec = jnp.asarray(source.weight(layer)), specs.hqq(bits, block)
    found, stack = search(source, layer, bits, block, p, beta)
    assert len(found.zeros) == ITERS + 1 and 2 < found.steps <= ITERS
    for k in (0, 1, found.steps - 1, ITERS):
        q = qlab.hqq(w, None, spec, p=p, beta=beta, iters=k)
        np.testing.assert_array_equal(stack.codes[k], q.codes)
        np.testing.assert_array_equal(stack.zero[k], q.zero)
        np.testing.assert_array_equal(stack.scale[k], q.scale)
    assert (found.zeros[found.steps :] == found.zeros[-1]).all()
    plain = qlab.rtn(w, None, spec)
    np.testing.assert_array_equal(stack.codes[0], plain.codes)
    whole = qlab.hqq(w, None, spec, p=p, beta=beta)  # without naming the steps
    np.testing.assert_array_equal(stack.codes[-1], whole.codes)
    one = group(source, layer, bits, block, p, beta, 5, 1)
    here = slice(block, 2 * block)
    np.testing.assert_array_equal(one.w_hat[-1], np.asarray(qlab.dequantize(whole))[5, here])
    np.testing.assert_array_equal(one.w, w[5, here])


@pytest.mark.parametrize("beta", [10.0, 1000.0])
def test_it_ends_where_the_mean_error_no_longer_falls(source, beta):
    w, spec = jnp.asarray(source.weight(LAYER)), specs.hqq(3, 64)
    ranges = qlab.fit(w, spec.replace(scale="float32", zero="float32"))
    blocks, zero, errors = w.reshape(256, 4, 64), ranges.zero, []
    take = jax.jit(hqq_step, static_argnames="format")
    while len(errors) < ITERS and (len(errors) < 2 or errors[-1] < min(errors[:-1])):
        error, zero = take(blocks, ranges.scale, zero, spec.format, p=0.7, beta=beta)
        errors.append(float(error))
    found, _ = search(source, LAYER, 3, 64, 0.7, beta)
    assert found.steps == len(errors) and found.rose == (errors[-1] >= min(errors[:-1]))
    assert found.rose == (beta == 10.0)


def test_the_costs_are_what_they_say(source):
    p, beta = 0.5, 1000.0
    w, stats = np.asarray(source.weight(UP), np.float64), source.stats(UP)
    found, _ = search(source, UP, 2, 64, p, beta)
    for k in (0, 4, ITERS):
        q = qlab.hqq(jnp.asarray(w, jnp.float32), None, specs.hqq(2, 64), p=p, beta=beta, iters=k)
        wrong = w - np.asarray(qlab.dequantize(q), np.float64)
        h = np.asarray(stats.hessian, np.float64)
        output = np.trace(wrong @ h @ wrong.T) / np.trace(w @ h @ w.T)
        sums = [(np.abs(wrong) ** p).sum(), (wrong**2).sum(), output]
        np.testing.assert_allclose(found.costs[k], sums, rtol=1e-4)
        kept = (np.abs(wrong) > beta ** (-1 / (2 - p))).mean()
        assert found.kept[k] == pytest.approx(kept, abs=1e-4)


@pytest.mark.parametrize("beta", [10.0, 1000.0])
def test_a_step_by_hand(source, beta):
    """z ← mean[q − (W − Wₑ)/s], and the threshold is where shrinking begins to keep."""
    data = hqq_steps_data(source, HqqStepsState(beta=beta, step=4))
    one, k = data.group, 4
    z = (one.codes[k] - (one.w - one.kept[k]) / one.scale).mean()
    assert z == pytest.approx(one.zeros[k + 1], abs=2e-3)  # stored in float16
    assert abs(one.zeros[k + 1] - one.zeros[k]) > 1e-3
    large = np.abs(one.w - one.w_hat[k]) > data.threshold
    np.testing.assert_array_equal(one.kept[k] != 0, large)
    assert large.any() == (beta == 1000.0)
    np.testing.assert_allclose(one.errors[k], (one.w - one.w_hat[k]) / one.scale)


def test_what_the_picture_claims(source):
    """With hqq's own β no error of a 3-bit layer is kept: z is a mean, and squares fall most."""
    end = hqq_steps_data(source, HqqStepsState(step=ITERS, beta=10.0))
    assert (end.found.kept == 0).all() and end.found.rose
    assert end.change[1] < 2 * end.change[0] < 0
    assert abs(end.moved[-1, end.index]) == np.abs(end.moved[-1]).max()
    first = hqq_steps_data(source, HqqStepsState(step=ITERS))  # the one it opens with
    assert abs(first.moved[-1, first.index]) == np.abs(first.moved[-1]).max()
    kept = hqq_steps_data(source, HqqStepsState(step=ITERS, beta=1000.0)).found.kept
    assert (kept > 0.5).all() and (kept < 1).all()
    worse = hqq_steps_data(source, HqqStepsState(layer=V, channel=0, step=ITERS, beta=10.0))
    assert worse.change[0] < 0 < worse.change[2]  # better weights, worse output: said so
    assert "the output error did not fall" in sentence(worse, "en")
    assert percent(float(worse.change[2])).startswith("+")


def test_the_sentence_says_what_happened(source):
    def said(**state):
        return sentence(hqq_steps_data(source, HqqStepsState(**state)), "en")

    assert "plain rounding" in said(step=0)
    data = hqq_steps_data(source, HqqStepsState(step=5))
    n = (data.group.codes[5] != data.group.codes[4]).sum()
    assert f"{n} of 64 weights" in said(step=5) and n > 0
    slow = {"step": ITERS, "beta": 10.0}  # the method's own
    data, last = hqq_steps_data(source, HqqStepsState(**slow)), said(**slow)
    assert f"ends with step {data.found.steps}:" in last and "no longer fell" in last
    assert "the output error fell" in last
    assert "no more are allowed" in said(step=ITERS, beta=1000.0)
    assert percent(-1e-9) == "0.0 %" and percent(0.01) == "+1.0 %"


def test_the_code_shown_is_the_code_run():
    assert len(CODE) == 2 and "shrink(" in CODE[0] and "ordered_mean(" in CODE[1]
    assert all(line in inspect.getsource(hqq_step) for line in CODE)


def test_the_first_view_has_errors_that_are_kept(source):
    data = hqq_steps_data(source, HqqStepsState())
    kept = data.group.kept[data.step] != 0
    assert 5 < kept.sum() < len(kept) - 5 and 0.05 < data.found.kept[data.step] < 0.5
    reds = [m for m in draw_hqq_steps(data).marks if getattr(m, "stroke", "") == "vermilion"]
    assert sum(len(m.points) for m in reds) > 5
    assert data.changed.any()


def test_a_move_is_a_lookup(source):
    hqq_steps_data(source, HqqStepsState(step=0))
    misses = search.cache_info().misses, group.cache_info().misses
    for step in range(ITERS + 1):
        hqq_steps_data(source, HqqStepsState(step=step))
    assert misses == (search.cache_info().misses, group.cache_info().misses)
    hqq_steps_data(source, HqqStepsState(channel=3, place=2))
    assert misses[0] == search.cache_info().misses
    with pytest.raises(ValueError, match=r"no group 4 in row 0: the layer is \(256, 256\)"):
        hqq_steps_data(source, HqqStepsState(channel=0, place=4))


@pytest.mark.parametrize(
    "state",
    [{}, {"bits": 2, "step": 0}, {"bits": 4, "beta": 1000.0, "step": ITERS},
     {"layer": DOWN, "bits": 8, "block": 16, "p": 0.3, "channel": 255, "place": 47, "step": 20}],
)  # fmt: skip
@pytest.mark.parametrize("lang", ["en", "ko"])
def test_drawn(source, state, lang):
    picture = draw_hqq_steps(hqq_steps_data(source, HqqStepsState(**state)), lang)
    svg = picture.svg()
    assert not re.search("nan|inf ", svg.lower()) and len(svg) < 100_000 and picture.label
    assert set(re.findall(r'data-pick="(\w+)"', svg)) == {"curves", "zeros"}
    points = np.concatenate([p for m in picture.marks for p in getattr(m, "points", [])])
    assert points.min() >= 0 and (points.max(0) <= (picture.width, picture.height)).all()


def test_moved_by_hand(source):
    widget = hqq_steps(source)
    widget.picked("curves", 0.5, 0.5, "")
    assert widget.state.step == 10 and "Step 10" in widget.view.svg
    widget.picked("curves", 0, 0, "ArrowRight")
    widget.picked("zeros", 0, 0, "ArrowLeft")
    widget.picked("zeros", 0, 0, "ArrowLeft")
    assert widget.state.step == 9 and (widget.state.channel, widget.state.place) == (146, 0)
    data = hqq_steps_data(source, widget.state)
    widget.picked("zeros", 1.0, 0.999, "")  # the lowest line at the last step
    lowest = int(data.moved[-1].argmin())
    assert widget.state.channel * 4 + widget.state.place == lowest == group_at(data, 1, ITERS)
    widget.picked("zeros", 0, 0, "ArrowDown")  # none is lower
    assert widget.state.channel * 4 + widget.state.place == lowest
    widget.picked("zeros", 0, 0, "ArrowUp")
    now = hqq_steps_data(source, widget.state)
    assert now.index == neighbour(now, 0) == np.argsort(now.moved[-1], kind="stable")[1]
    assert widget.state.step == ITERS


def test_controls_follow_the_layer(source):
    widget = hqq_steps(source, block=128, place=1, channel=255)
    widget.controls["layer"].value = DOWN
    assert widget.controls["place"].max == 768 // 128 - 1
    assert (widget.state.block, widget.state.place) == (128, 1)
    widget.controls["place"].value = 5
    widget.controls["layer"].value = LAYER
    assert widget.state.place == 1 and widget.state.channel == 255
    widget.controls["block"].value = 16
    assert widget.controls["place"].max == 15
    assert sizes(source, LAYER) == (16, 32, 64, 128) and len(widget.warm()) == 14
    assert widget.figure().get_label()
