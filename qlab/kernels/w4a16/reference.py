"""x Wᵀ with weights of 4 or 8 bits, in plain JAX: unpack all of w, round it to x's dtype, multiply.

The specification of the op, and what runs where there is no kernel.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qlab.kernels.dequantize.reference import weights
from qlab.kernels.packed import Packed


def w4a16(x: jax.Array, p: Packed) -> jax.Array:
    """(tokens, in) -> (tokens, out) in the dtype of x, summed in float32."""
    return product(x, weights(p).astype(x.dtype)).astype(x.dtype)


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x w in float32, (tokens, in) and (in, out) of one dtype."""
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.matmul(x, w, precision=exact, preferred_element_type=jnp.float32)
