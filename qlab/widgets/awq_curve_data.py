"""AWQ's search on one layer: every ratio's scales and losses by the library, what the scales do to
the steps of each channel, and the paper's comparison, 1 % of the channels kept in float.

Everything that does not depend on the ratio is computed once; a later move is a lookup.
"""

from __future__ import annotations

import dataclasses
import inspect
from functools import cache, lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from qlab.methods.awq import awq_candidates, scaled_losses
from qlab.models.channels import with_outliers
from qlab.plots.widget_awq_curve import AwqCurveData, Line, Search
from qlab.qtensor import Spec, fit, quantize
from qlab.specs import awq as grid
from qlab.stats import Stats
from qlab.widgets.quantized import open_tensor
from qlab.widgets.source import Source

RATIOS = tuple(round(i / 20, 2) for i in range(20))
BITS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
LAYER = "layers.1.self_attn.q_proj"
SALIENT, DRAWS = 0.01, 8  # share of the channels kept in float; random choices averaged


@dataclasses.dataclass(frozen=True)
class AwqCurveState:
    """What is chosen: `ratio` is r, `place` the channel's place when sorted by E|x|, the largest
    first, `row` whose grid is drawn.
    """

    layer: str = LAYER
    outliers: bool = False
    bits: int = 3
    group: int = 64
    ratio: float = 0.3
    place: int = 2
    row: int = 1


def tried(w: jax.Array, stats: Stats, spec: Spec) -> tuple[jax.Array, jax.Array]:
    """All candidate scales (n, in) and what each costs (n,)."""
    ratios, scales = awq_candidates([w], stats, [spec])
    losses = scaled_losses((w,), stats, (spec,), scales)
    return scales, losses


CODE = tuple(line.strip() for line in inspect.getsource(tried).splitlines()[2:4])


def groups(source: Source, layer: str) -> tuple[int, ...]:
    """The groups that divide the layer's rows."""
    inner = source.weight(layer).shape[1]
    return tuple(g for g in GROUPS if inner % g == 0)


@cache
def loud(source: Source) -> Source:
    """The same model with outliers made in the inputs that come out of norms."""
    return Source(with_outliers(source.model))


@lru_cache(maxsize=64)
def search(source: Source, layer: str, bits: int, group: int) -> Search:
    """What does not depend on the ratio, r or the channel looked at."""
    w, stats, spec = jnp.asarray(source.weight(layer)), source.stats(layer), grid(bits, group)
    scales, losses = tried(w, stats, spec)
    whole = float(jnp.vdot(w @ stats.hessian, w))
    rounded = open_tensor(np.asarray(w), spec).values
    size = np.asarray(stats.mean_abs)
    kept = kept_in_float(np.asarray(w), rounded, stats)
    return Search(
        np.array(RATIOS), np.asarray(scales), np.sqrt(np.asarray(losses) / whole),
        {name: float(np.sqrt(loss / whole)) for name, loss in kept.items()},
        size, np.argsort(-size, kind="stable"),
    )  # fmt: skip


def kept_in_float(w: np.ndarray, rounded: np.ndarray, stats: Stats) -> dict[str, float]:
    """E‖ΔW x‖² when 1 % of the channels stay float: the largest inputs, the largest columns of W,
    any (the paper's Table 1; the mean of eight draws).
    """
    inner, random = w.shape[1], np.random.default_rng(0)
    count = max(1, round(SALIENT * inner))
    h, delta = np.asarray(stats.hessian), w - rounded

    def loss(kept: np.ndarray) -> float:
        left = np.where(np.isin(np.arange(inner), kept), 0.0, delta)
        return float(((left @ h) * left).sum())

    draws = [random.choice(inner, count, replace=False) for _ in range(DRAWS)]
    return {
        "activation": loss(np.argsort(-np.asarray(stats.mean_abs), kind="stable")[:count]),
        "weight norm": loss(np.argsort(-np.linalg.norm(w, axis=0), kind="stable")[:count]),
        "random": float(np.mean([loss(kept) for kept in draws])),
    }


@lru_cache(maxsize=256)
def steps(source: Source, layer: str, bits: int, group: int, place: int) -> np.ndarray:
    """(out, in / group) scales of the groups when W's columns are times the candidate's scale."""
    s = jnp.asarray(search(source, layer, bits, group).scales[place])
    with jax.disable_jit():
        found = fit(jnp.asarray(source.weight(layer)) * s, grid(bits, group)).scale
    return np.asarray(found, np.float32)


def line(source: Source, state: AwqCurveState, place: int) -> Line:
    """The levels that one weight can take, and the one it takes, with the candidate's scales."""
    found = search(source, state.layer, state.bits, state.group)
    channel, s = int(found.order[state.place]), found.scales[place]
    first = channel // state.group * state.group
    part = source.weight(state.layer)[state.row : state.row + 1, first : first + state.group]
    own = s[first : first + state.group]
    with jax.disable_jit():
        q = quantize(jnp.asarray(part * own), grid(state.bits, state.group))
    opened = open_tensor(part * own, q)
    at = channel - first
    return Line(
        opened.levels(0, at) / own[at], float(part[0, at]), float(opened.values[0, at] / own[at])
    )


def awq_curve_data(source: Source, state: AwqCurveState) -> AwqCurveData:
    """Everything that the picture shows.

    Example:
        >>> data = awq_curve_data(source, AwqCurveState(ratio=0.25))    # doctest: +SKIP
        >>> data.search.errors.min() < data.search.errors[0]            # doctest: +SKIP
        True
    """
    source = loud(source) if state.outliers else source
    what = (source, state.layer, state.bits, state.group)
    found, place = search(*what), RATIOS.index(state.ratio)
    mean = [np.log(steps(*what, p)).mean(0).repeat(state.group) for p in (place, 0)]
    finer = np.exp(mean[0] - mean[1]) / found.scales[place]
    return AwqCurveData(
        found, place, state.place, state.row, state.bits, state.group,
        finer[found.order], (line(source, state, 0), line(source, state, place)), CODE,
    )  # fmt: skip
