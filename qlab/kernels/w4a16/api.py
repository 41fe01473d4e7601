"""`w4a16`: weights of 4 or 8 bits, inputs of 16 or 32."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from qlab.kernels import cpu, gpu
from qlab.kernels.checks import check_affine, check_inputs
from qlab.kernels.dispatch import choose, gpu_tile_of, tile_of
from qlab.kernels.packed import Packed
from qlab.kernels.tilings import GpuTile, Tile
from qlab.kernels.w4a16 import pallas_gpu, pallas_tpu, reference


def w4a16(
    x: jax.Array, p: Packed, *, tiling: Tile | GpuTile | None = None, interpret: Any = None
) -> jax.Array:
    """x Wᵀ, w unpacked to the dtype of x as it is needed.

    Args:
        x: (tokens, in) float32 or bfloat16, columns in the order of the rows as packed.
        p: the weights: nibbles, int8 or float8; groups, zeros and offsets as they come.
        tiling: the TPU's tile, or a GpuTile of the GPU's; None: from the table `tilings`.
        interpret: True or `pltpu.InterpretParams(…)` runs the TPU's kernel step by step on any
            machine, `compat.gpu_interpret(…)` the GPU's; None: the program of the platform that it
            is compiled for. A GPU's multiplies bfloat16; float32 takes the reference there.

    Returns:
        (tokens, out) in the dtype of x, summed in float32.

    Raises:
        ValueError: x of another shape or dtype (both named); weights in super-blocks.

    Example:
        >>> import jax.numpy as jnp
        >>> from qlab.kernels import prepack
        >>> from qlab.qtensor import quantize
        >>> from qlab.specs import SPECS
        >>> p = prepack(quantize(jnp.array([[1.0, -7.0], [7.0, 0.0]]), SPECS["int4_channel"]))
        >>> w4a16(jnp.array([[1.0, 1.0]]), p).tolist()
        [[-6.0, 7.0]]
    """
    check_inputs("w4a16", x, p, ("float32", "bfloat16"))
    check_affine("w4a16", p)
    p = p.turn(False)
    tile = tile_of("w4a16", p, len(x), tiling, interpret)
    kernel = pallas_tpu.w4a16 if tile else reference.w4a16
    bits, fit = 4 if p.nibbles else 8, partial(gpu.fit, x=x, p=p)
    gpu_tile = gpu_tile_of("w4a16", fit, len(x), tiling, interpret, bits)
    cuda = pallas_gpu.w4a16 if gpu_tile else None
    how = {"tile": tile, "gpu_tile": gpu_tile, "interpret": interpret}
    near = cpu.fastest(reference.w4a16, x, p)
    return choose(x, p, default=reference.w4a16, tpu=kernel, cuda=cuda, cpu=near, **how)
