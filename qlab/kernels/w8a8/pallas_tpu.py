"""s_x s_w Σ q_x q_w on a TPU: int8 tiles into the MXU, int32 sums in VMEM, scales at the end."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qlab.kernels import compat, tpu
from qlab.kernels.packed import Packed
from qlab.kernels.tiles import half_bits, integer_codes, to_float
from qlab.kernels.tilings import Tile


def _kernel(p: Packed, steps: int, x_ref: Any, s_ref: Any, w_ref: Any, sw_ref: Any, *out: Any):
    y_ref, sum_ref = out
    k = pl.program_id(2)

    @pl.when(k == 0)
    def _() -> None:
        sum_ref[...] = jnp.zeros_like(sum_ref)

    w = integer_codes(w_ref[...], p.nibbles).astype(jnp.int8)
    sum_ref[...] += jnp.dot(x_ref[...], w, preferred_element_type=jnp.int32)

    @pl.when(k == steps - 1)
    def _() -> None:
        y_ref[...] = sum_ref[...].astype(jnp.float32) * (s_ref[...] * to_float(sw_ref[...]))


def w8a8(
    x: jax.Array, scale: jax.Array, p: Packed, *, tile: Tile, interpret: Any = False
) -> jax.Array:
    """int8 (tokens, in) and scale (tokens, 1) -> (tokens, out) float32."""
    p = p.turn(False)
    (tokens, inner), (out, _) = x.shape, p.shape
    steps = inner // tile.inner
    rows = tile.inner // 2 if p.nibbles else tile.inner
    operands = [x, scale, p.codes, half_bits(p.scale)]
    return pl.pallas_call(
        partial(_kernel, p, steps),
        grid=(pl.cdiv(tokens, tile.tokens), pl.cdiv(out, tile.out), steps),
        in_specs=[
            pl.BlockSpec((tile.tokens, tile.inner), lambda t, n, k: (t, k)),
            pl.BlockSpec((tile.tokens, 1), lambda t, n, k: (t, 0)),
            pl.BlockSpec((rows, tile.out), lambda t, n, k: (k, n)),
            pl.BlockSpec((1, tile.out), lambda t, n, k: (0, n)),
        ],
        out_specs=pl.BlockSpec((tile.tokens, tile.out), lambda t, n, k: (t, n)),
        out_shape=jax.ShapeDtypeStruct((tokens, out), jnp.float32),
        scratch_shapes=[pltpu.VMEM((tile.tokens, tile.out), jnp.int32)],
        compiler_params=compat.CompilerParams(dimension_semantics=tpu.ORDER),
        cost_estimate=tpu.cost(2 * tokens * out * inner, operands, 4 * tokens * out),
        interpret=interpret,
        name="w8a8",
    )(*operands)
