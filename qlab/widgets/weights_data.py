"""The state and the numbers of `weights(model)`: every quantity that its picture shows, measured
on the real layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from qlab.plots.widget_weights import WeightsData
from qlab.widgets.choices import make_spec
from qlab.widgets.quantized import divisor, quantized, segment
from qlab.widgets.source import Source

BINS = 121
ROWS, COLUMNS = 48, 24  # at most, of the heat map


@dataclass(frozen=True)
class WeightsState:
    """What is chosen: `channel` is an output row, `place` which of its segments is looked at."""

    layer: str
    kind: str = "integer"
    bits: int = 4
    block: int | str = 32
    rule: str = "absmax"
    channel: int = 0
    place: int = 0


def weights_data(source: Source, state: WeightsState) -> WeightsData:
    """Everything that the picture shows, measured on the real layer.

    Raises:
        ValueError: a choice that is not on offer, or a block that does not divide the rows.

    Example:
        >>> data = weights_data(source, WeightsState("layers.0.self_attn.q_proj"))  # doctest: +SKIP
        >>> data.bits  # doctest: +SKIP
        4.5
    """
    w = source.weight(state.layer)
    q = quantized(source, state.layer, make_spec(state.kind, state.bits, state.block, state.rule))
    wide = segment(state.block, w.shape[1])
    start = min(state.place, w.shape[1] // wide - 1) * wide
    channel = min(state.channel, len(w) - 1)
    here = (channel, slice(start, start + wide))
    edges, counts = _histogram(source, state.layer)
    error = q.values - w
    heat, per_row, per_column = _heat(error, w, wide)
    return WeightsData(
        format=q.tensor.spec.format.name, block=state.block,
        edges=edges, weights=counts, errors=_count(error, edges),
        heat=heat, cell=(channel // per_row, start // wide // per_column), per_row=per_row,
        channel=channel, start=start,
        block_weights=w[here], block_values=q.values[here], block_codes=q.codes[here],
        levels=q.levels(channel, start), scale=q.at("scale", channel, start),
        zero=None if q.tensor.zero is None else q.at("zero", channel, start),
        bits=q.bits, sqnr=float((w**2).sum() / max((error**2).sum(), 1e-30)), error=q.error,
        bytes=q.bits * w.size / 8, zeros=float(np.mean(q.values == 0)),
    )  # fmt: skip


def _count(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """(bins,) how many fall between equally wide edges; what lies outside counts at the ends."""
    place = (values - edges[0]) * (BINS / (edges[-1] - edges[0]))
    return np.bincount(np.clip(place, 0, BINS - 1).astype(np.int32).ravel(), minlength=BINS)


@lru_cache(maxsize=64)
def _histogram(source: Source, layer: str) -> tuple[np.ndarray, np.ndarray]:
    w = source.weight(layer)
    end = 1.02 * float(np.abs(w).max())
    edges = np.linspace(-end, end, BINS + 1)
    return edges, _count(w, edges)


def _heat(error: np.ndarray, w: np.ndarray, wide: int) -> tuple[np.ndarray, int, int]:
    """Relative error of every tile, and how many channels and segments a tile spans."""
    rows, segments = len(error), error.shape[1] // wide
    per_row, per_column = divisor(rows, ROWS), divisor(segments, COLUMNS)
    tiles = (error**2).reshape(rows // per_row, per_row, -1, wide * per_column)
    return np.sqrt(tiles.mean(axis=(1, 3)) / (w**2).mean()), per_row, per_column
