"""FP8 in training: a linear whose three products multiply FP8 values, and the scales they need.

    x̂ = E4M3(x / s_x),  ŵ = E4M3(w / s_w),  ĝ = E5M2(g / s_g)      clipped, then cast
    y = s_x s_w · x̂ ŵᵀ      ∂x = s_g s_w · ĝ ŵ      ∂w = s_g s_x · ĝᵀ x̂      sums in float32

E4M3 forward for its mantissa, E5M2 for gradients for its range (Micikevicius et al. 2022, arXiv
2209.05433; TransformerEngine's "hybrid"). One scale a tensor, s = max|t| / hi, is either of the
tensor itself, which must then be read twice (current), or of earlier steps (delayed): a `Delayed`
remembers their maxima, and what outgrows them is clipped for one step. Not here: FP8 as a format of
finished weights and of inputs (`specs`, `activations`).
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from qlab.arithmetic import divide
from qlab.formats import FP8, FP8_E5M2, Format
from qlab.suggest import near

ROLES = (FP8, FP8, FP8_E5M2)  # of x, w and g: which format each is cast to
ALGORITHMS = ("max", "most_recent")
SMALLEST = 2.0**-126  # of a scale: a smaller float32 would be read as 0


@partial(jax.tree_util.register_dataclass, data_fields=["history", "scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Delayed:
    """What delayed scaling remembers of a tensor; a pytree, one for each tensor or a stack.

    Attributes:
        history: (length,) float32, max|t| of the latest steps, newest first; 0 before there were
            any.
        scale: () float32, what the next step divides by.
    """

    history: jax.Array
    scale: jax.Array

    @staticmethod
    def begin(length: int = 1024) -> Delayed:
        """Nothing seen, scale 1, as TransformerEngine begins.

        Raises:
            ValueError: a length below 1.

        Example:
            >>> float(Delayed.begin(16).scale)
            1.0
        """
        if length < 1:
            raise ValueError(f"a history of {length} steps remembers nothing: give at least 1")
        return Delayed(jnp.zeros(length, jnp.float32), jnp.float32(1))

    def advance(
        self,
        amax: jax.Array,
        format: Format = FP8,
        *,
        margin: int = 0,
        algorithm: str = "max",
    ) -> Delayed:
        """The state after a step that saw max|t| = `amax`: s = 2^margin · m / hi.

        m is the history's largest entry, this step's included, or its newest. Where m is 0, NaN or
        Inf the scale stays (TransformerEngine's `DelayedScaling`: margin 0, 1024 steps, "max"; its
        scale is the reciprocal of this one).

        Args:
            amax: () float32.
            format: what the tensor is cast to.
            margin: powers of two left free above m.
            algorithm: "max" or "most_recent".

        Raises:
            ValueError: an unknown algorithm.

        Example:
            >>> state = Delayed.begin(4).advance(jnp.float32(448.0)).advance(jnp.float32(4.48))
            >>> float(state.scale), state.history.tolist()[:2]
            (1.0, [4.480000019073486, 448.0])
        """
        if algorithm not in ALGORITHMS:
            raise ValueError(f"no algorithm is called {algorithm!r}: {near(algorithm, ALGORITHMS)}")
        history = jnp.roll(self.history, 1).at[0].set(amax)
        m = history.max() if algorithm == "max" else history[0]
        scale = jnp.maximum(divide(m, format.max) * 2.0**margin, SMALLEST)
        keep = (m == 0) | ~jnp.isfinite(m)
        return Delayed(history, jnp.where(keep, self.scale, scale))


def current_scale(t: jax.Array, format: Format = FP8) -> jax.Array:
    """max|t| / hi of the tensor itself, () float32; 1 for zeros.

    Example:
        >>> float(current_scale(jnp.array([448.0, -896.0])))
        2.0
    """
    amax = jnp.abs(t).max().astype(jnp.float32)
    return jnp.where(amax == 0, 1.0, jnp.maximum(divide(amax, format.max), SMALLEST))


def to_fp8(t: jax.Array, scale: jax.Array, format: Format = FP8) -> jax.Array:
    """t / scale as an array of float8: clipped first, because the cast makes NaN of what is too
    large.

    Args:
        t: any shape, floating point.
        scale: () float32.
        format: FP8 or FP8_E5M2.

    Example:
        >>> to_fp8(jnp.array([1.0, 1e6]), jnp.float32(1.0)).tolist()
        [1.0, 448.0]
    """
    t = divide(t.astype(jnp.float32), scale)
    return jnp.clip(t, format.min, format.max).astype(format.dtype)


@jax.custom_vjp
def linear(x: jax.Array, w: jax.Array, scales: jax.Array | None) -> jax.Array:
    """x wᵀ in FP8, forward and backward.

    Args:
        x: (tokens, in) floating point.
        w: (out, in) floating point, the master weights.
        scales: (3,) float32, what x, w and g are divided by: delayed scaling; None: each tensor's
            own, current scaling.

    Returns:
        (tokens, out) float32. The "gradient" of `scales` is (3,) max|x|, max|w|, max|g|: what
        `Delayed.advance` wants to know of this step, which g leaves by no other way.

    Example:
        >>> x, w = jnp.ones((2, 4)), jnp.ones((3, 4))
        >>> seen = jax.grad(lambda s: linear(x, 2 * w, s).sum(), argnums=0)(jnp.ones(3))
        >>> seen.tolist()
        [1.0, 2.0, 1.0]
    """
    return _forward(x, w, scales)[0]


def _forward(x: jax.Array, w: jax.Array, scales: jax.Array | None):
    s_x, s_w = _scale(x, scales, 0), _scale(w, scales, 1)
    x8, w8 = to_fp8(x, s_x, ROLES[0]), to_fp8(w, s_w, ROLES[1])
    like = (jnp.zeros((), x.dtype), jnp.zeros((), w.dtype))
    seen = None if scales is None else (jnp.abs(x).max(), jnp.abs(w).max())
    return s_x * s_w * _dot(x8, w8.T), (x8, w8, s_x, s_w, scales, seen, like)


def _backward(saved, g: jax.Array):
    x8, w8, s_x, s_w, scales, seen, like = saved
    s_g = _scale(g, scales, 2)
    g8 = to_fp8(g, s_g, ROLES[2])
    dx = s_g * s_w * _dot(g8, w8)
    dw = s_g * s_x * _dot(g8.T, x8)
    amax = None if scales is None else jnp.stack([*seen, jnp.abs(g).max()]).astype(jnp.float32)
    return dx.astype(like[0].dtype), dw.astype(like[1].dtype), amax


linear.defvjp(_forward, _backward)


def _scale(t: jax.Array, scales: jax.Array | None, role: int) -> jax.Array:
    return current_scale(t, ROLES[role]) if scales is None else scales[role]


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b of float8 matrices, float32 out."""
    return jax.lax.dot_general(a, b, (((1,), (0,)), ((), ())), preferred_element_type=jnp.float32)
