"""Kernels: products with weights that stay packed until the last moment.

One folder an op: `api` checks and dispatches, `reference` is the specification in plain JAX,
`pallas_tpu` the kernel. `prepack` makes what they read, `matmul` picks the op.
"""

from qlab.kernels.dequantize.api import dequantize
from qlab.kernels.dispatch import support
from qlab.kernels.packed import Packed, prepack, unsupported
from qlab.kernels.tilings import TILINGS, Tile
from qlab.kernels.w4a16.api import w4a16

__all__ = [
    "TILINGS",
    "Packed",
    "Tile",
    "dequantize",
    "prepack",
    "support",
    "unsupported",
    "w4a16",
]
