"""HQQ: move each group's zero point until what rounding gets wrong is wrong in a few weights only.

Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models",
mobiusml.github.io/hqq_blog; its program hqq/core/optimize.py. No text is read.

    argmin_z  φ(W − Q⁻¹(Q(W))),   φ = ‖·‖_p, p < 1: a few large errors rather than many small ones
    W_e ← shrink_p(W − Ŵ, β) = sign(x) · max(|x| − |x|^(p−1) / β, 0)     the errors to put up with
    z   ← mean over the group of [ q − (W − W_e) / s ]                   the best z for the rest

symbol · name here · shape:  W · blocks · (groups …, n);  s, z · scale, zero · one of each a group;
q · codes;  W_e · outliers.  The scale stays what minimum and maximum made it.
Departs from the blog: β stays as it is (the program reads κ and never applies it), and the zero of
the step at which the search stops is kept.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qlab.arithmetic import cast, divide, multiply, ordered_mean
from qlab.formats import Format
from qlab.methods.method import method, require
from qlab.qtensor import QTensor, Spec, block_sizes, fit, quantize, to_blocks
from qlab.stats import Stats


def shrink(x: jax.Array, beta: float | jax.Array, p: float | jax.Array) -> jax.Array:
    """sign(x) · max(|x| − |x|^(p−1) / β, 0): small errors become 0, large ones nearly stay."""
    size = jnp.abs(x)
    least = multiply(size ** (p - 1), divide(jnp.ones_like(size), beta))
    return jnp.sign(x) * jnp.maximum(size - least, 0.0)


def hqq_step(
    blocks: jax.Array, scale: jax.Array, zero: jax.Array, format: Format, *,
    p: float | jax.Array = 0.7, beta: float | jax.Array = 10.0,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """One step of the search.

    Args:
        blocks: (groups …, n) float32.
        scale: (groups …).
        zero: (groups …), real.
        format: unsigned integers.
        p: exponent of the norm.
        beta: larger ones shrink less.

    Returns:
        mean |W − Ŵ| with the zero points given, (), and the next ones, (groups …).

    Example:
        >>> from qlab.formats import UINT2
        >>> w = jnp.array([[0.0, 1.0, 2.0, 3.5]])
        >>> error, zero = hqq_step(w, jnp.ones(1), jnp.zeros(1), UINT2)
        >>> float(error), [round(float(z), 3) for z in zero]
        (0.125, [-0.031])
    """
    inverse = divide(jnp.ones_like(scale), scale)[..., None]
    shift = zero[..., None]
    codes = jnp.clip(jnp.round(multiply(blocks, inverse) + shift), format.min, format.max)
    wrong = blocks - multiply(codes - shift, scale[..., None])
    outliers = shrink(wrong, beta, p)
    error = ordered_mean(ordered_mean(jnp.abs(wrong)).reshape(-1))
    zero = ordered_mean(codes - multiply(blocks - outliers, inverse))
    return error, zero


class Search(NamedTuple):
    """Where the search stands: () steps taken, () least mean error so far, (groups …) zero points,
    () whether the last step found the error lower than all before.
    """

    steps: jax.Array
    best: jax.Array
    zero: jax.Array
    fell: jax.Array


def begin(zero: jax.Array) -> Search:
    """The search before its first step, at `zero` (groups …)."""
    return Search(jnp.int32(0), jnp.float32(jnp.inf), zero, jnp.bool_(True))


def advance(
    at: Search, blocks: jax.Array, scale: jax.Array, format: Format, p: float | jax.Array,
    beta: float | jax.Array,
) -> Search:  # fmt: skip
    """The search a step on; the arguments are those of `hqq_step`.

    The step that finds no lower error moves the zero points all the same, and is the last.

    Example:
        >>> from qlab.formats import UINT2
        >>> w = jnp.array([[0.0, 1.0, 2.0, 3.5]])
        >>> at = advance(begin(jnp.zeros(1)), w, jnp.ones(1), UINT2, 0.7, 10.0)
        >>> int(at.steps), bool(at.fell)
        (1, True)
    """
    error, zero = hqq_step(blocks, scale, at.zero, format, p=p, beta=beta)
    return Search(at.steps + 1, jnp.minimum(at.best, error), zero, error < at.best)


@partial(jax.jit, static_argnames=("format", "iters"))
def _search(blocks, scale, zero, format, p, beta, iters) -> jax.Array:
    """Steps until the error rises, `iters` at most; the zero points of the last."""
    return jax.lax.while_loop(
        lambda at: (at.steps < iters) & at.fell,
        lambda at: advance(at, blocks, scale, format, p, beta),
        begin(zero),
    ).zero


@method(supports=lambda spec: spec.format.is_integer and isinstance(spec.zero, str))
def hqq(
    w: jax.Array, stats: Stats | None, spec: Spec, *, p: float = 0.7, beta: float = 10.0,
    iters: int = 20, round_zero: bool = False,
) -> QTensor:  # fmt: skip
    """Half-quadratic search of the zero points.

    Args:
        w: (out, in) floating point.
        stats: unused; every method takes it.
        spec: an integer format with a real zero point, such as `specs.hqq(4)`.
        p: exponent of the norm, below 1 for errors that are few.
        beta: how little the errors shrink.
        iters: steps at most; the search stops where the mean error of all groups rises.
        round_zero: start from whole zero points (the package's default at 4 bits).

    Returns:
        QTensor of `spec`.

    Raises:
        ValueError: a Spec whose zero point is no real number; as `quantize`.

    Example:
        >>> from qlab.specs import SPECS
        >>> w = jax.random.normal(jax.random.key(0), (8, 128))
        >>> hqq(w, None, SPECS["hqq4_g64"]).zero.shape
        (8, 2)
    """
    if not hqq.supports(spec):
        raise ValueError(
            f"hqq moves a real zero point, and a Spec of {spec.format} with zero {spec.zero!r} has "
            "none: qlab.specs.hqq(bits, group) has"
        )
    require(iters >= 0, f"iters {iters} is below 0")
    require(beta > 0, f"beta {beta} is not positive")
    ranges = fit(w, spec)
    w = w.astype(jnp.float32)
    full = fit(w, spec.replace(scale="float32", zero="float32"))  # not rounded for storage yet
    zero = jnp.asarray(full.zero)
    zero = jnp.round(zero) if round_zero else zero
    blocks = to_blocks(w, block_sizes(spec.block, w.shape))
    zero = _search(blocks, full.scale, zero, spec.format, p, beta, iters)
    return quantize(w, ranges.replace(zero=cast(zero, str(spec.zero))))
