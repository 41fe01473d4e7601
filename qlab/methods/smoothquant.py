"""SmoothQuant: outliers of a layer's inputs are moved into its weights, where they round better.

Xiao, Lin, Seznec, Wu, Demouth & Han 2022, arXiv 2211.10438; its program smooth.py.

    Y = (X diag(s)⁻¹) (diag(s) W) = X̂ Ŵ                          the same product      (eq. 3)
    s_j = max|X_j|^α / max|W_j|^(1−α)                             α shares the trouble  (eq. 4)

symbol · name here · shape:  max|X_j| · amax_x, stats.amax · (in,);  W · w · (out, in), transposed
to the paper's;  s · scale · (in,);  α · alpha · a number.  At α = 1/2, max|X̂_j| = max|Ŵ_j|.
It gains nothing unless inputs are quantized too (`activations`). `quantize_model` folds 1 / s into
the norm before; inputs that come out of no norm stay as they are, as in the program.
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

LOWEST = 1e-5  # no scale and no max|W_j| counts as smaller, as in the program
ALPHAS = np.arange(21, dtype=np.float32) / 20  # what "search" tries

# The paper's Table 3: (Spec of the weights, Act of the inputs), by their names.
LEVELS: dict[str, tuple[str, str]] = {
    "O1": ("int8_tensor", "int8_token"),
    "O2": ("int8_tensor", "int8_tensor"),
    "O3": ("int8_tensor", "int8_static"),
}


def smoothquant_scales(
    amax_x: jax.Array, weights: jax.Array | Sequence[jax.Array], alpha: float | jax.Array = 0.5
) -> jax.Array:
    """s_j = max|X_j|^α / max|W_j|^(1−α), eq. 4; at least 10⁻⁵, and max|W_j| too.

    Args:
        amax_x: (in,), the largest |x| of every channel, such as `Stats.amax`.
        weights: (out, in) of a linear, or those of all linears that read this input.
        alpha: 0 leaves the outliers in X as large as W's channels allow, 1 moves them all to W.

    Returns:
        (in,) float32, what W's columns are multiplied and X's channels divided by.

    Raises:
        ValueError: for widths that differ, naming both, or an alpha outside [0, 1].

    Example:
        >>> smoothquant_scales(jnp.array([16.0, 1.0]), jnp.array([[1.0, -4.0]])).tolist()
        [4.0, 0.5]
    """
    each = list(weights) if isinstance(weights, Sequence) else [weights]
    for w in each:
        if w.shape[-1:] != amax_x.shape:
            raise ValueError(f"max|X_j| of shape {amax_x.shape} for weights {w.shape}")
    require((alpha >= 0) & (alpha <= 1), f"alpha {alpha} is not between 0 and 1")
    amax_w = jnp.stack([jnp.abs(w.astype(jnp.float32)).max(0) for w in each]).max(0)
    amax_w = jnp.maximum(amax_w, LOWEST)
    # Still α, but no constant: x^0.5 alone would compile to another function than x^α, an ulp off.
    alpha = alpha + jnp.minimum(amax_x, 0.0)
    # + 0, which a compiler cannot see through: it would work powers of constants out otherwise
    alpha = alpha + jnp.minimum(amax_w, 0.0)
    return jnp.maximum(divide(amax_x**alpha, amax_w ** (1 - alpha)), LOWEST)


def candidates(
    weights: Sequence[jax.Array], stats: Stats, specs: Sequence[Spec], *, alpha: float | str = 0.5
) -> tuple[jax.Array, jax.Array]:
    """α (n,) and s (n, in): one, or ALPHAS where `alpha` is "search"."""
    if isinstance(alpha, str) and alpha != "search":
        raise ValueError(f'alpha {alpha!r} is no number and not "search"')
    alphas = jnp.asarray(ALPHAS if isinstance(alpha, str) else [alpha], jnp.float32)
    require(((alphas >= 0) & (alphas <= 1)).all(), f"alpha {alpha} is not between 0 and 1")
    return alphas, jax.vmap(lambda a: smoothquant_scales(stats.amax, weights, a))(alphas)


@partial(jax.jit, static_argnames="specs")
def losses(
    weights: tuple[jax.Array, ...], stats: Stats, specs: tuple[Spec, ...], scales: jax.Array
) -> jax.Array:
    """What rounding the weights and rounding the inputs each cost, predicted from Stats alone.

    With Ŵ = Q(W diag s) and x̂ = x / s + e, the output x̂ Ŵᵀ misses x Wᵀ by

        (x / s) (Ŵ − W diag s)ᵀ + e Ŵᵀ,    so E‖…‖² = tr(ΔW H ΔWᵀ) + Σ_j E e_j² ‖Ŵ_j‖²

    where ΔW = Ŵ diag(s)⁻¹ − W and e, the rounding of x / s, is taken as independent of x and of
    zero mean. For one static int8 scale the step is Δ = max_j (max|x_j| / s_j) / 127 and E e_j² =
    Δ² / 12, but for a channel far below half a step: it rounds to 0 and errs by E x_j² / s_j².

    Args:
        weights: (out, in) each, of the linears that read the same input.
        stats: of that input.
        specs: one for each of the weights.
        scales: (n, in).

    Returns:
        (n, 2) float32: the first term and the second, summed over the linears.
    """
    energy = jnp.diagonal(stats.hessian)

    def loss(s: jax.Array) -> jax.Array:
        step = (stats.amax / s).max() / 127
        noise = jnp.minimum(step**2 / 12, energy / s**2)  # (in,)
        of_weights = of_inputs = jnp.float32(0)
        for w, spec in zip(weights, specs, strict=True):
            w_hat = dequantize(quantize(w * s, spec))
            delta = w_hat / s - w
            product = jnp.matmul(delta, stats.hessian, precision=PRECISION)
            of_weights += jnp.vdot(product, delta, precision=PRECISION)
            of_inputs += jnp.vdot((w_hat**2).sum(0), noise, precision=PRECISION)
        return jnp.stack([of_weights, of_inputs])

    return jax.lax.map(loss, scales)


def search_losses(
    weights: Sequence[jax.Array], stats: Stats, specs: Sequence[Spec]
) -> tuple[jax.Array, jax.Array]:
    """The curve that `alpha="search"` takes the lowest point of.

    Args:
        weights: (out, in) each, of the linears that read the same input.
        stats: of that input.
        specs: one for each of the weights.

    Returns:
        α (21,) and what rounding weights and inputs cost at each (21, 2), float32; the sum of both
        is the error expected of the output, as `losses` derives it.

    Example:
        >>> from qlab.specs import SPECS
        >>> x = jax.random.normal(jax.random.key(0), (256, 64)).at[:, 5].multiply(50.0)
        >>> w = jax.random.normal(jax.random.key(1), (32, 64))
        >>> alphas, parts = search_losses([w], Stats.from_inputs(x), [SPECS["int8_channel"]])
        >>> bool(parts[0, 1] > parts[10, 1]), bool(parts[20, 0] > parts[10, 0])
        (True, True)
    """
    alphas, scales = candidates(weights, stats, specs, alpha="search")
    weights = tuple(w.astype(jnp.float32) for w in weights)
    return alphas, losses(weights, stats, tuple(specs), scales)


def _total(weights, stats: Stats, specs, scales: jax.Array) -> jax.Array:
    return losses(weights, stats, specs, scales).sum(1)


def _finish(
    w: jax.Array, stats: Stats, spec: Spec, *, quantizer: Method = rtn
) -> tuple[QTensor, Facts]:
    """Quantizes weights that are scaled already."""
    return facts_of(quantizer)(w.astype(jnp.float32), stats, spec)


@method_with_facts(
    supports=lambda spec: True,
    propagate="float",
    fold=Fold(candidates, _total, _finish, feeders="norms"),
)
def smoothquant(
    w: jax.Array, stats: Stats | None, spec: Spec, *, alpha: float | str = 0.5,
    quantizer: Method = rtn,
) -> tuple[QTensor, Facts]:  # fmt: skip
    """Migration of the inputs' outliers into the weights of one linear, s in `channel_scale`.

    Args:
        w: (out, in) floating point.
        stats: of the layer's inputs, max|x| (in,), and for "search" also H = E[x xᵀ] (in, in).
        spec: any Spec whose block fits; the paper's are INT8 per tensor (`LEVELS`).
        alpha: between 0 and 1, or "search": that of ALPHAS with the least error predicted of the
            output, inputs and weights both quantized (`losses`).
        quantizer: the method that rounds the scaled weights, on Stats of x / s.

    Returns:
        QTensor of `spec` with `channel_scale` s, which `dequantize` divides out and `act_matmul`
        divides the inputs by.

    Raises:
        ValueError: no Stats or of another width, an impossible alpha; as `quantize`.

    Example:
        >>> from qlab.specs import SPECS
        >>> x = jax.random.normal(jax.random.key(0), (256, 64)).at[:, 5].multiply(50.0)
        >>> w = jax.random.normal(jax.random.key(1), (8, 64))
        >>> q = smoothquant(w, Stats.from_inputs(x), SPECS["int8_channel"], alpha=0.5)
        >>> int(q.channel_scale.argmax()), q.shape
        (5, (8, 64))
    """
    fit(w, spec)  # refuses what no method can quantize: NaN, a block that does not divide
    stats = needed(stats, w)
    require(callable(quantizer), f"quantizer {quantizer!r} is no method, such as qlab.gptq")
    w = w.astype(jnp.float32)
    alphas, scales = candidates([w], stats, [spec], alpha=alpha)
    best = 0 if len(alphas) == 1 else jnp.argmin(_total((w,), stats, (spec,), scales))
    s = scales[best]
    q, facts = _finish(multiply(w, s), stats.divided(s), spec, quantizer=quantizer)
    s = s if q.channel_scale is None else s * q.channel_scale
    return q.replace(channel_scale=s), facts | {"ratio": alphas[best], "dead": stats.dead.sum()}
