"""Ranges of a matrix in parts: how many columns make one, how to fit, read and join them; and the
search that shrinks ranges.

A method that visits a matrix a few columns at a time fits ranges on those columns alone: `period`
says how many at least, `fit_parts` stacks the parts, `of_column` reads them, `join` makes one
QTensor of them. `fit_mse` scales what the rule sees, so it serves every rule and every Spec.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from qlab.qtensor import QTensor, Spec, fit, from_codes, spread_ranges, to_codes


def period(spec: Spec, columns: int) -> int | None:
    """The fewest columns whose ranges depend on no other column.

    Args:
        spec: any Spec.
        columns: of the whole matrix.

    Returns:
        a divisor of `columns`: the block, or as many blocks as have their scales stored together;
        None where ranges span whole rows or more than one row.

    Example:
        >>> from qlab.specs import SPECS
        >>> [period(SPECS[name], 512) for name in ("int4_g64", "q4_k", "nvfp4", "int4_channel")]
        [64, 256, None, None]
    """
    nested = [how for how in (spec.scale, spec.offset) if isinstance(how, Spec)]
    if not isinstance(spec.block, int) or spec.offset == "mean":
        return None
    for how in nested:
        if not isinstance(how.block, int) or how.offset is not None or isinstance(how.scale, Spec):
            return None
    found = spec.block * max([how.block for how in nested if isinstance(how.block, int)], default=1)
    return found if columns % found == 0 else None


def fit_parts(w: jax.Array, width: int, find: Callable[[jax.Array], QTensor]) -> QTensor:
    """`find` of every `width` columns of `w` (out, in): ranges with a first axis of in / width."""
    return jax.lax.map(find, w.reshape(len(w), -1, width).swapaxes(0, 1))


def of_column(ranges: QTensor, j: jax.Array, width: int, rows: int) -> list[jax.Array | None]:
    """Scale, zero and offset of every row in column `j`, each (rows,) or None; ranges as stacked by
    `fit_parts`.
    """
    part = jax.tree.map(lambda leaf: leaf[j // width], ranges)
    spread = spread_ranges(part, (rows, width))
    return [r if r is None or r.ndim == 0 else r[:, j % width] for r in spread]


def join(ranges: QTensor, rows: int) -> QTensor:
    """The ranges of neighbouring parts as those of the whole.

    Args:
        ranges: without codes; every leaf stacked along a first axis, one entry a part.
        rows: of the matrix.

    Example:
        >>> from qlab.specs import SPECS
        >>> parts = jnp.ones((4, 2, 64))                      # four times 64 columns of two rows
        >>> join(jax.vmap(lambda w: fit(w, SPECS["int4_g64"]))(parts), 2).scale.shape
        (2, 4)
    """

    def one(leaf: jax.Array) -> jax.Array:
        if leaf.shape[0] == 1:
            return leaf[0]
        side_by_side = leaf.reshape(leaf.shape[0], rows, -1).swapaxes(0, 1).reshape(rows, -1)
        return side_by_side.reshape(-1) if leaf.ndim == 2 else side_by_side  # nested: flat

    return jax.tree.map(one, ranges)


def fit_mse(w: jax.Array, spec: Spec) -> QTensor:
    """The ranges of p·w, p = 1, 0.99 … 0.21, that leave every row the least Σ|ŵ − w|^2.4.

    Clipping the largest weights makes the steps of all others finer. The search of GPTQ's program
    (IST-DASLab/gptq, quant.py, `mse`).

    Args:
        w: (out, in) floating point.
        spec: any Spec; where its ranges span several rows, one p is chosen for all.

    Returns:
        QTensor with `codes=None`, as `qlab.fit`.

    Raises:
        ValueError: as `qlab.fit`.

    Example:
        >>> from qlab.specs import SPECS
        >>> w = jax.random.normal(jax.random.key(0), (1, 128))
        >>> bool(fit_mse(w, SPECS["int2_g128"]).scale < fit(w, SPECS["int2_g128"]).scale)
        True
    """
    shrink = jnp.array([1 - i / 100 for i in range(80)], jnp.float32)
    rows_apart = spec.block == "row" or period(spec, w.shape[1]) is not None

    def candidate(i: jax.Array) -> tuple[jax.Array, QTensor]:
        ranges = fit(w * shrink[i], spec)
        spread = spread_ranges(ranges, w.shape)
        error = jnp.abs(from_codes(to_codes(w, spec, *spread), spec, *spread) - w) ** 2.4
        return error.sum(axis=1 if rows_apart else None, keepdims=True), ranges

    def better(i: jax.Array, best: tuple[jax.Array, QTensor]) -> tuple[jax.Array, QTensor]:
        new = candidate(i)
        wins = new[0] < best[0]  # (out, 1) or (1, 1)

        def choose(a: jax.Array, b: jax.Array) -> jax.Array:
            rows = (wins.shape[0], -1)  # every leaf holds the same number of entries for each row
            return jnp.where(wins, a.reshape(rows), b.reshape(rows)).reshape(a.shape)

        return jax.tree.map(choose, new, best)

    return jax.lax.fori_loop(1, len(shrink), better, candidate(jnp.int32(0)))[1]
