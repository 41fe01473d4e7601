"""Stats: what calibration remembers of a layer's input x, in memory that does not grow with the
text.

    H = E[x xᵀ],  E|x|,  min x,  max x  per channel,  one histogram of all |x|,  and how many tokens
    and sequences were seen.

Two Stats of the same layer merge into the Stats of both texts, so calibration shards. With H alone
the error that a layer's quantization makes on its output is known: E‖(W − Ŵ)x‖² =
tr((W − Ŵ) H (W − Ŵ)ᵀ), with no activations kept.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from qlab.arithmetic import bits_of, divide

PRECISION = jax.lax.Precision.HIGHEST

# Bins of |x| by the top bits of its float32: 8 an octave, from 2⁻³² (and all below) to 2³² (and all
# above). Bin i holds EDGES[i] ≤ |x| < EDGES[i + 1].
BINS = 512
_FIRST = (127 - 32) * 8  # the exponent field and three bits of mantissa of 2⁻³²
EDGES = ((np.arange(BINS + 1, dtype=np.int32) + _FIRST) << 20).view(np.float32)
EDGES[0] = 0.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stats:
    """Moments of a layer's input; a pytree.

    Attributes:
        tokens: () float32, input vectors counted (padding left out).
        sequences: () float32, sequences they came from (those that are all padding left out).
        hessian: (in, in) float32, H = E[x xᵀ].
        mean_abs: (in,) float32, E|x|.
        min, max: (in,) float32, extremes of every channel.
        histogram: (512,) float32, how many |x| of all channels lie between neighbouring EDGES;
            beyond 2²⁴ in a bin a count is rounded. All zeros where it is not known.
    """

    tokens: jax.Array
    sequences: jax.Array
    hessian: jax.Array
    mean_abs: jax.Array
    min: jax.Array
    max: jax.Array
    histogram: jax.Array

    @staticmethod
    def from_inputs(x: jax.Array, mask: jax.Array | None = None) -> Stats:
        """The Stats of a batch of inputs.

        Args:
            x: (tokens, in) of one sequence, or (sequences, time, in); floating point.
            mask: x's shape without its last axis, False at padding; None counts everything.

        Returns:
            Stats in float32.

        Raises:
            ValueError: if `x` has another number of axes or no tokens, or the mask another shape.

        Example:
            >>> Stats.from_inputs(jnp.array([[1.0, -2.0], [3.0, 0.0]])).mean_abs.tolist()
            [2.0, 1.0]
        """
        if x.ndim not in (2, 3) or 0 in x.shape:
            raise ValueError(f"inputs are (tokens, in) or (sequences, time, in), not {x.shape}")
        if mask is not None and mask.shape != x.shape[:-1]:
            raise ValueError(f"mask of shape {mask.shape} for inputs of shape {x.shape}")
        flat = x.reshape(-1, x.shape[-1]).astype(jnp.float32)  # (tokens, in)
        kept = jnp.ones(x.shape[:-1], bool) if mask is None else mask
        seen = kept.reshape(-1).astype(jnp.float32)
        tokens = seen.sum()
        masked = jnp.where(seen[:, None] > 0, flat, 0.0)
        each = jnp.maximum(tokens, 1.0)
        return Stats(
            tokens=tokens,
            sequences=kept.any(axis=-1).sum().astype(jnp.float32),
            hessian=jnp.matmul(masked.T, masked, precision=PRECISION) / each,
            mean_abs=jnp.abs(masked).sum(0) / each,
            min=jnp.where(seen[:, None] > 0, flat, jnp.inf).min(0),
            max=jnp.where(seen[:, None] > 0, flat, -jnp.inf).max(0),
            histogram=_histogram(flat, seen > 0),
        )

    @staticmethod
    def empty(channels: int) -> Stats:
        """The Stats of no text, to which others are merged.

        Example:
            >>> one = Stats.from_inputs(jnp.array([[1.0, -2.0]]))
            >>> Stats.empty(2).merge(one).hessian.tolist() == one.hessian.tolist()
            True
        """
        return Stats(
            tokens=jnp.float32(0),
            sequences=jnp.float32(0),
            hessian=jnp.zeros((channels, channels)),
            mean_abs=jnp.zeros(channels),
            min=jnp.full(channels, jnp.inf),
            max=jnp.full(channels, -jnp.inf),
            histogram=jnp.zeros(BINS),
        )

    def merge(self, other: Stats) -> Stats:
        """The Stats of both texts; order does not matter beyond rounding.

        Raises:
            ValueError: if the layers differ in width, naming both.

        Example:
            >>> a = Stats.from_inputs(jnp.array([[1.0, 2.0]]))
            >>> float(a.merge(a).tokens)
            2.0
        """
        if self.mean_abs.shape != other.mean_abs.shape:
            raise ValueError(
                f"Stats of {self.mean_abs.shape[-1]} channels cannot merge with Stats of "
                f"{other.mean_abs.shape[-1]}"
            )
        tokens = self.tokens + other.tokens
        share = other.tokens / jnp.maximum(tokens, 1.0)
        return Stats(
            tokens=tokens,
            sequences=self.sequences + other.sequences,
            hessian=self.hessian + (other.hessian - self.hessian) * share,
            mean_abs=self.mean_abs + (other.mean_abs - self.mean_abs) * share,
            min=jnp.minimum(self.min, other.min),
            max=jnp.maximum(self.max, other.max),
            histogram=self.histogram + other.histogram,
        )

    def divided(self, c: jax.Array) -> Stats:
        """The Stats of x / c, channel by channel: what a layer reads once c is folded into it.

        The histogram mixes channels, so that of x / c cannot be known: it becomes all zeros.

        Args:
            c: (in,) float32, positive.

        Raises:
            ValueError: if `c` has another length, naming both.

        Example:
            >>> stats = Stats.from_inputs(jnp.array([[1.0, -6.0]])).divided(jnp.array([1.0, 2.0]))
            >>> stats.hessian.tolist(), stats.min.tolist()
            ([[1.0, -3.0], [-3.0, 9.0]], [1.0, -3.0])
        """
        if c.shape != self.mean_abs.shape:
            raise ValueError(
                f"Stats of {self.mean_abs.shape[-1]} channels cannot be divided by {c.shape}"
            )
        inverse = 1.0 / c
        return Stats(
            tokens=self.tokens,
            sequences=self.sequences,
            hessian=self.hessian * (inverse[:, None] * inverse),
            mean_abs=divide(self.mean_abs, c),
            min=divide(self.min, c),
            max=divide(self.max, c),
            histogram=jnp.zeros_like(self.histogram),
        )

    @property
    def amax(self) -> jax.Array:
        """(in,) float32, the largest |x| of every channel."""
        return jnp.maximum(jnp.abs(self.min), jnp.abs(self.max))

    @property
    def dead(self) -> jax.Array:
        """(in,) bool, channels that were zero in every token."""
        return jnp.diagonal(self.hessian, axis1=-2, axis2=-1) == 0


def _histogram(x: jax.Array, seen: jax.Array) -> jax.Array:
    """Counts of |x| (tokens, in) in the bins between EDGES, (512,) float32; `seen` (tokens,)."""
    place = jnp.clip((bits_of(jnp.abs(x)) >> 20) - _FIRST, 0, BINS - 1)
    place = jnp.where(seen[:, None], place, BINS)  # out of bounds: dropped
    # Counted in int32: in float32 one more than 2²⁴ is 2²⁴ again.
    return jnp.zeros(BINS, jnp.int32).at[place].add(1, mode="drop").astype(jnp.float32)


def output_error(w: jax.Array, w_hat: jax.Array, stats: Stats) -> jax.Array:
    """The relative error of a layer's output on the calibration text, √(E‖(W − Ŵ)x‖² / E‖W x‖²).

    Args:
        w: (out, in), the weights.
        w_hat: (out, in), what stands for them.
        stats: of the layer's input, (in,) channels.

    Returns:
        () float32; 0 where both are equal.

    Raises:
        ValueError: if the three shapes do not fit, naming them.

    Example:
        >>> stats = Stats.from_inputs(jnp.eye(2))
        >>> float(output_error(jnp.array([[3.0, 4.0]]), jnp.array([[3.0, 3.5]]), stats))
        0.10000000149011612
    """
    if w.shape != w_hat.shape or w.shape[-1] != stats.mean_abs.shape[-1]:
        raise ValueError(
            f"weights {w.shape}, replacement {w_hat.shape} and Stats of "
            f"{stats.mean_abs.shape[-1]} channels do not fit"
        )

    def energy(a: jax.Array) -> jax.Array:
        return jnp.vdot(jnp.matmul(a, stats.hessian, precision=PRECISION), a, precision=PRECISION)

    error, signal = energy(w - w_hat), energy(w)
    return jnp.sqrt(jnp.maximum(error, 0.0) / jnp.where(signal == 0, 1.0, signal))
