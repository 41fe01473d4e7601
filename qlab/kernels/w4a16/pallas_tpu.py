"""x Wᵀ on a TPU with weights that stay packed until their tile is in VMEM.

Bytes of nibbles become int4 by `pltpu.bitcast`, no shift needed; then float32 · scale, rounded to
x's dtype, into the MXU. Decode is bound by unpacking in the vector unit, prefill by the MXU.
"""

from __future__ import annotations

from typing import Any

import jax

from qlab.kernels import tpu
from qlab.kernels.packed import Packed
from qlab.kernels.tilings import Tile


def w4a16(x: jax.Array, p: Packed, *, tile: Tile, interpret: Any = False) -> jax.Array:
    """(tokens, in) -> (tokens, out) in the dtype of x."""
    return tpu.matmul(x, p, tile, interpret)
