"""x Wᵀ with q4_k weights in plain JAX: w = (d s) q + (−dmin) m, six bits for each s and m."""

from __future__ import annotations

import jax

from qlab.kernels.dequantize.reference import weights
from qlab.kernels.packed import Packed
from qlab.kernels.w4a16.reference import product


def q4_k(x: jax.Array, p: Packed) -> jax.Array:
    """(tokens, in) -> (tokens, out) in the dtype of x, summed in float32."""
    return product(x, weights(p).astype(x.dtype)).astype(x.dtype)
