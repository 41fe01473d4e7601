"""`q4_k`: 4.5 bits a weight, as llama.cpp's Q4_K keeps them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from qlab.kernels import cpu, gpu
from qlab.kernels.checks import check_inputs
from qlab.kernels.dispatch import choose, gpu_tile_of, tile_of
from qlab.kernels.packed import Packed
from qlab.kernels.q4_k import pallas_gpu, pallas_tpu, reference
from qlab.kernels.tilings import GpuTile, Tile


def q4_k(
    x: jax.Array, p: Packed, *, tiling: Tile | GpuTile | None = None, interpret: Any = None
) -> jax.Array:
    """x Wᵀ with w in super-blocks of 256: 6-bit scales and minima, float16 d and dmin.

    Args:
        x: (tokens, in) float32 or bfloat16.
        p: weights of `SPECS["q4_k"]`, with inputs that 256 divides.
        tiling: the TPU's tile, or a GpuTile of the GPU's; None: from the table `tilings`.
        interpret: True or `pltpu.InterpretParams(…)` runs the TPU's kernel step by step on any
            machine, `compat.gpu_interpret(…)` the GPU's; None: the program of the platform that it
            is compiled for. A GPU's multiplies bfloat16; float32 takes the reference there.

    Returns:
        (tokens, out) in the dtype of x, summed in float32.

    Raises:
        ValueError: x of another shape or dtype; weights in another layout.

    Example:
        >>> import jax.numpy as jnp
        >>> from qlab.kernels import prepack
        >>> from qlab.qtensor import quantize
        >>> from qlab.specs import SPECS
        >>> q4_k(jnp.ones((1, 256)), prepack(quantize(jnp.zeros((2, 256)), SPECS["q4_k"]))).shape
        (1, 2)
    """
    check_inputs("q4_k", x, p, ("float32", "bfloat16"))
    if p.layout != "q4_k":
        raise ValueError(f'q4_k reads weights of SPECS["q4_k"] in super-blocks of 256, not {p!r}')
    tile = tile_of("q4_k", p, len(x), tiling, interpret)
    kernel = pallas_tpu.q4_k if tile else reference.q4_k
    gpu_tile = gpu_tile_of("q4_k", partial(gpu.fit, x=x, p=p), len(x), tiling, interpret)
    cuda = pallas_gpu.q4_k if gpu_tile else None
    how = {"tile": tile, "gpu_tile": gpu_tile, "interpret": interpret}
    near = cpu.fastest(reference.q4_k, x, p)
    return choose(x, p, default=reference.q4_k, tpu=kernel, cuda=cuda, cpu=near, **how)
