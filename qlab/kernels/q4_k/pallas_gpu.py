"""x Wᵀ on a Hopper GPU with q4_k weights: each thread makes the six-bit scales and minima of its
own rows out of the twelve bytes.
"""

from __future__ import annotations

from typing import Any

import jax

from qlab.kernels import gpu
from qlab.kernels.packed import Packed
from qlab.kernels.tilings import GpuTile


def q4_k(x: jax.Array, p: Packed, *, tile: GpuTile, interpret: Any = None) -> jax.Array:
    """(tokens, in) -> (tokens, out) in bfloat16, the dtype of x."""
    return gpu.matmul(x, p, tile, interpret)
