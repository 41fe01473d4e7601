"""`dequantize`: a Packed as an array of weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from qlab.arithmetic import divide
from qlab.kernels.dequantize import pallas_gpu, pallas_tpu, reference
from qlab.kernels.dispatch import choose, gpu_tile_of, tile_of
from qlab.kernels.packed import Packed
from qlab.kernels.tilings import DECODE, GpuTile, Tile

OUTPUTS = ("float32", "bfloat16")


def dequantize(
    p: Packed,
    dtype: str = "float32",
    *,
    tiling: Tile | GpuTile | None = None,
    interpret: Any = None,
) -> jax.Array:
    """The weights that a Packed stands for.

    Args:
        p: the weights.
        dtype: "float32" or "bfloat16".
        tiling: the TPU's tile, or a GpuTile of the GPU's; None: from the table.
        interpret: True or `pltpu.InterpretParams(…)` runs the TPU's kernel step by step on any
            machine, `compat.gpu_interpret(…)` the GPU's; None: the program of the platform that it
            is compiled for. A GPU's unpacks to bfloat16; float32 takes the reference there.

    Returns:
        (out, in) in `dtype`; in float32 what `qlab.dequantize` gave before packing.

    Raises:
        ValueError: another dtype; a given tiling that does not fit.

    Example:
        >>> from qlab.kernels import prepack
        >>> from qlab.qtensor import quantize
        >>> from qlab.specs import SPECS
        >>> q = quantize(jnp.array([[1.0, -7.0, 2.4, 0.0]]), SPECS["int4_channel"])
        >>> dequantize(prepack(q)).tolist()
        [[1.0, -7.0, 2.0, 0.0]]
    """
    if dtype not in OUTPUTS:
        raise ValueError(f"weights are unpacked to float32 or bfloat16, not {dtype!r}")
    p = p.turn(False)
    tile = tile_of("dequantize", p, DECODE, tiling, interpret)
    kernel = pallas_tpu.dequantize if tile else reference.dequantize
    fit = partial(pallas_gpu.fit, p=p, dtype=dtype)
    gpu_tile = gpu_tile_of("dequantize", fit, DECODE, tiling, interpret)
    cuda = pallas_gpu.dequantize if gpu_tile else None
    how = {"tile": tile, "gpu_tile": gpu_tile, "interpret": interpret, "dtype": dtype}
    w = choose(p, default=reference.dequantize, tpu=kernel, cuda=cuda, **how)
    if p.perm is not None:
        w = w[:, jnp.argsort(p.perm)]
    if p.channel_scale is not None:
        w = divide(w.astype(jnp.float32), p.channel_scale).astype(dtype)
    return w
