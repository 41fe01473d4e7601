"""What is looked at is SmoothQuant's own: the error of its integer product, its scales, its codes;
and the picture's claims hold on the layer that it opens with."""

import inspect
import re

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("anywidget")

import qlab
from qlab.activations import ACTS, act_matmul, quantized_inputs
from qlab.data import texts
from qlab.methods.smoothquant import LEVELS, smoothquant_scales
from qlab.models.load import load
from qlab.observers import static
from qlab.plots.widget_smoothquant import GRANULARITY, draw_smoothquant, place_of, sentence
from qlab.widgets import smoothquant
from qlab.widgets.awq_curve_data import loud
from qlab.widgets.smoothquant_data import (
    CHOICES,
    CODE,
    LAYER,
    SmoothQuantState,
    codes,
    held,
    product,
    search,
    smoothquant_data,
)
from qlab.widgets.source import Source

DOWN = "layers.2.mlp.down_proj"


@pytest.fixture(scope="module")
def source():
    return Source(load("tiny"))


def error(y_hat, y):
    return float(np.sqrt(np.sum((y_hat - y) ** 2) / np.sum(y**2)))


@pytest.mark.parametrize("level", list(LEVELS))
def test_the_curve_is_the_librarys(source, level):
    """Every step by hand, without `smoothquant`: scale, round, divide, multiply integers."""
    made = loud(source)
    w, stats, x = jnp.asarray(made.weight(LAYER)), made.stats(LAYER), held(made)[LAYER]
    y = np.asarray(x, np.float64) @ np.asarray(w, np.float64).T
    weights, name = LEVELS[level]
    found = search(made, LAYER)
    for place in (0, 10, 17):
        s = smoothquant_scales(stats.amax, w, CHOICES[place])
        np.testing.assert_array_equal(found.scales[place], s)
        act = ACTS[name]
        if level == "O3":
            act = act.with_ranges(static(stats.divided(s), act.spec))
        y_hat = act_matmul(x / s, qlab.rtn(w * s, None, qlab.SPECS[weights]), act)
        assert found.errors[level][place] == pytest.approx(error(y_hat, y), rel=2e-3)
    act = act.with_ranges(static(stats, act.spec)) if level == "O3" else act
    y_hat = act_matmul(x, qlab.rtn(w, None, qlab.SPECS[weights]), act)
    assert found.plain[level] == pytest.approx(error(y_hat, y), rel=1e-3)


def test_the_sample_is_held(source):
    """Nothing that the error is measured on was seen by scales or ranges."""
    a, b = np.asarray(held(source)[LAYER]), np.asarray(source.inputs[LAYER])
    assert a.shape == (2, 128, 256) and not np.allclose(a[0], b[0])
    text = texts("english", "calibration")
    assert texts("english", "evaluation")[:200] not in text


def test_what_the_picture_claims(source):
    """Outliers: no granularity helps much, smoothing does, as LLM.int8() does."""
    found = search(loud(source), LAYER)
    assert found.plain["O1"] < found.plain["O2"] < found.plain["O3"]
    for level in LEVELS:
        assert found.errors[level].min() < found.plain[level] / 5
        assert 0.2 < found.alphas[found.errors[level].argmin()] < 0.8
    assert found.mixed < found.plain["O1"] / 4 and 0 < found.kept < 10
    quiet = search(source, LAYER)
    assert quiet.plain["O3"] < 0.02 < quiet.errors["O3"].max()
    # the construction multiplied inputs and divided weights: smoothing takes exactly that back
    np.testing.assert_allclose(quiet.errors["O2"], found.errors["O2"], rtol=0.02)


@pytest.mark.parametrize("level", list(LEVELS))
def test_codes_are_what_is_multiplied(source, level):
    made = loud(source)
    x, stats = held(made)[LAYER], made.stats(LAYER)
    act = ACTS[LEVELS[level][1]]
    act = act.with_ranges(static(stats, act.spec)) if level == "O3" else act
    found = codes(made, LAYER, level, None)
    assert found.min() >= -127 and found.max() <= 127
    assert np.abs(found).max() == 127 or level == "O3"
    stood = np.asarray(quantized_inputs(x[1], act))
    for row, values in zip(found[128:][:5], stood):
        used = row != 0
        step = values[used] / row[used]
        assert used.any() and (step > 0).all() and np.ptp(step) < 1e-5 * step.mean()
        assert (values[~used] == 0).all()


def test_more_levels_are_reached(source):
    data = smoothquant_data(source, SmoothQuantState())
    before, after = data.grids
    x = np.abs(np.asarray(held(loud(source))[LAYER]))
    step = x.max((1, 2), keepdims=True) / 127
    reach = np.median(2 * np.round(x / step).max((0, 1)) + 1)
    assert before.median == reach and after.median > 10 * before.median
    assert f"channel {data.channel} " in sentence(data, "en") and data.channel == 130
    assert np.abs(before.codes).max() == 127 == abs(before.codes[130])  # the token it opens with
    assert abs(after.codes[130]) < 64


def test_the_code_shown_is_the_code_run():
    assert len(CODE) == 2 and CODE[0].startswith("q = smoothquant(") and "act_matmul" in CODE[1]
    assert all(line in inspect.getsource(product) for line in CODE)
    assert list(GRANULARITY) == list(LEVELS)
    assert [place_of(x, 255) for x in (0, 0.13, 0.26, 0.999, 1)] == [0, 1, 3, 253, 254]


def test_a_move_is_a_lookup(source):
    smoothquant_data(source, SmoothQuantState(alpha=0.1))
    before = search.cache_info().misses
    for alpha in CHOICES[::4]:
        for level in LEVELS:
            smoothquant_data(source, SmoothQuantState(alpha=alpha, place=7, level=level))
    misses = codes.cache_info().misses
    smoothquant_data(source, SmoothQuantState(alpha=CHOICES[4], token=3, place=9))
    assert before == search.cache_info().misses
    assert misses == codes.cache_info().misses


@pytest.mark.parametrize(
    "state",
    [{}, {"layer": DOWN, "outliers": False, "level": "O3", "alpha": 1.0, "place": 767},
     {"level": "O1", "alpha": 0.0, "token": 255}],
)  # fmt: skip
@pytest.mark.parametrize("lang", ["en", "ko"])
def test_drawn(source, state, lang):
    picture = draw_smoothquant(smoothquant_data(source, SmoothQuantState(**state)), lang)
    svg = picture.svg()
    assert not re.search("nan|inf ", svg.lower().replace("llm.int8", "")) and len(svg) < 120_000
    assert picture.label
    picks = set(re.findall(r'data-pick="(\w+)"', svg))
    assert picks == {"curve", "channels", "weights", "bars"}
    ys = np.concatenate([p[:, 1] for m in picture.marks for p in getattr(m, "points", [])])
    assert ys.min() >= 0 and ys.max() <= picture.height


def test_moved_by_hand(source):
    widget = smoothquant(source, level="O1")
    widget.picked("curve", 0.31, 0.5, "")
    assert widget.state.alpha == 0.3 and "α = 0.30" in widget.view.svg
    widget.picked("curve", 0, 0, "ArrowRight")
    assert widget.state.alpha == 0.35
    widget.picked("curve", 1.0, 0, "")
    widget.picked("curve", 0, 0, "ArrowRight")
    assert widget.state.alpha == 1.0
    widget.picked("bars", 0.5, 0.5, "")
    assert widget.state.alpha == CHOICES[smoothquant_data(source, widget.state).best] < 0.6
    widget.picked("channels", 0.999, 0.5, "")
    widget.picked("weights", 0, 0, "ArrowRight")
    assert widget.state.place == 255
    widget.picked("channels", 0.2, 0.5, "")
    assert widget.state.place == 2
    widget.controls["layer"].value = DOWN
    assert widget.controls["place"].max == 767
    widget.controls["place"].value = 767
    widget.controls["layer"].value = LAYER
    assert widget.state.place == 255 and len(widget.warm()) > 20
