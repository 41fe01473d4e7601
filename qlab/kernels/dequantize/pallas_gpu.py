"""Packed weights to bfloat16 on a Hopper GPU: tiles of weights times ones and zeros.

Even and odd inputs leave their bytes apart; the tensor cores put them side by side again, because a
product with a matrix that has a single one in each row only moves numbers, exactly.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from qlab.kernels import compat, gpu
from qlab.kernels.packed import Packed
from qlab.kernels.tilings import GpuTile


def fit(tile: GpuTile, p: Packed, dtype: str) -> GpuTile | str:
    """A tile cut to a matrix, or the clause that says why the kernel does not take it."""
    if dtype != "bfloat16":
        return f"the GPU's kernel unpacks to bfloat16, not {dtype}"
    return gpu.fit(tile, jax.ShapeDtypeStruct((gpu.unit_of(p) or 1, p.shape[1]), dtype), p)


def _body(p: Packed, tile: GpuTile, splits: int, staged: bool, move_gmem: Any, *refs: Any) -> None:
    *stored, w_gmem, move_ref, w_smem, barrier = refs
    n, s = (jax.lax.axis_index(name) for name in ("n", "s"))
    begin, steps = gpu.share(p.shape[1] // tile.inner, splits, s)
    plgpu.copy_gmem_to_smem(move_gmem, move_ref, barrier)
    plgpu.barrier_wait(barrier)
    units, size = w_smem.shape[0], w_smem.shape[2]

    def step(index: tuple, *blocks: Any) -> None:
        for unit in range(units):  # at most 8 a tile

            def moved(acc: Any, unit: int = unit) -> jax.Array:
                for part, w in enumerate(gpu.weights_of(p, list(blocks), unit, staged)):
                    gpu.multiply(acc, w.astype(w_smem.dtype), move_ref.at[part], staged)
                return acc[...]

            w = pl.run_scoped(moved, plgpu.WGMMAAccumulatorRef((tile.out, size), jnp.float32))
            plgpu.wait_smem_to_gmem(units - 1, wait_read_only=True)  # what lay here is on its way
            w_smem[unit] = w.astype(w_smem.dtype)
            plgpu.commit_smem()
            k = ((begin + index[0]) * units + unit) * size
            to = w_gmem.at[pl.ds(n * tile.out, tile.out), pl.ds(k, size)]
            plgpu.copy_smem_to_gmem(w_smem.at[unit], to)
        plgpu.commit_smem()  # the next load writes, by another path, where these were read

    plgpu.emit_pipeline(
        step,
        grid=(steps,),
        in_specs=gpu.specs(p, tile, lambda k: (begin + k, n)),
        max_concurrent_steps=tile.steps,
    )(*stored)
    plgpu.wait_smem_to_gmem(0)


def dequantize(p: Packed, dtype: str, *, tile: GpuTile, interpret: Any = None) -> jax.Array:
    """(out, in) in bfloat16, rows as packed."""
    out, inner = p.shape
    size, splits = gpu.unit_of(p), gpu.splits_of(tile, 1, p)
    move = gpu.columns(jnp.eye(size, dtype=dtype), p, size)
    return plgpu.kernel(
        partial(_body, p, tile, splits, interpret is not None),
        out_type=jax.ShapeDtypeStruct((out, inner), dtype),
        grid=(out // tile.out, splits),
        grid_names=("n", "s"),
        scratch_types=[
            plgpu.SMEM(move.shape, move.dtype, **gpu.swizzled(move.shape[2], 2)),
            plgpu.SMEM((tile.inner // size, tile.out, size), dtype, **gpu.swizzled(size, 2)),
            plgpu.Barrier(),
        ],
        compiler_params=compat.gpu_params(),
        kernel_name="dequantize",
        **({} if interpret is None else {"interpret": interpret}),
    )(move, *gpu.operands(p))
