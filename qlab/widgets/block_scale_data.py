"""The state and the numbers of `block_scale(model)`: one block by every convention at every
range.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from qlab.formats import FORMATS
from qlab.plots.widget_block_scale import BlockScaleData, Variant
from qlab.qtensor import Spec, fit
from qlab.rules import RULES
from qlab.widgets.quantized import open_tensor
from qlab.widgets.source import Source

LENGTHS = (8, 16, 32, 64, 128)
RANGES = tuple(range(40, 125, 5))  # per cent of the block's own
CONVENTIONS = ("absmax", "absmax_mid", "absmax_full")
ZERO = "gptq_asym"


@dataclass(frozen=True)
class BlockScaleState:
    """`place` is which block of the row; `range` is in per cent of the block's largest weight."""

    layer: str
    bits: int = 4
    length: int = 32
    convention: str = "absmax"
    range: int = 100
    zero: bool = False
    channel: int = 0
    place: int = 0


def block_scale_data(source: Source, state: BlockScaleState) -> BlockScaleData:
    """Everything that the picture shows.

    Raises:
        ValueError: a length that does not divide the rows, or a range that is not on offer.

    Example:
        >>> data = block_scale_data(source, BlockScaleState(source.layers[0]))  # doctest: +SKIP
        >>> data.variants[0].saturated(data.weights).sum()  # doctest: +SKIP
        0
    """
    row = source.weight(state.layer)[state.channel]
    if len(row) % state.length or state.range not in RANGES:
        raise ValueError(
            f"length {state.length} must divide {len(row)}, range {state.range} be one of {RANGES}"
        )
    start = min(state.place, len(row) // state.length - 1) * state.length
    w = row[start : start + state.length]
    found = _sweeps(w.tobytes(), state.bits)
    chosen = len(CONVENTIONS) if state.zero else CONVENTIONS.index(state.convention)
    here = RANGES.index(state.range)
    now = found[chosen][here]
    h = np.asarray(source.stats(state.layer).hessian)[
        start : start + len(w), start : start + len(w)
    ]
    e = now.values - w
    return BlockScaleData(
        weights=w, variants=tuple(sweep[here] for sweep in found), chosen=chosen,
        ranges=np.array(RANGES) / 100, range=state.range / 100,
        where=(state.layer, state.channel, start),
        bits=state.bits + (16 + state.zero * state.bits) / len(w),
        error=float(np.sqrt(max(e @ h @ e, 0) / max(w @ h @ w, 1e-30))),
    )  # fmt: skip


@lru_cache(maxsize=256)
def _sweeps(weights: bytes, bits: int) -> list[list[Variant]]:
    """Every variant at every range: one `fit` of the block stretched by each, one encoding of the
    block itself.
    """
    w = np.frombuffer(weights, np.float32)
    hi = 2 ** (bits - 1) - 1
    words = (
        f"amax / {hi}",
        f"amax / {hi + 0.5:g}",
        f"amax / {hi + 1}",
        f"(max − min) / {2 * hi + 1}",
    )
    stretched = jnp.asarray(np.array(RANGES, np.float32)[:, None] / 100 * w)
    found = []
    for rule, formula in zip((*CONVENTIONS, ZERO), words):
        signed = rule != ZERO
        format = FORMATS[f"INT{bits}" if signed else f"UINT{bits}"]
        spec = Spec(format, "row", "float16", zero=None if signed else format, rule=RULES[rule])
        with jax.disable_jit():
            ranges = fit(stretched, spec)
        q = open_tensor(np.broadcast_to(w, (len(RANGES), len(w))), ranges)
        noise = ((q.values - w) ** 2).sum(-1)
        sweep = (w**2).sum() / np.maximum(noise, 1e-30)
        found.append([
            Variant(
                rule, formula, q.at("scale", i, 0), None if signed else q.at("zero", i, 0),
                q.levels(i, 0), q.values[i], sweep,
            )
            for i in range(len(RANGES))
        ])  # fmt: skip
    return found
