"""AWQ: before rounding, scale up the few input channels that matter; what feeds them takes it back.

Lin, Tang, Tang, Yang, Chen, Wang, Xiao, Dang, Gan & Han 2023, arXiv 2306.00978; its programs
auto_scale.py and auto_clip.py.

    y ≈ Q(W diag s)(x / s)         a channel scaled up has an s times smaller error   (eq. 2, 3)
    s = E|x|^r,  r in [0, 1)       one number to search, on the layer's output        (eq. 4, 5)

symbol · name here · shape:  W · w · (out, in);  s_X = E|x| · stats.mean_abs · (in,);  s · scale ·
(in,);  α · ratio r.  Linears that read the same input share s: their errors add.
Departs from the paper: the error is tr((W − Ŵ) H (W − Ŵ)ᵀ) with H = E[x xᵀ], the same number
without stored activations. `quantize_model` folds s into norms and linears before.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from qlab.arithmetic import divide, multiply
from qlab.methods.method import Facts, Fold, Method, facts_of, method_with_facts, needed, require
from qlab.methods.rtn import rtn
from qlab.qtensor import QTensor, Spec, dequantize, fit, quantize
from qlab.stats import PRECISION, Stats

LOWEST = 1e-4  # no scale is smaller before they are centred
SHRINK = 1 - np.arange(10, dtype=np.float32) / 20  # clipping candidates, of the largest weight


def awq_candidates(
    weights: Sequence[jax.Array],
    stats: Stats,
    specs: Sequence[Spec],
    *,
    n_grid: int = 20,
    duo_scaling: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """The scales that are tried: s = E|x|^r for r = 0, 1/n, … (n − 1)/n, centred so that
    max s · min s = 1.

    Args:
        weights: (out, in) each, of the linears that read the same input.
        stats: of that input.
        specs: one for each of the weights.
        n_grid: n; r = 1 is never tried.
        duo_scaling: s = E|x|^r / (w̄^(1 − r) + 10⁻⁴), w̄ the mean over rows of |w| / max|w| of its
            group (AutoAWQ); then r = 0 is not s = 1.

    Returns:
        r (n,) and s (n, in), float32.

    Example:
        >>> from qlab.formats import INT4
        >>> stats = Stats.from_inputs(jnp.array([[1.0, 4.0]]))
        >>> awq_candidates([jnp.ones((1, 2))], stats, [Spec(INT4)], n_grid=2)[1].tolist()
        [[1.0, 1.0], [0.7071067690849304, 1.4142135381698608]]
    """
    ratio = jnp.arange(n_grid, dtype=jnp.float32)[:, None] / n_grid
    scale = stats.mean_abs**ratio
    if duo_scaling:
        share = [_of_group(w.astype(jnp.float32), s) for w, s in zip(weights, specs, strict=True)]
        scale = scale / (jnp.concatenate(share).mean(0) ** (1 - ratio) + 1e-4)
    scale = jnp.maximum(scale, LOWEST)
    ends = scale.max(1, keepdims=True) * scale.min(1, keepdims=True)
    scale = divide(scale, jnp.sqrt(ends))
    return ratio[:, 0], jnp.where(jnp.isfinite(scale), scale, 1.0)


def _of_group(w: jax.Array, spec: Spec) -> jax.Array:
    """|w| / (max|w| + 10⁻⁶) of its group, (out, in)."""
    groups = jnp.abs(w).reshape(len(w), -1, _width(spec, w.shape[1]) or w.shape[1])
    return (groups / (groups.max(-1, keepdims=True) + 1e-6)).reshape(w.shape)


def _width(spec: Spec, inner: int) -> int | None:
    """Columns of a group; None where a group reaches across rows."""
    if isinstance(spec.block, int):
        return spec.block
    return inner if spec.block == "row" else None


def _unit(weights: Sequence[jax.Array]) -> jax.Array:
    """What errors are measured in: 1, or the largest |w| where its square, summed over a layer,
    would leave float32; the candidates are only compared.
    """
    largest = jnp.stack([jnp.abs(w).max() for w in weights]).max()
    return jnp.where((largest > 1e12) | ((largest < 1e-12) & (largest > 0)), largest, 1.0)


@partial(jax.jit, static_argnames="specs")
def scaled_losses(
    weights: tuple[jax.Array, ...], stats: Stats, specs: tuple[Spec, ...], scales: jax.Array
) -> jax.Array:
    """What every candidate costs: Σ E‖(W − Q(W diag s) diag s⁻¹) x‖² over the linears (eq. 4).

    Args:
        weights: (out, in) each.
        stats: of the input they share.
        specs: one for each of the weights.
        scales: (n, in).

    Returns:
        (n,) float32; of weights beyond 10¹² or below 10⁻¹², in units of the largest squared.
    """
    unit = _unit(weights)

    def loss(s: jax.Array) -> jax.Array:
        total = jnp.float32(0)
        for w, spec in zip(weights, specs, strict=True):
            delta = divide(w - divide(dequantize(quantize(multiply(w, s), spec)), s), unit)
            total += jnp.vdot(jnp.matmul(delta, stats.hessian, precision=PRECISION), delta)
        return jnp.where(jnp.isnan(total), jnp.inf, total)  # W diag s left float32

    return jax.lax.map(loss, scales)


@partial(jax.jit, static_argnames="spec")
def clipped(w: jax.Array, h: jax.Array, spec: Spec) -> jax.Array:
    """The weights, those of every row and group cut at the threshold that costs the group's part
    of the output least: 1, 0.95 … 0.55 of their largest (the program's `auto_clip`).

    Args:
        w: (out, in) float32.
        h: (in, in), H of the inputs: a group's own block of it is used.
        spec: a Spec whose groups lie inside a row; others change nothing.

    Returns:
        (out, in) float32.
    """
    width = _width(spec, w.shape[1])
    if width is None:
        return w
    count = w.shape[1] // width
    own = h.reshape(count, width, count, width)[jnp.arange(count), :, jnp.arange(count)]
    largest = jnp.abs(w).reshape(len(w), count, width).max(-1, keepdims=True)
    unit = _unit([w])

    def cut(share: jax.Array) -> jax.Array:
        at = jnp.broadcast_to(multiply(largest, share), (len(w), count, width)).reshape(w.shape)
        return jnp.clip(w, -at, at)

    def loss(share: jax.Array) -> jax.Array:
        delta = divide(w - dequantize(quantize(cut(share), spec)), unit)
        delta = delta.reshape(len(w), count, width)
        return jnp.einsum("ogi,gij,ogj->og", delta, own, delta, precision=PRECISION)

    shares = jnp.asarray(SHRINK)
    best = jnp.argmin(jax.lax.map(loss, shares), axis=0)
    return cut(shares[best][..., None])


def _finish(
    w: jax.Array, stats: Stats, spec: Spec, *, clip: bool = True, quantizer: Method = rtn
) -> tuple[QTensor, Facts]:
    """Clips and quantizes weights that are scaled already."""
    w = w.astype(jnp.float32)
    return facts_of(quantizer)(clipped(w, stats.hessian, spec) if clip else w, stats, spec)


@method_with_facts(
    supports=lambda spec: True,
    propagate="float",
    fold=Fold(awq_candidates, scaled_losses, _finish),
)
def awq(
    w: jax.Array, stats: Stats | None, spec: Spec, *, n_grid: int = 20,
    duo_scaling: bool = False, clip: bool = True, quantizer: Method = rtn,
) -> tuple[QTensor, Facts]:  # fmt: skip
    """Activation-aware scaling of one linear, the scales kept in `channel_scale`.

    Args:
        w: (out, in) floating point.
        stats: of the layer's inputs, E|x| (in,) and H = E[x xᵀ] (in, in).
        spec: any Spec whose block fits.
        n_grid: how many ratios are tried.
        duo_scaling: scales that also look at the weights (`awq_candidates`).
        clip: search a clipping threshold for every row and group afterwards.
        quantizer: the method that rounds the scaled weights in the end; the search itself rounds
            to nearest. `awq(…, quantizer=gptq)` is the paper's AWQ + GPTQ (Table 9).

    Returns:
        QTensor of `spec` with `channel_scale` s, which `dequantize` divides out.

    Raises:
        ValueError: no Stats or of another width, an impossible setting; as `quantize`.

    Example:
        >>> from qlab.specs import SPECS
        >>> x = jax.random.normal(jax.random.key(0), (256, 128)) * jnp.linspace(0.1, 9, 128)
        >>> awq(x[:8], Stats.from_inputs(x), SPECS["int4_g64"]).channel_scale.shape
        (128,)
    """
    fit(w, spec)  # refuses what no method can quantize: NaN, a block that does not divide
    stats, w = needed(stats, w), w.astype(jnp.float32)
    require(n_grid > 0, f"n_grid {n_grid} is below 1")
    require(callable(quantizer), f"quantizer {quantizer!r} is no method, such as qlab.gptq")
    ratios, scales = awq_candidates([w], stats, [spec], n_grid=n_grid, duo_scaling=duo_scaling)
    losses = scaled_losses((w,), stats, (spec,), scales)
    best = jnp.argmin(losses)
    s = scales[best]
    w = multiply(w, s)
    q, facts = _finish(w, stats.divided(s), spec, clip=clip, quantizer=quantizer)
    s = s if q.channel_scale is None else s * q.channel_scale
    return q.replace(channel_scale=s), facts | {"ratio": ratios[best], "dead": stats.dead.sum()}
