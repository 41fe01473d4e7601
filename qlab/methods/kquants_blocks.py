"""One function a ggml type: from weights, one block a column, to the codes and scales of its block.

Every function takes x (weights of a block, blocks) and `Extra`, and returns `Parts`; `ENCODERS`
names them by their Spec. Those of 256 weights work on sub-blocks: first the scale (and minimum) of
each (`kquants_search`), then one 16-bit number for all scales of the super-block, and then every
code again, for the scale as it is stored. Source: ggml, ggml-quants.c, the functions
quantize_row_*_ref (no importance) and quantize_row_*_impl.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qlab.arithmetic import FLOAT16_MAX, bits_of, divide, exponent, multiply, power_of_two
from qlab.formats import FP4, IQ4NL, UE4M3
from qlab.methods.kquants_search import (
    EPS,
    Tell,
    ends,
    inverse,
    make_iq4,
    make_q3,
    make_qkx,
    make_qp,
    make_qx,
    nearest_int,
    nearest_level,
    sum_in_order,
)

_F32 = jnp.float32
# First, step, count of make_qkx's candidates with importance, for every type.
_WITH_IMPORTANCE = (-0.9, 0.05, 36)


class Extra(NamedTuple):
    """What an encoder knows beside the weights.

    Attributes:
        importance: (weights of a block, blocks) float32, mean x² of each column; or None.
        row: (blocks,) float32, mean w² of the whole row; read by the blocks of 32 with importance.
        limit: () float32, where half-precision scales stop: 65504, or infinity to overflow as ggml.
        tell: called with every candidate for a sub-block's scale (`kquants_search.Tried`), or None.
    """

    importance: jax.Array | None
    row: jax.Array | None
    limit: jax.Array
    tell: Tell | None = None


class Parts(NamedTuple):
    """A block taken apart. Codes are uint8, as their Format counts them.

    Attributes:
        codes: (weights of a block, blocks).
        d: (blocks,) float16, the scale, or the scale of the scales; None where the scales' codes
            are the numbers.
        m: (blocks,) float16, the offset, or the scale of the minima: −dmin.
        scales, minima: (sub-blocks, blocks), their codes.
    """

    codes: jax.Array
    d: jax.Array | None = None
    m: jax.Array | None = None
    scales: jax.Array | None = None
    minima: jax.Array | None = None


def half(x: jax.Array, limit: jax.Array) -> jax.Array:
    """float16 that stops at ±limit; where it stops at a finite one, NaN (no scale was found, since
    squares overflowed) is 0, and the block decodes to zeros.
    """
    x = jnp.where(jnp.isnan(x) & (limit <= FLOAT16_MAX), 0.0, x)
    return jnp.clip(x, -limit, limit).astype(jnp.float16)


def _bytes(x: jax.Array) -> jax.Array:
    return x.astype(jnp.uint8)


def _whole(x: jax.Array) -> jax.Array:
    """int32 towards zero."""
    return x.astype(jnp.int32)


def _whole_away(x: jax.Array) -> jax.Array:
    """int32, halves away from zero, for |x| < 2²²: with the number below 0.5, which added to one
    below a half does not reach 1, and added to a half is rounded up to it.
    """
    return _whole(x + jnp.where(x < 0, -0.49999997, 0.49999997))


def _weights(x: jax.Array, importance: jax.Array, variance: jax.Array) -> jax.Array:
    """importance · √(σ² + x²): large weights count more, but small ones too."""
    return multiply(importance, jnp.sqrt(variance + multiply(x, x)))


# ---- ends of a block -----------------------------------------------------------------------------
# What kquants_search.ends finds, for finite x, by reductions. Where nothing is searched finding the
# ends is half the work, and a reduction runs along the rows that hold the blocks in memory with
# vector instructions, where a loop over elements first has to turn rows into columns. Of
# floats: the maximum of int32 takes three times as long.


def _largest(x: jax.Array) -> jax.Array:
    """max |x|."""
    return jnp.max(jnp.abs(x), axis=0)


def _furthest(x: jax.Array) -> jax.Array:
    """The number of largest magnitude with its sign; of x and −x the first."""

    def first_of_equals() -> jax.Array:
        order = jnp.arange(len(x), dtype=_F32)[:, None]
        order = jnp.where(x < 0, 2 * order + 1, 2 * order)  # odd: negative
        first = jnp.min(jnp.where(jnp.abs(x) == largest, order, 2.0 * len(x)), axis=0)
        return jnp.where(first % 2 == 1, -largest, largest)

    high, low = jnp.max(x, axis=0), jnp.min(x, axis=0)
    largest = jnp.maximum(high, -low)
    one_sided = lambda: jnp.where(high > -low, high, low)  # noqa: E731
    return jax.lax.cond((high == -low).any(), first_of_equals, one_sided)


def _low_and_high(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """min and max; of 0 and −0 the first, whose sign reaches the file."""
    low, high = jnp.min(x, axis=0), jnp.max(x, axis=0)
    zero = ((low == 0) | (high == 0)).any()
    return jax.lax.cond(zero, lambda: ends(x)[:2], lambda: (low, high))


# ---- blocks of 32 --------------------------------------------------------------------------------


def _symmetric(x: jax.Array, extra: Extra, *, n: int) -> Parts:
    """Q4_0 (n = 8) and Q5_0 (n = 16): x = d·(q − n), the largest magnitude becomes −n."""
    if extra.importance is not None and extra.row is not None:
        d, codes = make_qx(x, _weights(x, extra.importance, extra.row), n, extra.tell)
        return Parts(_bytes(codes), half(d, extra.limit))
    d = divide(_furthest(x), float(-n))
    q = _whole(multiply(x, inverse(d)) + (n + 0.5))
    return Parts(_bytes(jnp.minimum(q, 2 * n - 1)), half(d, extra.limit))


def _affine(x: jax.Array, extra: Extra, *, n: int) -> Parts:
    """Q4_1 (n = 15) and Q5_1 (n = 31): x = d·q + m."""
    if extra.importance is not None and extra.row is not None:
        weights = _weights(x, extra.importance, extra.row)
        d, minimum, codes = make_qkx(x, weights, n, _WITH_IMPORTANCE, tell=extra.tell)
        return Parts(_bytes(codes), half(d, extra.limit), half(-minimum, extra.limit))
    low, high = _low_and_high(x)
    d = divide(high - low, float(n))
    q = jnp.minimum(_whole(multiply(x - low, inverse(d)) + 0.5), n)
    return Parts(_bytes(q), half(d, extra.limit), half(low, extra.limit))


def _q8_0(x: jax.Array, extra: Extra) -> Parts:
    """x = d·q, d = max|x| / 127, halves away from zero."""
    d = divide(_largest(x), 127.0)
    return Parts(_bytes(_whole_away(multiply(x, inverse(d))) + 128), half(d, extra.limit))


def _ternary(x: jax.Array, extra: Extra) -> Parts:
    """TQ1_0 and TQ2_0: d = max|x|, and a weight is −d, 0 or d."""
    d = _largest(x)
    return Parts(_bytes(_whole_away(multiply(x, inverse(d))) + 1), half(d, extra.limit))


def _iq4_nl(x: jax.Array, extra: Extra) -> Parts:
    """x = d·level[q], sixteen uneven levels."""
    weights = _iq4_weights(x, extra.importance, _mean_square(x) * 2)
    d = make_iq4(x, weights, IQ4NL.grid, extra.tell)
    codes = nearest_level(multiply(x, inverse(d)), IQ4NL.grid)
    return Parts(_bytes(codes), half(d, extra.limit))


def _iq4_weights(x: jax.Array, importance: jax.Array | None, variance: jax.Array) -> jax.Array:
    return multiply(x, x) if importance is None else _weights(x, importance, variance)


def _mean_square(x: jax.Array) -> jax.Array:
    """Mean x² over the first axis, whose length is a power of two."""
    return sum_in_order(multiply(x, x))[0] / x.shape[0]


# ---- floats of 4 bits ----------------------------------------------------------------------------


def floor_log2(x: jax.Array) -> jax.Array:
    """C's floorf(log2f(x)) for positive normal x, int32: log2f rounds, and numbers just below 2^k
    reach k.

    1 − j·2⁻²⁴ has log2 = −j·2⁻²⁴/ln 2, and it vanishes beside k where that is at most half an ulp.

    Example:
        >>> floor_log2(jnp.array([6.0, 7.9999995, 8.0, 0.99999994])).tolist()
        [2, 3, 3, -1]
    """
    e = exponent(x)
    short = (1 << 23) - (bits_of(x) & 0x7FFFFF)  # j: x = 2^(e+1) · (1 − j·2⁻²⁴)
    k = e + 1
    size = jnp.abs(k).astype(_F32)
    binade = exponent(size)  # half an ulp of numbers near k is 2^(binade − 24)
    binade -= ((k > 0) & (size == power_of_two(binade))).astype(jnp.int32)  # below a power of two
    reach = 0.6931472 * power_of_two(binade)
    return e + ((k != 0) & (short.astype(_F32) <= reach)).astype(jnp.int32)


def _nearest_fp4(x: jax.Array, d: jax.Array) -> jax.Array:
    """The code of FP4 whose d·value is nearest; of two equally near the smaller code."""

    def look(code: jax.Array, best: tuple) -> tuple:
        error = jnp.abs(multiply(d, grid[code]) - x)
        better = error < best[0]
        return jnp.where(better, error, best[0]), jnp.where(
            better, jnp.asarray(code, jnp.uint8), best[1]
        )

    grid = jnp.asarray(FP4.grid)
    first = jnp.abs(x), jnp.zeros(x.shape, jnp.uint8)
    return jax.lax.fori_loop(1, 16, look, first)[1]


def _mxfp4(x: jax.Array, extra: Extra) -> Parts:
    """x = 2^(e − 127)·FP4[q], e = ⌊log2 max|x|⌋ − 2 + 127.

    A block below 2⁻¹²⁵ gets e = 0; C's cast of a negative number to a byte means nothing there.
    """
    far = _largest(x)
    e = jnp.where(far > 0, jnp.clip(floor_log2(far) + 125, 0, 254), 0)
    # 2^(e − 127) as a product: where it is subnormal the codes are those of zeros.
    d = jax.lax.bitcast_convert_type(e << 23, _F32)
    return Parts(_nearest_fp4(x, d), scales=_bytes(e)[None])


def _nvfp4(x: jax.Array, extra: Extra) -> Parts:
    """x = s·FP4[q]: 16 weights, s = max|x| / 6 in UE4M3, halves up; 248 and more become 448."""
    d = divide(_largest(x), 6.0)
    capped = jnp.minimum(d, 448.0)
    small = jnp.minimum(jnp.trunc(multiply(capped, jnp.float32(512.0)) + 0.5), 7.0)
    # Seven bits from exponent and mantissa; a carry out of the mantissa raises the exponent.
    normal = ((bits_of(capped) >> 19) + 1 >> 1) - (120 << 3)
    code = jnp.where(exponent(capped) <= -7, small.astype(jnp.int32), normal)
    code = jnp.where(code >= 15 << 3, 0x7E, code)
    scale = jnp.asarray(UE4M3.grid)[code]
    return Parts(_nearest_fp4(x, scale), scales=_bytes(code)[None])


# ---- super-blocks of 256 -------------------------------------------------------------------------


def _sub_blocks(x: jax.Array, size: int) -> jax.Array:
    """(256, blocks) -> (size, sub-blocks, blocks)."""
    return jnp.swapaxes(x.reshape(-1, size, x.shape[-1]), 0, 1)


def _super_block(codes: jax.Array) -> jax.Array:
    """The reverse, as uint8."""
    return _bytes(jnp.swapaxes(codes, 0, 1).reshape(-1, codes.shape[-1]))


def _requantized(
    x: jax.Array, d: jax.Array, m: jax.Array | float, low: int, high: int, codes: jax.Array
) -> jax.Array:
    """round((x + m) / d) − low for scales as stored; where d is 0 the search's codes stay."""
    q = jnp.clip(nearest_int(divide(x + m, jnp.where(d == 0, 1.0, d))), low, high) - low
    return jnp.where(d == 0, codes, q)


class _Affine(NamedTuple):
    """A k-quant with minima: sub-block, largest code, largest scale code, make_qkx's candidates."""

    size: int
    n: int
    top: int
    tries: tuple[float, float, int]


def _k_with_minima(x: jax.Array, extra: Extra, *, kind: _Affine) -> Parts:
    """Q2_K, Q4_K and Q5_K: x = d·s·q − dmin·m."""
    size, n, top, tries = kind
    two_bits = n == 3
    sub = _sub_blocks(x, size)
    if extra.importance is None:
        weights = jnp.abs(sub)
        if not two_bits:
            weights = jnp.sqrt(_mean_square(sub)) + weights
        scales, minima, codes = make_qkx(sub, weights, n, tries, two_bits, extra.tell)
        d, s = _by_the_largest(scales, top)
        m, t = _by_the_largest(minima, top)
    else:
        variance = _mean_square(x) * (1 if two_bits else 2)
        weights = _weights(sub, _sub_blocks(extra.importance, size), variance)
        scales, minima, codes = make_qkx(sub, weights, n, _WITH_IMPORTANCE, tell=extra.tell)
        (sums,) = sum_in_order(weights)
        d, s = make_qp(scales, sums, top)
        m, t = make_qp(minima, sums, top)
    d, m = half(d, extra.limit), half(m, extra.limit)
    step = multiply(d.astype(_F32), s.astype(_F32))
    shift = multiply(m.astype(_F32), t.astype(_F32))
    codes = _requantized(sub, step, shift, 0, n, codes)
    return Parts(_super_block(codes), d, -m, _bytes(s), _bytes(t))


def _by_the_largest(values: jax.Array, top: int) -> tuple[jax.Array, jax.Array]:
    """One scale for numbers ≥ 0, the largest becomes `top`: (sub-blocks, blocks) -> d, codes."""
    largest = jnp.max(jnp.where(values > 0, values, 0.0), axis=0)
    inv = divide(jnp.full_like(largest, top), jnp.where(largest > 0, largest, jnp.inf))
    codes = nearest_int(multiply(values, inv)) & 255  # a byte in C: a negative scale wraps
    return divide(largest, float(top)), jnp.minimum(codes, top)


def _signed_scales(scales: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """The scale of largest magnitude becomes −n: (sub-blocks, blocks) -> d, codes in [−n, n)."""
    far = ends(scales)[2]
    inv = divide(jnp.full_like(far, -n), jnp.where(far == 0, jnp.inf, far))
    codes = jnp.clip(nearest_int(multiply(scales, inv)), -n, n - 1)
    return inverse(inv), jnp.where(far == 0, -n, codes)


def _q3_k(x: jax.Array, extra: Extra) -> Parts:
    """x = d·(s − 32)·(q − 4), 16 weights a scale."""
    sub = _sub_blocks(x, 16)
    if extra.importance is None:
        scales, codes = make_q3(sub, 4, extra.tell)
        d, s = _signed_scales(scales, 32)
    else:
        weights = _weights(sub, _sub_blocks(extra.importance, 16), _mean_square(x) * 2)
        scales, codes = make_qx(sub, weights, 4, extra.tell)
        d, s = make_qx(scales, sum_in_order(weights)[0], 32)
        s = s - 32
    d = half(d, extra.limit)
    step = multiply(d.astype(_F32), s.astype(_F32))
    codes = _requantized(sub, step, 0.0, -4, 3, codes)
    return Parts(_super_block(codes), d, scales=_bytes(s + 32))


def _q6_k(x: jax.Array, extra: Extra) -> Parts:
    """x = d·s·(q − 32), 16 weights an int8 scale."""
    sub = _sub_blocks(x, 16)
    importance = extra.importance
    weights = multiply(sub, sub) if importance is None else _sub_blocks(importance, 16)
    scales, codes = make_qx(sub, weights, 32, extra.tell)
    empty = jnp.abs(ends(scales)[2]) < EPS
    d, s = _signed_scales(scales, 128)
    d, s = half(jnp.where(empty, 0.0, d), extra.limit), jnp.where(empty, 0, s)
    step = multiply(d.astype(_F32), s.astype(_F32))
    codes = _requantized(sub, step, 0.0, -32, 31, jnp.where(empty, 0, codes))
    return Parts(_super_block(codes), d, scales=_bytes(s + 128))


def _iq4_xs(x: jax.Array, extra: Extra) -> Parts:
    """x = d·(s − 32)·level[q], 32 weights a scale. Codes are chosen by d before it is rounded."""
    sub, importance = _sub_blocks(x, 32), extra.importance
    importance = None if importance is None else _sub_blocks(importance, 32)
    weights = _iq4_weights(sub, importance, _mean_square(x) * 2)
    scales = make_iq4(sub, weights, IQ4NL.grid, extra.tell)
    d = divide(-ends(scales)[2], 32.0)
    s = jnp.clip(nearest_int(multiply(scales, inverse(d))), -32, 31)
    step = multiply(d, s.astype(_F32))
    codes = nearest_level(multiply(sub, inverse(step)), IQ4NL.grid)
    return Parts(_super_block(codes), half(d, extra.limit), scales=_bytes(s + 32))


class Encoder(NamedTuple):
    """How many weights a column of `run` holds; whether importance reaches it, and through the mean
    square of the whole row; whether several codes are tried also where no importance is given.
    """

    size: int
    run: Callable[[jax.Array, Extra], Parts]
    weighs: bool = True
    row: bool = False
    search: bool = True


ENCODERS: dict[str, Encoder] = {
    "q4_0": Encoder(32, partial(_symmetric, n=8), row=True, search=False),
    "q4_1": Encoder(32, partial(_affine, n=15), row=True, search=False),
    "q5_0": Encoder(32, partial(_symmetric, n=16), row=True, search=False),
    "q5_1": Encoder(32, partial(_affine, n=31), row=True, search=False),
    "q8_0": Encoder(32, _q8_0, weighs=False, search=False),
    "q2_k": Encoder(256, partial(_k_with_minima, kind=_Affine(16, 3, 15, (-0.5, 0.1, 15)))),
    "q3_k": Encoder(256, _q3_k),
    "q4_k": Encoder(256, partial(_k_with_minima, kind=_Affine(32, 15, 63, (-1.0, 0.1, 20)))),
    "q5_k": Encoder(256, partial(_k_with_minima, kind=_Affine(32, 31, 63, (-0.5, 0.1, 15)))),
    "q6_k": Encoder(256, _q6_k),
    "iq4_nl": Encoder(32, _iq4_nl),
    "iq4_xs": Encoder(256, _iq4_xs),
    "mxfp4": Encoder(32, _mxfp4, weighs=False),
    "nvfp4_ggml": Encoder(16, _nvfp4, weighs=False),
    "tq1_0": Encoder(256, _ternary, weighs=False, search=False),
    "tq2_0": Encoder(256, _ternary, weighs=False, search=False),
}
