"""The grid that the TPU's weight-only kernels share: tiles along inputs added up in float32.

    grid (tokens, outputs, inputs), inputs last: one tile of w is unpacked, multiplied and forgotten

An op brings the function that makes a tile of weights of its stored parts. Not here: that
arithmetic (`tiles`), sizes (`tilings`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qlab.kernels import compat, tiles
from qlab.kernels.packed import SUPER, Packed
from qlab.kernels.tilings import Tile

ORDER = ("parallel", "parallel", "arbitrary")  # only tiles along inputs depend on each other


def parts(p: Packed) -> list[jax.Array]:
    """The arrays of a Packed as a kernel takes them: codes first, float16 as bits, ranges with an
    axis between groups and outputs, so that a block of one group is a whole axis.
    """
    if p.layout == "q4_k":
        assert p.offset is not None
        return [p.codes, p.scale, tiles.half_bits(p.offset)]
    ranges = [r for r in (p.scale, p.zero, p.offset) if r is not None]
    return [p.codes, *(tiles.half_bits(r)[:, None] for r in ranges)]


def specs(p: Packed, tile: Tile, where: Callable[..., tuple]) -> list[pl.BlockSpec]:
    """A block of each of `parts`.

    Args:
        p: the weights.
        tile: sizes of a tile.
        where: grid indices -> (tile along inputs, tile along outputs).
    """

    def block(shape: tuple[int, ...], steps: int = 1) -> pl.BlockSpec:
        """Block of (inputs …, outputs); `steps` tiles along inputs share one."""

        def index(*grid: Any) -> tuple:
            k, n = where(*grid)
            k = k if steps == 1 else jax.lax.div(k, jnp.int32(steps))  # `//` would ask for signs
            return (k, *(0,) * (len(shape) - 2), n)

        return pl.BlockSpec(shape, index)

    rows = tile.inner // 2 if p.nibbles else tile.inner
    if p.layout == "q4_k":
        ranges = [block((tile.inner // SUPER, size, tile.out)) for size in (12, 2)]
    else:
        one = block((max(tile.inner // p.group, 1), 1, tile.out), max(p.group // tile.inner, 1))
        ranges = [one] * sum(r is not None for r in (p.scale, p.zero, p.offset))
    return [block((rows, tile.out)), *ranges]


def weights(p: Packed, refs: tuple[Any, ...]) -> jax.Array:
    """A tile of float32 weights, (inputs, outputs), out of the blocks of `parts`."""
    codes, *stored = (ref[...] for ref in refs)
    if p.layout == "q4_k":
        return tiles.q4_k(codes, *stored)
    left = iter(stored)
    ranges = [None if r is None else next(left) for r in (p.scale, p.zero, p.offset)]
    return tiles.affine(p, codes, ranges)


def dot(x: jax.Array, w: jax.Array) -> jax.Array:
    """x w summed in float32; products of float32 stay float32."""
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.dot(x, w, precision=exact, preferred_element_type=jnp.float32)


def _kernel(p: Packed, steps: int, x_ref: Any, *refs: Any) -> None:
    *stored, y_ref, sum_ref = refs
    k = pl.program_id(2)

    @pl.when(k == 0)
    def _() -> None:
        sum_ref[...] = jnp.zeros_like(sum_ref)

    w = weights(p, tuple(stored)).astype(x_ref.dtype)
    sum_ref[...] += dot(x_ref[...], w)

    @pl.when(k == steps - 1)
    def _() -> None:
        y_ref[...] = sum_ref[...].astype(y_ref.dtype)


def matmul(x: jax.Array, p: Packed, tile: Tile, interpret: Any = False) -> jax.Array:
    """x Wᵀ with w unpacked tile by tile: (tokens, in) -> (tokens, out) in the dtype of x.

    Args:
        x: (tokens, in) bfloat16 or float32, which w is rounded to before the product.
        p: the weights.
        tile: sizes that `tilings.fit` has cut to them.
        interpret: as `pallas_call` takes it.
    """
    (tokens, inner), (out, _) = x.shape, p.shape
    steps = inner // tile.inner
    grid = (pl.cdiv(tokens, tile.tokens), pl.cdiv(out, tile.out), steps)
    operands = parts(p)
    return pl.pallas_call(
        partial(_kernel, p, steps),
        grid=grid,
        in_specs=[
            pl.BlockSpec((tile.tokens, tile.inner), lambda t, n, k: (t, k)),
            *specs(p, tile, lambda t, n, k: (k, n)),
        ],
        out_specs=pl.BlockSpec((tile.tokens, tile.out), lambda t, n, k: (t, n)),
        out_shape=jax.ShapeDtypeStruct((tokens, out), x.dtype),
        scratch_shapes=[pltpu.VMEM((tile.tokens, tile.out), jnp.float32)],
        compiler_params=compat.CompilerParams(dimension_semantics=ORDER),
        cost_estimate=cost(2 * tokens * out * inner, [x, *operands], tokens * out * x.itemsize),
        interpret=interpret,
        name=f"{p.layout}_matmul",
    )(x, *operands)


def cost(flops: int, read: list[jax.Array], written: int) -> pl.CostEstimate:
    """What a call costs: XLA does not look inside one."""
    arrays = sum(math.prod(a.shape) * a.dtype.itemsize for a in read)
    return pl.CostEstimate(flops=flops, bytes_accessed=arrays + written, transcendentals=0)
