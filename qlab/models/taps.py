"""Taps: put a recorder before every linear layer, run the model, read what flowed in. The model
itself stays as it was.

One block is tapped inside one compiled function that returns what was recorded, so compile time
does not grow with depth.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlab.models.surgery import get, paths, put
from qlab.models.transformer import Block, Linear, Transformer


class Tap:
    """A Linear that remembers its input."""

    def __init__(self, linear: Linear):
        self.linear = linear
        self.input: jax.Array | None = None  # (batch, time, in)

    def __call__(self, x: jax.Array) -> jax.Array:
        self.input = x
        return self.linear(x)


@jax.jit
def _tapped(block: Block, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array | None]]:
    """One block's output, and the input of each of its linears: `self_attn.q_proj` -> (batch,
    time, in).
    """
    taps = {path: Tap(get(block, path)) for path in paths(block)}
    for path, tap in taps.items():  # `block` is this function's own copy: setting on it is safe
        put(block, path, tap)
    y, _ = block(x, jnp.int32(0))
    return y, {path: tap.input for path, tap in taps.items()}


def layer_inputs(model: Transformer, tokens: Any) -> dict[str, jax.Array]:
    """What every linear layer reads when the model reads `tokens`.

    Args:
        model: a Transformer.
        tokens: (sequences, time) integers.

    Returns:
        hub path -> (sequences, time, in) float32, in forward order.

    Raises:
        ValueError: if `tokens` has another number of axes.

    Example:
        >>> inputs = layer_inputs(load("tiny"), [[1, 2, 3]])  # doctest: +SKIP
        >>> inputs["layers.0.mlp.down_proj"].shape  # doctest: +SKIP
        (1, 3, 768)
    """
    tokens = np.asarray(tokens, np.int32)
    if tokens.ndim != 2:
        raise ValueError(f"tokens are (sequences, time), not of shape {tokens.shape}")
    x = model.embed(jnp.asarray(tokens))
    found: dict[str, Any] = {}
    for i, block in enumerate(model.layers):
        x, inputs = _tapped(block, x)
        # A compiled function returns its dict sorted: the order is the block's.
        found |= {f"layers.{i}.{path}": inputs[path] for path in paths(block)}
    return found
