"""Σ_b s_x s_w Σ q_x q_w on a GPU: float8 tiles into the tensor cores, every 128 inputs' sum scaled
as it is added up in float32.
"""

from __future__ import annotations

from typing import Any

import jax

from qlab.kernels import gpu8
from qlab.kernels.packed import Packed
from qlab.kernels.tilings import GpuTile


def fp8(
    x: jax.Array, scale: jax.Array, p: Packed, *, tile: GpuTile, interpret: Any = False
) -> jax.Array:
    """float8 (tokens, in) and scale (tokens, blocks) -> (tokens, out) float32."""
    return gpu8.product(x, scale, p, tile, interpret, "fp8")
