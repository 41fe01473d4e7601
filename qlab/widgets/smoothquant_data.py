"""SmoothQuant on one layer: every α's scales and the error of its W8A8 product by the library, on
held text that neither scales nor static ranges have seen, and the codes that inputs become.

Everything that does not depend on α, channel or token is computed once; a later move is a lookup.
"""

from __future__ import annotations

import dataclasses
import inspect
from functools import cache, lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

import qlab.data
from qlab.activations import ACTS, Act, act_matmul
from qlab.arithmetic import divide
from qlab.methods.rtn import rtn
from qlab.methods.smoothquant import ALPHAS, LEVELS, candidates, smoothquant
from qlab.models.taps import layer_inputs
from qlab.observers import static
from qlab.plots.widget_smoothquant import Grid, Smoothed, SmoothQuantData
from qlab.qtensor import Spec, quantize
from qlab.specs import SPECS
from qlab.stats import PRECISION, Stats
from qlab.widgets.awq_curve_data import loud
from qlab.widgets.source import Source

CHOICES = tuple(round(float(alpha), 2) for alpha in ALPHAS)
LAYER = "layers.1.self_attn.q_proj"
SEQUENCES, LENGTH = 2, 128  # of held text


@dataclasses.dataclass(frozen=True)
class SmoothQuantState:
    """What is chosen: `level` names a row of LEVELS, `place` the channel's place when sorted by
    max|X|, the largest first, `token` the held token whose inputs lie on the grid.
    """

    layer: str = LAYER
    outliers: bool = True
    level: str = "O2"
    alpha: float = 0.5
    place: int = 0
    token: int = 31


def ranged(act: Act, stats: Stats) -> Act:
    """The Act with its static ranges, if it needs any: those of the calibration text."""
    return act.with_ranges(static(stats, act.spec)) if act.static else act


def product(w, stats, spec, alpha, x, act) -> jax.Array:
    """x Wᵀ of a smoothed layer, both sides in 8 bits."""
    q = smoothquant(w, stats, spec, alpha=alpha)
    act = ranged(act, stats.divided(q.channel_scale))
    y = act_matmul(x, q, act)
    return y


CODE = tuple(line.strip() for line in inspect.getsource(product).splitlines()[2:5:2])


def relative(y_hat: jax.Array, y: jax.Array) -> jax.Array:
    """√(E‖ŷ − y‖² / E‖y‖²)."""
    return jnp.sqrt(jnp.sum((y_hat - y) ** 2) / jnp.sum(y**2))


@partial(jax.jit, static_argnames="spec")
def errors(w: jax.Array, stats: Stats, x: jax.Array, spec: Spec, act: Act) -> jax.Array:
    """(n + 1,) error of the output: for every α, and at the end without smoothing."""
    y = jnp.matmul(x, w.T, precision=PRECISION)
    smoothed = jax.lax.map(
        lambda alpha: relative(product(w, stats, spec, alpha, x, act), y), jnp.asarray(ALPHAS)
    )
    plain = relative(act_matmul(x, rtn(w, None, spec), ranged(act, stats)), y)
    return jnp.append(smoothed, plain)


@cache
def held(source: Source) -> dict[str, jax.Array]:
    """What every layer reads on held text: path -> (sequences, time, in)."""
    text = qlab.data.texts("english", "evaluation")
    ids = source.model.tokenizer.encode(text[: 16 * SEQUENCES * LENGTH])[: SEQUENCES * LENGTH]
    return layer_inputs(source.model, np.array(ids).reshape(SEQUENCES, LENGTH))


@lru_cache(maxsize=64)
def search(source: Source, layer: str) -> Smoothed:
    """What does not depend on granularity, α, channel or token."""
    w, stats, x = jnp.asarray(source.weight(layer)), source.stats(layer), held(source)[layer]
    _, scales = candidates([w], stats, [SPECS[LEVELS["O1"][0]]], alpha="search")
    found = {
        level: np.asarray(errors(w, stats, x, SPECS[weights], ACTS[act]), float)
        for level, (weights, act) in LEVELS.items()
    }
    mixed = ACTS["llm_int8"]
    y = jnp.matmul(x, w.T, precision=PRECISION)
    y_hat = act_matmul(x, rtn(w, None, SPECS["int8_channel"]), mixed)
    outlying = (jnp.abs(x) >= (mixed.threshold or jnp.inf)).any(1).sum(1)  # of each sequence
    amax = np.asarray(stats.amax)
    return Smoothed(
        np.array(CHOICES), np.asarray(scales),
        {level: e[:-1] for level, e in found.items()},
        {level: float(e[-1]) for level, e in found.items()},
        float(relative(y_hat, y)), int(outlying.max()),
        amax, np.abs(np.asarray(w)).max(0), np.argsort(-amax, kind="stable"),
    )  # fmt: skip


@lru_cache(maxsize=256)
def codes(source: Source, layer: str, level: str, place: int | None) -> np.ndarray:
    """(tokens, in) int: what the held inputs become, divided by s of an α or as they are."""
    x, stats = held(source)[layer], source.stats(layer)
    if place is not None:
        s = jnp.asarray(search(source, layer).scales[place])
        x, stats = divide(x, s), stats.divided(s)
    act = ranged(ACTS[LEVELS[level][1]], stats)
    with jax.disable_jit():
        found = [quantize(one, act.ranges or act.spec).codes for one in x]
    return act.spec.format.values[np.concatenate(found)].astype(int)  # −127 … 127


def grid(source: Source, state: SmoothQuantState, place: int | None) -> Grid:
    """One token on the levels, and how many of them every channel reaches on all held tokens."""
    found = codes(source, state.layer, state.level, place)
    return Grid(found[state.token], 2 * np.abs(found).max(0) + 1)


def smoothquant_data(source: Source, state: SmoothQuantState) -> SmoothQuantData:
    """Everything that the picture shows.

    Example:
        >>> data = smoothquant_data(source, SmoothQuantState(alpha=0.5))    # doctest: +SKIP
        >>> data.error < data.found.plain["O2"]                             # doctest: +SKIP
        True
    """
    source = loud(source) if state.outliers else source
    place = CHOICES.index(state.alpha)
    return SmoothQuantData(
        search(source, state.layer), state.level, place, state.place, state.token,
        (grid(source, state, None), grid(source, state, place)), CODE,
    )  # fmt: skip
