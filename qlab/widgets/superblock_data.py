"""The state and the numbers of `superblock()`: the bytes that ggml's encoder fills, what they
decode to, and what the encoder tried before it chose.

Everything but the weight looked at is computed once for many rows; a later move is a lookup. Not
here: which bits are whose (`superblock_bits`).
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlab.arithmetic import divide, multiply
from qlab.io.ggml import BLOCKS, TYPE_SPECS
from qlab.io.ggml_layouts import LAYOUTS
from qlab.io.gguf import decode, encode
from qlab.methods.kquants import floored
from qlab.methods.kquants_blocks import ENCODERS, Extra
from qlab.methods.kquants_search import Tried, inverse, make_qx, sum_in_order
from qlab.models.mixtures import fitting
from qlab.plots.widget_superblock import Search, SuperblockData
from qlab.widgets.source import Source
from qlab.widgets.superblock_bits import fields, levels_of, numbers_of, spots, sub_size

K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
TYPES = (*K_QUANTS, "IQ4_NL", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
LAYER = "layers.1.self_attn.q_proj"
PIECE = 256  # weights shown: a super-block, or as many blocks of 32
AT_ONCE = 1 << 16  # weights encoded together


@dataclass(frozen=True)
class SuperblockState:
    """What is chosen: `place` is which 256 weights of the row, `weight` which of them."""

    layer: str = LAYER
    type: str = "Q4_K"
    importance: bool = False
    channel: int = 39
    place: int = 0
    weight: int = 163


def there_and_back(w, type, importance) -> tuple[np.ndarray, np.ndarray]:
    """Raw blocks, and what they stand for."""
    raw = encode(w, type, importance)
    y = decode(raw, type)
    return raw, y


CODE = tuple(line.strip() for line in inspect.getsource(there_and_back).splitlines()[2:4])


# ---- many rows at once ---------------------------------------------------------------------------


class Told(NamedTuple):
    """What the search of every sub-block told, the candidate to beat first.

    Attributes:
        at, loss, unfitted, scale, better: (candidates, sub-blocks, blocks) as in
            `kquants_search.Tried`; the losses with the scale fitted to the codes and with the one
            that rounded them.
        weights: (weights of a sub-block, sub-blocks, blocks), by which errors are weighed.
        power: to which they are raised.
    """

    at: np.ndarray
    loss: np.ndarray
    unfitted: np.ndarray
    scale: np.ndarray
    better: np.ndarray
    weights: np.ndarray
    power: int

    def first(self, blocks: int) -> Told:
        """Of the first blocks only."""
        kept = {name: getattr(self, name)[..., :blocks] for name in self._fields[:-1]}
        return self._replace(**kept)


@dataclass(frozen=True)
class Rows:
    """Some rows of a layer, encoded: raw (rows, bytes), values (rows, cols), the search."""

    raw: np.ndarray
    values: np.ndarray
    told: Told


@lru_cache(maxsize=32)
def rows_of(source: Source, layer: str, type: str, importance: bool, part: int) -> Rows:
    """Part `part` of the layer's rows, `at_once` rows each."""
    w = source.weight(layer)
    count = at_once(w)
    w = w[part * count : (part + 1) * count]
    weighs = np.asarray(jnp.diagonal(source.stats(layer).hessian)) if importance else None
    raw, y = there_and_back(w, type, weighs)
    return Rows(raw, y, search(w, type, weighs))


def at_once(w: np.ndarray) -> int:
    """How many rows are encoded together."""
    return max(1, AT_ONCE // w.shape[1])


def searches(type: str, importance: bool) -> bool:
    """Whether the encoder looks for a scale: blocks of 32 integers do so only with importance."""
    encoder = ENCODERS[type.lower()]
    return encoder.weighs and (importance or not encoder.row)


def search(w: np.ndarray, type: str, importance: np.ndarray | None) -> Told:
    """What the encoder's own search tells. Blocks of 32 integers without importance do not search:
    here they are asked what they would find if all columns counted alike.
    """
    name = type.lower()
    encoder = ENCODERS[name]
    if encoder.row and importance is None:
        importance = np.ones(w.shape[1], np.float32)
    per_row, blocks = w.shape[1] // encoder.size, w.size // encoder.size
    filled = np.minimum(np.arange(AT_ONCE // encoder.size), blocks - 1)  # always the same shape
    x = w.reshape(-1, encoder.size)[filled].T
    if importance is not None:
        values = np.asarray(floored(jnp.asarray(importance, jnp.float32))[0])
        importance = values.reshape(per_row, -1)[filled % per_row].T
    all_rows = jnp.asarray(w)
    squares = divide(sum_in_order(multiply(all_rows, all_rows).T)[0], float(w.shape[1]))
    told = _searcher(name)(x, importance, np.asarray(squares)[filled // per_row])
    return told.first(blocks)


_ONE_AT_A_TIME = threading.Lock()  # what is told comes through a callback


@functools.cache
def _searcher(name: str) -> Callable[..., Told]:
    """The encoder compiled with an ear on its search."""
    heard: list[tuple[np.ndarray, ...]] = []
    powers: list[int] = []

    @jax.jit
    def run(x: jax.Array, importance: jax.Array | None, row: jax.Array) -> Any:
        seen: list[Tried] = []

        def tell(one: Tried) -> None:
            seen.append(one)
            found = (_loss(one, one.scale), _loss(one, inverse(one.inverse)))
            arrays = (one.at, *found, one.scale, one.better)
            jax.debug.callback(lambda *a: heard.append(a), *arrays, ordered=True)

        extra = Extra(importance, row, jnp.float32(jnp.inf), tell)
        parts = ENCODERS[name].run(x, extra)
        if not seen:  # Q8_0 never searches; this is what make_qx would do for it
            make_qx(x, jnp.ones_like(x), 128, tell)
        powers[:] = [seen[0].power]
        return parts, seen[0].weights

    def searcher(x: Any, importance: Any, row: Any) -> Told:
        with _ONE_AT_A_TIME:
            heard.clear()
            weights = np.asarray(run(x, importance, row)[1])
            jax.effects_barrier()
            found = [np.stack([np.asarray(a) for a in one]) for one in zip(*heard)]
        at, loss, unfitted, scale, better, by = (
            a.reshape(len(a), -1, x.shape[1]) for a in (*found, weights)
        )
        return Told(at, loss, unfitted, scale, better, by, powers[0])

    return searcher


def _loss(one: Tried, scale: jax.Array) -> jax.Array:
    wrong = jnp.abs(one.x - scale * one.q - one.minimum)
    return jnp.sum(one.weights * wrong**one.power, axis=0)


# ---- one super-block -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """What does not depend on the weight looked at: 256 weights and their blocks."""

    raw: np.ndarray  # (blocks, bytes)
    weights: np.ndarray
    values: np.ndarray
    levels: np.ndarray  # (sub-blocks, levels)
    searches: tuple[Search, ...]
    first: int  # column


def pieces(columns: int) -> int:
    """How many pieces of 256 weights a row has, the last may overlap."""
    return -(-columns // PIECE)


@lru_cache(maxsize=512)
def piece_of(
    source: Source, layer: str, type: str, importance: bool, row: int, place: int
) -> Piece:
    """The 256 weights at `place` of a row; of a shorter row all."""
    w = source.weight(layer)
    columns, (size, block) = w.shape[1], BLOCKS[type]
    part, at = divmod(row, at_once(w))
    rows = rows_of(source, layer, type, importance, part)
    first = max(min(place * PIECE, columns - PIECE), 0)
    columns_shown = slice(first, min(first + PIECE, columns))
    start, count = first // size, min(PIECE, columns) // size
    raw = rows.raw[at].reshape(-1, block.itemsize)[start : start + count]
    here = at * (columns // size) + start
    values = rows.values[at, columns_shown]
    subs = rows.told.at.shape[1]
    parts = list(zip(np.split(w[row, columns_shown], count * subs), np.split(values, count * subs)))
    found = tuple(
        _search(rows.told, type, importance, (sub, here + i), *parts[i * subs + sub])
        for i in range(count)
        for sub in range(subs)
    )
    return Piece(raw, w[row, columns_shown], values, levels_of(raw, type), found, first)


def _search(
    told: Told, type: str, importance: bool, at: tuple[int, int], w: np.ndarray, y: np.ndarray
) -> Search:
    """Of the sub-block `at` (sub-block, block) whose weights are w and became y."""
    mine = (slice(None), *at)
    weights = told.weights[mine].astype(np.float64)
    loss, better = told.loss[mine].astype(float), told.better[mine]
    places = np.round(told.at[mine].astype(float), 4)
    # Plain rounding: n is where the range divided by whole steps ends, or the start of a descent.
    plain = int(np.abs(places - np.round(np.abs(places[0]))).argmin())
    stored = (weights * np.abs(w.astype(np.float64) - y) ** told.power).sum()
    used = searches(type, importance)  # else what is stored is plain rounding
    whole = float(told.unfitted[mine][plain] if used else stored)
    whole = whole if whole > 0 else 1e-30  # of zeros nothing is lost, or NaN
    where = TYPE_SPECS[type].format.max if type == "Q8_0" else float(places[plain])
    kept = int(np.flatnonzero(better)[-1]) if better.any() else 0
    # make_qkx tells plain rounding itself first, which is no candidate if another stands there.
    tells_plain = np.isclose(places[1:], places[0]).any()
    return Search(
        places, np.nan_to_num(loss / whole, nan=1.0), int(tells_plain), kept,
        float(told.scale[mine][kept]), where, float(stored / whole), used,
        type == "Q3_K" and not importance,
    )  # fmt: skip


def superblock_data(source: Source, state: SuperblockState) -> SuperblockData:
    """Everything that the picture shows.

    Raises:
        ValueError: rows that no block divides.

    Example:
        >>> data = superblock_data(source, SuperblockState())       # doctest: +SKIP
        >>> data.value == data.values[163]                          # doctest: +SKIP
        True
    """
    w = source.weight(state.layer)
    type = fitting(state.type, w.shape[1])
    if type not in TYPES:
        raise ValueError(f"rows of {w.shape[1]} weights hold no block of 32 or 256")
    piece = piece_of(source, state.layer, type, state.importance, state.channel, state.place)
    size = BLOCKS[type][0]
    weight = min(state.weight, len(piece.weights) - 1)
    block, element = divmod(weight, size)
    layout = LAYOUTS[type]
    return SuperblockData(
        type=type, asked=state.type, columns=w.shape[1], fields=fields(type), raw=piece.raw,
        codes=spots(type, "codes"), size=size, sub=sub_size(type),
        weights=piece.weights, values=piece.values, levels=piece.levels,
        searches=piece.searches, weight=weight,
        numbers=numbers_of(type, piece.raw[block], element), added=layout.m is not None,
        nested=bool(layout.minima), importance=state.importance,
        where=(state.layer, state.channel, piece.first), code=CODE,
    )  # fmt: skip
