"""The weights that a Packed stands for, in plain JAX: what every kernel is held against."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qlab.arithmetic import multiply
from qlab.kernels.packed import SUB, Packed, integers
from qlab.kernels.tiles import six_bits


def codes(p: Packed) -> jax.Array:
    """(in, out) int8 or float8: the integers, less the format's shift, or the codes of a table."""
    if not p.nibbles:
        return p.turn(False).codes
    low = jax.lax.bitcast_convert_type(p.codes << 4, jnp.int8) >> 4
    high = jax.lax.bitcast_convert_type(p.codes, jnp.int8) >> 4
    return jnp.stack([low, high], axis=1).reshape(-1, p.codes.shape[1])


def ranges(p: Packed) -> tuple[jax.Array, jax.Array | None, jax.Array | None]:
    """scale, zero and offset as float32, (groups, out)."""
    if p.layout == "q4_k":
        assert p.offset is not None
        d = p.offset.astype(jnp.float32)
        scale, minimum = (six.astype(jnp.float32) for six in six_bits(p.scale))
        out = d.shape[-1]
        scale, offset = multiply(scale, d[:, 0:1]), multiply(minimum, d[:, 1:2])
        return scale.reshape(-1, out), None, offset.reshape(-1, out)
    scale, zero, offset = (
        None if r is None else r.astype(jnp.float32) for r in (p.scale, p.zero, p.offset)
    )
    assert scale is not None
    return scale, zero, offset


def weights(p: Packed) -> jax.Array:
    """(in, out) float32: (code − zero) ⊙ scale + offset, in the order of the rows as packed."""
    held = codes(p)
    if p.format.bits == 4 and not integers(p.format):
        w = jnp.asarray(p.format.grid)[held.astype(jnp.int32) & 15]
    else:
        w = held.astype(jnp.float32) + p.shift
    scale, zero, offset = ranges(p)
    group = SUB if p.layout == "q4_k" else p.group
    w = w.reshape(-1, group, w.shape[1])  # (groups, group, out)
    if zero is not None:
        w = w - zero[:, None]
    w = multiply(w, scale[:, None])
    if offset is not None:
        w = w + offset[:, None]
    return w.reshape(held.shape)


def dequantize(p: Packed, dtype: str) -> jax.Array:
    """(out, in) in `dtype`, rows as packed."""
    return weights(p).T.astype(dtype)
