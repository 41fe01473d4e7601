"""The widgets without a browser: they show qlab's own numbers, in both languages, moved by hand."""

import base64
import re
import threading
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("anywidget")

import qlab
from qlab.models.load import load
from qlab.models.quantize import quantize_model
from qlab.models.report import LayerReport, Report
from qlab.models.surgery import linears
from qlab.models.taps import layer_inputs
from qlab.plots.svg import Picture, known_fonts
from qlab.plots.widget_formats import draw_formats
from qlab.plots.widget_parts import Axis, decibels, number, share, size
from qlab.plots.widget_report import wrapped
from qlab.plots.widget_weights import draw_weights
from qlab.plots.widget_words import KOREAN, say
from qlab.widgets import __all__ as PUBLIC
from qlab.widgets import block_scale, formats, gallery, report, weights
from qlab.widgets.block_scale_data import RANGES, BlockScaleState, block_scale_data
from qlab.widgets.choices import KINDS, make_spec
from qlab.widgets.controls import slider
from qlab.widgets.formats_data import EVERY, ROWS, FormatsState, cast, formats_data
from qlab.widgets.formula import formula
from qlab.widgets.gallery import WIDGETS
from qlab.widgets.numbers import LINES, SWITCHES, numbers
from qlab.widgets.quantized import divisor, quantized, segment
from qlab.widgets.report_data import ALL, FORWARD, WORST, ReportState, order_of, report_data
from qlab.widgets.report_words import facts, remarks
from qlab.widgets.run import Run
from qlab.widgets.source import Source
from qlab.widgets.weights_data import WeightsState, weights_data

LAYER = "layers.1.self_attn.k_proj"  # the smallest: (128, 256)


@pytest.fixture(scope="module")
def source():
    return Source(load("tiny"))


def image(html: str) -> ElementTree.Element:
    """The picture of an SVG string, parsed: what is not well-formed fails here."""
    root = ElementTree.fromstring(html)
    return next(e for e in root.iter("svg") if e.get("role") == "img")


# ---- pictures


def test_a_picture_is_the_same_marks_twice():
    picture = Picture(200, 100)
    picture.rect(0, 0, 50, 20, fill="blue")
    picture.segments([1, 2], 0, [1, 2], 9)
    picture.dots([10, 20], [30, 40], 3)
    picture.cells((0, 0, 40, 40), [[0, 0.5], [1, 0.25]], fill="vermilion")
    picture.text(5, 50, "a < b & c")
    picture.pick("here", (0, 0, 10, 10), "take this", checked=True)
    picture.label = 'it says "a < b"'
    svg = image(picture.svg())
    assert svg.get("aria-label") == 'it says "a < b"'
    assert len(svg.findall("path")) == 3 + 3 and svg.find("text").text == "a < b & c"
    assert 'role="switch" aria-checked="true"' in picture.svg()
    assert "switch" not in picture.svg(picks=False)
    figure = picture.figure()
    assert len(figure.axes[0].patches) == 6 and figure.axes[0].texts[0].get_text() == "a < b & c"
    assert figure.get_label() == picture.label


def test_a_picture_of_nothing_is_empty():
    picture = Picture(10, 10)
    picture.dots([], [], 3)
    picture.segments([], 0, [], 1)
    picture.cells((0, 0, 5, 5), np.zeros((2, 2)), fill="blue")
    assert len(image(picture.svg())) == 0
    assert not picture.figure().axes[0].patches


def test_axes_and_numbers():
    assert Axis(0, 10, 100, 200)(5) == 150 and Axis(1, 16, 0, 4, log=True)(8) == 3
    assert Axis(-1, 1, 0, 1).ticks(4) == [-1, -0.5, 0, 0.5, 1]
    assert Axis(0.3, 9, 0, 1, log=True).ticks(9) == [0.5, 1, 2, 4, 8]
    assert [number(x) for x in (0.1234, -3, 1e-7, np.inf)] == ["0.123", "−3", "1·10⁻⁷", "∞"]
    assert (share(0.123), share(0.0123)) == ("12 %", "1.2 %")
    assert (size(26.375), size(111e3), size(35e9)) == ("26.38 B", "111 kB", "35 GB")
    assert (decibels(100), decibels(0), decibels(np.inf)) == ("20.0 dB", "−∞ dB", "∞ dB")


def test_no_tofu():
    """Every letter has a glyph in one of our fonts here, Hangul in a Korean one by name."""
    from matplotlib import font_manager
    from matplotlib.ft2font import FT2Font

    if set(known_fonts()) <= {"DejaVu Sans", "sans-serif"}:
        pytest.skip("no Korean font here: install fonts-noto-cjk")
    fonts = [FT2Font(font_manager.findfont(name)) for name in known_fonts()]
    letters = set("".join(KOREAN) + "".join(KOREAN.values()) + "⁻⁰¹²³⁴⁵⁶⁷⁸⁹−×∞↔→·") - set("{}")
    assert [c for c in letters if not any(f.get_char_index(ord(c)) for f in fonts)] == []
    hangul = [c for c in letters if "가" <= c <= "힣"]
    assert len(hangul) > 100 and all(fonts[0].get_char_index(ord(c)) for c in hangul)


def test_words():
    assert say("of {n}", "ko", n=3) == "원래 3" and say("anything at all") == "anything at all"
    with pytest.raises(ValueError, match="'de'"):
        say("of {n}", "de")
    places = re.compile(r"{(\w+)}")
    for english, korean in KOREAN.items():
        assert set(places.findall(english)) == set(places.findall(korean)), english


# ---- weights


def test_taps_see_what_flows_in(source):
    model = source.model
    before = linears(model)[LAYER]
    inputs = layer_inputs(model, np.arange(24).reshape(2, 12))
    assert list(inputs) == list(linears(model)) and linears(model)[LAYER] is before
    layer = linears(model)
    gate, up = (
        layer[f"layers.2.mlp.{n}_proj"](inputs["layers.2.mlp.up_proj"]) for n in ("gate", "up")
    )
    hidden = gate / (1 + jnp.exp(-gate)) * up
    np.testing.assert_allclose(inputs["layers.2.mlp.down_proj"], hidden, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="sequences, time"):
        layer_inputs(model, [1, 2, 3])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_data_is_qlabs_own(source, kind):
    bits = min(KINDS[kind][0], key=lambda b: abs(b - 4))
    state = WeightsState(LAYER, kind, bits, 64, KINDS[kind][1][0], channel=5, place=2)
    data = weights_data(source, state)
    w = source.weight(LAYER)
    q = qlab.quantize(jnp.asarray(w), make_spec(kind, bits, 64, state.rule))  # compiled: same bits
    here = np.asarray(qlab.dequantize(q))
    np.testing.assert_array_equal(data.block_values, here[5, 128:192])
    np.testing.assert_array_equal(data.block_codes, np.asarray(q.codes)[5, 128:192])
    assert data.bits == qlab.bits_per_weight(q) and data.bytes == data.bits * w.size / 8
    error = qlab.output_error(jnp.asarray(w), jnp.asarray(here), source.stats(LAYER))
    assert data.error == pytest.approx(float(error), rel=1e-4) and 0.01 < data.error < 0.5
    assert data.sqnr == pytest.approx(float((w**2).sum() / ((w - here) ** 2).sum()), rel=1e-5)
    assert data.weights.sum() == data.errors.sum() == w.size
    nearest = np.abs(data.block_values[:, None] - data.levels).min(1)
    np.testing.assert_allclose(nearest, 0, atol=1e-6)  # every value is one of the levels drawn


def test_weights_heat_map(source):
    data = weights_data(source, WeightsState(LAYER, channel=127, place=7))
    w = source.weight(LAYER)
    values = quantized(source, LAYER, make_spec("integer", 4, 32, "absmax")).values
    tile = (values - w)[-data.per_row :, -32:]
    expected = np.sqrt((tile**2).mean() / (w**2).mean())
    assert data.heat[-1, -1] == pytest.approx(expected, rel=1e-5)
    assert data.cell == (data.heat.shape[0] - 1, data.heat.shape[1] - 1)
    assert data.heat.shape[0] <= 48 and 128 % data.per_row == 0


def test_more_bits_smaller_error(source):
    errors = [weights_data(source, WeightsState(LAYER, bits=b)).error for b in (2, 3, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("block", ["row", "tensor", 128])
def test_weights_of_every_block_are_drawn(source, block):
    data = weights_data(source, WeightsState(LAYER, block=block, place=3))
    svg = image(draw_weights(data).svg())
    assert "of the weights become 0" in svg.get("aria-label")
    assert len(data.block_weights) == segment(block, 256) == 64


def test_choices_say_what_there_is(source):
    with pytest.raises(ValueError, match="did you mean 'integer'"):
        make_spec("integr", 4, 32, "absmax")
    with pytest.raises(ValueError, match="4, 6, 8 bits, not 5"):
        make_spec("float", 5, 32, "absmax")
    with pytest.raises(ValueError, match="gptq_asym, awq_asym, not 'absmax'"):
        make_spec("integer, zero point", 4, 32, "absmax")
    with pytest.raises(ValueError, match="did you mean 'layers.0.mlp.up_proj'"):
        source.weight("layers.0.mlp.up_pro")
    assert divisor(768, 48) == 16 and divisor(7, 3) == 7


# ---- formats


@pytest.mark.parametrize("name", SWITCHES)
def test_bits_and_values(name):
    k = numbers(name)
    codes = (
        range(2**k.bits) if k.bits <= 8 else np.random.default_rng(0).integers(0, 2**k.bits, 500)
    )
    values = [
        k.value(k.pattern(p))
        for p in (range(2**k.bits) if k.bits <= 8 else sorted(map(int, codes)))
    ]
    finite = [v for v in values if np.isfinite(v)]
    assert finite == sorted(finite)  # places are in the order of the values
    for code in map(int, codes):
        assert k.pattern(k.place(code)) == code
        if np.isfinite(k.value(code)):
            assert k.value(k.code(k.value(code))) == k.value(code)


def test_formula_computes_the_value():
    """The line that explains a value is evaluated: it says the value itself."""
    for name in ("FP32", "BF16", "FP16", "FP8", "FP8_E5M2", "FP4", "FP6_E2M3", "FP6_E3M2"):
        k = numbers(name)
        for code in np.random.default_rng(1).integers(0, 2**k.bits, 50):
            value = k.value(int(code))
            words = formula(k, int(code))
            if not np.isfinite(value):
                assert "NaN" in words or "∞" in words
                continue
            _, said, _ = words.split(" = ")
            plain = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
            sign, power, inside = re.match(r"([+−]) 2(\S+) · (.*)", said).groups()
            result = 2.0 ** int(power.translate(plain)) * eval(inside)  # noqa: S307 - our own words
            assert (result if sign == "+" else -result) == value
    assert formula(numbers("INT4"), 0b1010) == "1010 = 10, 10 − 8 = 2  (two's complement: 0010)"


def test_neighbours_and_errors():
    place = numbers("FP8").place(0b0_0111_000)
    data = formats_data(FormatsState("FP8", place))
    assert (data.below, data.value, data.above) == (0.9375, 1.0, 1.125) and data.here == 0.0625
    zero = formats_data(FormatsState("FP8", numbers("FP8").place(0)))
    assert (zero.below, zero.above) == (-(2**-9), 2**-9) and np.isnan(zero.here)
    top = formats_data(FormatsState("FP8", numbers("FP8").place(0x7E)))
    assert top.value == 448 and np.isnan(top.above)
    middle = (data.sizes > 0.01) & (data.sizes < 1)
    assert 0.03 < data.errors[0][middle].min() and data.errors[0][middle].max() <= 0.0625 + 1e-9
    with pytest.raises(ValueError, match="place 300"):
        formats_data(FormatsState("FP8", 300))


@pytest.mark.parametrize("name", SWITCHES)
@pytest.mark.parametrize("log", [False, True])
def test_every_format_is_drawn(name, log):
    k = numbers(name)
    for place in {0, 2**k.bits // 3, 2**k.bits - 1}:
        picture = draw_formats(formats_data(FormatsState(name, place, "NF4", log, not log)))
        assert len(picture.picks) == k.bits and len(picture.svg()) < 200_000
        image(picture.svg())


@pytest.mark.parametrize("name", LINES)
def test_every_other_format_is_drawn(name):
    image(draw_formats(formats_data(FormatsState(other=name, log=True))).svg())


def pointed_at(value, name="FP8_E5M2", **chosen):
    k = numbers(name)
    state = FormatsState(name, k.place(k.code(value)), show=EVERY, **chosen)
    return {row.name: row for row in formats_data(state).rows}


def test_every_format_shows_what_a_number_becomes():
    rows = pointed_at(448.0, same=False)
    assert set(rows) == set(ROWS) and [n for n, r in rows.items() if r.chosen] == ["FP8_E5M2"]
    assert rows["FP8"].becomes == rows["FP8"].cast == 448
    assert rows["FP8"].gap == 32 / 448 and rows["FP8_E5M2"].gap == 64 / 448
    assert np.isnan(rows["FP4"].gap) and rows["FP4"].becomes == rows["FP4"].cast == 6
    beyond = pointed_at(512.0, same=False)["FP8"]
    assert np.isnan(beyond.cast) and beyond.becomes == 448
    assert not any(np.signbit(row.becomes) for row in pointed_at(1.0, "FP8").values())  # no −0
    same = pointed_at(448.0, "FP8", same=True)
    assert all(row.nearest == 1 for row in same.values()) and same["INT8"].becomes == 127
    assert all(np.isfinite(row.cast) for row in same.values())
    with pytest.raises(ValueError, match="did you mean 'every format"):
        formats_data(FormatsState(show="every formats with few bits"))


@pytest.mark.parametrize("name", [n for n in ROWS if qlab.FORMATS[n].dtype is not None])
def test_a_cast_is_jax_own(name):
    x = np.float32([0.3, -2.7, 447, 464, 464.5, 1e4, 57344, 61439, 61441, -1e30, np.inf, np.nan])
    theirs = jnp.asarray(x).astype(qlab.FORMATS[name].dtype).astype(jnp.float32)
    np.testing.assert_array_equal([cast(name, float(v)) for v in x], theirs)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("code", [0x00, 0x38, 0x7E, 0x7F, 0x80, 0xFE])
def test_every_format_on_one_line_is_drawn(log, code):
    for name in ("FP8", "FP8_E5M2"):
        state = FormatsState(name, numbers(name).place(code), log=log, same=log, show=EVERY)
        picture = draw_formats(formats_data(state), "ko")
        picks = [pick.name for pick in picture.picks]
        assert len(picks) == 8 + len(set(ROWS) & set(SWITCHES)) and "line:FP6_E2M3" in picks
        image(picture.svg())


# ---- block_scale


def test_conventions_do_what_they_say(source):
    state = BlockScaleState(LAYER, channel=3, place=1)
    data = block_scale_data(source, state)
    amax = np.abs(data.weights).max()
    for variant, divided_by in zip(data.variants, (7, 7.5, 8)):
        assert variant.scale == pytest.approx(amax / divided_by, rel=2**-11)
        assert len(variant.levels) == 16
    asym = data.variants[3]
    assert asym.zero == round(asym.zero) and asym.rule == "gptq_asym"
    assert not data.variants[0].saturated(data.weights).any()
    assert data.bits == 4.5
    assert block_scale_data(source, replace(state, zero=True)).bits == 4.5 + 4 / 32


def test_a_narrow_range_saturates_a_wide_one_vanishes(source):
    state = BlockScaleState(LAYER, bits=3)
    w = block_scale_data(source, state).weights

    def count(percent, what):
        now = block_scale_data(source, replace(state, range=percent)).variants[0]
        return int(getattr(now, what)(w).sum())

    assert count(RANGES[0], "saturated") > count(100, "saturated") == 0
    assert count(RANGES[-1], "vanished") >= count(RANGES[0], "vanished")
    data = block_scale_data(source, replace(state, range=60))
    chosen = list(RANGES).index(60)
    assert data.variants[0].sweep[chosen] == pytest.approx(data.variants[0].sqnr(w), rel=1e-4)
    with pytest.raises(ValueError, match="length 24 must divide 256"):
        block_scale_data(source, replace(state, length=24))


def test_block_scale_equals_the_spec(source):
    data = block_scale_data(source, BlockScaleState(LAYER, channel=2))
    q = qlab.quantize(jnp.asarray(source.weight(LAYER)), qlab.SPECS["int4_g32"])
    expected = np.asarray(qlab.dequantize(q))[2, :32]
    np.testing.assert_array_equal(data.variants[0].values, expected)


POWERS = ("mxfp4", "mxfp4_rceil", "mxfp4_ceil", "mxfp4_even")


def test_mx_blocks_equal_the_specs(source):
    w, place = jnp.asarray(source.weight(LAYER)), slice(32, 64)
    state = BlockScaleState(LAYER, "MXFP4", convention="pow2_floor", channel=2, place=1)
    data = block_scale_data(source, state)
    for variant, name in zip(data.variants, POWERS):
        expected = np.asarray(qlab.dequantize(qlab.quantize(w, qlab.SPECS[name])))[2, place]
        np.testing.assert_array_equal(variant.values, expected)
        assert np.log2(variant.scale) == round(np.log2(variant.scale)) and len(variant.levels) == 15
    assert data.bits == 4.25 and data.row is None
    for kind, name in (("MXFP6", "mxfp6_e2m3"), ("MXFP8", "mxfp8")):
        found = block_scale_data(source, replace(state, kind=kind))
        expected = np.asarray(qlab.dequantize(qlab.quantize(w, qlab.SPECS[name])))[2, place]
        np.testing.assert_array_equal(found.variants[0].values, expected)
        assert found.bits == qlab.specs.TABLE[name].bits


def test_rceil_never_saturates_and_floor_does(source):
    state = BlockScaleState(LAYER, "MXFP4", convention="pow2_floor", channel=1)
    counts = []
    for place in range(8):
        data = block_scale_data(source, replace(state, place=place))
        counts.append([int(v.saturated(data.weights).sum()) for v in data.variants])
    floor, rceil, ceil, _ = np.sum(counts, 0)
    assert floor > 0 and rceil == ceil == 0


def test_nvfp4_blocks_equal_the_library(source):
    """Both plain NVFP4 and Four over Six's choice in every block of two rows."""
    w = jnp.asarray(source.weight(LAYER))
    spec = qlab.SPECS["nvfp4"]
    plain = np.asarray(qlab.dequantize(qlab.quantize(w, spec)))
    better = np.asarray(qlab.dequantize(qlab.METHODS["four_over_six"](w, None, spec)))
    state = BlockScaleState(LAYER, "NVFP4", convention="four", length=16)
    narrow = block_scale_data(source, replace(state, range=60))
    expected = [v.sqnr(narrow.weights) for v in narrow.variants[1:]]
    np.testing.assert_allclose((narrow.row.six[0], narrow.row.four[0]), expected, rtol=1e-5)
    taken = []
    for channel, place in ((c, p) for c in (3, 4) for p in range(16)):
        data = block_scale_data(source, replace(state, channel=channel, place=place))
        here = slice(16 * place, 16 * place + 16)
        np.testing.assert_array_equal(data.variants[0].values, plain[channel, here])
        (chosen,) = [v for v in data.variants if v.taken]
        np.testing.assert_array_equal(chosen.values, better[channel, here])
        both = (data.row.six[place], data.row.four[place])
        expected = [v.sqnr(data.weights) for v in data.variants[1:]]
        np.testing.assert_allclose(both, expected, rtol=1e-5)
        taken.append(chosen.rule)
    assert {"six", "four"} == set(taken) and data.bits == 4.5


def test_what_block_scale_does_not_know(source):
    with pytest.raises(ValueError, match="no kind of number is called 'MXFP5'"):
        block_scale_data(source, BlockScaleState(LAYER, "MXFP5"))
    with pytest.raises(ValueError, match="MXFP4 has no scale rule 'absmax'"):
        block_scale_data(source, BlockScaleState(LAYER, "MXFP4"))
    with pytest.raises(ValueError, match="numbers has no 'NVFP'"):
        block_scale(source, layer=LAYER, kind="NVFP")


# ---- widgets


def every_widget(source, lang):
    small = {"layer": LAYER}
    return [weights(source, lang, **small), block_scale(source, lang, **small), formats(lang)]


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_widgets_draw_and_speak(source, lang):
    for widget in every_widget(source, lang):
        svg = image(widget.view.svg)
        label = svg.get("aria-label")
        assert "dB" in label and len(label) > 60
        words = " ".join(t.text for t in svg.findall("text"))
        assert bool(re.search("[가-힣]", words)) == (lang == "ko")
        for control in widget.controls.values():
            assert control.tooltip and control.description
        height = widget.view.layout.height
        assert float(height[:-2]) >= float(svg.get("height"))
        assert widget.draw(widget.state).svg() == widget.view.svg  # the same state, the same bytes


def test_a_control_changes_the_picture(source):
    widget = weights(source, layer=LAYER)
    before = widget.view.svg
    widget.controls["bits"].value = 3
    assert widget.view.svg != before and widget.state.bits == 3 and "INT3" in widget.view.svg
    widget.controls["kind"].value = "float"  # has no 3 bits: the nearest is taken
    assert widget.state.bits == 4 and "FP4" in widget.view.svg
    assert widget.controls["rule"].options == KINDS["float"][1]
    widget.controls["layer"].value = "layers.1.mlp.down_proj"
    assert widget.controls["channel"].max == 255 and widget.controls["place"].max == 768 // 32 - 1


def test_picking_a_block(source):
    widget = weights(source, layer=LAYER)
    message = {"pick": "heat", "x": 0.99, "y": 0.5, "key": ""}
    widget._on_message(None, message, None)
    assert (widget.state.place, widget.state.channel) == (7, 64)
    widget._on_message(None, {**message, "key": "ArrowUp"}, None)
    widget._on_message(None, {**message, "key": "ArrowRight"}, None)  # at the edge already
    assert (widget.state.place, widget.state.channel) == (7, 63)
    assert "output channel 63, weights 224 to 255" in widget.view.svg


def test_flipping_a_bit():
    widget = formats(format="INT4", place=9)
    widget.picked("bit3", 0, 0, "Enter")
    assert widget.state.place == 1
    widget.picked("bit3", 0, 0, "ArrowLeft")
    assert widget.state.place == 1
    widget.controls["format"].value = "FP16"
    assert "16" in widget.view.svg and widget.controls["place"].max == 2**16 - 1


def test_opening_another_row():
    widget = formats(format="FP8", place=numbers("FP8").place(0x7E), same=False, show=EVERY)
    assert widget.controls["other"].disabled
    widget.picked("line:FP4", 0, 0, "")
    assert (widget.state.format, widget.controls["place"].max) == ("FP4", 15)
    assert numbers("FP4").value(numbers("FP4").pattern(widget.state.place)) == 6
    widget.picked("line:FP8_E5M2", 0, 0, "Enter")
    assert numbers("FP8_E5M2").value(numbers("FP8_E5M2").pattern(widget.state.place)) == 6
    widget.controls["show"].value = "two formats"
    assert not widget.controls["other"].disabled


def test_choosing_a_convention(source):
    widget = block_scale(source, layer=LAYER)
    widget.picked("gptq_asym", 0, 0, "")
    assert widget.state.zero
    widget.picked("absmax_full", 0, 0, "")
    assert not widget.state.zero and widget.state.convention == "absmax_full"
    widget.controls["layer"].value = "layers.1.mlp.down_proj"
    widget.controls["length"].value = 128
    assert widget.controls["place"].max == 5
    with pytest.raises(ValueError, match="no control 'colour'"):
        widget.set(colour=3)


@pytest.mark.parametrize("lang", ["en", "ko"])
def test_choosing_a_kind_of_block(source, lang):
    widget = block_scale(source, lang, layer=LAYER)
    widget.controls["kind"].value = "NVFP4"
    assert (widget.state.convention, widget.state.length) == ("nvfp4", 16)
    assert widget.controls["bits"].disabled and widget.controls["zero"].disabled
    widget.picked("four", 0, 0, "Enter")
    assert widget.state.convention == "four" and not widget.state.zero
    for x, place in ((0.001, 0), (0.5, 7), (0.999, 15)):
        widget.picked("blocks", x, 0.5, "")
        assert abs(widget.state.place - place) <= 1
    widget.picked("blocks", 0, 0, "ArrowRight")  # at the edge already
    widget.picked("blocks", 0, 0, "ArrowLeft")
    assert widget.state.place == 14
    image(widget.view.svg)
    widget.controls["kind"].value = "MXFP4"
    assert (widget.state.convention, widget.state.length) == ("pow2_floor", 32)
    widget.picked("pow2_rceil", 0, 0, "")
    assert widget.state.convention == "pow2_rceil"
    image(widget.view.svg)
    widget.controls["kind"].value = "integer"
    assert widget.state.convention == "absmax" and not widget.controls["bits"].disabled


def test_a_display_carries_a_png(source):
    widget = block_scale(source, layer=LAYER)
    widget.warm = list
    bundle = widget._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    assert "application/vnd.jupyter.widget-view+json" in data


def test_gallery_shows_every_widget(source):
    shown = gallery(source)
    assert len(shown.children) == len(WIDGETS) == len(shown.shown) and set(WIDGETS) <= set(PUBLIC)
    for child in shown.children:
        image(re.search(r"<div class=.qlab-picture.*?</svg></div>", child.value)[0])
    assert shown.figure().get_label()


# ---- report


@pytest.fixture(scope="module")
def quantized_tiny(source):
    """Two kinds of linear, a clipped range against a full one, both measured on the same inputs."""

    def clipped(w, stats, spec):
        return qlab.quantize(w, qlab.fit(0.85 * w, spec))

    stats = {path: source.stats(path) for path in source.layers}
    plan = {"*.k_proj": "int3_g64", "*.down_proj": "int3_g64", "*": None}
    q, rtn = (
        quantize_model(source.model, m, plan, stats=stats, progress=False) for m in (clipped, "rtn")
    )
    rows = [
        replace(row, rtn_loss=other.loss, tokens=512, seconds=0.0)
        for row, other in zip(q.report.layers, rtn.report.layers)
    ]
    q.label = replace(q.label, report=replace(q.report, layers=tuple(rows)))
    return q


ROW = LayerReport("layers.1.mlp.down_proj", (256, 768), "int3_g64", 3.25, 0.2, 0.1, 0.001)


def test_report_shows_what_the_layers_say(quantized_tiny, source):
    q, widget = quantized_tiny, report(quantized_tiny)
    assert widget.state == ReportState("loss", FORWARD, ALL, "layers.0.self_attn.k_proj")
    data = report_data(q.report, widget.state)
    layer = q.report.layers[0]
    w_hat = qlab.dequantize(linears(q)[layer.path].weight)
    loss = qlab.output_error(
        jnp.asarray(source.weight(layer.path)), w_hat, source.stats(layer.path)
    )
    assert data.values[layer.path] == pytest.approx(float(loss), rel=1e-4)
    assert data.others[layer.path] == layer.rtn_loss != layer.loss
    assert data.kinds == ("k_proj", "down_proj") and len(data.values) == 8
    ratios = [row.loss / row.rtn_loss for row in q.report.layers]
    assert data.losses[2] == pytest.approx(np.median(ratios))
    assert data.worse == sum(r > 1 for r in ratios) and np.isnan(data.losses[3])
    assert f"{data.worse} linears worse than RTN" in widget.view.svg
    assert [n for n, _ in dict(facts(layer)).items()][:2] == ["shape, out × in", "format"]


def test_report_sorts_and_filters(quantized_tiny):
    report_, widget = quantized_tiny.report, report(quantized_tiny)
    widget.controls["kind"].value = "down_proj"
    assert widget.state.layer == "layers.0.mlp.down_proj"
    assert [name for name, _ in widget.controls["layer"].options] == [
        f"{b}.mlp.down_proj" for b in range(4)
    ]
    widget.controls["order"].value = WORST
    losses = {row.path: row.loss for row in report_.layers if "down" in row.path}
    assert widget.state.layer == max(losses, key=losses.get)
    paths = order_of(report_, "ratio to RTN", WORST, ALL)
    ratios = {row.path: row.loss / row.rtn_loss for row in report_.layers}
    assert [ratios[path] for path in paths] == sorted(ratios.values(), reverse=True)
    before = widget.state.layer
    widget.picked("list", 0.5, 0.99, "")
    assert widget.state.layer == min(losses, key=losses.get) != before
    widget.picked("list", 0, 0, "ArrowDown")  # the last already
    widget.picked("list", 0, 0, "ArrowUp")
    assert widget.state.layer == sorted(losses, key=losses.get)[1]
    for show in [name for _, name in widget.controls["show"].options]:
        widget.controls["show"].value = show
        image(widget.view.svg)
    assert "held-out loss" not in dict(widget.controls["show"].options)  # there is none


def test_report_opens_the_cell_that_is_picked(quantized_tiny):
    widget = report(quantized_tiny)
    message = {"pick": "map", "x": 0.9, "y": 0.6, "key": ""}
    widget._on_message(None, message, None)
    assert widget.state.layer == "layers.2.mlp.down_proj" and ">layers.2.mlp" in widget.view.svg
    for key, layer in [
        ("ArrowDown", "layers.3.mlp.down_proj"),
        ("ArrowDown", "layers.3.mlp.down_proj"),
        ("ArrowLeft", "layers.3.self_attn.k_proj"),
        ("Enter", "layers.3.self_attn.k_proj"),
    ]:
        widget._on_message(None, {**message, "key": key}, None)
        assert widget.state.layer == layer
    some = replace(quantized_tiny.report, layers=quantized_tiny.report.layers[:3])
    partial = report(some, layer="layers.1.self_attn.k_proj")  # 1.down_proj stayed float
    partial.picked("map", 0, 0, "ArrowRight")
    assert partial.state.layer == "layers.1.self_attn.k_proj"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"loss": 0.3, "rtn_loss": 0.2}, ["1.50 times RTN's loss"]),
        (
            {"loss": 0.1, "rtn_loss": 0.2, "held_out_loss": 0.3, "held_out_rtn_loss": 0.2},
            ["worse on held-out text (1.50 times)"],
        ),
        (
            {"rung": 2, "damp": 1.0, "tokens": 999},
            ["Rung 2: H was not positive definite", "; 1 times the mean"],
        ),
        (
            {"dead": 7, "tokens": 512, "damp": 0.01},
            ["7 of 768 input channels", "512 tokens for 768"],
        ),
        ({"floored": 3}, ["3 of 768 columns had an importance below"]),
        ({"clipped": 0.04, "notes": ("rows are constant",)}, ["4 % of the", "rows are constant"]),
        ({"loss": 0.1, "rtn_loss": 0.2, "tokens": 512}, []),  # nothing is inverted
    ],
)
def test_report_says_what_stands_out(fields, said):
    found = [say(words, **values) for words, values in remarks(replace(ROW, **fields))]
    assert len(found) == len(said) or fields.get("rung")
    for words in said:
        assert any(words in line for line in found), found
    for words, values in remarks(replace(ROW, **fields)):
        assert words == "{note}" or re.search("[가-힣]", say(words, "ko", **values))


def test_report_of_many_shapes():
    kinds = ["self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"]
    for blocks in (1, 12, 100):
        paths = [f"model.decoder.layers.{b}.{k}" for b in range(blocks) for k in kinds]
        rows = tuple(replace(ROW, path=p, notes=("x " * 400,)) for p in paths)
        widget = report(Report("opt", "rtn", "int3_g64", rows), "ko")
        svg = image(widget.view.svg)  # no loss: the weights' error
        assert "가중치 오차" in svg.get("aria-label") and widget.state.show == "weight error"
        assert max(float(text.get("y")) for text in svg.findall("text")) <= float(svg.get("height"))
        widget.set(order=WORST, layer=paths[-1])
        image(widget.view.svg)
        assert widget.figure().get_label()
    assert wrapped("하나 둘 three four", 10) == ["하나 둘", "three four"]


def test_report_from_a_folder(quantized_tiny, tmp_path):
    folder = qlab.save(quantized_tiny, tmp_path / "q")
    assert report(folder).view.svg == report(quantized_tiny).view.svg
    with pytest.raises(ValueError, match="tiny has no report"):
        report(load("tiny"))
    with pytest.raises(ValueError, match="a quantized model, its report or its folder .* not 7"):
        report(7)
    with pytest.raises(ValueError, match="has no qlab.json"):
        report(tmp_path)


# ---- widgets that compute long


@dataclass(frozen=True)
class SquaresState:
    upto: int = 3


class Squares(Run):
    """A Run to test with: waits at every row until it is let go."""

    def __init__(self, fail: int | None = None):
        self.go, self.fail = threading.Semaphore(0), fail
        controls = {"upto": slider("bits", 1, 9, 3, "en")}
        super().__init__("squares", SquaresState, controls, [1, 2, 3, 4])

    def compute(self, key):
        assert self.go.acquire(timeout=20)
        if key == self.fail:
            raise ValueError(f"{key} is one too many")
        return key**2

    def draw_table(self, table, state):
        picture = Picture(100, 20)
        picture.text(0, 12, f"{sum(v for k, v in table.items() if k <= state.upto)}")
        return picture


def test_run_stops_and_goes_on():
    widget = Squares()
    assert widget.wait() and widget.table == {}
    widget.start()
    widget.start()  # a second press changes nothing
    assert widget.button.disabled and not widget.stop_button.disabled
    widget.stop()
    widget.go.release()  # the row in work is kept
    assert widget.wait(20) and len(widget.table) <= 1 and not widget.button.disabled
    done = len(widget.table)
    widget.go.release(4)
    widget.start()
    assert widget.wait(20) and widget.table == {1: 1, 2: 4, 3: 9, 4: 16} and widget.error is None
    assert widget.progress.value == 4 and "4 of 4" in widget.note.value and done <= 1
    assert ">14<" in widget.view.svg
    widget.controls["upto"].value = 2  # live within the table, nothing is computed
    assert ">5<" in widget.view.svg


def test_run_shows_its_error():
    widget = Squares(fail=2)
    widget.go.release(4)
    widget.start()
    assert widget.wait(20) and widget.table == {1: 1}
    assert isinstance(widget.error, ValueError) and "2 is one too many" in widget.note.value
    assert not widget.button.disabled


def test_a_widget_refuses_what_is_no_model():
    with pytest.raises(ValueError, match="takes a model, .* not 'tiny'"):
        qlab.widgets.weights("tiny")


# ---- what a widget does not know


WITHOUT_MODEL = ("formats", "calibration", "advisor", "size_quality", "roofline")


def made(name, source, quantized_tiny, **chosen):
    given = {"report": (quantized_tiny,), **dict.fromkeys(WITHOUT_MODEL, ())}.get(name, (source,))
    return getattr(qlab.widgets, name)(*given, **chosen)


@pytest.mark.parametrize("name", list(WIDGETS))
def test_an_unknown_keyword_names_the_nearest(name, source, quantized_tiny):
    """The base class tells it, for every widget of the gallery and whatever its state holds."""
    widget = made(name, source, quantized_tiny)
    for field in vars(widget.state):
        with pytest.raises(ValueError, match=f"no setting '{field}x': did you mean '{field}'"):
            made(name, source, quantized_tiny, **{f"{field}x": 1})
    with pytest.raises(ValueError, match="no control 'colour': "):
        widget.set(colour=1)


@pytest.mark.parametrize("name", [n for n in WIDGETS if n not in WITHOUT_MODEL])
def test_an_unknown_layer_names_the_nearest(name, source, quantized_tiny):
    wrong, near = "layers.1.self_attn.k_pro", f"did you mean '{LAYER}'"
    with pytest.raises(ValueError, match=near):
        made(name, source, quantized_tiny, layer=wrong)
    widget = made(name, source, quantized_tiny)
    before = widget.state
    with pytest.raises(ValueError, match=near):
        widget.set(layer=wrong)
    assert widget.state == before


def test_a_control_offers_only_its_options(source):
    with pytest.raises(ValueError, match="block has no 77: known are 16, 32, 64, 128, row, tensor"):
        weights(source, block=77)
    with pytest.raises(ValueError, match="bits has no 9: known are 2"):
        weights(source).set(bits=9)
