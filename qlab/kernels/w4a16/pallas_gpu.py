"""x Wᵀ on a Hopper GPU with weights that stay packed until they are in registers.

A byte of nibbles becomes two float16 numbers 1024 + n by its bits alone, then float32 · scale,
rounded to bfloat16, the register operand of the tensor cores. Decode reads bytes as fast as memory
gives them, with some loads always under way; prefill is bound by the tensor cores.
"""

from __future__ import annotations

from typing import Any

import jax

from qlab.kernels import gpu
from qlab.kernels.packed import Packed
from qlab.kernels.tilings import GpuTile


def w4a16(x: jax.Array, p: Packed, *, tile: GpuTile, interpret: Any = None) -> jax.Array:
    """(tokens, in) -> (tokens, out) in bfloat16, the dtype of x."""
    return gpu.matmul(x, p, tile, interpret)
