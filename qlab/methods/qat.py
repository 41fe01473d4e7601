"""Gradients through rounding: what training with quantized weights and inputs needs.

    ŵ = s (c − z) + o,   u = (w − o) / s,   c = the grid's value nearest u + z,   ends n ≤ c − z ≤ p

Forward every function here gives exactly `dequantize(q)`, q = quantize(w, …); they differ backward.

    ste      ∂ŵ/∂w = 1                                 Bengio et al. 2013, arXiv 1308.3432
    clipped  ∂ŵ/∂w = 1 where w is not clipped, else 0  torch's fake_quantize; arXiv 2305.17888
    lsq      ∂ŵ/∂w = 1 where n < u < p, else 0         Esser et al. 2019, arXiv 1902.08153, eq. 3, 5
             ∂ŵ/∂s = (c − z) − u there, n or p beyond  for integers −w/s + round(w/s)
             ∂ŵ/∂o = 0 there, 1 beyond                 Bhalgat et al. 2020, arXiv 2004.09576
    pact     ∂x̂/∂α = sign x where |x| ≥ α, else 0      Choi et al. 2018, arXiv 1805.06085, eq. 3
    bitnet   `ste`, absmean ternary weights            Ma et al. 2024, arXiv 2402.17764, eqs. 1–3

paper · name here · shape:  v, w · w · (out, in),  s · step,  β · offset,  z · zero · one a block,
Q_P, Q_N · p, −n,  N · sharing,  α · alpha · ().
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from qlab.arithmetic import divide
from qlab.formats import TERNARY, TERNARY2, Format
from qlab.qtensor import (
    QTensor,
    Spec,
    block_sizes,
    dequantize,
    fit,
    from_codes,
    load_ranges,
    spread,
    spread_ranges,
    store_ranges,
)
from qlab.rules import absmean
from qlab.specs import name_of

Learned = dict[str, jax.Array]  # "step", and "offset" and "zero" where the Spec has them


# ---- everything passes ---------------------------------------------------------------------------


@jax.custom_vjp
def ste(w: jax.Array, q: QTensor) -> jax.Array:
    """Straight through: ŵ forward, ∂ŵ/∂w = 1.

    Args:
        w: (out, in) float32.
        q: w as a QTensor, with codes.

    Returns:
        `dequantize(q)`; no gradient reaches `q`.

    Example:
        >>> from qlab import quantize, SPECS
        >>> def loss(w):
        ...     return ste(w, quantize(w, SPECS["int4_channel"])).sum()
        >>> jax.grad(loss)(jnp.array([[0.3, 7.0]])).tolist()
        [[1.0, 1.0]]
    """
    return dequantize(q)


ste.defvjp(lambda w, q: (dequantize(q), None), lambda _, g: (g, None))


# ---- nothing passes where a weight is clipped ----------------------------------------------------


@jax.custom_vjp
def clipped(w: jax.Array, q: QTensor) -> jax.Array:
    """`ste` where w rounds to a value of the grid, 0 where it is clipped to an end: more than half
    a step beyond it.

    Departs from LLM-QAT, which stops the gradient from the end itself on: here, as in torch, what
    still rounds to the end passes.

    Args:
        w: (out, in) float32.
        q: w as a QTensor, with codes.

    Example:
        >>> from qlab import quantize, Spec, FORMATS
        >>> narrow = quantize(jnp.ones((1, 2)), Spec(FORMATS["INT4"], "row"))  # a step of 1/7
        >>> def loss(w):
        ...     return clipped(w, quantize(w, narrow)).sum()
        >>> jax.grad(loss)(jnp.array([[0.3, 1.2]])).tolist()
        [[1.0, 0.0]]
    """
    return dequantize(q)


def _clipped_forward(w: jax.Array, q: QTensor):
    u, _, low, high = _in_steps(w, q)
    values = q.spec.format.values
    half_first, half_last = (values[1] - values[0]) / 2, (values[-1] - values[-2]) / 2
    return dequantize(q), (u >= low - half_first) & (u < high + half_last)


clipped.defvjp(_clipped_forward, lambda inside, g: (jnp.where(inside, g, 0.0), None))


def _in_steps(w: jax.Array, q: QTensor):
    """u = (w − o) / s of every weight, c − z, and both ends n, p of its grid."""
    scale, zero, offset = spread_ranges(q, w.shape)
    u = w if offset is None else w - offset
    if scale is not None:
        u = divide(u, jnp.where(scale == 0, 1.0, scale))
    assert q.codes is not None
    c = from_codes(q.codes, q.spec, None, zero, None)
    shift = 0.0 if zero is None else zero
    return u, c, q.spec.format.min - shift, q.spec.format.max - shift


# ---- learned steps -------------------------------------------------------------------------------


@jax.custom_vjp
def lsq(w: jax.Array, learned: Learned, q: QTensor) -> jax.Array:
    """Learned step size: gradients also for the step and the offset of every block.

    The gradient of a step is scaled by 1 / √(N Q_P), N the weights that share it (Esser §2.2). How
    the Spec stores a step (float16, a power of two, codes of a super-block) is passed straight
    through. A zero point stays as it was fitted. Departs from the paper: a step for every block and
    any grid, where the paper has one integer grid a layer; then c − z takes round's place.

    Args:
        w: (out, in) float32; or inputs (time, in) of one sequence with one step (`LearnedStep`).
        learned: what `lsq_start` returns: float32, one number a block.
        q: quantize(w, stored(learned, spec)).

    Returns:
        `dequantize(q)`.
    """
    return dequantize(q)


def _lsq_forward(w: jax.Array, learned: Learned, q: QTensor):
    return dequantize(q), (w, learned, q)


def _lsq_backward(saved: tuple, g: jax.Array):
    w, learned, q = saved
    u, c, low, high = _in_steps(w, q)
    inside = (low < u) & (u < high)
    gains = {"step": g * jnp.where(inside, c - u, c)}
    if "offset" in learned:
        gains["offset"] = jnp.where(inside, 0.0, g)
    steepness = 1 / math.sqrt(sharing(q.spec, w.shape) * q.spec.format.max)
    found = {name: jnp.zeros_like(x) for name, x in learned.items()}
    for name, gain in gains.items():
        found[name] = steepness * _per_block(gain, learned[name], q.spec)
    return jnp.where(inside, g, 0.0), found, None


lsq.defvjp(_lsq_forward, _lsq_backward)


def sharing(spec: Spec, shape: tuple[int, ...]) -> int:
    """N: how many weights share a step.

    Example:
        >>> from qlab.specs import SPECS
        >>> sharing(SPECS["int4_g64"], (256, 256)), sharing(SPECS["int4_tensor"], (256, 256))
        (64, 65536)
    """
    return math.prod(min(s, n) for s, n in zip(block_sizes(spec.block, shape), shape))


def _per_block(x: jax.Array, like: jax.Array, spec: Spec) -> jax.Array:
    """Sums (out, in) over every block, or over all where there is one number a tensor."""
    if not like.ndim:
        return x.sum()
    back = jax.linear_transpose(partial(spread, sizes=block_sizes(spec.block, x.shape),
                                        shape=x.shape), like)  # fmt: skip
    return back(x)[0]


def lsq_start(w: jax.Array, spec: Spec) -> Learned:
    """Where learning begins: s = 2·mean|w| / √Q_P of every block (Esser §2.1).

    Departs from the paper: where the grid is no run of integers around zero, or is shifted by a
    zero or an offset, the Spec's own rule says where to begin (LSQ+ begins with the range too).

    Args:
        w: (out, in) float32.
        spec: any Spec that stores scales.

    Returns:
        {"step", "offset", "zero"}, those that the Spec has, float32, one number a block.
    """
    ranges = fit(w, spec)
    names = ("step", "zero", "offset")
    found = {k: x for k, x in zip(names, load_ranges(ranges, w.shape)) if x is not None}
    steps = np.diff(spec.format.values)
    if (steps == 1).all() and spec.format.min < 0 and len(found) == 1:
        total = _per_block(jnp.abs(w), found["step"], spec)
        count = _per_block(jnp.ones_like(w), found["step"], spec)
        found["step"] = lsq_first(total / count, spec.format)
    return found


def lsq_first(mean: jax.Array, format: Format) -> jax.Array:
    """s = 2·mean|v| / √Q_P (Esser §2.1): where a step begins to learn.

    Example:
        >>> from qlab.formats import INT4
        >>> round(float(lsq_first(jnp.float32(1.0), INT4)), 3)  # 2 / √7
        0.756
    """
    return 2 * mean / math.sqrt(format.max)


def one_step(spec: Spec) -> bool:
    """Whether inputs of a Spec have one number to learn: a scale a tensor, no zero and no offset.

    Example:
        >>> from qlab.formats import INT4
        >>> one_step(Spec(INT4, "tensor")), one_step(Spec(INT4, "row"))
        (True, False)
    """
    plain = spec.zero is None and spec.offset is None and spec.scale is not None
    return plain and spec.block == "tensor"


def stored(learned: Learned, spec: Spec) -> QTensor:
    """The ranges that a file will hold, a QTensor without codes, of learned ones."""
    return store_ranges(spec, learned["step"], learned.get("zero"), learned.get("offset"))


# ---- a learned clip of the inputs ----------------------------------------------------------------


@jax.custom_vjp
def pact(x: jax.Array, alpha: jax.Array, q: QTensor) -> jax.Array:
    """x̂ of inputs clipped to α: ∂x̂/∂x = 1 where |x| < α, ∂x̂/∂α = sign x beyond.

    Departs from the paper, whose inputs come out of a ReLU: with a signed format both sides are
    clipped, at −α and α. With an unsigned one this is the paper's function.

    Args:
        x: (time, in) float32.
        alpha: () float32.
        q: quantize(x, pact_ranges(alpha, spec)).
    """
    return dequantize(q)


def _pact_forward(x: jax.Array, alpha: jax.Array, q: QTensor):
    above = x >= alpha
    below = x <= (0.0 if q.spec.format.min >= 0 else -alpha)
    return dequantize(q), (above, below, q.spec.format.min < 0)


def _pact_backward(saved: tuple, g: jax.Array):
    above, below, signed = saved
    end = above.astype(g.dtype) - jnp.where(signed, below.astype(g.dtype), 0.0)
    return jnp.where(above | below, 0.0, g), jnp.sum(g * end), None


pact.defvjp(_pact_forward, _pact_backward)


def pact_ranges(alpha: jax.Array, spec: Spec) -> QTensor:
    """Ranges of inputs whose largest value stands for α: scale = α / hi, as the Spec stores it."""
    return store_ranges(spec, divide(alpha, spec.format.max).reshape(1, 1), None, None)


# ---- which method can train which Spec -----------------------------------------------------------


def _no_scale(spec: Spec) -> str | None:
    return None if spec.scale is not None else "it has no scale to learn"


def _no_absmean(spec: Spec) -> str | None:
    ternary = spec.format in (TERNARY, TERNARY2) and spec.rule is absmean
    return None if ternary else "its weights are ternary with rule absmean"


# name -> why it cannot train a Spec, or None where it can
ESTIMATORS: dict[str, Callable[[Spec], str | None]] = {
    "ste": lambda spec: None,
    "clipped": lambda spec: None,
    "lsq": _no_scale,
    "pact": lambda spec: None,
    "bitnet": _no_absmean,
}


def supports(method: str, spec: Spec) -> bool:
    """Whether a method can train weights of a Spec.

    Example:
        >>> from qlab.specs import SPECS
        >>> supports("lsq", SPECS["q4_k"]), supports("bitnet", SPECS["q4_k"])
        (True, False)
    """
    return ESTIMATORS[method](spec) is None


def check(method: str, spec: Spec) -> None:
    """Raises ValueError, naming both, where a method cannot train weights of a Spec."""
    why = ESTIMATORS[method](spec)
    if why is not None:
        raise ValueError(f"method {method!r} cannot train spec {name_of(spec)!r}: {why}")


def check_pact(spec: Spec) -> None:
    """Raises ValueError where inputs of a Spec have no single end α."""
    if not one_step(spec):
        raise ValueError(
            "method 'pact' learns one α a layer: inputs of block 'tensor' without zero or offset, "
            f"such as 'int8_static', not {name_of(spec)!r}"
        )
