"""Number formats: a Format is a finite set of real numbers, one for each stored bit pattern.

value = grid[code]. A code is the bit pattern as files store it: FP8's 0x7F is NaN, FP4's 8 is −0,
INT4's 0 is −8 (so a two's-complement int8 is code ^ 128). A Format knows nothing of tensors, blocks
or scales.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from qlab.arithmetic import order_key


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Format:
    """A finite set of real numbers and the bits that one of them takes.

    Attributes:
        name: the key in FORMATS.
        bits: storage of one code in bits; fractional where several codes share a byte.
        grid: (codes,) float32, the value of every code; NaN where a pattern is no finite number.
        ties: where a number halfway between two values goes: to the "even" code, "down" or "up".
            "down" is bitsandbytes' rule, whose halfway is the nearest float32 to the midpoint.
        dtype: a JAX dtype with exactly this grid whose cast rounds to nearest even, or None.

    Two Formats are equal when name and bits are (grids hold NaN).

    Example:
        >>> FP4.decode(FP4.encode(jnp.array([0.7, -5.0, 100.0]))).tolist()
        [0.5, -4.0, 6.0]
    """

    name: str
    bits: float
    grid: np.ndarray
    ties: Literal["even", "down", "up"] = "even"
    dtype: np.dtype | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Format) and (self.name, self.bits) == (other.name, other.bits)

    def __hash__(self) -> int:
        return hash((self.name, self.bits))

    def __repr__(self) -> str:
        return self.name

    @functools.cached_property
    def values(self) -> np.ndarray:
        """The distinct finite values, ascending."""
        return np.unique(self.grid[np.isfinite(self.grid)])

    @property
    def min(self) -> float:
        return float(self.values[0])

    @property
    def max(self) -> float:
        return float(self.values[-1])

    @functools.cached_property
    def is_integer(self) -> bool:
        """Whether the codes 0, 1, 2, … stand for consecutive integers with even codes for even
        ones.
        """
        steps = self.grid == self.grid[0] + np.arange(len(self.grid))
        return bool(steps.all() and self.grid[0] % 2 == 0)

    @functools.cached_property
    def _codes(self) -> np.ndarray:
        """The code of each of `values`; +0 where there is also −0."""
        plus = np.where(np.signbit(self.grid) & (self.grid == 0), np.nan, self.grid)
        return np.array([np.flatnonzero(plus == v)[0] for v in self.values], np.uint8)

    @functools.cached_property
    def _cuts(self) -> np.ndarray:
        """Value i + 1 begins at cut i, as an order key: the midpoint, moved one float up where the
        tie belongs below.
        """
        v = self.values.astype(np.float64)
        middle = (v[:-1] + v[1:]) / 2
        cut = middle.astype(np.float32)
        tie = cut.astype(np.float64) == middle
        even = tie & (self._codes[:-1] % 2 == 0) & (self.ties == "even")
        # "down": the midpoint is a float32, and a number equal to it stays below.
        up = (cut < middle) | even | (self.ties == "down")
        cut = np.where(up, np.nextafter(cut, np.float32(np.inf)), cut).astype(np.float32) + 0.0
        bits = cut.view(np.int32)
        return bits ^ ((bits >> 31) & 0x7FFFFFFF)

    def encode(self, x: jax.Array) -> jax.Array:
        """Codes (uint8) of the nearest finite values; never NaN or −0. Shape as `x`, float32.

        Numbers beyond the ends take the end. A NaN has no nearest value: its code is unspecified.
        """
        if self.is_integer:
            return (jnp.clip(jnp.round(x), self.min, self.max) - self.min).astype(jnp.uint8)
        if self.dtype is not None:
            y = jnp.clip(x, self.min, self.max).astype(self.dtype)
            code = jax.lax.bitcast_convert_type(y, jnp.uint8)
            return jnp.where(code == 0x80, jnp.uint8(0), code)
        key, cuts = order_key(x), jnp.asarray(self._cuts)
        if len(self._cuts) > 64:
            place = jnp.searchsorted(cuts, key, side="right", method="scan_unrolled")
        else:
            below = jnp.zeros(key.shape, jnp.uint8)
            place = sum(((key >= int(c)).astype(jnp.uint8) for c in self._cuts), below)
        if (self._codes == np.arange(len(self._codes))).all():
            return place.astype(jnp.uint8)
        return jnp.asarray(self._codes)[place]

    def decode(self, codes: jax.Array) -> jax.Array:
        """grid[codes] as float32, shape as `codes`."""
        if self.is_integer:
            return codes.astype(jnp.float32) + self.min
        return jnp.asarray(self.grid)[codes]


def _integers(low: int, high: int) -> np.ndarray:
    return np.arange(low, high + 1, dtype=np.float32)


def _bit_patterns(dtype: type, count: int) -> np.ndarray:
    values = np.arange(count, dtype=np.uint8).view(dtype).astype(np.float32)
    return np.where(np.isfinite(values), values, np.nan).astype(np.float32)


def _dynamic8() -> np.ndarray:
    """bitsandbytes' dynamic 8-bit map: per decade 10^(i − 6), i = 0 … 6, the 2^i middles of equal
    parts of [0.1, 1].

    Dettmers 2015, arXiv 1511.04561; sign, 0 and 1 complete the 256 values.
    """
    values = [np.float32(0), np.float32(1)]
    for i in range(7):
        # torch.linspace: a float32 step, counted from the nearer end, each edge rounded once.
        step, j = (np.float32(1) - np.float32(0.1)) / np.float32(2**i), np.arange(2**i + 1.0)
        low, high = np.float32(0.1) + np.float64(step) * j, 1 - np.float64(step) * (2**i - j)
        edges = np.where(2 * j < 2**i, low, high).astype(np.float32)
        middle = np.float32(10.0 ** (i - 6)) * ((edges[:-1] + edges[1:]) / np.float32(2))
        values += [*middle, *-middle]
    return np.sort(np.array(values, np.float32))


# Normal float 4 (Dettmers et al. 2023, arXiv 2305.14314, appendix E): equally filled quantiles of
# N(0, 1), and 0.
_NF4 = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453]
    + [-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0]
    + [0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
    + [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0],
    np.float32,
)
# ggml's non-linear 4-bit levels, a fit to the weights of trained models.
_IQ4NL = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)
# bitsandbytes' 4-bit float, magnitudes in twelfths: not E2M1, and its smallest step is 1/192.
_BNB_FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / np.float32(12)
_TERNARY = _integers(-1, 1)
_E4M3 = _bit_patterns(ml_dtypes.float8_e4m3fn, 256)

INT2, INT3, INT4, INT5, INT6, INT7, INT8 = (
    Format(f"INT{b}", b, _integers(-(2 ** (b - 1)), 2 ** (b - 1) - 1)) for b in range(2, 9)
)
UINT2, UINT3, UINT4, UINT5, UINT6, UINT7, UINT8 = (
    Format(f"UINT{b}", b, _integers(0, 2**b - 1)) for b in range(2, 9)
)
FP8 = Format("FP8", 8, _E4M3, dtype=np.dtype(ml_dtypes.float8_e4m3fn))  # E4M3, ±448, no infinity
FP8_E5M2 = Format(
    "FP8_E5M2",
    8,
    _bit_patterns(ml_dtypes.float8_e5m2, 256),
    dtype=np.dtype(ml_dtypes.float8_e5m2),
)
UE4M3 = Format("UE4M3", 8, np.where(np.arange(256) < 128, _E4M3, np.nan).astype(np.float32))
E8M0 = Format("E8M0", 8, _bit_patterns(ml_dtypes.float8_e8m0fnu, 256), ties="up")  # 2⁻¹²⁷ … 2¹²⁷
FP6_E2M3 = Format("FP6_E2M3", 6, _bit_patterns(ml_dtypes.float6_e2m3fn, 64))
FP6_E3M2 = Format("FP6_E3M2", 6, _bit_patterns(ml_dtypes.float6_e3m2fn, 64))
FP4 = Format("FP4", 4, _bit_patterns(ml_dtypes.float4_e2m1fn, 16))  # E2M1: 0 .5 1 1.5 2 3 4 6
NF4 = Format("NF4", 4, _NF4, ties="down")
IQ4NL = Format("IQ4NL", 4, _IQ4NL)
BNB_FP4 = Format("BNB_FP4", 4, np.concatenate([_BNB_FP4, -_BNB_FP4]), ties="down")
DYNAMIC8 = Format("DYNAMIC8", 8, _dynamic8(), ties="down")
TERNARY = Format("TERNARY", 1.625, _TERNARY)  # five trits a byte: 52 bytes for 256
TERNARY2 = Format("TERNARY2", 2, _TERNARY)  # one trit in two bits

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        *(INT2, INT3, INT4, INT5, INT6, INT7, INT8),
        *(UINT2, UINT3, UINT4, UINT5, UINT6, UINT7, UINT8),
        *(FP8, FP8_E5M2, UE4M3, E8M0, FP6_E2M3, FP6_E3M2, FP4),
        *(NF4, IQ4NL, BNB_FP4, DYNAMIC8, TERNARY, TERNARY2),
    )
}
