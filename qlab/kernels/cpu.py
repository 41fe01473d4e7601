"""The fastest of a few ways to multiply packed weights on a CPU, found by trying them once.

XLA's products on a CPU read whole matrices of one dtype, so packed weights are unpacked before each
product, and how that is best written depends on the machine and the shape. The first call of a
shape times every formulation on zeros and keeps the fastest for the life of the process;
`CHOICES` shows what was kept. They differ in the order of sums only. No speed is promised:
`python -m benchmarks.kernels --cpu` measures it.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from qlab.kernels.dequantize.reference import codes, ranges, weights
from qlab.kernels.packed import Packed, integers
from qlab.kernels.tilings import DECODE
from qlab.kernels.w4a16 import reference

Product = Callable[[jax.Array, Packed], jax.Array]

SMALL = 1 << 18  # weights below which nothing is timed: the reference is quick enough
ROUNDS = 5

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


def ways(x: jax.Array, p: Packed) -> dict[str, Product]:
    """The formulations that compute this product, by name."""
    found: dict[str, Product] = {"whole": reference.w4a16}
    if integers(p.format) and p.layout == "affine":
        if p.nibbles and p.group % 2 == 0:
            found["halves"] = halves
        if x.dtype == jnp.float32:  # elsewhere the weights are rounded before the product
            found["grouped"] = grouped
    return found


def weight_only(x: jax.Array, p: Packed) -> Product | None:
    """The formulation for these shapes, timed once where it may matter; None off a CPU."""
    if jax.default_backend() != "cpu":
        return None
    known = ways(x, p)
    if math.prod(p.shape) < SMALL or len(known) == 1:
        return reference.w4a16
    tokens = 1 if len(x) == 1 else DECODE if len(x) <= DECODE else 256
    key = (p.format.name, p.layout, p.shape, p.group, x.dtype.name, tokens)
    if key not in CHOICES:
        like = jax.ShapeDtypeStruct((tokens, p.shape[1]), x.dtype)
        seconds = {name: _time(way, like, p) for name, way in known.items()}
        CHOICES[key] = min(seconds, key=seconds.__getitem__)
    return known[CHOICES[key]]


def _time(way: Product, x: jax.ShapeDtypeStruct, p: Packed) -> float:
    """Median seconds of a formulation on zeros; works while something else is being traced."""
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), p)
    with jax.ensure_compile_time_eval():
        run = jax.jit(way).lower(x, shapes).compile()
        zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), (x, shapes))
        operands = jax.device_put(zeros)
        seconds = []
        for _ in range(ROUNDS + 1):
            begin = time.perf_counter()
            jax.block_until_ready(run(*operands))
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])
