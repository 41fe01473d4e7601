"""The fastest of a few ways to multiply packed weights on a CPU, found by trying them once.

XLA's products on a CPU read whole matrices of one dtype, so packed weights are unpacked before each
product, and how that is best written depends on the machine and the shape. The first call of a
shape times every formulation on zeros and keeps the fastest for the life of the process;
`CHOICES` shows what was kept. They differ in the order of sums only. No speed is promised:
`python -m benchmarks.kernels --cpu` measures it.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlab.kernels.dequantize.reference import codes, ranges, weights
from qlab.kernels.packed import Packed, integers
from qlab.kernels.tilings import DECODE
from qlab.kernels.w4a16 import reference

Product = Callable[..., jax.Array]

SMALL = 1 << 18  # weights below which nothing is timed: the reference is quick enough
ROUNDS = 5
TILE = 256  # outputs that are unpacked together: with 2,048 inputs 2 MB of float32

CHOICES: dict[tuple, str] = {}  # shape class -> the name of its formulation


def halves(x: jax.Array, p: Packed) -> jax.Array:
    """Even and odd inputs apart, as their nibbles lie: two products, and no byte is moved."""
    low, high = (p.codes << 4, p.codes)
    y = [
        reference.product(x[:, first::2], weights(_half(p, codes)).astype(x.dtype))
        for first, codes in ((0, low), (1, high))
    ]
    return (y[0] + y[1]).astype(x.dtype)


def _half(p: Packed, shifted: jax.Array) -> Packed:
    """Every other input: the high nibbles of bytes, as int8."""
    held = jax.lax.bitcast_convert_type(shifted, jnp.int8) >> 4
    return p.replace(codes=held, group=p.group // 2)


def grouped(x: jax.Array, p: Packed) -> jax.Array:
    """Codes are multiplied as they are, group by group, and scaled afterwards:
    Σ_g [s_g (x_g · c_g) + (o_g − s_g z_g) Σ x_g].
    """
    scale, zero, offset = ranges(p)
    groups, out = scale.shape
    held = codes(p).astype(jnp.float32).reshape(groups, -1, out)
    by_group = x.astype(jnp.float32).reshape(len(x), groups, -1).transpose(1, 0, 2)
    y = (reference.product(by_group, held) * scale[:, None]).sum(axis=0)
    base = scale * p.shift
    if zero is not None:
        base = base - scale * zero
    if offset is not None:
        base = base + offset
    if zero is not None or offset is not None or p.shift:
        y = y + reference.product(by_group.sum(axis=2).T, base)
    return y.astype(x.dtype)


def tiled(op: Product) -> Product:
    """Outputs in tiles of 256, one after another, so that what is unpacked stays in the cache."""

    def run(*operands: Any) -> jax.Array:
        *inputs, p = operands
        out = p.shape[0]

        def cut(a: jax.Array | None, i: jax.Array) -> jax.Array | None:
            if a is None:
                return None
            return jax.lax.dynamic_slice_in_dim(a, i * TILE, TILE, axis=a.ndim - 1)

        def one(i: jax.Array) -> jax.Array:
            parts = {
                name: cut(getattr(p, name), i) for name in ("codes", "scale", "zero", "offset")
            }
            return op(*inputs, p.replace(**parts))

        y = jax.lax.map(one, jnp.arange(out // TILE))  # (tiles, tokens, TILE)
        return y.transpose(1, 0, 2).reshape(-1, out)

    return run


_tiled = functools.cache(tiled)  # one function an op, so that it is compiled once


def ways(op: Product, x: jax.Array, p: Packed) -> dict[str, Product]:
    """The formulations of a reference that compute this product, by name."""
    found: dict[str, Product] = {"whole": op}
    if p.turned:
        return found
    if p.shape[0] % TILE == 0 and p.shape[0] > TILE:
        found["tiles"] = _tiled(op)
    if op is reference.w4a16 and integers(p.format):
        if p.nibbles and p.group % 2 == 0:
            found["halves"] = halves
        if x.dtype == jnp.float32:  # elsewhere the weights are rounded before the product
            found["grouped"] = grouped
    return found


def fastest(op: Product, *operands: Any) -> Product | None:
    """The formulation of a reference for these shapes, timed once where it may matter; None off a
    CPU.

    Args:
        op: the reference.
        *operands: what it takes: inputs (tokens, …), the Packed last.
    """
    if jax.default_backend() != "cpu":
        return None
    *inputs, p = operands
    x = inputs[0]
    known = ways(op, x, p)
    if math.prod(p.shape) < SMALL or len(known) == 1:
        return op
    tokens = 1 if len(x) == 1 else DECODE if len(x) <= DECODE else 256
    key = (op.__name__, p.format.name, p.layout, p.shape, p.group, x.dtype.name, tokens)
    if key not in CHOICES:
        like = [jax.ShapeDtypeStruct((tokens, *a.shape[1:]), a.dtype) for a in inputs]
        seconds = {name: _time(way, [*like, p]) for name, way in known.items()}
        CHOICES[key] = min(seconds, key=seconds.__getitem__)
    return known[CHOICES[key]]


def _time(way: Product, operands: list[Any]) -> float:
    """Median seconds of a formulation on zeros; works while something else is being traced."""
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), operands)
    with jax.ensure_compile_time_eval():
        run = jax.jit(way).lower(*shapes).compile()
        zeros = jax.device_put(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes))
        seconds = []
        for _ in range(ROUNDS + 1):
            begin = time.perf_counter()
            jax.block_until_ready(run(*zeros))
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])
