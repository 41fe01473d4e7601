"""One layer quantized for a widget: values, codes, levels and costs, by qlab itself, remembered.

Runs operation by operation (`jax.disable_jit`): a compiled program would be compiled anew for
every Spec that a learner tries, and the results are the same bit for bit.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from qlab.qtensor import (
    QTensor,
    Spec,
    bits_per_weight,
    block_counts,
    block_sizes,
    dequantize,
    quantize,
)
from qlab.stats import output_error
from qlab.widgets.source import Source


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A quantized tensor, opened.

    Attributes:
        tensor: the QTensor.
        values, codes: (out, in).
        bits: per weight.
        error: √(E‖ΔWx‖² / E‖Wx‖²) on real inputs; NaN if none were given.
    """

    tensor: QTensor
    values: np.ndarray
    codes: np.ndarray
    bits: float
    error: float

    def at(self, field: str, channel: int, start: int) -> float:
        """The scale, zero or offset of the weight (channel, start); 0 where the Spec has none."""
        stored = getattr(self.tensor, field)
        if stored is None:
            return 0.0
        sizes = block_sizes(self.tensor.spec.block, self.codes.shape)
        counts = block_counts(sizes, self.codes.shape)
        values = dequantize(stored) if isinstance(stored, QTensor) else stored
        place = (channel // sizes[0], start // sizes[1])
        return float(np.asarray(values, np.float32).reshape(counts)[place])

    def levels(self, channel: int, start: int) -> np.ndarray:
        """(k,) ascending: the values that the weight (channel, start) can take."""
        grid = self.tensor.spec.format.values - self.at("zero", channel, start)
        return np.sort(grid * self.at("scale", channel, start)) + self.at("offset", channel, start)


def open_tensor(w: np.ndarray, spec: Spec | QTensor, error: float = float("nan")) -> Quantized:
    """`quantize` and `dequantize` without a compilation for every Spec.

    Example:
        >>> open_tensor(np.ones((1, 4), np.float32), Spec(INT4)).values.tolist()
        [[1.0, 1.0, 1.0, 1.0]]
    """
    with jax.disable_jit():
        q = quantize(jnp.asarray(w), spec)
        values = np.asarray(dequantize(q))
    return Quantized(q, values, np.asarray(q.codes), bits_per_weight(q), error)


@lru_cache(maxsize=48)
def quantized(source: Source, layer: str, spec: Spec) -> Quantized:
    """One layer of the source by one Spec, with the error of its output on the source's inputs."""
    w = source.weight(layer)
    q = open_tensor(w, spec)
    error = _error(jnp.asarray(w), jnp.asarray(q.values), source.stats(layer))
    return dataclasses.replace(q, error=float(error))


_error = jax.jit(output_error)


def segment(block: int | str, row: int) -> int:
    """How many weights are looked at together: the block, but no more than 64 of a row."""
    wide = min(block, 64) if isinstance(block, int) else 64
    return wide if row % wide == 0 else row


def divisor(n: int, at_most: int) -> int:
    """The smallest divisor d of n with n / d ≤ at_most.

    Example:
        >>> divisor(768, 48)
        16
    """
    return next(d for d in range(1, n + 1) if n % d == 0 and n // d <= at_most)
