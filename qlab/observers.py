"""Observers: which range [low, high] of a layer's inputs a static quantizer covers, from Stats.

A wide range has coarse steps, a narrow one clips: minmax clips nothing, ema forgets rare extremes,
percentile clips a given share, mse the amount that costs least. Each is a function of Stats ->
(low, high); `static` makes of them the ranges that an `Act` keeps. Ranges of weights are `rules`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from qlab.qtensor import QTensor, Spec, fit, spread_ranges
from qlab.stats import EDGES, Stats

Range = tuple[jax.Array, jax.Array]  # low and high, () float32 each
SHRINK = np.exp2(-np.arange(161, dtype=np.float32) / 16)  # shares of max|x| that `mse` tries


def minmax(stats: Stats, *, spec: Spec | None = None) -> Range:
    """low = min x, high = max x: nothing is clipped (Jacob et al. 2017, arXiv 1712.05877, §3).

    Args:
        stats: of the layer's inputs, of at least one token.
        spec: unused; every observer takes it.

    Raises:
        ValueError: for Stats of no tokens.

    Example:
        >>> low, high = minmax(Stats.from_inputs(jnp.array([[1.0, -2.0], [0.5, 4.0]])))
        >>> float(low), float(high)
        (-2.0, 4.0)
    """
    _require(stats.tokens > 0, "these Stats are of 0 tokens: there is no range of nothing")
    return stats.min.min(), stats.max.max()


def ema(stats: Sequence[Stats], momentum: float = 0.99, *, spec: Spec | None = None) -> Range:
    """low_t = m · low_{t−1} + (1 − m) · min x_t, high alike: an extreme of one batch counts little.

    The exponential moving average of Jacob et al. 2017 (arXiv 1712.05877, §3.1), begun at the first
    batch; torch's MovingAverageMinMaxObserver with `averaging_constant` 1 − m.

    Args:
        stats: one of every batch, in order.
        momentum: m, from 0 (only the last batch) to below 1.
        spec: unused.

    Raises:
        ValueError: for no batches, one of no tokens, or a momentum outside [0, 1).

    Example:
        >>> batches = [Stats.from_inputs(jnp.array([[-1.0, x]])) for x in (1.0, 11.0)]
        >>> round(float(ema(batches, momentum=0.9)[1]), 6)
        2.0
    """
    if isinstance(stats, Stats) or not stats:
        raise ValueError("ema averages over batches: give a list of Stats, one of every batch")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum {momentum} is not between 0 and 1")
    low, high = minmax(stats[0])
    for batch in stats[1:]:
        new_low, new_high = minmax(batch)
        low = low + (1 - momentum) * (new_low - low)
        high = high + (1 - momentum) * (new_high - high)
    return low, high


def percentile(stats: Stats, q: float = 99.99, *, spec: Spec | None = None) -> Range:
    """[min x, max x] cut to [−p, p], p with q % of all |x| below it: the others are clipped.

    One of the calibrations of Wu et al. 2020 (arXiv 2004.09602; 99.9 … 99.9999 %). p is read off
    the histogram, linear inside a bin: right within the bin's width, 1/16 to 1/8 of p.

    Args:
        stats: with a histogram.
        q: percent, above 0 and at most 100.
        spec: unused.

    Raises:
        ValueError: for a `q` outside, or Stats without a histogram.

    Example:
        >>> x = jnp.linspace(-1, 1, 2001)[:, None]
        >>> bool(jnp.abs(percentile(Stats.from_inputs(x), 90.0)[1] - 0.9) < 0.01)
        True
    """
    if not 0 < q <= 100:
        raise ValueError(f"percentile {q} is not above 0 and at most 100")
    low, high = minmax(stats)
    counts, edges = _counts(stats), jnp.minimum(jnp.asarray(EDGES), stats.amax.max())
    # counted from above, where the numbers are small and float32 sums exact
    beyond = jnp.append(0.0, jnp.cumsum(counts[::-1]))
    p = jnp.interp((1 - q / 100) * beyond[-1], beyond, edges[::-1])
    return jnp.clip(low, -p, p), jnp.clip(high, -p, p)


def mse(stats: Stats, spec: Spec) -> Range:
    """[min x, max x] cut to [−c, c] with the c of least E(x − x̂)², rounding and clipping together.

    E(x − x̂)² = Σ_bins (count / width) · ∫ (x − nearest(x))² dx: numbers are taken as spread evenly
    inside a bin, and as often positive as negative where both are possible. The integral is exact
    for every format: with k the nearest value's index, ∫ = (x − v_k)³ / 3 + Σ_{i < k} (v_{i+1} −
    v_i)³ / 12. c = max|x| · 2^(−i/16), i = 0 … 160. The trade-off is that of Banner et al. 2018
    (arXiv 1810.05723), there for a Laplace or Gauss curve, here for the numbers counted.

    Args:
        stats: with a histogram.
        spec: what the inputs are rounded to; of its block only the format and rule count.

    Raises:
        ValueError: for Stats without a histogram.

    Example:
        >>> from qlab.formats import INT4
        >>> x = jax.random.laplace(jax.random.key(0), (4096, 8))
        >>> low, high = mse(Stats.from_inputs(x), Spec(INT4, "tensor"))
        >>> bool(high < jnp.abs(x).max() / 2)
        True
    """
    ranges, errors = mse_curve(stats, spec)
    best = jnp.argmin(errors)
    return ranges[best, 0], ranges[best, 1]


def mse_curve(stats: Stats, spec: Spec) -> tuple[jax.Array, jax.Array]:
    """What `mse` weighs: every range it tries, (161, 2), and its E(x − x̂)², (161,) float32."""
    low, high = minmax(stats)
    largest, counts, start = jnp.maximum(-low, high), _counts(stats), jnp.asarray(EDGES[:-1])
    c = largest * SHRINK
    ranges = jnp.stack([jnp.clip(low, -c, c), jnp.clip(high, -c, c)], axis=1)  # (161, 2)
    # the last bin ends at max|x|; where that is its first number too, it stays a thin one
    end = jnp.minimum(jnp.asarray(EDGES[1:]), jnp.maximum(largest, start * (1 + 2**-10)))
    density = counts / (jnp.where(end > start, end - start, 1.0) * counts.sum())
    # a bin beyond −min x holds positive numbers only, one beyond max x negative ones
    positive = jnp.where(start >= -low, 1.0, jnp.where(start >= high, 0.0, 0.5))

    def error(ends: jax.Array) -> jax.Array:
        values = _values(ends, spec)
        above = _integral(end, values) - _integral(start, values)
        below = _integral(-start, values) - _integral(-end, values)
        return jnp.sum(density * (positive * above + (1 - positive) * below))

    return ranges, jax.lax.map(error, ranges)


def static(
    stats: Any, spec: Spec, observer: Callable[..., Range] = minmax, **hyper: Any
) -> QTensor:
    """Ranges without codes for `Act.with_ranges`: those of a tensor that reaches from low to high.

    Args:
        stats: what the observer reads: Stats, or a list of them for `ema`.
        spec: of the inputs, with block "tensor".
        observer: `minmax`, `ema`, `percentile`, `mse`, or a function like them.
        hyper: passed to the observer, such as `q=99.9`.

    Returns:
        QTensor with `codes=None`.

    Raises:
        ValueError: for a Spec of another block, or as the observer.

    Example:
        >>> from qlab.formats import INT8
        >>> stats = Stats.from_inputs(jnp.array([[1.0, -2.54]]))
        >>> static(stats, Spec(INT8, "tensor")).scale.tolist()
        [[0.019999999552965164]]
    """
    if spec.block != "tensor":
        raise ValueError(
            f'static ranges are one for all tokens: block "tensor", not {spec.block!r}'
        )
    low, high = observer(stats, spec=spec, **hyper)
    return fit(jnp.stack([low, high])[None], spec)


def _counts(stats: Stats) -> jax.Array:
    """The histogram (512,), or one clear sentence."""
    _require(
        stats.histogram.sum() > 0,
        "these Stats have no histogram, it is lost where inputs are divided by channel scales: "
        "take Stats of the inputs themselves",
    )
    return stats.histogram


def _values(ends: jax.Array, spec: Spec) -> jax.Array:
    """The numbers that codes stand for once the range is [low, high], ascending."""
    scale, zero, offset = spread_ranges(fit(ends[None], spec.replace(block="tensor")), (1, 1))
    values = jnp.asarray(spec.format.values)
    values = values if zero is None else values - zero[0, 0]
    values = values if scale is None else values * scale[0, 0]
    return jnp.sort(values if offset is None else values + offset.reshape(()))


def _integral(t: jax.Array, values: jax.Array) -> jax.Array:
    """∫ (x − nearest value)² dx from the value nearest 0 to t."""
    k = jnp.searchsorted((values[1:] + values[:-1]) / 2, t)
    cells = jnp.append(0.0, jnp.cumsum(jnp.diff(values) ** 3 / 12))
    # counted from the value nearest 0, so that thin bins near 0 lose nothing to rounding
    whole = cells - cells[jnp.argmin(jnp.abs(values))]
    return whole[k] + (t - values[k]) ** 3 / 3


def _require(holds: jax.Array, sentence: str) -> None:
    """Raises ValueError(sentence) unless `holds`; under a trace nothing is known, and it passes."""
    if not isinstance(holds, Tracer) and not bool(holds):
        raise ValueError(sentence)
