"""`fp8`: FP8 times FP8, a scale for each row or for each block of 128."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

from qlab.kernels import gpu8
from qlab.kernels.checks import check_inputs, check_scales, fp8_reason, refuse
from qlab.kernels.dispatch import choose, gpu_tile_of, tile_of
from qlab.kernels.fp8 import pallas_gpu, pallas_tpu, reference
from qlab.kernels.packed import Packed
from qlab.kernels.tilings import GpuTile, Tile


def fp8(
    x: jax.Array,
    scale: jax.Array,
    p: Packed,
    *,
    tiling: Tile | GpuTile | None = None,
    interpret: Any = None,
) -> jax.Array:
    """Σ_b s_x[t, b] s_w[b, n] Σ_{k ∈ b} q_x q_w, summed in float32.

    Args:
        x: (tokens, in) float8, as `quantize_activations` gives them.
        scale: (tokens, blocks) float32: one block a row, or one for 128 inputs.
        p: FP8 with as many blocks along the inputs: `SPECS["fp8_channel"]` or `["fp8_block"]`.
        tiling: the kernel's tile, a GpuTile that of a GPU's; None: from the table `tilings`.
        interpret: True or `pltpu.InterpretParams(…)` runs the TPU's kernel step by step on any
            machine, `compat.gpu_interpret(…)` the GPU's; None: the program of the platform that it
            is compiled for.

    Returns:
        (tokens, out) float32.

    Raises:
        ValueError: x or scale of another shape or dtype; weights that are not FP8.

    Example:
        >>> import jax.numpy as jnp
        >>> from qlab.kernels import prepack, quantize_activations
        >>> from qlab.qtensor import quantize
        >>> from qlab.specs import SPECS
        >>> p = prepack(quantize(jnp.array([[448.0, -1.0]]), SPECS["fp8_channel"]))
        >>> fp8(*quantize_activations(jnp.array([[448.0, 448.0]]), "fp8_token"), p).tolist()
        [[200256.0]]
    """
    check_inputs("fp8", x, p, ("float8_e4m3fn", "float8_e5m2"))
    refuse(fp8_reason(p))
    check_scales("fp8", scale, (len(x), len(p.scale)))
    tile = tile_of("fp8", p, len(x), tiling, interpret)
    kernel = pallas_tpu.fp8 if tile else reference.fp8
    fit = partial(gpu8.fit, x=x, p=p)
    gpu_tile = gpu_tile_of("fp8", fit, len(x), tiling, interpret, bits=8)
    cuda = pallas_gpu.fp8 if gpu_tile else None
    how = {"tile": tile, "gpu_tile": gpu_tile, "cuda": cuda, "interpret": interpret}
    return choose(x, scale, p, default=reference.fp8, tpu=kernel, **how)
