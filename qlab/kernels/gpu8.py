"""The product of bytes that `w8a8` and `fp8` share on a Hopper GPU, in Mosaic GPU.

    grid (tokens, outputs); a thread block walks along the inputs, four loads ahead of itself

The tensor cores (wgmma) read both operands from shared memory, and numbers of 8 bits only along
rows of inputs: x is (tokens, in) and w (out, in), `Packed.turned`. int8 is summed in int32 by the
tensor cores, exactly. They keep about 14 bits of a sum of FP8 products (DeepSeek-AI 2024, arXiv
2412.19437, §3.3.2), so every 128 inputs the sum is added to a float32 one in registers, times the
scales of its block where there are such. What lies beyond an edge is read as zeros and not written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from qlab.kernels import compat
from qlab.kernels.packed import Packed
from qlab.kernels.tilings import GpuTile

ROWS = 64  # of tokens that wgmma multiplies at once, whether there are so many or not
NARROW = 32  # least outputs of a tile: 128 bytes of float32, which are written at once
DEEP = 128  # inputs of a step of FP8, after which its sum becomes float32


def fit(tile: GpuTile, x: jax.Array | jax.ShapeDtypeStruct, p: Packed) -> GpuTile | str:
    """A tile cut to a product, or why the kernel does not compute it.

    Tokens become a multiple of 64. Outputs are halved until there are `tile.blocks` thread blocks,
    so that the whole GPU reads the weights for a few tokens too.

    Args:
        tile: the wish.
        x: (tokens, in).
        p: the weights.
    """
    (out, inner), dtype = p.shape, p.codes.dtype
    if x.dtype != dtype:
        return f"a GPU multiplies bytes of one kind, not {x.dtype.name} by {dtype.name}"
    if out % NARROW or inner % NARROW:
        return f"a GPU multiplies multiples of {NARROW} outputs and inputs, not {p.shape}"
    if p.group < inner and p.group != DEEP:
        return f"a GPU multiplies blocks of {DEEP} inputs, not of {p.group}"
    exact = x.dtype == jnp.int8
    most = tile.inner if exact else DEEP if p.group < inner else min(tile.inner, DEEP)
    deep = next((n for n in (2 * DEEP, DEEP, 64) if inner % n == 0 and n <= most), NARROW)
    most = tile.tokens // ROWS if exact else 1  # float32 sums take as much room again as wgmma's
    tokens = ROWS * max(1, min(most, pl.cdiv(x.shape[0], ROWS)))
    wide = max(NARROW, tile.out // NARROW * NARROW)
    while wide >= 2 * NARROW and pl.cdiv(x.shape[0], tokens) * pl.cdiv(out, wide) < tile.blocks:
        wide = wide // 2 // NARROW * NARROW
    return tile._replace(tokens=tokens, out=wide, inner=deep)


def product(
    x: jax.Array, scale: jax.Array, p: Packed, tile: GpuTile, interpret: Any, name: str
) -> jax.Array:
    """Σ_b s_x[t, b] s_w[b, n] Σ_{k ∈ b} q_x q_w: (tokens, in) and (tokens, blocks) -> (tokens, out)
    float32.

    Args:
        x: int8 or float8.
        scale: float32, as many blocks as `p.scale` has rows.
        p: the weights; turned here if they are not.
        tile: what `fit` gave.
        interpret: parameters of the GPU's interpreter, or False.
        name: of the kernel.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    tokens, out = len(x), p.shape[0]
    operands, rows, columns = _operands(x, scale, p, tile, bool(interpret))
    run = plgpu.kernel(
        partial(_kernel, tile, bool(interpret)),
        out_type=jax.ShapeDtypeStruct((rows, columns), jnp.float32),
        grid=(pl.cdiv(rows, tile.tokens), pl.cdiv(columns, tile.out)),
        grid_names=("tokens", "outputs"),
        compiler_params=compat.gpu_params(),
        kernel_name=name,
        interpret=interpret,
    )
    return run(*operands)[:tokens, :out]


def _operands(
    x: jax.Array, scale: jax.Array, p: Packed, tile: GpuTile, interpreted: bool
) -> tuple[list[jax.Array], int, int]:
    """x, s_x (blocks, tokens), w, s_w as the kernel reads them, and the sizes of what it writes.

    More than 8 tokens are filled up to a multiple of 8, which a copy to shared memory asks for. The
    interpreter knows neither edges nor transposed references: it gets whole tiles, and w (in, out).
    """
    tokens, out = len(x), p.shape[0]
    rows = tokens if tokens <= 8 else -(-tokens // 8) * 8
    w, columns = p.turn(True).codes, out
    if interpreted:
        rows, columns = -(-tokens // tile.tokens) * tile.tokens, -(-out // tile.out) * tile.out
        w = jnp.pad(p.turn(False).codes, ((0, 0), (0, columns - out)))
    x = jnp.pad(x, ((0, rows - tokens), (0, 0)))
    s_x = jnp.pad(scale.T, ((0, 0), (0, max(rows, 8) - tokens)))
    s_w = jnp.pad(p.scale.astype(jnp.float32), ((0, 0), (0, columns - out)))
    return [x, s_x, w, s_w], rows, columns


# ---- a thread block: one group of 128 threads ----------------------------------------------------


class Place(NamedTuple):
    """Where a thread block works: its tile of the output, and how."""

    token: jax.Array
    output: jax.Array
    tile: GpuTile
    interpreted: bool


def _kernel(tile: GpuTile, interpreted: bool, x: Any, s_x: Any, w: Any, s_w: Any, y: Any) -> None:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    token, output = jax.lax.axis_index("tokens"), jax.lax.axis_index("outputs")
    here = Place(token, output, tile, interpreted)
    across = (tile.tokens, tile.out)
    if x.dtype == jnp.int8:
        pl.run_scoped(
            partial(_exact, here, x, s_x, w, s_w, y), plgpu.WGMMAAccumulatorRef(across, jnp.int32)
        )
        return
    blocks = [s_x, s_w] if s_w.shape[0] > 1 else []
    body, start = partial(_promote, here), jnp.zeros(across, jnp.float32)
    total = _along_inputs(here, body, [x, w, *blocks], start=start)
    if blocks:
        pl.run_scoped(partial(_write, here, y, total), plgpu.SMEM(across, jnp.float32))
    else:
        _scale_and_write(here, s_x, s_w, y, total)


def _exact(here: Place, x: Any, s_x: Any, w: Any, s_w: Any, y: Any, sums: Any) -> None:
    """int8: the tensor cores sum all inputs up; the next product starts before one has ended."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    def body(_: Any, x: Any, w: Any) -> None:
        _multiply(here, sums, x, w)
        plgpu.wgmma_wait(1)

    _along_inputs(here, body, [x, w], late=1)
    _scale_and_write(here, s_x, s_w, y, sums[...].astype(jnp.float32))


def _promote(here: Place, _: Any, x: Any, w: Any, *rest: Any) -> jax.Array:
    """FP8: one step's sum, times its scales if it has its own, is added to the float32 one."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    *ranges, total = rest

    def one(sums: Any) -> jax.Array:
        _multiply(here, sums, x, w)
        return sums[...]

    part = pl.run_scoped(one, plgpu.WGMMAAccumulatorRef(total.shape, jnp.float32))
    if not ranges:
        return total + part
    scales = _scales(total.shape, *ranges)
    plgpu.commit_smem()  # the next load writes, by another path, where these were read
    return total + part * scales


def _multiply(here: Place, sums: Any, x: Any, w: Any) -> None:
    """sums += x Wᵀ, under way when this returns."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    plgpu.wgmma(sums, x, w if here.interpreted else compat.turn(w))


def _along_inputs(
    here: Place, body: Callable[..., Any], arrays: list[Any], late: int = 0, start: Any = None
) -> Any:
    """Calls `body` on the tiles of x, w and, if given, the scales of each block, one after another.

    Args:
        here: the output's tile.
        body: takes indices, tiles and the carry, if there is a start.
        arrays: x and w; or x, w, s_x, s_w.
        late: how many products may still be reading their tiles when `body` returns.
        start: the first carry.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    (t, n, tile, interpreted), deep = here, here.tile.inner
    w = (deep, tile.out), lambda k: (k, n)
    turned = (tile.out, deep), lambda k: (n, k)
    read = [
        plgpu.BlockSpec((tile.tokens, deep), lambda k: (t, k), delay_release=late),
        plgpu.BlockSpec(*(w if interpreted else turned), delay_release=late),
        plgpu.BlockSpec((None, tile.tokens), lambda k: (k, t)),
        plgpu.BlockSpec((None, tile.out), lambda k: (k, n)),
    ]
    run = plgpu.emit_pipeline(
        body,
        grid=(arrays[0].shape[1] // deep,),
        in_specs=read[: len(arrays)],
        max_concurrent_steps=max(tile.steps, late + 1),
        init_carry=start,
    )
    return run(*arrays)


def _scale_and_write(here: Place, s_x: Any, s_w: Any, y: Any, total: jax.Array) -> None:
    """y = s_x[t] s_w[n] Σ: one scale a token and an output."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    def run(x_tile: Any, w_tile: Any, y_tile: Any, loaded: Any) -> None:
        plgpu.copy_gmem_to_smem(s_x.at[0, pl.ds(here.token * rows, rows)], x_tile, loaded)
        plgpu.copy_gmem_to_smem(s_w.at[0, pl.ds(here.output * columns, columns)], w_tile, loaded)
        plgpu.barrier_wait(loaded)
        _write(here, y, total * _scales(total.shape, x_tile, w_tile), y_tile)

    rows, columns = total.shape
    sizes = ((rows,), (columns,), total.shape)
    pl.run_scoped(
        run, *(plgpu.SMEM(size, jnp.float32) for size in sizes), plgpu.Barrier(num_arrivals=2)
    )


def _write(here: Place, y: Any, value: jax.Array, y_tile: Any) -> None:
    """A tile of the output through shared memory, so that whole lines are written."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    rows, columns = value.shape
    y_tile[...] = value
    plgpu.commit_smem()
    at = (pl.ds(here.token * rows, rows), pl.ds(here.output * columns, columns))
    plgpu.copy_smem_to_gmem(y_tile, y.at[at])
    plgpu.wait_smem_to_gmem(0)


def _scales(across: tuple[int, ...], s_x: Any, s_w: Any) -> jax.Array:
    """s_x[t] s_w[n], over a tile."""
    by_token = jax.lax.broadcast_in_dim(s_x[...], across, (0,))
    return by_token * jax.lax.broadcast_in_dim(s_w[...], across, (1,))
