"""The roofline: bytes over bandwidth against operations over peak, for shapes, in the widget, and
beside what others publish.
"""

import dataclasses
import doctest
import importlib
import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qlab
from qlab.evaluation.fits import Fit, Question
from qlab.evaluation.machines import HARDWARE, machine_of
from qlab.evaluation.roofline import Load, Roof, crossover, decode_load, prefill_load, speedup
from qlab.evaluation.shapes import SHAPES, shape_of

LLAMA = SHAPES["llama-3.1-8b"]
H100 = Roof(3350e9, 989.4e12)
shapes = st.sampled_from(sorted(SHAPES)).map(SHAPES.__getitem__)
bits = st.sampled_from([2.25, 4.25, 8.25, 16.0, 32.0])
roofs = st.builds(Roof, st.sampled_from([20e9, 1e12, 5e12]), st.sampled_from([1e11, 1e14, 1e15]))


# ---- arithmetic


def test_the_corner_of_a_roof():
    assert H100.ridge == pytest.approx(295.34, abs=0.01)
    assert H100.attainable(1.0) == 3350e9 and H100.attainable(1e4) == 989.4e12
    at = Load(1e9, 1e9 * H100.ridge)
    assert at.seconds(H100) == pytest.approx(1e9 / 3350e9)
    assert Load(1e9, 1e9).bound(H100) == "memory" and Load(1e9, 1e12).bound(H100) == "compute"


def test_a_decode_step_by_hand():
    """8.03 billion weights less the embedding, which is only looked up; 128 numbers a head."""
    read = 8_030_261_248 - 128_256 * 4096
    plain = decode_load(LLAMA, 16)
    assert plain.bytes == 2 * read and plain.operations == 2 * read
    full = decode_load(LLAMA, 16, batch=4, context=1000)
    assert full.bytes - plain.bytes == 4 * 1000 * 32 * 2 * 8 * 128 * 2  # keys and values
    assert full.operations == 4 * (2 * read + 1000 * 32 * 4 * 32 * 128)
    assert decode_load(SHAPES["smollm2-135m"], 8).bytes == SHAPES["smollm2-135m"].params  # tied


def test_a_prompt_by_hand():
    body = LLAMA.linears + LLAMA.vectors
    load = prefill_load(LLAMA, 4.25, batch=2, context=100)
    table = 128_256 * 4096
    pairs = 2 * 100 * 101 / 2
    assert load.operations == 2 * (200 * body + 2 * table) + pairs * 4 * 32 * 32 * 128
    assert load.bytes == (body + table) * 4.25 / 8 + 200 * LLAMA.cached * 2
    one = prefill_load(LLAMA, 16, context=1)  # one token: the decode step that sees itself
    assert one.operations == decode_load(LLAMA, 16, context=1).operations


def test_a_batch_wakes_experts_but_one_head():
    shape = SHAPES["deepseek-v3"]
    one, two, many = (decode_load(shape, 8, batch).bytes for batch in (1, 2, 10**4))
    table = shape.table
    assert one == 37e9 - table and two - one == 37e9 - 2 * table and many == 671e9 - table


@given(shapes, bits, roofs, st.integers(1, 12), st.sampled_from([0, 128, 4096]))
def test_batches_share_the_weights(shape, n, roof, power, context):
    one, many = (decode_load(shape, n, b, context) for b in (1, 2**power))
    assert many.operations == pytest.approx(2**power * one.operations)
    assert one.bytes <= many.bytes <= 2**power * one.bytes * (1 + 1e-9)
    times = [decode_load(shape, n, b, context).seconds(roof) / b for b in (1, 2, 2**power)]
    assert times[0] >= times[1] * (1 - 1e-9) and times[0] >= times[-1] * (1 - 1e-9)


@given(shapes, st.sampled_from([2.25, 4.25, 8.25]), roofs, st.sampled_from([1, 8, 64, 1024]))
def test_few_bits_help_at_most_by_their_share(shape, n, roof, batch):
    gain = speedup(shape, n, roof, batch, 512)
    assert 1 - 1e-9 <= gain <= 16 / n + 1e-9


@pytest.mark.parametrize("n", [4.25, 8.25, 16.0])
@pytest.mark.parametrize("context", [0, 128])
@pytest.mark.parametrize("name", ["smollm2-135m", "llama-3.1-8b", "llama-3.1-70b"])
def test_the_crossover_is_where_both_times_meet(name, n, context):
    shape = SHAPES[name]
    batch = crossover(shape, n, H100, context)
    if math.isinf(batch):
        huge = decode_load(shape, n, 10**6, context)
        assert huge.bound(H100) == "memory"
        return
    load = decode_load(shape, n, batch, context)  # batches between whole ones are fine here
    assert load.intensity == pytest.approx(H100.ridge, rel=1e-9)


def test_a_long_context_never_multiplies_longer():
    assert math.isinf(crossover(LLAMA, 4.25, H100, 8192))
    assert crossover(LLAMA, 16, H100) == pytest.approx(H100.ridge, rel=1e-9)  # 2 ops, 2 bytes
    assert crossover(LLAMA, 4.25, H100) == pytest.approx(H100.ridge * 4.25 / 16, rel=1e-9)


def test_marlins_bound():
    """W4 with 16-bit scales in groups of 128 is 4.125 bits: 3.88 times, and 3.87 was published."""
    assert speedup(LLAMA, 4.125, Roof(600e9, 125e12), 1) == pytest.approx(3.88, abs=0.01)
    assert speedup(LLAMA, 4.25, Roof(600e9, 125e12), 1) == pytest.approx(3.76, abs=0.01)


def test_it_agrees_with_the_advisor():
    """`advise` reads all parameters of a file; here an embedding that is looked up stays unread."""
    question = Question(LLAMA, machine_of(None, "H100"), context=4096, batch=4)
    fit = Fit("x", 16, LLAMA.params * 2, question)
    ours = decode_load(LLAMA, 16, 4, 4096)
    assert fit.read - ours.bytes == 2 * LLAMA.table


# ---- the widget


pytest.importorskip("anywidget")

from qlab.plots.widget_roofline import (  # noqa: E402
    batches,
    count,
    draw_roofline,
    rate,
    seconds,
    sentence,
)
from qlab.widgets import roofline  # noqa: E402
from qlab.widgets.roofline_data import (  # noqa: E402
    BANDWIDTHS,
    BATCHES,
    BITS,
    CONTEXTS,
    DEVICES,
    FLOPS,
    HERE,
    OWN,
    PARAMETERS,
    RooflineState,
    begin,
    measured_of,
    options_of,
    roofline_data,
    speeds_of,
)
from tests.test_bench import table  # noqa: E402


def test_numbers_are_the_arithmetics():
    state = RooflineState(batch=16, context=512, machine="RTX 4090", bandwidth=1008, flops=165.2)
    data, roof = roofline_data(state), Roof(1008e9, 165.2e12)
    shape = shape_of(8e9)
    assert data.roof == roof and data.here == decode_load(shape, 4.25, 16, 512)
    assert data.weights + data.cache == data.here.bytes
    assert data.speed == pytest.approx(16 / data.here.seconds(roof))
    assert data.gain == pytest.approx(speedup(shape, 4.25, roof, 16, 512))
    assert data.decodes[16] == data.here and list(data.decodes) == [1, 4, 16, 64]
    assert data.full[4] == decode_load(shape, 16, 4, 512) and data.measured == ()
    words = " ".join(m.words for m in draw_roofline(data).marks if hasattr(m, "words"))
    for said in ("1,008 GB/s", "165 TFLOP/s", "512 tokens of prompt", f"{data.gain:.2f} ×"):
        assert said in words, said


def test_points_stand_on_the_roof():
    """Every predicted dot is on the line; the prompt at its right end where it is beyond."""
    data = roofline_data(RooflineState(context=131_072, batch=64))
    picture = draw_roofline(data)
    line = next(m for m in picture.marks if getattr(m, "width", 0) == 2.2 and m.stroke == "ink")
    corner = line.points[0][1]
    dots = next(m for m in picture.marks if getattr(m, "fill", "") == "blue" and len(m.points) == 4)
    slope = np.diff(line.points[0][:2], axis=0)[0]
    for ring in dots.points:
        centre = ring.mean(axis=0)
        if centre[0] < corner[0]:
            dx, dy = centre - corner
            assert abs(slope[0] * dy - slope[1] * dx) / np.linalg.norm(slope) < 0.6
        else:
            assert centre[1] == pytest.approx(corner[1], abs=0.6)
    prompt = next(m for m in picture.marks if getattr(m, "fill", "") == "green" and m.closed)
    assert max(p[:, 0].mean() for p in prompt.points) <= line.points[0][-1][0] + 1


@pytest.mark.parametrize(
    "chosen, words",
    [
        ({}, "Decode waits for memory: 4.25 bits are 3.75 times faster than 16."),
        ({"bits": 16.0}, "Decode waits for memory: fewer bits would make it faster."),
        ({"bits": 32.0}, "Decode waits for memory, and 32 bits are 0.50 of the speed of 16."),
        ({"batch": 1024}, "longer than it reads: fewer bits help no more (1.00 times)."),
        ({"batch": 1024, "bits": 16.0}, "fewer bits would not help."),
        ({"batch": 64, "context": 8192}, "mostly for the cache: 4.25 bits help"),
    ],
)
def test_sentences(chosen, words):
    data = roofline_data(RooflineState(**chosen))
    assert words in sentence(data, "en") and words in draw_roofline(data).label
    assert sentence(data, "ko") != sentence(data, "en")


def test_figures_for_readers():
    assert rate(9.4e9, "B") == "9.4 GB/s" and rate(2.5e12, "FLOP") == "2.5 TFLOP/s"
    assert rate(5e12, "B") == "5,000 GB/s" and rate(12, "B") == "12 B/s"
    assert seconds(0.9999) == "1e+03 ms" or seconds(0.9999) == "1,000 ms"
    assert count(4.19e6) == "4.19·10⁶" and count(999) == "999"
    assert batches(math.inf, "en") == "never" and batches(104.2, "en") == "105"


states = st.builds(
    RooflineState,
    st.sampled_from([OWN, *DEVICES]),
    st.sampled_from(PARAMETERS),
    st.sampled_from(BITS),
    st.sampled_from(BATCHES),
    st.sampled_from(CONTEXTS),
    st.sampled_from(BANDWIDTHS),
    st.sampled_from(FLOPS),
)


@given(states, st.sampled_from(["en", "ko"]))
def test_every_state_is_drawn(state, lang):
    picture = draw_roofline(roofline_data(state), lang)
    svg = picture.svg()
    ElementTree.fromstring(svg)
    assert not re.search(r"\bnan\b|\binf\b", svg) and picture.label
    points = np.concatenate([p for m in picture.marks for p in getattr(m, "points", [])])
    assert points.min() >= -1 and points[:, 0].max() <= 741
    assert points[:, 1].max() <= picture.height


def test_machines_have_their_speeds_on_the_sliders():
    for name, device in DEVICES.items():
        bandwidth, flops = speeds_of(name)
        assert bandwidth in BANDWIDTHS and flops in FLOPS
        assert bandwidth == device.bandwidth / 1e9 and flops == device.flops / 1e12
    assert set(DEVICES) == {name for name, d in HARDWARE.items() if d.flops}
    with pytest.raises(ValueError, match="did you mean 'RTX 4090'"):
        speeds_of("RTX 409")
    with pytest.raises(ValueError, match="no machine is called 'measured here'"):
        speeds_of(HERE)


def test_moved_by_hand():
    widget = roofline()
    assert "3.75 times faster" in widget.view.svg
    widget.controls["machine"].value = "RTX 4090"  # takes its speeds along
    assert (widget.state.bandwidth, widget.state.flops) == (1008, 165.2)
    widget.controls["bandwidth"].value = 2000.0  # and nobody's machine is left
    assert widget.state.machine == OWN and "the two sliders" in widget.view.svg
    widget.set(machine="H100", batch=1024)
    assert widget.state.bandwidth == 3350 and "help no more" in widget.view.svg
    widget.set(flops=0.1)
    assert widget.state.machine == OWN
    assert "H100" in roofline(lang="ko").view.svg
    for chosen, words in (
        ({"machine": "H10"}, "did you mean 'H100'"),
        ({"bits": 5}, "has no 5"),
        ({"bits": 5}, "known are 2.25, .*; the nearest is 5.25"),
        ({"batch": 3}, "batch has no 3"),
        ({"bandwidth": 3300}, "bandwidth has no 3300: the nearest is 3350"),
        ({"machine": "Apple M4 Max"}, "states no FLOP/s; machine='own' takes bandwidth=546 and"),
        ({"machine": "H100", "bandwidth": 100}, "H100 has 3350 GB/s .*: leave bandwidth=100 out"),
        ({"machine": "H100", "flops": 2}, "TFLOP/s: leave flops=2 out, or say machine='own'"),
    ):
        with pytest.raises(ValueError, match=words):
            roofline(**chosen)
        before = widget.state
        with pytest.raises(ValueError, match=words):
            widget.set(**chosen)
        assert widget.state == before


def test_a_speed_without_a_machine_is_nobodys():
    state = roofline(bandwidth=100).state
    assert (state.machine, state.bandwidth, state.flops) == (OWN, 100, 989.4)
    assert "H100" not in roofline(bandwidth=100).view.svg
    assert roofline(machine=OWN, bandwidth=100, flops=2).state.flops == 2
    assert roofline(machine="h100").state == RooflineState()
    found = table()
    mine = roofline(found, bandwidth=100).state  # the other speed stays the measured one
    assert (mine.machine, mine.bandwidth, mine.flops) == (OWN, 100, 0.1)
    assert roofline(found, machine="rtx 4090").state.bandwidth == 1008


def test_models_of_other_products_are_named():
    found = table()
    odd = dataclasses.replace(found.rows[2], model="w8a8", products="int8")
    more = [dataclasses.replace(found.rows[0], model=name) for name in "cdef"]
    speeds = dataclasses.replace(found.speeds, peaks={**found.speeds.peaks, "int8": (4e11,) * 8})
    found = dataclasses.replace(found, rows=(*found.rows, odd, *more), speeds=speeds)
    widget = roofline(found)
    words = "not under this roof: w8a8 (int8), e, f"
    assert words in widget.view.svg and words in widget.draw(widget.state).label
    assert {m.model for m in measured_of(found)} == set("abcd")
    widget.set(machine="H100")
    assert "not under this roof" not in widget.view.svg
    assert "not under this roof" not in roofline(table()).view.svg


def test_a_bench_is_drawn_under_its_own_roof():
    found = table()
    assert speeds_of(HERE, found) == (20.0, 0.1)
    points = measured_of(found)
    assert len(points) == 2 * len(found.rows)
    row = found["b", 16]
    mine = next(p for p in points if (p.model, p.batch, p.decode) == ("b", 16, True))
    assert mine.reached == pytest.approx(row.decode.operations / row.seconds)
    assert mine.intensity == row.decode.intensity
    widget = roofline(found)
    assert widget.state.machine == HERE and {HERE, OWN} < set(options_of(found)["machine"])
    assert widget.state.parameters == begin(found)["parameters"] == 0.135
    data = roofline_data(widget.state, found)
    assert data.roof == Roof(20e9, 100e9) and data.measured == points
    shape = found.rows[0].shape
    assert widget.state.context == found.context == 8
    assert data.here == decode_load(shape, widget.state.bits, 1, 8, 32)  # a float32 cache
    label = widget.draw(widget.state).label
    assert "measured, of the peak: a × 1: 1 %" in label
    widget.set(machine="H100")
    assert roofline_data(widget.state, found).measured == ()
    assert np.isfinite(widget.figure().get_size_inches()).all()
    with pytest.raises(ValueError, match="takes what qlab.bench returned, not 'tiny'"):
        roofline("tiny")


def test_it_is_public():
    assert qlab.widgets.roofline is roofline


def test_the_examples_of_the_modules():
    for name in ("evaluation.roofline", "plots.widget_roofline", "widgets.roofline_data"):
        found = doctest.testmod(importlib.import_module(f"qlab.{name}"))
        assert found.attempted >= 3 and found.failed == 0
