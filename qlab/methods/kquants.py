"""The quantizers of ggml, whose blocks llama.cpp runs: k-quants, the older blocks of 32, IQ4, and
FP4 and ternary blocks, code for code.

Source: ggml, ggml-quants.c (I. Kawrakow, llama.cpp pull requests 1684 and 4930); there is no paper.

    ŵ = d·s_b·q − dmin·m_b        a super-block of 256 has d, dmin; its sub-block b has s_b, m_b
    loss = Σ_k v_k (w_k − ŵ_k)²   v_k = E[x_k²]·√(σ² + w_k²) with importance, else from w alone

symbol · name here · shape:  w · w · (out, in);  E[x²] · importance · (in,), the diagonal of H in
Stats, llama.cpp's "imatrix";  q · codes;  s_b, m_b · scale.codes, offset.codes;  d, −dmin ·
scale.scale, offset.scale.
Each sub-block is searched alone (`kquants_search`), the super-block stores its scales, then all
codes are taken again (`kquants_blocks`). Plain rounding into the same containers is `rtn`.
Departs from ggml: columns of no importance get a little, where ggml turns super-blocks of them to
zeros; and, unless asked, half-precision scales stop at 65504 where ggml's overflow.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from qlab.arithmetic import FLOAT16_MAX, divide, multiply, ordered_mean
from qlab.formats import Format
from qlab.methods.kquants_blocks import ENCODERS, Extra, Parts
from qlab.methods.kquants_search import sum_in_order
from qlab.methods.method import Facts, method_with_facts, needed, require
from qlab.qtensor import QTensor, Spec
from qlab.specs import SPECS, name_of
from qlab.stats import Stats

FLOOR = 1e-6  # of the mean importance; what is below is raised to it
_NAMES = {SPECS[name]: name for name in ENCODERS}
_CHUNK = 1 << 16  # weights that one compiled call encodes: their arrays stay in cache
_LONG_CHUNK = 1 << 18  # the same without a search: one pass, over before 16 calls have begun


def floored(importance: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Importances of at least 10⁻⁶ of their mean (all ones if all are zero), and how many rose.

    Args:
        importance: (in,) float32 ≥ 0.

    Returns:
        (in,) float32 and a count ().

    Example:
        >>> values, count = floored(jnp.array([0.0, 2.0]))
        >>> values.tolist(), int(count)
        ([9.999999974752427e-07, 2.0], 1)
    """
    least = multiply(ordered_mean(importance), jnp.float32(FLOOR))
    least = jnp.where(least > 0, least, 1.0)
    return jnp.maximum(importance, least), (importance < least).sum().astype(jnp.float32)


@method_with_facts(supports=lambda spec: spec in _NAMES)
def kquants(
    w: jax.Array, stats: Stats | None, spec: Spec, *, importance: jax.Array | None = None,
    saturate: bool = True,
) -> tuple[QTensor, Facts]:  # fmt: skip
    """ggml's codes for one of its containers.

    Args:
        w: (out, in) floating point.
        stats: E[x²] of the layer's inputs is taken from here; None: every column counts alike.
        spec: a container of ggml, such as SPECS["q4_k"].
        importance: (in,) float ≥ 0, E[x²] of every input channel, in place of stats. Q8_0, MXFP4,
            NVFP4 and the ternary types have nothing to weigh by it, as in ggml.
        saturate: half-precision scales stop at ±65504; False: they overflow as ggml's do.

    Returns:
        QTensor of `spec`. Facts, where columns are weighed: "floored", how many of them had no
        importance and got 10⁻⁶ of the mean.

    Raises:
        ValueError: a Spec that is no container of ggml; columns that its block does not divide;
            weights of NaN or infinity; importance of another length, negative or not finite.

    Example:
        >>> w = jax.random.normal(jax.random.key(0), (2, 256))
        >>> kquants(w, None, SPECS["q4_k"]).scale.codes.shape
        (16,)
    """
    parts, facts = encoded(w, stats, spec, importance, saturate=saturate)
    return _assembled(jax.tree.map(jnp.asarray, parts), spec, jnp.shape(w)), facts


def encoded(
    w: Any, stats: Stats | None, spec: Spec, importance: Any = None, *, saturate: bool = True,
    then: Callable[[Parts], Any] | None = None,
) -> tuple[Any, Facts]:  # fmt: skip
    """`kquants`, its blocks still taken apart: `Parts` whose first axis is the blocks.

    Args:
        w: (out, in) floating point, of numpy or jax.
        stats: as for `kquants`.
        spec: as for `kquants`.
        importance: as for `kquants`.
        saturate: as for `kquants`.
        then: jitted; takes the Parts of some blocks, and where nothing is searched is compiled into
            the same program. The result is what it gives: arrays whose first axis goes along the
            blocks.

    Returns:
        Parts, or what `then` makes of them: arrays of numpy, of traced weights jax's; the facts.

    Example:
        >>> w = np.ones((2, 64), np.float32)
        >>> encoded(w, None, SPECS["q8_0"], then=jax.jit(lambda parts: parts.d))[0].shape
        (4,)
    """
    if not kquants.supports(spec):
        raise ValueError(
            f"kquants fills the containers of ggml ({', '.join(ENCODERS)}), "
            f"not a Spec of {spec.format} ({name_of(spec)})"
        )
    name = _NAMES[spec]
    w = _checked(w, name)
    if importance is None and stats is not None:
        importance = jnp.diagonal(needed(stats, w).hessian)
    facts: Facts = {}
    if importance is not None:
        importance = _importance(importance, w.shape[1])
    if not ENCODERS[name].weighs:
        importance = None
    if importance is not None:
        importance, facts["floored"] = floored(importance)
    limit = np.float32(FLOAT16_MAX if saturate else np.inf)
    return _encoded(w, importance, limit, name, then), facts


# ---- checks --------------------------------------------------------------------------------------


def _checked(w: Any, name: str) -> Any:
    w = w if isinstance(w, np.ndarray) else jnp.asarray(w)
    require(jnp.issubdtype(w.dtype, jnp.floating), f"weights must be floating point, not {w.dtype}")
    require(w.size > 0, f"a tensor of shape {w.shape} holds no weights")
    size = ENCODERS[name].size
    require(w.shape[1] % size == 0, f"{w.shape[1]} columns are no multiple of {name}'s {size}")
    if w.dtype != np.float32:
        w = w.astype(np.float32)
    if not isinstance(w, Tracer) and not np.isfinite(w).all():
        nan, inf = int(np.isnan(w).sum()), int(np.isinf(w).sum())
        require(False, f"weights of shape {w.shape} hold {nan} NaN and {inf} Inf")
    return w


def _importance(values: jax.Array, columns: int) -> jax.Array:
    values = jnp.asarray(values, jnp.float32)
    require(values.shape == (columns,), f"{columns} columns but importance of shape {values.shape}")
    finite, negative = jnp.isfinite(values).all(), (values < 0).any()
    require(finite, f"importance of {columns} columns holds NaN or Inf")
    require(~negative, f"importance of {columns} columns is negative somewhere: it is E[x²]")
    return values


# ---- blocks, a chunk at a time -------------------------------------------------------------------


def _encoded(
    w: Any, importance: jax.Array | None, limit: Any, name: str, then: Callable | None = None
) -> Any:
    """Parts whose first axis is the blocks, or what `then` makes of them.

    Concrete weights go chunk by chunk through one compiled program, so that another shape compiles
    nothing; traced ones through `lax.map`.
    """
    encoder = ENCODERS[name]
    searches = importance is not None or encoder.search
    blocks, size = w.size // encoder.size, (_CHUNK if searches else _LONG_CHUNK) // encoder.size
    weighs_row = encoder.row and importance is not None
    row = _mean_square_of_rows(w) if weighs_row else None
    if isinstance(w, Tracer) or isinstance(importance, Tracer):
        one = lambda at: _chunk(w, importance, row, at, limit, name, then)  # noqa: E731
        if blocks <= size:
            return one(np.arange(blocks))
        parts = jax.lax.map(one, jnp.asarray(_numbers(0, -(-blocks // size) * size, blocks, size)))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:blocks], parts)
    # numpy cuts the chunks: nothing to compile
    given = [None if a is None else np.asarray(a) for a in (w, importance, row)]
    chunks = _numbers(0, -(-blocks // size) * size, blocks, size)
    done = [_chunk(given[0], given[1], given[2], at, limit, name, then) for at in chunks]
    joined = jax.tree.map(lambda *a: np.concatenate(a), *done)  # only now waits for the first
    return jax.tree.map(lambda a: a[: len(a) * blocks // chunks.size], joined)


def _numbers(start: int, stop: int, blocks: int, size: int) -> np.ndarray:
    """Numbers of blocks, (chunks, size); the last block fills up the last chunk."""
    return np.minimum(np.arange(start, stop), blocks - 1).reshape(-1, size)


@jax.jit
def _mean_square_of_rows(w: jax.Array) -> jax.Array:
    return divide(sum_in_order(multiply(w, w).T)[0], float(w.shape[1]))


def _chunk(
    w: Any, importance: Any, row: Any, at: Any, limit: Any, name: str, then: Callable | None
) -> Any:
    """The blocks numbered `at`, of arrays of numpy or jax."""
    size = ENCODERS[name].size
    per_row = w.shape[1] // size
    if importance is not None:
        importance = importance.reshape(-1, size)[at % per_row]
    if row is not None:
        row = row[at // per_row]
    x = w.reshape(-1, size)
    whole = isinstance(at, np.ndarray) and at[-1] - at[0] == len(at) - 1  # a slice copies nothing
    x = x[at[0] : at[-1] + 1] if whole else x[at]
    if then is None or not (importance is not None or ENCODERS[name].search):
        return _run(x, importance, row, limit, name, then)
    # A program of its own: in one with `then` Q3_K's search takes over 1.5 times as long.
    return then(_run(x, importance, row, limit, name))


@partial(jax.jit, static_argnames=("name", "then"))
def _run(x, importance, row, limit, name, then=None) -> Any:
    """Blocks are columns inside, and rows outside."""
    importance = None if importance is None else importance.T
    parts = ENCODERS[name].run(x.T, Extra(importance, row, limit))
    parts = jax.tree.map(lambda a: jnp.moveaxis(a, -1, 0), parts)
    return parts if then is None else then(parts)


def _assembled(parts: Parts, spec: Spec, shape: tuple[int, ...]) -> QTensor:
    def stored(d: jax.Array | None, codes: jax.Array | None, how: Any) -> Any:
        if how is None:
            return None
        if codes is None:
            return None if d is None else d.reshape(shape[0], -1)
        how = Spec(how, scale=None) if isinstance(how, Format) else how
        return QTensor(codes.reshape(-1), d, None, None, spec=how)

    return QTensor(
        codes=parts.codes.reshape(shape),
        scale=stored(parts.d, parts.scales, spec.scale),
        zero=None,
        offset=stored(parts.m, parts.minima, spec.offset),
        spec=spec,
    )
