"""Inputs rounded to int8 or FP8 in plain JAX: qlab's own `quantize`, its codes as numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qlab.qtensor import Spec, quantize


def quantize_activations(x: jax.Array, spec: Spec) -> tuple[jax.Array, jax.Array]:
    """(tokens, in) -> codes int8 or float8 of that shape, scale (tokens, blocks) float32."""
    q = quantize(x, spec)
    codes = q.codes ^ 128 if spec.format.dtype is None else q.codes
    return jax.lax.bitcast_convert_type(codes, spec.format.dtype or jnp.int8), q.scale
