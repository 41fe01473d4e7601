"""Arithmetic that gives the same bits everywhere: compiled or eager, alone or inside a larger
program.

A compiler may turn a / b into a · (1/b), contract a·b + c into one rounding, and sum in any order.
Each function here adds a zero that the compiler cannot see through, `min(|a|, 0)`, or fixes the
order, so that every step is one IEEE rounding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

FLOAT16_MAX = 65504.0


def divide(a: jax.Array, b: jax.Array | float) -> jax.Array:
    """The correctly rounded quotient a / b, broadcast.

    XLA rewrites division by a broadcast or constant divisor as multiplication by its reciprocal, an
    ulp off for about half of all operands. A divisor that depends on `a` cannot be rewritten.

    Example:
        >>> float(divide(jnp.float32(5.0), 448.0)) == float(jnp.float32(5.0 / 448.0))
        True
    """
    return a / (b + jnp.minimum(jnp.abs(a), 0.0))


def reciprocal(x: jax.Array) -> jax.Array:
    """The correctly rounded 1 / x.

    `divide(1.0, x)` is not enough: the zero of a constant numerator is seen through, and XLA makes
    1 / (n / x) of it x / n, which rounds otherwise.

    Example:
        >>> float(reciprocal(jnp.float32(3.0))) == float(jnp.float32(1 / 3))
        True
    """
    return 1.0 / (x + jnp.minimum(jnp.abs(x), 0.0))


def multiply(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product a · b rounded once, safe to add to: `multiply(a, b) + c` never becomes a fused
    multiply-add.

    Example:
        >>> float(multiply(jnp.float32(3.0), jnp.float32(0.5)) + 1.0)
        2.5
    """
    return a * b + jnp.minimum(jnp.abs(a), 0.0)


def ordered_sum(x: jax.Array) -> jax.Array:
    """The sum over the last axis by halves, (..., n) -> (...): first half plus second half until
    one is left.

    The order is part of the definition, so the result does not depend on how a reduction is
    scheduled.

    Example:
        >>> float(ordered_sum(jnp.arange(5.0)))
        10.0
    """
    length = 1 << max(x.shape[-1] - 1, 0).bit_length()
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])])
    while length > 1:
        length //= 2
        x = x[..., :length] + x[..., length:]
    return x[..., 0]


def ordered_mean(x: jax.Array) -> jax.Array:
    """`ordered_sum` over the number of elements of the last axis."""
    return divide(ordered_sum(x), float(x.shape[-1]))


def cast(x: jax.Array, dtype: str) -> jax.Array:
    """A saturating cast of float32 to float32, float16 or bfloat16, rounding to nearest even.

    float16 stops at ±65504 instead of overflowing. bfloat16 is rounded before its cast, which the
    compiler may then neither skip nor repeat.
    """
    if dtype == "float16":
        return jnp.clip(x, -FLOAT16_MAX, FLOAT16_MAX).astype(jnp.float16)
    if dtype == "bfloat16":
        return jax.lax.reduce_precision(x, 8, 7).astype(jnp.bfloat16)
    return x.astype(dtype)


def bits_of(x: jax.Array) -> jax.Array:
    """The int32 with the same bits as a float32."""
    return jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)


def order_key(x: jax.Array) -> jax.Array:
    """An int32 that sorts as the float32 does: subnormals keep their place, which float compares on
    XLA lose.
    """
    bits = bits_of(x)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def exponent(x: jax.Array) -> jax.Array:
    """floor(log2 |x|) as int32 by the exponent field; zero and subnormals give −127.

    Example:
        >>> exponent(jnp.array([1.0, 6.0, 0.75])).tolist()
        [0, 2, -1]
    """
    return ((bits_of(x) >> 23) & 0xFF) - 127


def power_of_two(e: jax.Array) -> jax.Array:
    """2^e as float32 for int32 e, clipped to −127 … 127; 2⁻¹²⁷ is built as bits, since arithmetic
    would flush it.
    """
    e = jnp.clip(e, -127, 127)
    bits = jnp.where(e == -127, 0x00400000, (e + 127) << 23)
    return jax.lax.bitcast_convert_type(bits.astype(jnp.int32), jnp.float32)
