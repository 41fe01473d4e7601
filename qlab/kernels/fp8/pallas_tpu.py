"""Σ_b s_x s_w Σ q_x q_w on a TPU: float8 tiles into the MXU, each block's sum scaled as it is
added up in float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qlab.kernels import compat, tpu
from qlab.kernels.packed import Packed
from qlab.kernels.tiles import half_bits, to_float
from qlab.kernels.tilings import Tile


def _kernel(rows: int, steps: int, x_ref: Any, s_ref: Any, w_ref: Any, sw_ref: Any, *out: Any):
    y_ref, sum_ref = out
    k = pl.program_id(2)

    @pl.when(k == 0)
    def _() -> None:
        sum_ref[...] = jnp.zeros_like(sum_ref)

    for b in range(x_ref.shape[1] // rows):  # at most 8 blocks a tile
        inner = slice(b * rows, (b + 1) * rows)
        y = jnp.dot(x_ref[:, inner], w_ref[inner, :], preferred_element_type=jnp.float32)
        sum_ref[...] += y * (s_ref[b] * to_float(sw_ref[b]))

    @pl.when(k == steps - 1)
    def _() -> None:
        y_ref[...] = sum_ref[...]


def fp8(
    x: jax.Array, scale: jax.Array, p: Packed, *, tile: Tile, interpret: Any = False
) -> jax.Array:
    """float8 (tokens, in) and scale (tokens, blocks) -> (tokens, out) float32."""
    p = p.turn(False)
    (tokens, inner), (out, _) = x.shape, p.shape
    steps, blocks = inner // tile.inner, max(tile.inner // p.group, 1)
    each = max(p.group // tile.inner, 1)  # tiles that share a block

    def at(k: jax.Array) -> jax.Array:
        return k if each == 1 else jax.lax.div(k, jnp.int32(each))

    operands = [x, scale.T[:, :, None], p.codes, half_bits(p.scale)[:, None]]
    return pl.pallas_call(
        partial(_kernel, min(p.group, tile.inner), steps),
        grid=(pl.cdiv(tokens, tile.tokens), pl.cdiv(out, tile.out), steps),
        in_specs=[
            pl.BlockSpec((tile.tokens, tile.inner), lambda t, n, k: (t, k)),
            pl.BlockSpec((blocks, tile.tokens, 1), lambda t, n, k: (at(k), t, 0)),
            pl.BlockSpec((tile.inner, tile.out), lambda t, n, k: (k, n)),
            pl.BlockSpec((blocks, 1, tile.out), lambda t, n, k: (at(k), 0, n)),
        ],
        out_specs=pl.BlockSpec((tile.tokens, tile.out), lambda t, n, k: (t, n)),
        out_shape=jax.ShapeDtypeStruct((tokens, out), jnp.float32),
        scratch_shapes=[pltpu.VMEM((tile.tokens, tile.out), jnp.float32)],
        compiler_params=compat.CompilerParams(dimension_semantics=tpu.ORDER),
        cost_estimate=tpu.cost(2 * tokens * out * inner, operands, 4 * tokens * out),
        interpret=interpret,
        name="fp8",
    )(*operands)
