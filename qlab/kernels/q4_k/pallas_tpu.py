"""x Wᵀ on a TPU with q4_k weights: twelve bytes become eight scales and eight minima in VMEM."""

from __future__ import annotations

from typing import Any

import jax

from qlab.kernels import tpu
from qlab.kernels.packed import Packed
from qlab.kernels.tilings import Tile


def q4_k(x: jax.Array, p: Packed, *, tile: Tile, interpret: Any = False) -> jax.Array:
    """(tokens, in) -> (tokens, out) in the dtype of x."""
    return tpu.matmul(x, p, tile, interpret)
