"""GPTQ on 8 × 16 weights, every step of it: a column is rounded, its error pushed to the right.

`advance` is a step as one writes it on a board, and the three lines that the picture shows; ranges,
rounding and U are the library's own, so the codes are those of `qlab.gptq`. Without compensation
the same lines run with a diagonal U, and what comes out is plain rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from qlab.methods.gptq import factor
from qlab.plots.widget_gptq_steps import GptqStepsData, Steps
from qlab.qtensor import Spec, fit, from_codes, spread_ranges, to_codes
from qlab.specs import gptq as grid
from qlab.widgets.source import Source

TOY = "8 × 16 toy"
ROWS, COLUMNS = 8, 16  # of what is looked at
DAMPS = (0.0001, 0.001, 0.01, 0.1, 1.0)
_factor = jax.jit(factor)


@dataclass(frozen=True)
class GptqStepsState:
    """What is chosen: `place` is which 8 × 16 weights of the layer, `column` the column, in the
    order of processing, that has just been rounded, `row` whose numbers are written out.
    """

    layer: str = TOY
    place: int = 0
    bits: int = 3
    push: bool = True
    act_order: bool = False
    damp: float = 0.01
    row: int = 0
    column: int = 0


def advance(w: np.ndarray, u: np.ndarray, j: int, quant: Callable) -> tuple[np.ndarray, np.ndarray]:
    """Rounds column `j` of `w` (out, in), pushes its error into the later ones; q and E of it."""
    q = quant(w[:, j], j)
    error = (w[:, j] - q) / u[j, j]
    w[:, j + 1 :] -= np.outer(error, u[j, j + 1 :])
    return q, error


CODE = tuple(line.strip() for line in inspect.getsource(advance).splitlines()[2:5])


def problem(source: Source, layer: str, place: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights (8, 16) and H = E[x xᵀ] (16, 16) of their inputs, float32: a toy, or a piece of a
    layer with its piece of the layer's H, which is exactly the H of those 16 inputs.
    """
    if layer == TOY:
        return toy()
    w, h = source.weight(layer), np.asarray(source.stats(layer).hessian)
    across = w.shape[1] // COLUMNS
    top, left = place // across * ROWS, place % across * COLUMNS
    inputs = slice(left, left + COLUMNS)
    return w[top : top + ROWS, inputs], h[inputs, inputs]


@lru_cache(maxsize=1)
def toy() -> tuple[np.ndarray, np.ndarray]:
    """Weights with a bell's widths; inputs that follow three causes, one input five times as large.

    Example:
        >>> [part.shape for part in toy()]
        [(8, 16), (16, 16)]
    """
    random = np.random.default_rng(7)
    w = 0.1 * random.standard_normal((ROWS, COLUMNS))
    x = random.standard_normal((512, 3)) @ random.standard_normal((3, COLUMNS))
    x += 0.4 * random.standard_normal((512, COLUMNS))
    x[:, 11] *= 5
    return w.astype(np.float32), (x.T @ x / len(x)).astype(np.float32)


def places(source: Source, layer: str) -> int:
    """How many pieces a layer has."""
    if layer == TOY:
        return 1
    out, inner = source.weight(layer).shape
    return (out // ROWS) * (inner // COLUMNS)


@lru_cache(maxsize=256)
def steps(
    source: Source, layer: str, place: int, bits: int, push: bool, act_order: bool, damp: float
) -> Steps:
    """All sixteen steps; a later move of the column is one lookup."""
    w, h = problem(source, layer, place)
    order = np.argsort(-h.diagonal(), kind="stable") if act_order else np.arange(COLUMNS)
    u = np.asarray(_factor(jnp.asarray(h[order][:, order]), damp)[0])
    u = u if push else np.diag(u.diagonal())
    with jax.disable_jit():  # compiled programs would be one for every number of bits
        return run(w[:, order], u, grid(bits, None, False), order)


def run(w: np.ndarray, u: np.ndarray, spec: Spec, order: np.ndarray) -> Steps:
    """`advance` on every column of `w` (out, in) in turn.

    Args:
        w: columns in the order of processing; ranges are fitted on whole rows before the first.
        u: (in, in) upper triangular.
        spec: one range a row.
        order: (in,) the columns' own numbers.
    """
    ranges = [
        None if r is None else r[:, 0] for r in spread_ranges(fit(jnp.asarray(w), spec), w.shape)
    ]

    def quant(column: np.ndarray, j: int) -> np.ndarray:
        return np.asarray(from_codes(to_codes(jnp.asarray(column), spec, *ranges), spec, *ranges))

    now, before, after, q, errors = w.copy(), [], [], [], []
    for j in range(w.shape[1]):
        before.append(now.copy())
        rounded, error = advance(now, u, j, quant)
        now[:, j] = rounded
        after.append(now.copy())
        q.append(rounded)
        errors.append(error)
    stacked = np.stack(before), np.stack(after), np.stack(q, 1), np.stack(errors, 1)
    return Steps(w, *stacked, u=u, order=order)


def lost(taken: Steps, w: np.ndarray, h: np.ndarray) -> np.ndarray:
    """(in + 1,) E‖(W − W_now) x‖² / E‖W x‖² before the first step and after each."""
    delta = taken.w - np.concatenate([taken.before[:1], taken.after])  # (in + 1, out, in)
    h_ordered = h[taken.order][:, taken.order]
    return np.einsum("kri,ij,krj->k", delta, h_ordered, delta) / np.einsum("ri,ij,rj", w, h, w)


def gptq_steps_data(source: Source, state: GptqStepsState) -> GptqStepsData:
    """Everything that the picture shows: the steps chosen, and the losses with and without pushing.

    Example:
        >>> data = gptq_steps_data(source, GptqStepsState(column=6))   # doctest: +SKIP
        >>> data.losses[True][-1] < data.losses[False][-1]             # doctest: +SKIP
        True
    """
    w, h = problem(source, state.layer, state.place)
    what = (source, state.layer, state.place, state.bits)
    both = {push: steps(*what, push, state.act_order, state.damp) for push in (False, True)}
    return GptqStepsData(
        both[state.push], {push: lost(taken, w, h) for push, taken in both.items()}, state.push,
        state.column, state.row, state.bits, CODE,
    )  # fmt: skip
