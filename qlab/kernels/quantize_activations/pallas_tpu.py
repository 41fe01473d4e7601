"""Inputs rounded to int8 or FP8 on a TPU in one pass: whole rows are read, so that the largest
magnitude is known before anything is rounded; blocks of 128 are tiles of their own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from qlab.kernels import compat, tpu
from qlab.kernels.quantize_activations.rounding import rounded, scale_of
from qlab.qtensor import Spec

BYTES = 1 << 18  # of a tile of float32 inputs: larger ones spill registers


def _kernel(spec: Spec, x_ref: Any, codes_ref: Any, scale_ref: Any) -> None:
    x = x_ref[...].astype(jnp.float32)
    scale = scale_of(jnp.max(jnp.abs(x), axis=1, keepdims=True), spec)
    codes_ref[...] = rounded(x, scale, spec.format)
    scale_ref[...] = scale[None]


def quantize_activations(
    x: jax.Array, spec: Spec, *, interpret: Any = False
) -> tuple[jax.Array, jax.Array]:
    """(tokens, in) -> codes int8 or float8 of that shape, scale (tokens, blocks) float32."""
    tokens, inner = x.shape
    block = spec.block if isinstance(spec.block, int) else inner
    rows = min(tokens, max(32, min(1024, BYTES // (4 * block)) // 32 * 32))
    dtype = jnp.dtype(spec.format.dtype or jnp.int8)
    whole = pl.BlockSpec((rows, block), lambda t, k: (t, k))
    codes, scale = pl.pallas_call(
        partial(_kernel, spec),
        grid=(pl.cdiv(tokens, rows), inner // block),
        in_specs=[whole],
        out_specs=[whole, pl.BlockSpec((1, rows, 1), lambda t, k: (k, t, 0))],
        out_shape=[
            jax.ShapeDtypeStruct((tokens, inner), dtype),
            jax.ShapeDtypeStruct((inner // block, tokens, 1), jnp.float32),
        ],
        compiler_params=compat.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=tpu.cost(3 * x.size, [x], x.size + 4 * tokens * inner // block),
        interpret=interpret,
        name="quantize_activations",
    )(x)
    return codes, scale[..., 0].T
