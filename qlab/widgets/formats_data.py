"""The state and the numbers of `formats()`: a value, its neighbours, how it comes out of its bits,
relative errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from qlab.formats import FORMATS
from qlab.plots.widget_formats import FormatsData, Row
from qlab.suggest import near
from qlab.widgets.formula import formula
from qlab.widgets.numbers import SWITCHES, WIDE, Numbers, numbers

TWO, EVERY = "two formats", "every format with few bits"
ROWS = {  # what stands in the rows of EVERY: floats, tables, integers
    "FP8": "E4M3", "FP8_E5M2": "E5M2", "FP6_E2M3": "E2M3", "FP6_E3M2": "E3M2", "FP4": "E2M1",
    "NF4": "NF4", "BNB_FP4": "bnb FP4", "IQ4NL": "IQ4_NL",
    "INT8": "INT8", "INT4": "INT4", "INT2": "INT2", "TERNARY": "ternary",
}  # fmt: skip
COLOURS = {"s": "blue", "t": "purple", "i": "green"}  # of a row, by its first bit


@dataclass(frozen=True)
class FormatsState:
    """`place` is the value's place among the patterns of `format`; `same` scales all to a largest
    value of 1; `show` is TWO or EVERY.
    """

    format: str = "FP8"
    place: int = 184
    other: str = "INT8"
    log: bool = False
    same: bool = True
    show: str = TWO


def formats_data(state: FormatsState) -> FormatsData:
    """Everything that the picture shows.

    Raises:
        ValueError: an unknown format, a place beyond its patterns, or a `show` that is none.

    Example:
        >>> formats_data(FormatsState("FP8", numbers("FP8").place(0b0_0111_000))).value
        1.0
    """
    one, two = numbers(state.format), numbers(state.other)
    if not 0 <= state.place < 2**one.bits:
        raise ValueError(f"{one.name} has 2^{one.bits} patterns, place {state.place} is none")
    if state.show not in (TWO, EVERY):
        raise ValueError(f"show is no {state.show!r}: {near(state.show, (TWO, EVERY))}")
    code = one.pattern(state.place)
    value = one.value(code)
    scale = [1 / _largest(k) if state.same else 1.0 for k in (one, two)]
    largest = max(_largest(k) * s for k, s in zip((one, two), scale))
    magnitudes, errors = _errors(one, two, tuple(scale), largest)
    lines = [None if k.bits > 16 else k.values * s for k, s in zip((one, two), scale)]
    return FormatsData(
        names=(one.name, two.name), layout=one.layout, code=code, value=value,
        below=_neighbour(one, state.place, -1), above=_neighbour(one, state.place, 1),
        formula=formula(one, code), lines=(lines[0], lines[1]), mark=value * scale[0],
        log=state.log, sizes=magnitudes, errors=errors, bits=one.bits, sqnr=_sqnr(one.name),
        rows=_rows(state, value * scale[0]) if state.show == EVERY else (),
    )  # fmt: skip


def _rows(state: FormatsState, mark: float) -> tuple[Row, ...]:
    """Every format of ROWS, and what becomes of the number that stands at `mark` on the line."""
    found = []
    for name, label in ROWS.items():
        k = numbers(name)
        scale = 1 / _largest(k) if state.same else 1.0
        x, first = mark / scale, "i" if name == "TERNARY" else k.layout[0]
        becomes = float("nan") if np.isnan(x) else float(k.nearest(np.array(x))) + 0.0
        inside = np.isfinite(x) and x != 0 and abs(x) <= _largest(k)
        gap = float(_gap(k, np.array([abs(x)]))[0] / abs(x)) if inside else float("nan")
        found.append(Row(
            name, label, COLOURS[first], k.values * scale, becomes * scale, becomes,
            cast(name, x), gap, name == state.format, name in SWITCHES,
        ))  # fmt: skip
    return tuple(found)


def cast(name: str, x: float) -> float:
    """What a cast makes of x without clipping: FP8 has NaN, or ∞, for what is beyond its largest
    value, the others take the end.

    Example:
        >>> [cast("FP8", x) for x in (464.0, 465.0)], cast("FP8_E5M2", 1e6), cast("FP4", 1e6)
        ([448.0, nan], inf, 6.0)
    """
    dtype = FORMATS[name].dtype
    if dtype is None or np.isnan(x):
        return float("nan") if np.isnan(x) else float(numbers(name).nearest(np.array(x)))
    with np.errstate(over="ignore"):
        return float(np.float32(x).astype(dtype))


def _largest(k: Numbers) -> float:
    return 3.4028234663852886e38 if k.name == "FP32" else float(k.values[-1])


def _least(k: Numbers) -> float:
    return 1e-45 if k.name == "FP32" else float(k.values[k.values > 0][0])


def _neighbour(k: Numbers, place: int, step: int) -> float:
    """The next different finite value; NaN at the ends."""
    value = k.value(k.pattern(place))
    while 0 <= (place := place + step) < 2**k.bits:
        found = k.value(k.pattern(place))
        if found != value:  # −0 and +0 are one value
            return found if np.isfinite(found) else float("nan")
    return float("nan")


@lru_cache(maxsize=64)
def _errors(
    one: Numbers, two: Numbers, scale: tuple[float, float], largest: float
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) magnitudes x and (2, n) the worst relative error near x: half the gap in which x lies,
    over x.
    """
    least = min(_least(k) * s for k, s in zip((one, two), scale))
    octaves = float(np.clip(np.floor(np.log2(least / largest)) - 2, -20, -4))
    x = largest * 2.0 ** np.linspace(octaves, 1, 505)
    found = []
    for k, s in zip((one, two), scale):
        end = _largest(k) * s
        worst = np.where(x <= end, _gap(k, np.minimum(x, end) / s) * s / 2, x - end) / x
        found.append(np.clip(worst, 1e-12, 1))
    return x, np.array(found)


def _gap(k: Numbers, x: np.ndarray) -> np.ndarray:
    """The distance of the two neighbours between which each x > 0 lies."""
    if k.name == "FP32":
        below_end = np.minimum(x, _largest(k) * (1 - 2.0**-24))  # the gap above the end is infinite
        return np.spacing(below_end.astype(np.float32)).astype(float)
    above = np.clip(np.searchsorted(k.values, x), 1, len(k.values) - 1)
    return k.values[above] - k.values[above - 1]


@cache
def _sqnr(name: str) -> float:
    """Signal to noise of 64 · 128 normal numbers, the largest of every 64 on the format's largest
    value.
    """
    x, k = np.random.default_rng(0).normal(size=(128, 64)), numbers(name)
    if name == "FP32":
        near = x.astype(np.float32).astype(float)
    else:
        scale = 1.0 if name in WIDE else np.abs(x).max(-1, keepdims=True) / _largest(k)
        near = k.nearest(x / scale) * scale
    return float((x**2).sum() / ((x - near) ** 2).sum())
