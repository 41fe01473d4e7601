"""The widget opens what ggml's encoder wrote: its bytes decode to the value shown, the bits it
marks are those of the code, and its curve is the encoder's own search."""

import inspect
import re

import numpy as np
import pytest

pytest.importorskip("anywidget")

import qlab
from qlab.io import gguf
from qlab.io.ggml import BLOCKS, TYPE_SPECS
from qlab.io.ggml_layouts import LAYOUTS
from qlab.methods.kquants_blocks import ENCODERS
from qlab.models.load import load
from qlab.models.mixtures import fitting
from qlab.plots.widget_superblock import draw_superblock, sentence
from qlab.widgets import superblock
from qlab.widgets.source import Source
from qlab.widgets.superblock_bits import fields, numbers_of, spots, sub_size, weights_at
from qlab.widgets.superblock_data import (
    CODE,
    K_QUANTS,
    LAYER,
    TYPES,
    SuperblockState,
    piece_of,
    rows_of,
    superblock_data,
    there_and_back,
)

DOWN = "layers.1.mlp.down_proj"
SOME = ("Q4_K", "Q2_K", "Q3_K", "Q6_K", "IQ4_XS", "Q4_0", "Q4_1")  # one of each search


@pytest.fixture(scope="module")
def source():
    return Source(load("tiny"))


def random_block(type, seed):
    """Any bits, but d and dmin finite."""
    random = np.random.default_rng(seed)
    raw = random.integers(0, 256, BLOCKS[type][1].itemsize, dtype=np.uint8)
    block = raw.view(LAYOUTS[type].block)
    for name in {LAYOUTS[type].d, LAYOUTS[type].m} - {None}:
        block[name] = random.normal()
    return raw


# ---- bits


@pytest.mark.parametrize("type", TYPES)
def test_marked_bits_are_all_that_a_code_has(type):
    """Turning a marked bit over changes that number alone, by that power; none is left over."""
    raw = random_block(type, 0)
    layout = LAYOUTS[type]
    taken = set()
    for kind in ("codes", "scales", "minima"):
        places = getattr(layout, kind)

        def read(raw, places=places):
            block = raw.copy().view(layout.block)
            return np.bitwise_or.reduce([place.read(block)[0] for place in places])

        for i, found in enumerate(spots(type, kind)):
            before = read(raw)
            for spot in found:
                other = raw.copy()
                other[spot.byte] ^= 1 << spot.bit
                changed = read(other) ^ before
                assert changed[i] == 1 << spot.place and np.count_nonzero(changed) == 1
                taken.add((spot.byte, spot.bit))
    for field in fields(type):
        if field.role in ("d", "m"):
            taken |= {(field.start + i, bit) for i in range(2) for bit in range(8)}
    assert len(taken) == 8 * len(raw)
    assert sum(field.count for field in fields(type)) == len(raw)


@pytest.mark.parametrize("type", TYPES)
def test_the_numbers_of_any_block_decode_bit_for_bit(source, type):
    """The equation as it is drawn, on random bytes: d, dmin, s, m and q of either sign."""
    from dataclasses import replace

    data = superblock_data(source, SuperblockState(type=type))
    random = np.random.default_rng(1)
    for seed in range(4):
        raw = random_block(type, seed)
        expected = gguf.decode(raw[None], type)[0]
        for element in random.integers(0, data.size, 16).tolist():
            shown = replace(data, numbers=numbers_of(type, raw, element))
            assert shown.value == expected[element], (seed, element)


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("type", SOME)
def test_what_is_shown_is_what_the_file_holds(source, type, importance):
    w = source.weight(DOWN)
    h = np.diagonal(np.asarray(source.stats(DOWN).hessian)) if importance else None
    raw = gguf.encode(w, type, h)
    values = gguf.decode(raw, type)
    for row, place in ((0, 0), (200, 2)):
        for weight in (0, 77, 163, 255):
            state = SuperblockState(DOWN, type, importance, row, place, weight)
            data = superblock_data(source, state)
            size, count = data.size, data.raw.shape[1]
            first = 256 * place // size * count
            np.testing.assert_array_equal(data.raw.ravel(), raw[row, first:][: data.raw.size])
            np.testing.assert_array_equal(data.values, values[row, 256 * place :][:256])
            np.testing.assert_array_equal(data.weights, w[row, 256 * place :][:256])
            assert data.value == data.values[weight]
            mine = data.levels[data.sub_block]
            assert np.abs(mine - data.value).min() <= 1e-7 and (np.diff(mine) >= 0).all()


def test_a_six_bit_scale_is_cut_in_two():
    """Sub-blocks 4 to 7 of Q4_K: two bits at the top of another's byte, four in a shared one."""
    for sub in range(8):
        for kind, own, shift in (("scales", 0, 0), ("minima", 4, 4)):
            found = [(spot.byte - 4, spot.bit) for spot in spots("Q4_K", kind)[sub]]
            if sub < 4:
                assert found == [(own + sub, bit) for bit in range(5, -1, -1)]
            else:
                low = [(8 + sub - 4, shift + bit) for bit in range(3, -1, -1)]
                assert found == [(own + sub - 4, 7), (own + sub - 4, 6), *low]
    assert sum(8 * f.count / 256 for f in fields("Q4_K")) == 4.5
    for type in TYPES:
        bits = sum(8 * f.count / BLOCKS[type][0] for f in fields(type))
        assert bits == qlab.bits_per_weight(TYPE_SPECS[type])


def test_a_byte_leads_to_its_weights():
    assert [weights_at("Q4_K", 16, now) for now in (0, 32, 200)] == [32, 0, 0]
    assert weights_at("Q4_K", 0, 77) == 77  # d is everybody's
    assert weights_at("Q4_K", 5, 0) == 32 and weights_at("Q4_K", 5, 32) == 160
    for type in TYPES:
        for byte in range(BLOCKS[type][1].itemsize):
            assert 0 <= weights_at(type, byte, 3) < BLOCKS[type][0]


# ---- the search


@pytest.mark.parametrize("importance", [False, True])
@pytest.mark.parametrize("type", SOME)
def test_the_curve_is_the_search_that_wrote_the_file(source, type, importance):
    """The one kept loses least of all tried, and its scale is the one in the file: as float16 in
    blocks of 32, else the nearest that d·s can be."""
    data = superblock_data(source, SuperblockState(type=type, importance=importance))
    searched = ENCODERS[type.lower()].weighs and (importance or len(data.raw) == 1)
    if type == "Q4_0" or type == "Q4_1":
        assert searched == importance
    rows = rows_of(source, LAYER, type, importance, 0)
    for sub, found in enumerate(data.searches):
        losses = found.loss[found.first :]
        kept = found.loss[found.kept]
        assert kept <= losses.min() * (1 + 2e-4) + 1e-12 and found.used == searched
        n = numbers_of(type, data.raw[sub * data.sub // data.size], sub * data.sub % data.size)
        values = {one.symbol: one.value for one in n}
        if not found.used:
            assert found.stored == pytest.approx(1)
        elif len(data.raw) > 1:
            assert values["d"] == np.float16(found.scale)
        else:
            step = values["d"] * values["s"]
            near = 0.51 if not importance else 2.5  # with importance scales are searched again
            assert abs(step - found.scale) <= near * abs(values["d"])
    assert rows.told.at.shape[0] == len(data.searches[0].at)


def test_what_ggml_tries():
    """Candidates are those of ggml: 20 + 1 of make_qkx2, 36 + 1 of make_qkx3, −9 … 9, −7 … 7."""
    small = Source(load("tiny"))
    for type, importance, count, low, high in (
        ("Q4_K", False, 22, 14, 16), ("Q4_K", True, 38, 14.1, 15.9),
        ("Q6_K", False, 19, 31.1, 32.9), ("Q3_K", True, 19, 3.1, 4.9),
        ("IQ4_XS", False, 16, 120, 134), ("Q4_0", True, 19, 7.1, 8.9),
    ):  # fmt: skip
        found = superblock_data(small, SuperblockState(type=type, importance=importance))
        one = found.searches[0]
        at = one.at[one.at > 0]
        assert len(one.at) == count
        assert (at.min(), at.max()) == (pytest.approx(low), pytest.approx(high))
    descent = superblock_data(small, SuperblockState(type="Q3_K")).searches[3]
    assert descent.descent and len(descent.at) == 81
    assert (np.diff(descent.loss[descent.loss < np.inf]) <= 1e-4).all()


def test_the_loss_by_hand(source):
    """Plain rounding and the best of Q4_K, from the formula of its weights."""
    data = superblock_data(source, SuperblockState())
    w = data.weights[160:192].astype(np.float64)
    found = data.searches[5]
    by = np.sqrt((w**2).mean()) + np.abs(w)
    low = min(w.min(), 0)
    step = (w.max() - low) / 15
    plain = (by * (np.round((w - low) / step) * step + low - w) ** 2).sum()
    q = np.round((w - low) * 14 / (w.max() - low))  # the first candidate, from the same minimum
    root = np.sqrt(by)
    fit = np.linalg.lstsq(np.column_stack([q, np.ones(32)]) * root[:, None], w * root, rcond=None)
    assert found.loss[1] == pytest.approx(float(fit[1][0] / plain), rel=1e-3)
    stored = (by * (data.values[160:192] - w) ** 2).sum()
    assert found.stored == pytest.approx(stored / plain, rel=1e-4)
    assert found.loss[found.kept] < found.stored < 1


def test_importance_reaches_the_file(source):
    off, on = (superblock_data(source, SuperblockState(importance=i)) for i in (False, True))
    assert (off.raw != on.raw).any()


# ---- the widget


def test_the_code_shown_is_the_code_run():
    assert len(CODE) == 2 and CODE[0].startswith("raw = encode(") and "decode(raw" in CODE[1]
    assert all(line in inspect.getsource(there_and_back) for line in CODE)


def test_a_move_is_a_lookup(source):
    superblock_data(source, SuperblockState())
    before = piece_of.cache_info().misses, rows_of.cache_info().misses
    for weight in range(0, 256, 5):
        superblock_data(source, SuperblockState(weight=weight))
    assert before == (piece_of.cache_info().misses, rows_of.cache_info().misses)
    superblock_data(source, SuperblockState(channel=3))
    assert rows_of.cache_info().misses == before[1]


class Wide(Source):
    """A model whose rows are as SmolLM2's: 576, of which 256 are no divisor."""

    def __init__(self, source):
        super().__init__(source.model)
        inner = source.weight("layers.0.mlp.down_proj")[:8, :576]
        self.weight = lambda layer: inner


def test_rows_that_hold_no_super_block(source):
    wide = Wide(source)
    for type in K_QUANTS:
        data = superblock_data(wide, SuperblockState(type=type, channel=2, place=2))
        assert data.type == fitting(type, 576) != type and data.where[2] == 576 - 256
        assert f"576 hold no super-block of 256: {data.type}" in sentence(data, "en")
        assert data.value == data.values[data.weight]
        np.testing.assert_array_equal(data.weights, wide.weight("")[2, 320:])
    data = superblock_data(wide, SuperblockState(type="Q4_0", channel=2))
    assert "hold no" not in sentence(data, "en")
    wide.weight = lambda layer: np.ones((8, 80), np.float32)
    with pytest.raises(ValueError, match="rows of 80 weights hold no block of 32 or 256"):
        superblock_data(wide, SuperblockState())
    wide.weight = lambda layer: source.weight(LAYER)[:2, :64]
    short = superblock_data(wide, SuperblockState(type="Q4_K", channel=1))
    assert (short.type, short.weight, len(short.weights)) == ("Q5_0", 63, 64)
    assert draw_superblock(short).label


@pytest.mark.parametrize("lang", ["en", "ko"])
@pytest.mark.parametrize("type", TYPES)
def test_drawn(source, type, lang):
    state = SuperblockState(type=type, importance=type in ("Q4_K", "Q5_1"), weight=31)
    data = superblock_data(source, state)
    picture = draw_superblock(data, lang)
    svg = picture.svg()
    assert not re.search(r"\bnan\b|\binf\b", svg.lower()) and len(svg) < 140_000
    assert picture.label.startswith(f"{type}: ")
    assert set(re.findall(r'data-pick="(\w+)"', svg)) == {"bytes", "levels"}
    points = np.concatenate([p for m in picture.marks for p in getattr(m, "points", [])])
    assert points.min() >= 0 and (points.max(0) <= (picture.width + 1, picture.height)).all()
    for value in data.raw[data.block]:
        assert f">{value:02X}<" in svg
    assert (f"{data.raw.shape[1]} bytes" if lang == "en" else f"{data.raw.shape[1]}바이트") in svg


def test_blocks_of_zeros_are_drawn(source):
    wide = Wide(source)
    wide.weight = lambda layer: np.zeros((2, 256), np.float32)
    for type in ("Q4_K", "Q6_K", "Q3_K", "IQ4_XS", "Q4_0", "Q8_0"):
        data = superblock_data(wide, SuperblockState(type=type, channel=1))
        assert data.value == 0 and "nan" not in draw_superblock(data).svg().lower()


def test_moved_by_hand(source):
    widget = superblock(source, weight=5)
    assert "Weight 5 has 4 bits of its own, in qs[5]" in widget.view.svg
    widget.picked("levels", 0.51, 0.5, "")
    assert widget.state.weight == 130
    widget.picked("levels", 0, 0, "ArrowDown")
    widget.picked("levels", 0, 0, "ArrowRight")
    assert widget.state.weight == 163
    for _ in range(9):
        widget.picked("bytes", 0, 0, "ArrowDown")
    assert widget.state.weight == 255
    widget.picked("bytes", 16.5 / 32, 0.1, "")  # qs[0], the 17th byte of the first row
    assert widget.state.weight == 0
    widget.picked("bytes", 16.5 / 32, 0.1, "")
    assert widget.state.weight == 32
    widget.picked("bytes", 0.99, 0.99, "")  # beyond the last byte
    assert widget.state.weight == 32
    widget.controls["type"].value = "Q4_0"
    widget.picked("bytes", 2.5 / 18, 0.99, "")
    assert widget.state.weight == 7 * 32 and "block 7" in widget.view.svg
    widget.controls["layer"].value = DOWN
    assert widget.controls["place"].max == 2 and widget.controls["channel"].max == 255
    widget.controls["place"].value = 2
    widget.controls["layer"].value = LAYER
    assert widget.state.place == 0 and len(widget.warm()) == len(TYPES) + 1
    assert widget.figure().get_label()
    assert sub_size("Q6_K") == 16
