"""s_x s_w Σ q_x q_w in plain JAX: the sum exact in int32, one multiplication at the end."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qlab.arithmetic import multiply
from qlab.kernels.dequantize.reference import codes, ranges
from qlab.kernels.packed import Packed


def w8a8(x: jax.Array, scale: jax.Array, p: Packed) -> jax.Array:
    """int8 (tokens, in) and scale (tokens, 1) -> (tokens, out) float32."""
    along_in = (((1,), (0,)), ((), ()))
    total = jax.lax.dot_general(x, codes(p), along_in, preferred_element_type=jnp.int32)
    return multiply(total.astype(jnp.float32), scale * ranges(p)[0])
