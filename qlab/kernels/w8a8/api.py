"""`w8a8`: int8 times int8, exact in int32."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from qlab.kernels import cpu, gpu8
from qlab.kernels.checks import check_inputs, check_scales, integer_reason, refuse
from qlab.kernels.dispatch import choose, gpu_tile_of, tile_of
from qlab.kernels.packed import Packed
from qlab.kernels.tilings import GpuTile, Tile
from qlab.kernels.w8a8 import pallas_gpu, pallas_tpu, reference


def w8a8(
    x: jax.Array,
    scale: jax.Array,
    p: Packed,
    *,
    tiling: Tile | GpuTile | None = None,
    interpret: Any = None,
) -> jax.Array:
    """s_x s_w Σ q_x q_w: integers multiplied, summed without a rounding, scaled once.

    Args:
        x: (tokens, in) int8, as `quantize_activations(…, "int8_token")` gives them.
        scale: (tokens, 1) float32.
        p: integers of at most 8 bits with one scale an output, no zero and no offset.
        tiling: the kernel's tile, a GpuTile that of a GPU's; None: from the table `tilings`.
        interpret: True or `pltpu.InterpretParams(…)` runs the TPU's kernel step by step on any
            machine, `compat.gpu_interpret(…)` the GPU's; None: the program of the platform that it
            is compiled for.

    Returns:
        (tokens, out) float32, the bits of `activations.act_matmul`.

    Raises:
        ValueError: x or scale of another shape or dtype; weights with groups, zeros or offsets.

    Example:
        >>> import jax.numpy as jnp
        >>> from qlab.kernels import prepack
        >>> from qlab.qtensor import quantize
        >>> from qlab.specs import SPECS
        >>> p = prepack(quantize(jnp.array([[127.0, -127.0]]), SPECS["int8_channel"]))
        >>> w8a8(jnp.array([[2, 1]], jnp.int8), jnp.ones((1, 1)), p).tolist()
        [[127.0]]
    """
    check_inputs("w8a8", x, p, ("int8",))
    check_scales("w8a8", scale, (len(x), 1))
    refuse(integer_reason(p))
    tile = tile_of("w8a8", p, len(x), tiling, interpret)
    kernel = pallas_tpu.w8a8 if tile else reference.w8a8
    fit = partial(gpu8.fit, x=x, p=p)
    gpu_tile = gpu_tile_of("w8a8", fit, len(x), tiling, interpret, bits=8)
    cuda = pallas_gpu.w8a8 if gpu_tile else None
    how = {"tile": tile, "gpu_tile": gpu_tile, "cuda": cuda, "interpret": interpret}
    near = cpu.fastest(reference.w8a8, x, scale, p)
    return choose(x, scale, p, default=reference.w8a8, tpu=kernel, cpu=near, **how)
