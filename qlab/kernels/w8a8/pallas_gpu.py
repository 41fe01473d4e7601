"""s_x s_w Σ q_x q_w on a GPU: int8 tiles into the tensor cores, int32 sums in registers, scales at
the end.
"""

from __future__ import annotations

from typing import Any

import jax

from qlab.kernels import gpu8
from qlab.kernels.packed import Packed
from qlab.kernels.tilings import GpuTile


def w8a8(
    x: jax.Array, scale: jax.Array, p: Packed, *, tile: GpuTile, interpret: Any = False
) -> jax.Array:
    """int8 (tokens, in) and scale (tokens, 1) -> (tokens, out) float32."""
    return gpu8.product(x, scale, p, tile, interpret, "w8a8")
