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
    limit = jnp.float32(FLOAT16_MAX if saturate else jnp.inf)
    return _assembled(_encoded(w, importance, limit, name), spec, w.shape), facts


# ---- checks --------------------------------------------------------------------------------------


def _checked(w: jax.Array, name: str) -> jax.Array:
    w = jnp.asarray(w)
    require(jnp.issubdtype(w.dtype, jnp.floating), f"weights must be floating point, not {w.dtype}")
    require(w.size > 0, f"a tensor of shape {w.shape} holds no weights")
    size = ENCODERS[name].size
    require(w.shape[1] % size == 0, f"{w.shape[1]} columns are no multiple of {name}'s {size}")
    w = w.astype(jnp.float32)
    if not isinstance(w, Tracer):
        nan, inf = int(jnp.isnan(w).sum()), int(jnp.isinf(w).sum())
        require(not nan + inf, f"weights of shape {w.shape} hold {nan} NaN and {inf} Inf")
    return w


def _importance(values: jax.Array, columns: int) -> jax.Array:
    values = jnp.asarray(values, jnp.float32)
    require(values.shape == (columns,), f"{columns} columns but importance of shape {values.shape}")
    finite, negative = jnp.isfinite(values).all(), (values < 0).any()
    require(finite, f"importance of {columns} columns holds NaN or Inf")
    require(~negative, f"importance of {columns} columns is negative somewhere: it is E[x²]")
    return values


# ---- blocks, a chunk at a time -------------------------------------------------------------------


def _encoded(w: jax.Array, importance: jax.Array | None, limit: jax.Array, name: str) -> Parts:
    """Parts whose first axis is the blocks.

    Concrete weights go chunk by chunk through one compiled program, so that another shape compiles
    nothing; traced ones through `lax.map`.
    """
    encoder = ENCODERS[name]
    blocks, size = w.size // encoder.size, _CHUNK // encoder.size
    weighs_row = encoder.row and importance is not None
    row = _mean_square_of_rows(w) if weighs_row else None
    if isinstance(w, Tracer) or isinstance(importance, Tracer):
        one = lambda at: _chunk(w, importance, row, at, limit, name)  # noqa: E731
        if blocks <= size:
            return one(np.arange(blocks))
        parts = jax.lax.map(one, jnp.asarray(_numbers(0, -(-blocks // size) * size, blocks, size)))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:blocks], parts)
    # numpy cuts the chunks: nothing to compile
    given = [None if a is None else np.asarray(a) for a in (w, importance, row)]
    done = []
    for start in range(0, blocks, size):
        (at,) = _numbers(start, start + size, blocks, size)
        parts = _chunk(given[0], given[1], given[2], at, limit, name)
        done.append(jax.tree.map(lambda a, n=blocks - start: np.asarray(a)[:n], parts))
    return jax.tree.map(lambda *a: jnp.asarray(np.concatenate(a)), *done)


def _numbers(start: int, stop: int, blocks: int, size: int) -> np.ndarray:
    """Numbers of blocks, (chunks, size); the last block fills up the last chunk."""
    return np.minimum(np.arange(start, stop), blocks - 1).reshape(-1, size)


@jax.jit
def _mean_square_of_rows(w: jax.Array) -> jax.Array:
    return divide(sum_in_order(multiply(w, w).T)[0], float(w.shape[1]))


def _chunk(w: Any, importance: Any, row: Any, at: Any, limit: jax.Array, name: str) -> Parts:
    """The blocks numbered `at`, of arrays of numpy or jax."""
    size = ENCODERS[name].size
    per_row = w.shape[1] // size
    if importance is not None:
        importance = importance.reshape(-1, size)[at % per_row]
    if row is not None:
        row = row[at // per_row]
    return _run(w.reshape(-1, size)[at], importance, row, limit, name)


@partial(jax.jit, static_argnames="name")
def _run(x, importance, row, limit, name) -> Parts:
    """Blocks are columns inside, and rows outside."""
    importance = None if importance is None else importance.T
    parts = ENCODERS[name].run(x.T, Extra(importance, row, limit))
    return jax.tree.map(lambda a: jnp.moveaxis(a, -1, 0), parts)


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
