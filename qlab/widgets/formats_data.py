"""The state and the numbers of `formats()`: a value, its neighbours, how it comes out of its bits,
relative errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from qlab.plots.widget_formats import FormatsData
from qlab.widgets.formula import formula
from qlab.widgets.numbers import WIDE, Numbers, numbers


@dataclass(frozen=True)
class FormatsState:
    """`place` is the value's place among the patterns of `format`; `same` scales both to a largest
    value of 1.
    """

    format: str = "FP8"
    place: int = 184
    other: str = "INT8"
    log: bool = False
    same: bool = True


def formats_data(state: FormatsState) -> FormatsData:
    """Everything that the picture shows.

    Raises:
        ValueError: an unknown format, or a place beyond its patterns.

    Example:
        >>> formats_data(FormatsState("FP8", numbers("FP8").place(0b0_0111_000))).value
        1.0
    """
    one, two = numbers(state.format), numbers(state.other)
    if not 0 <= state.place < 2**one.bits:
        raise ValueError(f"{one.name} has 2^{one.bits} patterns, place {state.place} is none")
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
    )  # fmt: skip


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
