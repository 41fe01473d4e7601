"""The steps that are looked at are GPTQ's own: same codes, W − Q = E U, loss = ‖E‖²."""

import dataclasses
import inspect
import re

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("anywidget")

import qlab
from qlab.models.load import load
from qlab.plots.widget_gptq_steps import draw_gptq_steps, sentence
from qlab.widgets.gptq_steps import gptq_steps
from qlab.widgets.gptq_steps_data import (
    CODE,
    TOY,
    GptqStepsState,
    advance,
    gptq_steps_data,
    lost,
    places,
    problem,
    steps,
)
from qlab.widgets.source import Source

Q_PROJ, DOWN = "layers.1.self_attn.q_proj", "layers.2.mlp.down_proj"
PIECES = [(TOY, 0), (Q_PROJ, 4), (Q_PROJ, 511), (DOWN, 58)]


@pytest.fixture(scope="module")
def source():
    return Source(load("tiny"))


def stats_of(h):
    """Stats of one token with this H; the other moments are not used."""
    one = jnp.ones((), jnp.float32)
    return dataclasses.replace(qlab.Stats.empty(len(h)), hessian=jnp.asarray(h), tokens=one)


@pytest.mark.parametrize("layer, place", PIECES)
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("damp", [0.0001, 0.01, 1.0])
def test_the_steps_are_the_librarys(source, layer, place, bits, act_order, damp):
    w, h = problem(source, layer, place)
    taken = steps(source, layer, place, bits, True, act_order, damp)
    spec = qlab.specs.gptq(bits, None, sym=False)
    q = qlab.gptq(jnp.asarray(w), stats_of(h), spec, damp=damp, act_order=act_order)
    expected = np.asarray(qlab.dequantize(q))
    np.testing.assert_array_equal(taken.q, expected[:, taken.order])
    np.testing.assert_array_equal(taken.after[-1], taken.q)
    np.testing.assert_allclose(taken.w - taken.q, taken.errors @ taken.u, atol=2e-6)
    ordered = h[taken.order][:, taken.order].astype(np.float64)
    damped = ordered + damp * h.diagonal().mean() * np.eye(len(h))
    delta = (taken.w - taken.q).astype(np.float64)
    squares = (taken.errors.astype(np.float64) ** 2).sum()
    assert np.trace(delta @ damped @ delta.T) == pytest.approx(squares, rel=1e-4)


@pytest.mark.parametrize("layer, place", PIECES)
def test_without_pushing_it_is_rounding(source, layer, place):
    w, _ = problem(source, layer, place)
    taken = steps(source, layer, place, 3, False, False, 0.01)
    spec = qlab.specs.gptq(3, None, sym=False)
    rounded = qlab.dequantize(qlab.rtn(jnp.asarray(w), None, spec))
    np.testing.assert_array_equal(taken.q, rounded)
    np.testing.assert_array_equal(taken.before[-1][:, -1], w[:, -1])  # never touched


def test_the_loss_is_the_output_error(source):
    w, h = problem(source, Q_PROJ, 4)
    taken = steps(source, Q_PROJ, 4, 3, True, True, 0.01)
    loss = lost(taken, w, h)
    assert loss.shape == (17,) and loss[0] == 0
    back = np.empty_like(w)
    back[:, taken.order] = taken.q
    error = qlab.output_error(jnp.asarray(w), jnp.asarray(back), stats_of(h))
    assert loss[-1] == pytest.approx(float(error) ** 2, rel=1e-4)


def test_a_piece_has_the_hessian_of_its_inputs(source):
    _, h = problem(source, Q_PROJ, 4)
    x = np.asarray(source.inputs[Q_PROJ]).reshape(-1, 256)[:, 64:80]
    np.testing.assert_allclose(h, x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    assert places(source, Q_PROJ) == 32 * 16 and places(source, TOY) == 1
    with pytest.raises(ValueError, match="did you mean"):
        problem(source, "layers.1.self_attn.q_pro", 0)


def test_every_step_pushes_what_the_code_says(source):
    data = gptq_steps_data(source, GptqStepsState(column=6, row=3))
    taken, j = data.steps, 6
    pushed = np.outer(taken.errors[:, j], taken.u[j])
    np.testing.assert_allclose(data.change[:, j + 1 :], -pushed[:, j + 1 :], atol=1e-7)
    assert not data.change[:, : j + 1].any()
    assert (taken.before[j + 1] == taken.after[j]).all()
    assert all(line in inspect.getsource(advance) for line in CODE)
    assert CODE[1].startswith("error =") and CODE[2].startswith("w[:, j + 1 :] -=")
    assert data.losses[True][-1] < data.losses[False][-1]


def test_each_move_is_one_lookup(source):
    gptq_steps_data(source, GptqStepsState(column=0))
    before = steps.cache_info().misses
    for column in range(16):
        gptq_steps_data(source, GptqStepsState(column=column, row=column % 8))
    assert steps.cache_info().misses == before


def test_the_sentence_names_what_the_frame_shows(source):
    ordered = gptq_steps_data(source, GptqStepsState(column=0, act_order=True))
    assert sentence(ordered, "en").startswith("Column 11, number 0 in the order, is rounded; its")
    plain = gptq_steps_data(source, GptqStepsState(column=6, push=False))
    assert sentence(plain, "en") == "Column 6 is rounded; nothing is pushed, its error stays."
    last = gptq_steps_data(source, GptqStepsState(column=15))
    assert "no other is left" in sentence(last, "en")
    assert "into the last." in sentence(gptq_steps_data(source, GptqStepsState(column=14)), "en")
    for column in range(16):
        data = gptq_steps_data(source, GptqStepsState(column=column))
        assert f"U[{column},{column}]" in sentence(data, "ko") or column == 15


@pytest.mark.parametrize("state", [{}, {"push": False, "column": 15}, {"bits": 8, "damp": 1.0}])
@pytest.mark.parametrize("lang", ["en", "ko"])
def test_drawn(source, state, lang):
    picture = draw_gptq_steps(gptq_steps_data(source, GptqStepsState(**state)), lang)
    svg = picture.svg()
    assert "NaN" not in svg and "nan" not in svg and len(svg) < 60_000
    assert re.search(r'data-pick="matrix"', svg) and picture.label


def test_moved_by_hand(source):
    widget = gptq_steps(source)
    widget.controls["column"].value = 6
    assert "Column 6 is rounded" in widget.view.svg
    widget.picked("matrix", 0.6, 0.3, "")
    assert (widget.state.column, widget.state.row) == (9, 2)
    widget.picked("matrix", 0, 0, "ArrowLeft")
    widget.picked("matrix", 0, 0, "ArrowDown")
    assert (widget.state.column, widget.state.row) == (8, 3)
    widget._move(-9)
    assert widget.state.column == 0
    widget.controls["layer"].value = Q_PROJ
    assert widget.controls["place"].max == 511
    widget.controls["place"].value = 511
    widget.controls["layer"].value = TOY
    assert widget.state.place == 0
    assert widget.figure().get_label()
