"""Σ_b s_x[t, b] s_w[b, n] Σ_{k ∈ b} q_x q_w in plain JAX, b the one block of a row or each of 128
inputs (DeepSeek-AI 2024, arXiv 2412.19437, §3.3).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qlab.kernels.dequantize.reference import ranges
from qlab.kernels.packed import Packed
from qlab.kernels.w4a16.reference import product


def fp8(x: jax.Array, scale: jax.Array, p: Packed) -> jax.Array:
    """float8 (tokens, in) and scale (tokens, blocks) -> (tokens, out) float32."""
    p, blocks = p.turn(False), scale.shape[1]
    by_block = x.astype(jnp.float32).reshape(len(x), blocks, -1).transpose(1, 0, 2)
    w = p.codes.astype(jnp.float32).reshape(blocks, -1, p.codes.shape[1])
    y = product(by_block, w)  # (blocks, tokens, out)
    return (y * (scale.T[:, :, None] * ranges(p)[0][:, None])).sum(axis=0)
