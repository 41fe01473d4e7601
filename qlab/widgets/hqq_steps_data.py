"""HQQ step by step on one layer: every step is the library's `advance`, and every state shown is
the QTensor that `qlab.hqq` returns with so many `iters`.

All steps of a layer are computed once; moving along them, or to another group, is a lookup.
"""

from __future__ import annotations

import dataclasses
import inspect
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from qlab.arithmetic import cast
from qlab.methods.hqq import advance, begin, hqq_step, shrink
from qlab.plots.widget_hqq_steps import Group, HqqStepsData, Searched
from qlab.qtensor import QTensor, Spec, block_sizes, dequantize, fit, quantize, to_blocks
from qlab.specs import hqq as grid
from qlab.stats import Stats, output_error
from qlab.widgets.source import Source

LAYER = "layers.1.self_attn.q_proj"
ITERS = 20  # `qlab.hqq`'s own
BITS, BLOCKS = (2, 3, 4, 8), (16, 32, 64, 128)
POWERS = (0.3, 0.5, 0.7, 1.0)
BETAS = (1.0, 10.0, 100.0, 1000.0, 10_000.0, 100_000.0)
CODE = tuple(
    line.strip()
    for line in inspect.getsource(hqq_step).splitlines()
    if line.strip().startswith(("outliers =", "zero ="))
)


@dataclasses.dataclass(frozen=True)
class HqqStepsState:
    """What is chosen: `channel` is the row and `place` the group of it that is drawn, `step` after
    how many steps.
    """

    layer: str = LAYER
    bits: int = 3
    block: int = 64
    p: float = 0.7
    beta: float = 100.0  # with `qlab.hqq`'s own 10 shrinking keeps none of this layer's errors
    channel: int = 146  # its zero point moves the furthest
    place: int = 0
    step: int = 5


_advance = jax.jit(advance, static_argnames="format")
_rows = jax.jit(jax.vmap(dequantize))


def sizes(source: Source, layer: str) -> tuple[int, ...]:
    """The group sizes that divide a row of the layer."""
    return tuple(b for b in BLOCKS if source.weight(layer).shape[1] % b == 0)


@partial(jax.jit, static_argnames="spec")
def _measured(w: jax.Array, zeros: jax.Array, stats: Stats, spec: Spec, p, beta) -> tuple:
    """Of every step: codes, [Σ|e|^p, Σe², squared output error], share of errors put up with."""
    ranges = fit(w, spec)

    def one(zero: jax.Array) -> tuple:
        q = quantize(w, ranges.replace(zero=zero))
        w_hat = dequantize(q)
        wrong = w - w_hat
        squared = output_error(w, w_hat, stats) ** 2
        costs = jnp.stack([(jnp.abs(wrong) ** p).sum(), (wrong**2).sum(), squared])
        return q.codes, costs, (shrink(wrong, beta, p) != 0).mean()

    return jax.lax.map(one, zeros)


@lru_cache(maxsize=16)
def search(
    source: Source, layer: str, bits: int, block: int, p: float, beta: float
) -> tuple[Searched, QTensor]:
    """All steps of the layer, and the stack of their QTensors, (steps + 1) first."""
    w, spec = jnp.asarray(source.weight(layer)), grid(bits, block)
    full = fit(w, spec.replace(scale="float32", zero="float32"))
    blocks, format = to_blocks(w, block_sizes(block, w.shape)), spec.format
    at = begin(jnp.asarray(full.zero))
    zeros = [at.zero]
    while bool(at.fell) and int(at.steps) < ITERS:
        at = _advance(at, blocks, full.scale, format, p, beta)
        zeros.append(at.zero)
    zeros += [at.zero] * (ITERS + 1 - len(zeros))  # a search that has stopped stays where it is
    stored = jnp.stack([cast(zero, str(spec.zero)) for zero in zeros])
    codes, costs, kept = _measured(w, stored, source.stats(layer), spec, p, beta)
    scale = jnp.broadcast_to(jnp.asarray(fit(w, spec).scale), stored.shape)
    found = Searched(
        np.asarray(stored, np.float32), np.asarray(costs, float), np.asarray(kept, float),
        int(at.steps), not bool(at.fell),
    )  # fmt: skip
    return found, QTensor(codes, scale, stored, None, spec=spec)


@lru_cache(maxsize=256)
def group(
    source: Source, layer: str, bits: int, block: int, p: float, beta: float, row: int, place: int
) -> Group:
    """One group of weights at every step."""
    found, q = search(source, layer, bits, block, p, beta)
    assert q.codes is not None
    here = slice(place * block, (place + 1) * block)
    if not (0 <= row < q.codes.shape[1] and 0 <= here.start < q.codes.shape[2]):
        raise ValueError(f"no group {place} in row {row}: the layer is {q.codes.shape[1:]}")
    of_row = jax.tree.map(lambda leaf: leaf[:, row : row + 1], q)
    w_hat = np.asarray(_rows(of_row))[:, 0, here]
    w = source.weight(layer)[row, here]
    scale = float(jnp.asarray(q.scale)[0, row, place])
    codes = np.asarray(q.codes[:, row, here]).astype(int)
    kept = np.asarray(shrink(jnp.asarray(w - w_hat), beta, p))
    return Group(w, scale, found.zeros[:, row, place], codes, w_hat, kept)


def neighbour(data: HqqStepsData, by: int) -> int:
    """The group `by` places on from the one drawn, in the order of how far zero points go."""
    order = np.argsort(data.moved[-1], kind="stable")
    here = int(np.flatnonzero(order == data.index)[0])
    return int(order[np.clip(here + by, 0, len(order) - 1)])


def hqq_steps_data(source: Source, state: HqqStepsState) -> HqqStepsData:
    """Everything that the picture shows.

    Example:
        >>> data = hqq_steps_data(source, HqqStepsState(step=20))   # doctest: +SKIP
        >>> data.change[0] < 0                                      # doctest: +SKIP
        True
    """
    what = (source, state.layer, state.bits, state.block, state.p, state.beta)
    one = group(*what, state.channel, state.place)
    x = np.linspace(-1, 1, 401, dtype=np.float32) * one.scale
    curve = np.asarray(shrink(jnp.asarray(x), state.beta, state.p))
    return HqqStepsData(
        search(*what)[0], one, (x / one.scale, curve / one.scale), state.bits, state.p, state.beta,
        state.channel, state.place, state.step, CODE,
    )  # fmt: skip
