"""GPTQ: round the columns one after another; what each gets wrong, the columns to come make up for.

Frantar, Ashkboos, Hoefler & Alistarh 2022, arXiv 2210.17323, Algorithm 1, and its program gptq.py.

    minimise tr((W − Q) H (W − Q)ᵀ),   H = E[x xᵀ] + λ I,   H⁻¹ = Uᵀ U,   column by column:
    w_j = W_j − E U_:j            the weights as the errors so far have corrected them   (eq. 3)
    q_j = quant(w_j)              on the range of its group
    E_j = (w_j − q_j) / U_jj      so that W − Q = E U, and the loss is ‖E‖²

symbol · name here · shape:  W · w · (out, in);  H · h · (in, in);  U · u · (in, in), upper
triangular;  E · errors · (size, out), of one lazy block, pushed to later columns at once (§3.3).
Departs from the paper: U = P L⁻¹ P with P H P = L Lᵀ, P the index flip, so H is never inverted.
Channels never seen keep H_dd = 0, their weights become 0. A failing Cholesky climbs RUNGS, FLOORS.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from qlab.methods.method import Facts, method_with_facts, needed, require
from qlab.qtensor import QTensor, Spec, fit, from_codes, quantize, to_codes
from qlab.ranges import fit_mse, fit_parts, join, of_column, period
from qlab.stats import PRECISION, Stats

RUNGS = (1.0, 10.0, 100.0)  # λ / (damp · mean diag H), tried in turn;
FLOORS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # then λ / max diag H
SCALES = ("reference", "fresh", "static")


def factor(h: jax.Array, damp: float | jax.Array) -> tuple[jax.Array, Facts]:
    """U (in, in) with (H + λ I)⁻¹ = Uᵀ U, and the first rung at which H + λ I can be factored."""
    diagonal, eye = jnp.diagonal(h), jnp.eye(h.shape[0], dtype=h.dtype)
    mean = jnp.where(diagonal.max() > 0, diagonal.mean(), 1.0)  # 1: no channel was ever seen
    rungs = damp * mean * jnp.array(RUNGS)
    rungs = jnp.append(rungs, jnp.maximum(rungs[-1], diagonal.max() * jnp.array(FLOORS)))

    def cholesky(rung: jax.Array) -> jax.Array:
        return jnp.linalg.cholesky((h + rungs[rung] * eye)[::-1, ::-1], symmetrize_input=False)

    rung, lower = lax.while_loop(
        lambda state: ~jnp.isfinite(state[1]).all() & (state[0] < len(rungs)),
        lambda state: (state[0] + 1, cholesky(state[0] + 1)),
        (jnp.int32(0), cholesky(jnp.int32(0))),
    )
    u = jax.scipy.linalg.solve_triangular(lower, eye, lower=True)[::-1, ::-1]
    return u, {"rung": rung, "damp": rungs[rung] / mean}


@partial(jax.jit, static_argnums=(2, 4, 5, 6, 7))
def _gptq(w, h, spec, damp, act_order, group_scale, lazy_block, mse) -> tuple[QTensor, Facts]:
    find = partial(fit_mse if mse else fit, spec=spec)
    each, inner = period(spec, w.shape[1]), w.shape[1]
    static, width = each is None or group_scale == "static", each or inner
    seen = jnp.where(jnp.diagonal(h) == 0, 0.0, w.astype(jnp.float32))
    ranges = fit_parts(w if each is None else seen, width, find)  # not static: only their shapes
    order = jnp.argsort(-jnp.diagonal(h)) if act_order else jnp.arange(inner)
    u, facts = factor(h[order][:, order], damp)
    find, home = (None, order) if static else (find, jnp.arange(inner))
    how = (width, spec, find, group_scale == "fresh", home, min(lazy_block, inner))
    w, ranges = _sweep(seen[:, order].T, u, ranges, *how)
    q = quantize(w[:, jnp.argsort(order)] if static else w, join(ranges, len(w)))
    facts["static"] = jnp.float32(each is None and spec.block != "row")
    return q.replace(perm=order if act_order and not static else None), facts


def _sweep(w, u, ranges, width, spec, find, fresh, home, size) -> tuple[jax.Array, QTensor]:
    """The columns just before rounding, (out, in), and the ranges. Here w is (in, out), its columns
    contiguous; column j uses the range of column home[j].
    """
    (inner, out), short = w.shape, -len(w) % size  # the last lazy block may be short
    w, u = jnp.pad(w, ((0, short), (0, 0))), jnp.pad(u, ((0, short), (0, short)))
    slice_of, put = lax.dynamic_slice_in_dim, lax.dynamic_update_slice_in_dim

    def pushed(errors, first, j, n):  # E U of columns j … j + n − 1, from the block at `first`
        rows = lax.dynamic_slice(u, (first, j), (size, n))
        return jnp.matmul(rows.T, errors, precision=PRECISION)

    def column(j, state, w, first):
        (done, errors, ranges), i = state, j - first

        def refit(ranges):
            group = slice_of(w, j, width) - (pushed(errors, first, j, width) if fresh else 0.0)
            return jax.tree.map(lambda a, b: a.at[j // width].set(b), ranges, find(group.T))

        if find is not None:
            ranges = lax.cond(j % width == 0, refit, lambda ranges: ranges, ranges)
        now, mine = w[j] - pushed(errors, first, j, 1)[0], of_column(ranges, home[j], width, out)
        q = from_codes(to_codes(now, spec, *mine), spec, *mine)
        return done.at[i].set(now), errors.at[i].set((now - q) / u[j, j]), ranges

    def lazy_block(b, state):
        w, first, none = state[0], b * size, jnp.zeros((size, out))
        state, stop = (none, none, state[1]), jnp.minimum(first + size, inner)
        done, errors, ranges = lax.fori_loop(first, stop, partial(column, w=w, first=first), state)

        def push(b, w):
            later = slice_of(w, b * size, size) - pushed(errors, first, b * size, size)
            return put(w, later, b * size, axis=0)

        return put(lax.fori_loop(b + 1, len(w) // size, push, w), done, first, axis=0), ranges

    w, ranges = lax.fori_loop(0, len(w) // size, lazy_block, (w, ranges))
    return w[:inner].T, ranges


@method_with_facts(supports=lambda spec: True, propagate="quantized")
def gptq(
    w: jax.Array, stats: Stats | None, spec: Spec, *, damp: float = 0.01, act_order: bool = False,
    group_scale: str = "reference", lazy_block: int = 128, mse: bool = False,
) -> tuple[QTensor, Facts]:  # fmt: skip
    """Rounding column by column with error compensation.

    Args:
        w: (out, in) floating point.
        stats: of the layer's inputs, H = E[x xᵀ] (in, in).
        spec: any Spec whose block fits.
        damp: λ / mean(diag H).
        act_order: columns of largest H_jj first; the order is stored unless ranges are static.
        group_scale: on which weights a group's range is fitted when its turn comes: "reference",
            corrected but for the errors of the present lazy block, as the original program does;
            "fresh", corrected for all; "static", the original ones.
        lazy_block: columns corrected one by one, then all later ones at once; the result depends
            on it only through "reference".
        mse: search every range for the least Σ|ŵ − w|^2.4 (`ranges.fit_mse`).

    Returns:
        QTensor of `spec`.

    Raises:
        ValueError: no Stats or of another width, a setting or an H that cannot be; as `quantize`.

    Example:
        >>> from qlab.specs import SPECS
        >>> x = jax.random.normal(jax.random.key(0), (256, 128))
        >>> gptq(x[:8], Stats.from_inputs(x), SPECS["int4_g64"], act_order=True).perm.shape
        (128,)
    """
    fit(w, spec)  # refuses what no method can quantize: NaN, a block that does not divide
    stats = needed(stats, w)
    require(group_scale in SCALES, f"group_scale {group_scale!r} is not one of {SCALES}")
    require(lazy_block > 0, f"lazy_block {lazy_block} is below 1")
    require((damp >= 0) & (damp < 1e6), f"damp {damp} is not between 0 and a million")
    q, facts = _gptq(w, stats.hessian, spec, damp, act_order, group_scale, lazy_block, mse)
    require(facts["rung"] < len(RUNGS + FLOORS), "H holds NaN or is not positive semidefinite")
    return q, facts | {"dead": stats.dead.sum()}
