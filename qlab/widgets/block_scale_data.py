"""The state and the numbers of `block_scale(model)`: one block by every convention or scale rule
at every range.
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
from qlab.suggest import near
from qlab.widgets import block_scale_floats as floats
from qlab.widgets.quantized import open_tensor
from qlab.widgets.source import Source

LENGTHS = (8, 16, 32, 64, 128)
RANGES = tuple(range(40, 125, 5))  # per cent of the block's own
CONVENTIONS = ("absmax", "absmax_mid", "absmax_full")
ZERO = "gptq_asym"
INTEGER, NVFP4 = "integer", "NVFP4"
# kind of numbers -> (its scale rules, the usual length)
KINDS: dict[str, tuple[tuple[str, ...], int]] = {
    INTEGER: (CONVENTIONS, 32),
    **dict.fromkeys(floats.MX, (tuple(floats.POWERS), 32)),
    NVFP4: (tuple(floats.TWO_LEVELS), 16),
}


@dataclass(frozen=True)
class BlockScaleState:
    """`place` is which block of the row; `range` is in per cent of the block's largest weight;
    `kind` is a key of KINDS, `convention` one of its rules; `bits` and `zero` are the integers'.
    """

    layer: str
    kind: str = INTEGER
    bits: int = 4
    length: int = 32
    convention: str = "absmax"
    range: int = 100
    zero: bool = False
    channel: int = 0
    place: int = 0


def offered(kind: str, bits: int) -> list[tuple[str, str]]:
    """(what a control shows, rule) of a kind of numbers.

    Example:
        >>> offered("MXFP4", 4)[0], offered("integer", 4)[1]
        (('floor', 'pow2_floor'), ('amax / 7.5', 'absmax_mid'))
    """
    rules = KINDS[kind][0]
    if kind != INTEGER:
        return [(floats.WHERE.get(rule, rule.removeprefix("pow2_")), rule) for rule in rules]
    hi = 2 ** (bits - 1) - 1
    return [(f"amax / {d:g}", rule) for d, rule in zip((hi, hi + 0.5, hi + 1), rules)]


def block_scale_data(source: Source, state: BlockScaleState) -> BlockScaleData:
    """Everything that the picture shows.

    Raises:
        ValueError: a length that does not divide the rows, or a kind, rule or range that is not on
            offer.

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
    place = min(state.place, len(row) // state.length - 1)
    start = place * state.length
    w = row[start : start + state.length]
    chosen, found = _variants(source, state, w)
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
        bits=state.bits + (16 + state.zero * state.bits) / len(w) if state.kind == INTEGER
        else floats.bits(state.kind, len(w)),
        error=float(np.sqrt(max(e @ h @ e, 0) / max(w @ h @ w, 1e-30))),
        row=floats.row_of_blocks(
            row, state.length, _largest(source, state.layer), place, state.range / 100)
        if state.kind == NVFP4 else None,
    )  # fmt: skip


def _variants(
    source: Source, state: BlockScaleState, w: np.ndarray
) -> tuple[int, list[list[Variant]]]:
    """Which variant is chosen, and all of the kind at every range."""
    if state.kind not in KINDS:
        raise ValueError(f"no kind of number is called {state.kind!r}: {near(state.kind, KINDS)}")
    rules = KINDS[state.kind][0]
    if state.convention not in rules:
        raise ValueError(
            f"{state.kind} has no scale rule {state.convention!r}: {near(state.convention, rules)}"
        )
    chosen, ranges = rules.index(state.convention), tuple(p / 100 for p in RANGES)
    if state.kind == NVFP4:
        return chosen, floats.nvfp4_sweeps(w.tobytes(), _largest(source, state.layer), ranges)
    if state.kind != INTEGER:
        return chosen, floats.mx_sweeps(w.tobytes(), state.kind, ranges)
    return (len(rules) if state.zero else chosen), _sweeps(w.tobytes(), state.bits)


def _largest(source: Source, layer: str) -> float:
    return float(np.abs(source.weight(layer)).max())


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
