"""The roofline: a step takes as long as its bytes or as its multiplications, whichever are longer.

    seconds ≥ max(bytes / bandwidth, operations / peak)

A decoded token reads all weights for two operations each; a prompt reads them once for all of its
tokens. So few bits help the first and not the second. Williams, Waterman, Patterson 2009, doi
10.1145/1498765.1498785. Here are published shapes; a loaded model is counted in `steps`.
"""

from __future__ import annotations

import dataclasses
import math

from qlab.evaluation.shapes import Shape


@dataclasses.dataclass(frozen=True)
class Roof:
    """A machine: `bandwidth` of its memory in bytes a second, `peak` in operations a second, a
    multiplication and an addition counted as two.

    Example:
        >>> Roof(100e9, 2e12).ridge, Roof(100e9, 2e12).attainable(0.5)
        (20.0, 50000000000.0)
    """

    bandwidth: float
    peak: float

    @property
    def ridge(self) -> float:
        """Operations a byte where the slope of memory meets the roof of multiplication."""
        return self.peak / self.bandwidth

    def attainable(self, intensity: float) -> float:
        """Operations a second that so many operations a byte can reach."""
        return min(self.peak, intensity * self.bandwidth)


@dataclasses.dataclass(frozen=True)
class Load:
    """What one step must read, in bytes, and multiply, in operations.

    Example:
        >>> Load(8e9, 16e9).seconds(Roof(100e9, 2e12)), Load(8e9, 16e9).bound(Roof(100e9, 2e12))
        (0.08, 'memory')
    """

    bytes: float
    operations: float

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.operations / self.bytes

    def seconds(self, roof: Roof) -> float:
        """The least time that the machine needs."""
        return max(self.bytes / roof.bandwidth, self.operations / roof.peak)

    def bound(self, roof: Roof) -> str:
        """Which of the two takes longer: "memory" or "compute"."""
        return "memory" if self.intensity < roof.ridge else "compute"


def _met(shape: Shape) -> float:
    """Weights that a decoded token multiplies by: all but an embedding that is only looked up."""
    return shape.active - (0 if shape.tied else shape.table)


def _read(shape: Shape, tokens: int) -> float:
    """Weights that so many tokens at once must have read: the head, and every expert that they
    may wake.
    """
    tables = shape.table * (1 if shape.tied else 2)
    return shape.table + min(shape.params - tables, tokens * (shape.active - tables))


def _attention(shape: Shape) -> int:
    """Operations of one query on one key and its value, all layers and heads."""
    return 4 * shape.layers * shape.heads * shape.head_dim


def decode_load(
    shape: Shape, bits: float, batch: int = 1, context: int = 0, kv_bits: float = 16.0
) -> Load:
    """One decode step of `batch` sequences that have `context` tokens each.

    Args:
        shape: of the model. Sequences of a batch may each wake other experts.
        bits: of a weight, scales counted.
        batch: sequences.
        context: tokens of each in the KV cache.
        kv_bits: of a number there.

    Example:
        >>> from qlab.evaluation.shapes import SHAPES
        >>> load = decode_load(SHAPES["llama-3.1-8b"], 4.25)
        >>> f"{load.bytes / 1e9:.2f} GB, {load.operations / 1e9:.1f} GFLOP"
        '3.99 GB, 15.0 GFLOP'
    """
    cache = batch * context * shape.cached * kv_bits / 8
    work = batch * (2 * _met(shape) + _attention(shape) * context)
    return Load(_read(shape, batch) * bits / 8 + cache, work)


def prefill_load(
    shape: Shape, bits: float, batch: int = 1, context: int = 512, kv_bits: float = 16.0
) -> Load:
    """A prompt of `context` tokens for each of `batch` sequences, up to the first new token.

    The head reads out the last position only; every token looks at itself and those before it.

    Args:
        shape: of the model.
        bits: of a weight, scales counted.
        batch: sequences.
        context: tokens of each prompt, at least 1.
        kv_bits: of a number in the KV cache, which is written.

    Example:
        >>> from qlab.evaluation.shapes import SHAPES
        >>> load = prefill_load(SHAPES["llama-3.1-8b"], 4.25, context=512)
        >>> f"{load.intensity:.0f} operations a byte"
        '1780 operations a byte'
    """
    tokens = batch * context
    cache = tokens * shape.cached * kv_bits / 8
    body = _met(shape) - shape.table
    pairs = batch * context * (context + 1) / 2
    work = 2 * (tokens * body + batch * shape.table) + _attention(shape) * pairs
    return Load(_read(shape, tokens) * bits / 8 + cache, work)


def crossover(
    shape: Shape, bits: float, roof: Roof, context: int = 0, kv_bits: float = 16.0
) -> float:
    """The batch from which a decode step multiplies longer than it reads; infinite if every
    sequence brings more cache to read than work.

        weights + batch · cache     batch · operations
        ─────────────────────── =  ──────────────────
              bandwidth                   peak

    Args:
        shape: of the model, all of whose experts are read.
        bits: of a weight.
        roof: the machine.
        context: tokens of each sequence.
        kv_bits: of a number in the KV cache.

    Example:
        >>> from qlab.evaluation.shapes import SHAPES
        >>> [round(crossover(SHAPES["llama-3.1-8b"], b, Roof(1e12, 100e12))) for b in (16, 4.25)]
        [100, 27]
    """
    idle = shape.active - _met(shape)
    weights = (shape.params - idle) * bits / 8 / roof.bandwidth
    one = decode_load(shape, 0.0, 1, context, kv_bits)
    gain = one.operations / roof.peak - one.bytes / roof.bandwidth
    return max(1.0, weights / gain) if gain > 0 else math.inf


def speedup(
    shape: Shape, bits: float, roof: Roof, batch: int, context: int = 0, kv_bits: float = 16.0
) -> float:
    """How many times faster a decode step can be than with weights of 16 bits; at most 16 / bits.

    Example:
        >>> from qlab.evaluation.shapes import SHAPES
        >>> roof = Roof(1e12, 100e12)
        >>> [f"{speedup(SHAPES['llama-3.1-8b'], 4.25, roof, b):.2f}" for b in (1, 64, 256)]
        ['3.76', '1.56', '1.00']
    """
    few, many = (decode_load(shape, b, batch, context, kv_bits) for b in (bits, 16.0))
    return many.seconds(roof) / few.seconds(roof)
