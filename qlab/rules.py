"""Range rules: the scale, zero and offset of a block from its numbers, one named function each.

A rule maps blocks (..., n) float32 and a Format to (scale, zero, offset), each (...) float32 or
None: one of each per block, before they are stored. What a Spec has no field for is dropped. An
all-zero block may get scale 0: it decodes to zeros.
Searches are not rules: a method tries several ranges and keeps the best.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from qlab.arithmetic import bits_of, divide, exponent, multiply, ordered_mean, power_of_two
from qlab.formats import Format

Ranges = tuple[jax.Array, jax.Array | None, jax.Array | None]
Rule = Callable[[jax.Array, Format], Ranges]


def _amax(blocks: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(blocks), axis=-1)


def _signed_amax(blocks: jax.Array) -> jax.Array:
    """The number of largest magnitude with its sign; the positive one of two equally far."""
    low, high = jnp.min(blocks, axis=-1), jnp.max(blocks, axis=-1)
    return jnp.where(-low > high, low, high)


def _span(blocks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """min and max of a block, stretched to contain 0."""
    return jnp.minimum(jnp.min(blocks, -1), 0.0), jnp.maximum(jnp.max(blocks, -1), 0.0)


def absmax(blocks: jax.Array, format: Format) -> Ranges:
    """scale = max|w| / hi: the largest magnitude becomes the largest value (INT4: 7, not −8).

    With an unsigned format the scale takes the sign of the largest number, so that one-signed
    blocks fit either way.
    """
    extreme = _signed_amax(blocks) if format.min >= 0 else _amax(blocks)
    return divide(extreme, format.max), None, None


FLOOR = 1e-4  # of the largest |x| of a block


def absmax_floored(blocks: jax.Array, format: Format) -> Ranges:
    """scale = max(max|x|, 10⁻⁴) / hi: DeepSeek-V3's activation tiles (arXiv 2412.19437, §3.3; its
    inference/kernel.py).
    """
    return divide(jnp.maximum(_amax(blocks), FLOOR), format.max), None, None


def absmax_mid(blocks: jax.Array, format: Format) -> Ranges:
    """scale = max|w| / ((hi − lo) / 2) (INT4: 7.5), qwix's bound: the extreme clips by half."""
    return divide(_amax(blocks), (format.max - format.min) / 2), None, None


def absmax_full(blocks: jax.Array, format: Format) -> Ranges:
    """scale = max|w| / −lo (INT4: 8): the finest step; a positive extreme clips by a whole one."""
    return divide(_amax(blocks), -format.min), None, None


def signed_absmax(blocks: jax.Array, format: Format) -> Ranges:
    """scale = m / lo, m the signed number of largest magnitude (ggml's Q4_0: m / −8)."""
    return divide(_signed_amax(blocks), format.min), None, None


def absmean(blocks: jax.Array, format: Format) -> Ranges:
    """scale = max(mean|w|, 10⁻⁵), BitNet b1.58's (Ma et al. 2024, arXiv 2402.17764, eq. 3)."""
    return jnp.maximum(ordered_mean(jnp.abs(blocks)), 1e-5), None, None


def minmax(blocks: jax.Array, format: Format) -> Ranges:
    """scale = (max − min) / (hi − lo), offset = min − lo·scale: end upon end."""
    low, high = jnp.min(blocks, -1), jnp.max(blocks, -1)
    scale = divide(high - low, format.max - format.min)
    return scale, None, low - multiply(scale, jnp.float32(format.min))


def minmax0(blocks: jax.Array, format: Format) -> Ranges:
    """As `minmax` over a range that contains 0: an unsigned format's offset is ≤ 0."""
    low, high = _span(blocks)
    scale = divide(high - low, format.max - format.min)
    return scale, None, low - multiply(scale, jnp.float32(format.min))


def gptq_asym(blocks: jax.Array, format: Format) -> Ranges:
    """scale = (max − min) / m, zero = round(−min / scale), over a range that contains 0.

    All zeros count as [−1, 1].
    The quantizer of the original GPTQ (Frantar et al. 2022, arXiv 2210.17323).
    """
    low, high = _span(blocks)
    empty = (low == 0) & (high == 0)
    low, high = jnp.where(empty, -1.0, low), jnp.where(empty, 1.0, high)
    scale = divide(high - low, format.max - format.min)
    return scale, jnp.round(divide(-low, scale)), None


def gptq_sym(blocks: jax.Array, format: Format) -> Ranges:
    """scale = 2·max|w| / m if the block has a negative number, else max / m, which clips.

    The original GPTQ mirrors the range only `where min < 0`: at 4 bits a positive row gets scale
    max / 15 and zero 8.
    """
    low, high = _span(blocks)
    high = jnp.maximum(-low, high)
    low = jnp.where(low < 0, -high, low)
    empty = (low == 0) & (high == 0)
    low, high = jnp.where(empty, -1.0, low), jnp.where(empty, 1.0, high)
    return divide(high - low, format.max - format.min), None, None


def awq_asym(blocks: jax.Array, format: Format) -> Ranges:
    """scale = max(max − min, 10⁻⁵) / m, zero = clip(−round(min / scale), 0, m).

    The pseudo-quantizer of AWQ (Lin et al. 2023, arXiv 2306.00978): the zero of a one-signed block
    saturates.
    """
    low, high = jnp.min(blocks, -1), jnp.max(blocks, -1)
    steps = format.max - format.min
    scale = divide(jnp.maximum(high - low, 1e-5), steps)
    return scale, jnp.clip(-jnp.round(divide(low, scale)), 0, steps), None


def awq_sym(blocks: jax.Array, format: Format) -> Ranges:
    """scale = max(max|w|, 10⁻⁵) / hi, AWQ's pseudo-quantizer without zero point."""
    return divide(jnp.maximum(_amax(blocks), 1e-5), format.max), None, None


def hqq_minmax(blocks: jax.Array, format: Format) -> Ranges:
    """1/scale = min(m / (max − min), 2·10⁴), zero = −min / scale, real: where HQQ starts from.

    A block whose numbers differ by at most 10⁻⁴ gets scale 1 (Badri & Shaji 2023, Half-Quadratic
    Quantization).
    """
    low, high = jnp.min(blocks, -1), jnp.max(blocks, -1)
    # m · (1 / (max − min)), rounded twice: torch, and so hqq, divides a number by a tensor so.
    inverse = multiply(divide(jnp.ones_like(low), high - low), jnp.float32(format.max - format.min))
    inverse = jnp.minimum(inverse, 2e4)
    inverse = jnp.where(high - low <= 1e-4, 1.0, inverse)
    return divide(jnp.ones_like(low), inverse), -low * inverse, None


def _e8m0(e: jax.Array) -> Ranges:
    return power_of_two(e), None, None


def pow2_floor(blocks: jax.Array, format: Format) -> Ranges:
    """scale = 2^(⌊log2 max|w|⌋ − ⌊log2 hi⌋), OCP Microscaling 1.0 §6.3; above: saturates."""
    return _e8m0(exponent(_amax(blocks)) - exponent(jnp.float32(format.max)))


def pow2_rceil(blocks: jax.Array, format: Format) -> Ranges:
    """scale = 2^⌈log2(max|w| / hi)⌉: nothing saturates (NVIDIA's recipe)."""
    return _e8m0(_ceil_log2(divide(_amax(blocks), format.max)))


def pow2_ceil(blocks: jax.Array, format: Format) -> Ranges:
    """scale = 2^(⌈log2 max|w|⌉ − ⌊log2 hi⌋): round the block's own exponent up."""
    return _e8m0(_ceil_log2(_amax(blocks)) - exponent(jnp.float32(format.max)))


def pow2_even(blocks: jax.Array, format: Format) -> Ranges:
    """As `pow2_floor` after max|w| is rounded (halves up) to the format's own mantissa bits."""
    half = 1 << (23 - _mantissa_bits(format) - 1)
    bits = jnp.minimum(bits_of(_amax(blocks)), 0x7F800000)  # at most infinity
    rounded = ((bits + half) >> 23) - 127
    return _e8m0(rounded - exponent(jnp.float32(format.max)))


def nvfp4(blocks: jax.Array, format: Format) -> Ranges:
    """scale = max|w| / hi, at least 2⁻⁶/448 of the tensor's largest.

    Stored as FP8 E4M3 under one float32, no scale then falls below E4M3's smallest normal number,
    2⁻⁶.
    """
    scale = divide(_amax(blocks), format.max)
    return jnp.maximum(scale, jnp.max(scale) * (2.0**-6 / 448)), None, None


def _ceil_log2(x: jax.Array) -> jax.Array:
    return exponent(x) + ((bits_of(x) & 0x7FFFFF) != 0).astype(jnp.int32)


def _mantissa_bits(format: Format) -> int:
    """Stored mantissa bits: log2 of how many values share the binade that begins at 1."""
    return int(((format.values >= 1) & (format.values < 2)).sum()).bit_length() - 1


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        *(absmax, absmax_floored, absmax_mid, absmax_full, signed_absmax, absmean, minmax, minmax0),
        *(gptq_asym, gptq_sym, awq_asym, awq_sym, hqq_minmax),
        *(pow2_floor, pow2_rceil, pow2_ceil, pow2_even, nvfp4),
    )
}
