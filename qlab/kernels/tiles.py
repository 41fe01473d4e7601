"""What the TPU kernels do inside a tile: bytes to integers, integers to weights, ranges to rows.

A tile holds inputs along its rows (sublanes) and outputs along its columns (lanes), so a range of a
group is one row, spread over the rows of its group. Every step is 32-bit: a TPU shifts no uint8 and
knows no float16. Not here: grids and blocks (`tpu`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from qlab.kernels.packed import SUB, Packed, integers

FLOAT = jnp.float32


def half_bits(x: jax.Array) -> jax.Array:
    """float16 as int16 bits, other dtypes as they are: what goes into a kernel."""
    return jax.lax.bitcast_convert_type(x, jnp.int16) if x.dtype == jnp.float16 else x


def to_float(x: jax.Array) -> jax.Array:
    """float32 of float32, bfloat16, or the bits of a float16 (int16), subnormals and all.

    Example:
        >>> to_float(half_bits(jnp.array([1.5, -6e-8], jnp.float16))).tolist()
        [1.5, -5.960464477539063e-08]
    """
    if x.dtype != jnp.int16:
        return x.astype(FLOAT)
    bits = x.astype(jnp.int32)
    exponent, mantissa = (bits >> 10) & 31, bits & 1023
    normal = jax.lax.bitcast_convert_type(((exponent + 112) << 23) | (mantissa << 13), FLOAT)
    size = jnp.where(exponent == 0, mantissa.astype(FLOAT) * 2.0**-24, normal)
    return jnp.where(bits < 0, -size, size)


def table_values(codes: jax.Array, grid: np.ndarray) -> jax.Array:
    """grid[codes & 15] without a gather: 15 selects by the four bits of a code.

    Args:
        codes: int32, any shape; bits above the fourth are ignored.
        grid: (16,) float32.

    Example:
        >>> table_values(jnp.array([0, 3, 15]), np.arange(16.0)).tolist()
        [0.0, 3.0, 15.0]
    """
    level: list[Any] = [np.float32(value) for value in grid]
    for bit in range(4):
        odd = (codes & (1 << bit)) != 0
        pairs = zip(level[0::2], level[1::2], strict=True)
        level = [jnp.where(odd, high, low) for low, high in pairs]
    return jnp.asarray(level[0])


def integer_codes(codes: jax.Array, nibbles: bool) -> jax.Array:
    """A tile of stored codes as the integers (or float8) it holds: (rows, out), int4 or as is."""
    return pltpu.bitcast(codes, jnp.int4) if nibbles else codes


def spread(values: jax.Array, rows: int) -> jax.Array:
    """(groups, 1, out) over the rows of a tile, as (groups, rows / groups, out)."""
    groups, _, out = values.shape
    return jnp.broadcast_to(values, (groups, rows // groups, out))


def affine(p: Packed, codes: jax.Array, ranges: Sequence[jax.Array | None]) -> jax.Array:
    """A tile of weights, (rows, out) float32: (code − zero) ⊙ scale + offset.

    Args:
        p: whose format it is; its arrays are not read.
        codes: (rows, out) or bytes of nibbles, (rows / 2, out).
        ranges: scale, zero, offset, each (groups, 1, out) or None.
    """
    scale, zero, offset = (None if r is None else to_float(r) for r in ranges)
    assert scale is not None
    held = integer_codes(codes, p.nibbles)
    if p.format.bits == 4 and not integers(p.format):
        w = table_values(held.astype(jnp.int32), p.format.grid)
    else:
        w = held.astype(FLOAT)
    rows, out = w.shape
    w = w.reshape(len(scale), -1, out)
    if zero is not None:
        w = w - (zero - p.shift)
    elif p.shift:
        w = w + float(p.shift)
    w = w * scale
    if offset is not None:
        w = w + offset
    return w.reshape(rows, out)


def six_bits(packed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eight scales and eight minima out of twelve bytes: (n, 12, out) -> two of (n, 8, out) int32.

    The drawing is in `packed`.
    """
    raw = packed.astype(jnp.int32)
    first, second, third = raw[:, 0:4], raw[:, 4:8], raw[:, 8:12]
    scales = jnp.concatenate([first & 63, (third & 15) | (first >> 6 << 4)], axis=1)
    minima = jnp.concatenate([second & 63, (third >> 4) | (second >> 6 << 4)], axis=1)
    return scales, minima


def q4_k(codes: jax.Array, scales: jax.Array, supers: jax.Array) -> jax.Array:
    """A tile of q4_k weights, (rows, out) float32: (d s) q + (−dmin) m.

    Args:
        codes: bytes of nibbles, (rows / 2, out).
        scales: (rows / 256, 12, out) uint8.
        supers: (rows / 256, 2, out), d and −dmin as float16 bits.
    """
    d = to_float(supers)
    scale, minimum = six_bits(scales)
    scale = d[:, 0:1] * scale.astype(FLOAT)  # (n, 8, out)
    offset = d[:, 1:2] * minimum.astype(FLOAT)
    w = integer_codes(codes, True).astype(FLOAT) + 8.0
    rows, out = w.shape
    w = w.reshape(-1, SUB, out)
    w = w * scale.reshape(-1, 1, out) + offset.reshape(-1, 1, out)
    return w.reshape(rows, out)
