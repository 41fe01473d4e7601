"""Scales of inputs and the nearest codes, as every kernel computes them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from qlab.arithmetic import divide
from qlab.formats import Format
from qlab.qtensor import Spec
from qlab.rules import FLOOR, absmax_floored

TINY = 2.0**-10  # half of FP8's smallest step: what is nearer to 0 becomes 0 and not −0


def scale_of(most: jax.Array, spec: Spec, divide: Callable[..., jax.Array] = divide) -> jax.Array:
    """scale = max|x| / hi, or max(max|x|, 10⁻⁴) / hi where the Spec floors it."""
    if spec.rule is absmax_floored:
        most = jnp.maximum(most, FLOOR)
    return divide(most, jnp.full_like(most, spec.format.max))


def rounded(
    x: jax.Array, scale: jax.Array, format: Format, divide: Callable[..., jax.Array] = divide
) -> jax.Array:
    """The nearest codes, int8 or float8, of x / scale.

    Args:
        x: float32.
        scale: float32, at least 0; where it is 0, so is x.
        format: INT8 or one of FP8.
        divide: rounds a quotient as IEEE does, where it is computed.
    """
    x = divide(x, jnp.where(scale == 0, 1.0, scale))
    if format.dtype is None:
        return jnp.clip(jnp.round(x), format.min, format.max).astype(jnp.int8)
    x = jnp.where(jnp.abs(x) <= TINY, 0.0, jnp.clip(x, format.min, format.max))
    return x.astype(format.dtype)
