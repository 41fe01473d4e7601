"""Packed weights to bfloat16 or float32 on a TPU: each tile is unpacked, turned and written."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
from jax.experimental import pallas as pl

from qlab.kernels import compat, tpu
from qlab.kernels.packed import Packed
from qlab.kernels.tilings import Tile


def _kernel(p: Packed, *refs: Any) -> None:
    *stored, w_ref = refs
    w_ref[...] = tpu.weights(p, tuple(stored)).T.astype(w_ref.dtype)


def dequantize(p: Packed, dtype: str, tile: Tile, interpret: Any = False) -> jax.Array:
    """(out, in) in `dtype`, rows as packed."""
    out, inner = p.shape
    operands = tpu.parts(p)
    shape = jax.ShapeDtypeStruct((out, inner), dtype)
    return pl.pallas_call(
        partial(_kernel, p),
        grid=(pl.cdiv(out, tile.out), inner // tile.inner),
        in_specs=tpu.specs(p, tile, lambda n, k: (k, n)),
        out_specs=pl.BlockSpec((tile.out, tile.inner), lambda n, k: (n, k)),
        out_shape=shape,
        compiler_params=compat.CompilerParams(dimension_semantics=("parallel", "parallel")),
        cost_estimate=tpu.cost(2 * out * inner, operands, out * inner * shape.dtype.itemsize),
        interpret=interpret,
        name="dequantize",
    )(*operands)
