"""Kernels: products with weights that stay packed until the last moment.

One folder an op: `api` checks and dispatches, `reference` is the specification in plain JAX,
`pallas_tpu` and `pallas_gpu` the kernels. `prepack` makes what they read, `matmul` picks the op.
No GPU has timed its kernels yet: `python -m benchmarks.kernels --gpu` will, where there is one.
"""

from qlab.kernels.dequantize.api import dequantize
from qlab.kernels.dispatch import support
from qlab.kernels.fp8.api import fp8
from qlab.kernels.matmul import matmul, unsupported_act
from qlab.kernels.packed import Packed, prepack, unsupported
from qlab.kernels.q4_k.api import q4_k
from qlab.kernels.quantize_activations.api import quantize_activations
from qlab.kernels.tilings import TILINGS, GpuTile, Tile
from qlab.kernels.w4a16.api import w4a16
from qlab.kernels.w8a8.api import w8a8

__all__ = [
    "TILINGS",
    "GpuTile",
    "Packed",
    "Tile",
    "dequantize",
    "fp8",
    "matmul",
    "prepack",
    "q4_k",
    "quantize_activations",
    "support",
    "unsupported",
    "unsupported_act",
    "w4a16",
    "w8a8",
]
