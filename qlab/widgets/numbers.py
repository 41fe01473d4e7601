"""Bit patterns and their numbers for `formats()`: qlab's Formats, and FP32, BF16, FP16, whose
values are too many for a table.

A place counts the patterns in the order of their values, so that a slider walks from neighbour to
neighbour.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property

import ml_dtypes
import numpy as np

from qlab.describe import fields
from qlab.formats import FORMATS
from qlab.suggest import near

WIDE = {
    "FP32": (np.float32, "s" + "e" * 8 + "m" * 23),
    "BF16": (ml_dtypes.bfloat16, "s" + "e" * 8 + "m" * 7),
    "FP16": (np.float16, "s" + "e" * 5 + "m" * 10),
}
# Whose bits can be switched: the best known first, then every other whose patterns have an order.
KNOWN = ("FP32", "BF16", "FP16", "FP8", "FP8_E5M2", "FP4", "INT8", "INT4", "INT2", "NF4")
UNORDERED = ("E8M0", "UE4M3", "BNB_FP4", "TERNARY", "TERNARY2")
SWITCHES = (*KNOWN, *(name for name in FORMATS if name not in (*KNOWN, *UNORDERED)))
LINES = ("BF16", "FP16", *FORMATS)


@dataclass(frozen=True)
class Numbers:
    """A format opened bit by bit; `layout` is one letter a bit, as `qlab.describe.fields` writes
    it.
    """

    name: str
    layout: str

    @property
    def bits(self) -> int:
        return len(self.layout)

    @property
    def signed(self) -> bool:
        """Whether the first bit is a sign, so that the patterns of negative numbers count
        backwards.
        """
        return self.layout[0] == "s"

    def value(self, code: int) -> float:
        """The number of a bit pattern; NaN where it is none, ±∞ where it says so."""
        if self.name not in WIDE:
            return float(FORMATS[self.name].grid[code])
        bits = np.array(code, {32: np.uint32, 16: np.uint16}[self.bits])
        return float(bits.view(WIDE[self.name][0]))

    def code(self, value: float) -> int:
        """The pattern of the nearest number; beyond the ends, the end."""
        if self.name not in WIDE:
            return int(np.nanargmin(np.abs(FORMATS[self.name].grid.astype(float) - value)))
        dtype = WIDE[self.name][0]
        end = float(ml_dtypes.finfo(dtype).max)
        near = np.array(min(max(value, -end), end)).astype(dtype)
        return int(near.view({32: np.uint32, 16: np.uint16}[self.bits]))

    def place(self, code: int) -> int:
        """Where the pattern stands in the order of values, from 0."""
        half = 2 ** (self.bits - 1)
        if not self.signed:
            return code
        return half + code if code < half else 2 * half - 1 - code

    def pattern(self, place: int) -> int:
        """The pattern at a place: the reverse of `place`."""
        half = 2 ** (self.bits - 1)
        if not self.signed:
            return place
        return place - half if place >= half else 2 * half - 1 - place

    @cached_property
    def values(self) -> np.ndarray:
        """The distinct finite values, ascending, float64.

        Raises:
            ValueError: for FP32, which has four billion.
        """
        if self.name not in WIDE:
            return FORMATS[self.name].values.astype(float)
        if self.bits > 16:
            raise ValueError(f"{self.name} has 2^{self.bits} patterns: too many to list")
        with np.errstate(invalid="ignore"):  # some patterns are signalling NaNs
            every = np.arange(2**16, dtype=np.uint16).view(WIDE[self.name][0]).astype(float)
        return np.unique(every[np.isfinite(every)])

    def nearest(self, x: np.ndarray) -> np.ndarray:
        """The nearest value of every number; beyond the ends, the end."""
        cuts = (self.values[1:] + self.values[:-1]) / 2
        return self.values[np.searchsorted(cuts, x)]


@cache
def numbers(name: str) -> Numbers:
    """A format by name: the keys of FORMATS, and FP32, BF16, FP16.

    Raises:
        ValueError: for an unknown name, suggesting the nearest.

    Example:
        >>> numbers("FP8").value(0b0_0111_000)
        1.0
    """
    if name in WIDE:
        return Numbers(name, WIDE[name][1])
    if name not in FORMATS:
        raise ValueError(f"no format is called {name!r}: {near(name, (*WIDE, *FORMATS))}")
    return Numbers(name, fields(FORMATS[name]))
