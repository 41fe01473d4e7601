"""`matmul`: x Wᵀ for any Packed, by the op that its layout and the inputs' Act ask for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from qlab.activations import Act, name_of
from qlab.arithmetic import divide
from qlab.formats import INT8
from qlab.kernels.checks import check_packed, reason_against
from qlab.kernels.dequantize.reference import weights
from qlab.kernels.fp8.api import fp8
from qlab.kernels.packed import Packed
from qlab.kernels.q4_k.api import q4_k
from qlab.kernels.quantize_activations.api import quantize_activations, spec_of
from qlab.kernels.w4a16.api import w4a16
from qlab.kernels.w8a8.api import w8a8
from qlab.qtensor import Spec


def matmul(x: jax.Array, p: Packed, act: str | Spec | Act | None = None) -> jax.Array:
    """x Wᵀ with weights that stay packed until they are multiplied.

    Args:
        x: (..., in) float32 or bfloat16; all leading indices are tokens.
        p: the weights; `prepack` makes them.
        act: how x is quantized, one scale a token: "int8_token" takes `w8a8`; "fp8_token",
            "fp8_tile" and Spec(FP8, 128) take `fp8`. None: x stays as it is.

    Returns:
        (..., out) in the dtype of x. Without an act the gradient of x is that of the unpacked
        weights; through an act none passes.

    Raises:
        ValueError: x of another shape; an act and weights that no kernel multiplies, both named.

    Example:
        >>> from qlab.kernels import prepack
        >>> from qlab.qtensor import quantize
        >>> from qlab.specs import SPECS
        >>> p = prepack(quantize(jnp.array([[1.0, -7.0], [7.0, 0.0]]), SPECS["int4_channel"]))
        >>> matmul(jnp.ones((1, 1, 2)), p).tolist()
        [[[-6.0, 7.0]]]
    """
    check_packed("matmul", p)
    if x.shape[-1] != p.shape[1]:
        raise ValueError(f"matmul: inputs {x.shape} are not (..., in) for weights {p.shape}")
    dtype, before = x.dtype, x.shape[:-1]
    if not x.size:
        return jnp.zeros((*before, p.shape[0]), dtype)
    x = x.reshape(-1, x.shape[-1])
    if p.channel_scale is not None:
        x = divide(x.astype(jnp.float32), p.channel_scale)
    if p.perm is not None:
        x = x[:, p.perm]
    y = _weight_only(x.astype(p.dtype or dtype), p) if act is None else _quantized(x, p, act)
    return y.astype(dtype).reshape(*before, p.shape[0])


def unsupported_act(p: Packed, act: str | Spec | Act) -> str | None:
    """Why `matmul(x, p, act)` raises, in one sentence; None where it does not.

    Example:
        >>> from qlab.kernels import prepack
        >>> from qlab.qtensor import quantize
        >>> from qlab.specs import SPECS
        >>> p = prepack(quantize(jnp.ones((2, 4)), SPECS["int8_channel"]))
        >>> unsupported_act(p, "int8_token") is None
        True
    """
    try:
        spec = spec_of(act)
    except ValueError as error:
        return str(error)
    reason = reason_against(spec, p)
    return reason and f"{reason}, asked for by {name_of(Act(spec))!r}"


def _quantized(x: jax.Array, p: Packed, act: str | Spec | Act) -> jax.Array:
    reason = unsupported_act(p, act)
    if reason:
        raise ValueError(reason)
    spec = spec_of(act)
    codes, scale = quantize_activations(jax.lax.stop_gradient(x), spec)
    return (w8a8 if spec.format == INT8 else fp8)(codes, scale, p)


@jax.custom_vjp
def _weight_only(x: jax.Array, p: Packed) -> jax.Array:
    return (q4_k if p.layout == "q4_k" else w4a16)(x, p)


def _backward(p: Packed, g: jax.Array) -> tuple[jax.Array, Packed]:
    """The gradient of x; integers have none, and ranges stay as they are."""

    def none(a: jax.Array) -> jax.Array | np.ndarray:
        if jnp.issubdtype(a.dtype, jnp.floating):
            return jnp.zeros_like(a)
        return np.zeros(a.shape, jax.dtypes.float0)

    w = weights(p).T.astype(g.dtype)  # (out, in)
    return jnp.matmul(g, w, precision=jax.lax.Precision.HIGHEST), jax.tree.map(none, p)


_weight_only.defvjp(lambda x, p: (_weight_only(x, p), p), _backward)
