"""Taps: put a recorder before linear layers, run the model, read what flowed in. The model itself
stays as it was.

One block is tapped inside one compiled function that returns what was asked for, so compile time
does not grow with depth, and what nobody asked for is not computed.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlab.models.surgery import get, paths, put
from qlab.models.transformer import Linear, Transformer
from qlab.stats import Stats


class Tap:
    """A Linear that remembers its input."""

    def __init__(self, linear: Linear):
        self.linear = linear
        self.input: Any = None  # (batch, time, in)

    def __call__(self, x: jax.Array) -> jax.Array:
        self.input = x
        return self.linear(x)


def _run(block: Any, x: jax.Array, where: Iterable[str]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A block's output and the inputs of some of its linears; inside a compiled function, where
    `block` is that function's own copy and may be set on.
    """
    taps = {path: Tap(get(block, path)) for path in where}
    for path, tap in taps.items():
        put(block, path, tap)
    y, _ = block(x, jnp.int32(0))
    return y, {path: tap.input for path, tap in taps.items()}


class Ear:
    """A module that remembers what it was called with and what it returned."""

    def __init__(self, module: Any):
        self.module = module
        self.arguments: tuple = ()
        self.output: Any = None

    def __call__(self, *arguments: Any) -> Any:
        self.arguments, self.output = arguments, self.module(*arguments)
        return self.output


def calls(block: Any, x: jax.Array, path: str) -> tuple[tuple, jax.Array]:
    """What one module of a block is called with when the block reads x, and its output (sequences,
    time, out); inside a compiled function, as `_run`. The block stays as it was.
    """
    module, ear = get(block, path), Ear(get(block, path))
    put(block, path, ear)
    block(x, jnp.int32(0))
    put(block, path, module)
    return ear.arguments, ear.output[0] if isinstance(ear.output, tuple) else ear.output


_tapped = jax.jit(lambda block, x: _run(block, x, paths(block)))


@partial(jax.jit, static_argnames="output", donate_argnames="totals")
def through(
    block: Any, x: jax.Array, mask: jax.Array, totals: dict[str, Stats], output: bool = True
) -> tuple[jax.Array | None, dict[str, Stats]]:
    """One batch of sequences through one block, its linears' inputs added to their Stats.

    Args:
        block: of any architecture.
        x: (sequences, time, hidden) float32, what the block reads.
        mask: (sequences, time) bool, False at padding.
        totals: path inside the block -> Stats so far; no other path is recorded. Used up.
        output: whether the block's output is wanted; without it, what comes after the last tap is
            not computed.

    Returns:
        (sequences, time, hidden) or None, and the grown Stats.
    """
    y, inputs = _run(block, x, totals)
    grown = {p: total.merge(Stats.from_inputs(inputs[p], mask)) for p, total in totals.items()}
    return y if output else None, grown


@jax.jit
def squares(block: Any, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """One batch of sequences through one block, and Σx² of what its linears read.

    Args:
        block: of any architecture.
        x: (sequences, time, hidden) float32, what the block reads.
        mask: (sequences, time) bool, False at padding.

    Returns:
        (sequences, time, hidden), and (in,) float32 under each stage's first path.
    """
    y, inputs = _run(block, x, [stage[0] for stage in block.STAGES])
    seen = mask[..., None]
    return y, {path: jnp.where(seen, u * u, 0).sum((0, 1)) for path, u in inputs.items()}


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
