"""What a model costs: bits per weight, every scale counted; bytes packed; bytes in memory.

Linears are counted apart from the embedding (and head): methods differ in the first, and mixing
them hides what a method did. In memory a code takes one byte; packed, it takes its format's bits.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax

from qlab.kernels import Packed
from qlab.models.surgery import linears
from qlab.qtensor import QTensor, bits_per_weight


@dataclasses.dataclass(frozen=True)
class Cost:
    """The size of one group of matrices."""

    weights: int
    bits_per_weight: float
    bytes_packed: int
    bytes_memory: int


@dataclasses.dataclass(frozen=True)
class Size:
    """`linears`: the matrices of the blocks. `embedding`: token and position tables, head."""

    linears: Cost
    embedding: Cost


def _bytes(x: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree_util.tree_leaves(x))


def _bits(w: Any) -> float:
    if isinstance(w, Packed):
        return w.bits_per_weight
    return bits_per_weight(w) if isinstance(w, QTensor) else 8 * w.dtype.itemsize


def cost(matrices: list[Any]) -> Cost:
    """The cost of arrays and QTensors together; bits per weight is the mean over weights."""
    weights, bits, memory = 0, 0.0, 0
    for w in matrices:
        count = math.prod(w.shape)
        weights += count
        each = _bits(w)
        bits += count * each
        memory += _bytes(w)
    return Cost(weights, bits / weights, -(-round(bits) // 8), memory)


def size(model: Any) -> Size:
    """The cost of a model's linears and of its embedding.

    Example:
        >>> size(qlab.load("tiny")).linears.bits_per_weight   # doctest: +SKIP
        32.0
    """
    table = [model.embed_tokens.weight]
    if model.lm_head is not None:
        table.append(model.lm_head.weight)
    if model.embed_positions is not None:
        table.append(model.embed_positions.weight)
    return Size(cost([layer.weight for layer in linears(model).values()]), cost(table))
