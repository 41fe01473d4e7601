"""What a model costs: bits per weight, every scale counted; bytes packed; bytes in memory.

Linears are counted apart from the embedding (and head): methods differ in the first, and mixing
them hides what a method did. A file holds both, and norms: `bits_words` says which is meant. In
memory a code takes one byte; packed, it takes its format's bits.
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
    """`linears`: the matrices of the blocks. `embedding`: token and position tables, head. `whole`:
    both, with norms and biases; None in rows that older versions wrote.
    """

    linears: Cost
    embedding: Cost
    whole: Cost | None = None

    @property
    def words(self) -> str:
        """Its bits per weight, and of what."""
        whole = None if self.whole is None else self.whole.bits_per_weight
        return bits_words(self.linears.bits_per_weight, whole)


def bits_words(linears: float, whole: float | None, of: str = "model") -> str:
    """Bits per weight, and of which weights they are.

    Args:
        linears: of the matrices of the blocks.
        whole: of everything, tables and norms too; None: not known.
        of: what "everything" is: a model, a file.

    Example:
        >>> bits_words(4.8011, 5.2563, "file")
        '4.801 bits per weight of the linears, 5.256 of the whole file'
    """
    rest = "" if whole is None else f", {whole:.3f} of the whole {of}"
    return f"{linears:.3f} bits per weight of the linears{rest}"


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
    every = jax.tree_util.tree_leaves(model, is_leaf=lambda x: isinstance(x, QTensor | Packed))
    return Size(cost([layer.weight for layer in linears(model).values()]), cost(table), cost(every))
