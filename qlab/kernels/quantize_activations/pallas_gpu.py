"""Inputs rounded to int8 or FP8 on a GPU in one pass, without its tensor cores.

A scale a token: a thread block holds a row in shared memory, finds its largest magnitude and then
rounds it, 4,096 numbers at a time. A scale for 128 inputs: a thread block takes 64 such blocks,
each a row of the tile. What is written is the reference's, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from qlab.arithmetic import divide
from qlab.formats import Format
from qlab.kernels import compat
from qlab.kernels.quantize_activations.rounding import rounded, scale_of
from qlab.qtensor import Spec

CHUNK = 4096  # numbers of a row that are in registers at once, 32 a thread
THREADS = 128
MOST = 32768  # of a row: with float32 inputs 160 KB of shared memory
BLOCKS = 64  # of 128 inputs, that a thread block rounds


Divide = Callable[[jax.Array, jax.Array], jax.Array]


def divide_with(interpret: Any, by_row: bool) -> Divide:
    """IEEE's quotient of two arrays in registers.

    Args:
        interpret: parameters of the interpreter, where XLA divides, or False.
        by_row: whether four threads share a row, or all threads take turns.
    """
    if interpret:
        return divide
    from jax.experimental.pallas import mosaic_gpu as plgpu

    def run(a: jax.Array, b: jax.Array) -> jax.Array:
        if by_row:
            rows = plgpu.Layout.WGMMA
            return compat.ieee_divide(a, b, rows if a.ndim == 2 else rows.reduce(1))
        together = math.gcd(a.size // THREADS, 4)  # of int8, one store of 32 bits
        return compat.ieee_divide(a, b, plgpu.Layout.WG_STRIDED(a.shape, together))

    return run


def unsupported(inner: int, spec: Spec) -> str | None:
    """Why the kernel does not round rows of so many inputs, or None."""
    if isinstance(spec.block, int) or inner % 16 == 0 and inner <= MOST:
        return None
    return f"a GPU rounds rows of a multiple of 16 inputs, at most {MOST:,}, not {inner:,}"


def quantize_activations(
    x: jax.Array, spec: Spec, *, interpret: Any = False
) -> tuple[jax.Array, jax.Array]:
    """(tokens, in) -> codes int8 or float8 of that shape, scale (tokens, blocks) float32."""
    by_block = isinstance(spec.block, int)
    return (_blocks if by_block else _tokens)(x, spec, interpret)


def _run(kernel: Any, x: jax.Array, scales: int, format: Format, grid: int, **how: Any) -> Any:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    codes = jax.ShapeDtypeStruct(x.shape, format.dtype or jnp.int8)
    return plgpu.kernel(
        kernel,
        out_type=[codes, jax.ShapeDtypeStruct((scales,), jnp.float32)],
        grid=(grid,),
        grid_names=("block",),
        compiler_params=compat.gpu_params(reduction_scratch_bytes=1024),
        kernel_name="quantize_activations",
        **how,
    )(x)


# ---- a scale a token -----------------------------------------------------------------------------


def _tokens(x: jax.Array, spec: Spec, interpret: Any) -> tuple[jax.Array, jax.Array]:
    """Rows are seen as (lines, width), because a copy takes at most 256 numbers along an axis.

    Lines beyond a row's end are read as zeros and not written; the interpreter is given zeros.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    tokens, inner = x.shape
    width = next(n for n in (256, 128, 64, 32, 16) if inner % n == 0)
    chunk = min(CHUNK, -(-inner // max(width, THREADS)) * max(width, THREADS)) // width
    chunks = -(-inner // (chunk * width))
    x = x.reshape(tokens, inner // width, width)
    if interpret:
        x = jnp.pad(x, ((0, 0), (0, chunks * chunk - x.shape[1]), (0, 0)))
    held = (chunks, chunk, width)
    # One divisor for all lanes: XLA, which interprets, would multiply by its reciprocal.
    codes, scale = _run(
        partial(_row, spec, divide_with(interpret, False), () if interpret else (THREADS,)),
        x,
        tokens,
        spec.format,
        tokens,
        interpret=interpret,
        scratch_types=[
            plgpu.SMEM(held, x.dtype),
            plgpu.SMEM(held, spec.format.dtype or jnp.int8),
            plgpu.Barrier(num_arrivals=chunks),
        ],
    )
    return codes.reshape(tokens, -1)[:, :inner], scale[:, None]


def _row(
    spec: Spec,
    divide: Divide,
    lanes: tuple[int, ...],
    x: Any,
    codes: Any,
    scales: Any,
    row: Any,
    kept: Any,
    loaded: Any,
) -> None:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    token, (chunks, lines, width) = jax.lax.axis_index("block"), row.shape

    def read(i: Any, _: None) -> None:
        plgpu.copy_gmem_to_smem(x.at[token, pl.ds(i * lines, lines)], row.at[i], loaded)

    def largest(i: Any, most: jax.Array) -> jax.Array:
        return jnp.maximum(most, jnp.max(jnp.abs(row[i].astype(jnp.float32))))

    def round_and_write(i: Any, scale: jax.Array) -> jax.Array:
        over = jnp.broadcast_to(scale, (lines, width))
        kept[i] = rounded(row[i].astype(jnp.float32), over, spec.format, divide)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(kept.at[i], codes.at[token, pl.ds(i * lines, lines)])
        return scale

    jax.lax.fori_loop(0, chunks, read, None)
    plgpu.barrier_wait(loaded)
    most = jax.lax.fori_loop(0, chunks, largest, jnp.float32(0))
    each = jnp.broadcast_to(most, lanes)  # every thread divides, and all agree
    scale = jnp.max(scale_of(each, spec, divide))
    jax.lax.fori_loop(0, chunks, round_and_write, scale)
    scales[token] = scale
    plgpu.wait_smem_to_gmem(0)


# ---- a scale for 128 inputs ----------------------------------------------------------------------


def _blocks(x: jax.Array, spec: Spec, interpret: Any) -> tuple[jax.Array, jax.Array]:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    assert isinstance(spec.block, int)
    tokens, count = len(x), x.size // spec.block
    x = x.reshape(count, spec.block)
    if interpret:
        x = jnp.pad(x, ((0, -count % BLOCKS), (0, 0)))
    tile = (BLOCKS, spec.block)
    codes, scale = _run(
        partial(_tile, spec, divide_with(interpret, True)),
        x,
        len(x),
        spec.format,
        pl.cdiv(count, BLOCKS),
        interpret=interpret,
        scratch_types=[
            plgpu.SMEM(tile, x.dtype),
            plgpu.SMEM(tile, spec.format.dtype or jnp.int8),
            plgpu.SMEM((BLOCKS,), jnp.float32),
            plgpu.Barrier(),
        ],
    )
    return codes[:count].reshape(tokens, -1), scale[:count].reshape(tokens, -1)


def _tile(
    spec: Spec,
    divide: Divide,
    x: Any,
    codes: Any,
    scales: Any,
    rows: Any,
    kept: Any,
    held: Any,
    loaded: Any,
) -> None:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    at = pl.ds(jax.lax.axis_index("block") * BLOCKS, BLOCKS)
    plgpu.copy_gmem_to_smem(x.at[at], rows, loaded)
    plgpu.barrier_wait(loaded)
    values = rows[...].astype(jnp.float32)
    most = jnp.max(jnp.abs(values), axis=1)
    scale = scale_of(most, spec, divide)
    over = jax.lax.broadcast_in_dim(scale, values.shape, (0,))
    kept[...] = rounded(values, over, spec.format, divide)
    held[...] = scale
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(kept, codes.at[at])
    plgpu.copy_smem_to_gmem(held, scales.at[at])
    plgpu.wait_smem_to_gmem(0)
