"""Scaling channels inside a model without changing its function: (W diag c)(x / c) = W x.

Whatever feeds a linear (a norm's gain, the rows of another linear: `Block.FEEDS`) takes 1 / c, the
linear's input columns take c. With c = exp(N(0, 0.1)) it breaks a grid that weights already lie on
(`dither`); with a few c = 1/50 it makes activation outliers (`with_outliers`). SmoothQuant and AWQ
fold their factors through the same function.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlab.formats import FORMATS
from qlab.models.surgery import get, linears
from qlab.models.transformer import Feed, Linear, Transformer, as_array
from qlab.qtensor import Spec, dequantize, quantize
from qlab.rules import minmax

SIGMA = 0.1


def feeders(model: Transformer) -> dict[str, int]:
    """Every path that feeds linears, with its number of channels, in forward order.

    Example:
        >>> list(feeders(model))[:2]                           # doctest: +SKIP
        ['layers.0.input_layernorm', 'layers.0.self_attn.v_proj']
    """
    return {
        f"layers.{i}.{feed.feeder}": get(block, feed.feeder).weight.shape[0]
        for i, block in enumerate(model.layers)
        for feed in block.FEEDS
    }


def scale_channels(model: Transformer, factors: Mapping[str, np.ndarray]) -> Transformer:
    """A new model, same function: each feeder's outputs divided by c, its consumers' input columns
    times c.

    Args:
        model: any model; QTensors that a factor touches become float32.
        factors: c > 0 (channels,) by feeder path, as `feeders` lists them; products are taken in
            float64.

    Raises:
        ValueError: a path that feeds nothing, a factor of another length, or one that is not
            positive (a ReLU between feeder and consumer commutes with no other).
    """
    known = feeders(model)
    for path, c in factors.items():
        if path not in known:
            raise ValueError(
                f"{path!r} feeds no linear; the first that does is {next(iter(known))!r}"
            )
        if np.shape(c) != (known[path],):
            raise ValueError(f"{path!r} has {known[path]} channels, its factor {np.shape(c)}")
        if not (np.isfinite(c) & (np.asarray(c) > 0)).all():
            raise ValueError(f"the factor of {path!r} goes down to {np.min(c)}: positive ones only")
    new = jax.tree.map(lambda leaf: leaf, model)  # fresh modules, shared arrays
    for i, block in enumerate(new.layers):
        own = {path: factors.get(f"layers.{i}.{path}") for path in _feeders(block)}
        scale_block(block, {p: c for p, c in own.items() if c is not None}, model.config)
    return new


def _feeders(block: Any) -> list[str]:
    return [feed.feeder for feed in block.FEEDS]


def scale_block(block: Any, factors: Mapping[str, np.ndarray], config: Any) -> set[str]:
    """The same for one block, in place.

    Args:
        block: of any architecture.
        factors: c > 0 (channels,) by feeder path inside the block.
        config: the model's.

    Returns:
        the paths inside the block whose arrays are new.
    """
    rows: dict[str, np.ndarray] = {}  # what divides the output rows of a part
    columns: dict[str, np.ndarray] = {}  # what multiplies its input columns
    for feed in block.FEEDS:
        c = factors.get(feed.feeder)
        if c is not None:
            rows[feed.feeder] = np.asarray(c, np.float64)
            columns |= dict.fromkeys(feed.consumers, input_channels(feed, c, config))
    for path in rows.keys() | columns.keys():
        _rescale(get(block, path), rows.get(path), columns.get(path))
    return {*rows, *columns}


def input_channels(feed: Feed, c: np.ndarray, config: Any) -> np.ndarray:
    """A feeder's factor in the order of its consumers' columns: (kv_heads · d,) -> (heads · d,)
    for v -> o.
    """
    c = np.asarray(c, np.float64)
    if not feed.by_kv_head:
        return c
    kv = config.num_key_value_heads
    return np.repeat(c.reshape(kv, 1, -1), config.num_attention_heads // kv, axis=1).reshape(-1)


def _rescale(part: Any, rows: np.ndarray | None, columns: np.ndarray | None) -> None:
    """Divides rows (or a norm's gain) and bias, and multiplies columns, in float64, rounding
    once.
    """
    w = np.asarray(as_array(part.weight), np.float64)
    if columns is not None:
        w = w * columns
    if rows is not None:
        w = w / (rows[:, None] if w.ndim == 2 else rows)
        if getattr(part, "bias", None) is not None:  # an RMSNorm has none
            part.bias = jnp.asarray(np.asarray(part.bias, np.float64) / rows, jnp.float32)
    part.weight = jnp.asarray(w, jnp.float32)


def dither(model: Transformer, seed: int = 0, sigma: float = SIGMA) -> Transformer:
    """Moves weights off any grid they lie on, keeping the function: every linear's input channels
    times exp(N(0, σ)).

    Args:
        model: a model whose weights were stored in few bits.
        seed: of numpy's default generator.
        sigma: standard deviation of the logarithm.
    """
    rng = np.random.default_rng(seed)
    return scale_channels(
        model, {path: np.exp(rng.normal(0.0, sigma, n)) for path, n in feeders(model).items()}
    )


def with_outliers(
    model: Transformer, seed: int = 0, gain: float = 50.0, share: float = 0.005
) -> Transformer:
    """Activation outliers as large models have them, constructed: a few norm gains times `gain`,
    the function kept.

    Args:
        model: any model.
        seed: of numpy's default generator.
        gain: what the chosen norm gains are multiplied by and their consumers' columns divided by.
        share: of a norm's channels, at least one.
    """
    rng = np.random.default_rng(seed)
    factors = {}
    for path, n in feeders(model).items():
        if not isinstance(get(model, path), Linear):
            factors[path] = np.ones(n)
            factors[path][rng.choice(n, max(1, round(share * n)), replace=False)] = 1 / gain
    return scale_channels(model, factors)


def grid_study(
    stored: Transformer,
    dithered: Transformer,
    bits: Iterable[int] = range(2, 9),
    every: int = 5,
    seed: int = 0,
) -> list[dict[str, float]]:
    """How much a grid in the weights flatters rounding: relative error of RTN, asymmetric in
    blocks of 32.

    Args:
        stored: a model as its file has it.
        dithered: the same model off the grid.
        bits: widths to try.
        every: take each such layer only.
        seed: of the Gaussian weights beside them.

    Returns:
        one row a width: {"bits", "as stored", "dithered", "gaussian"}, each √(Σ (w − ŵ)² / Σ w²).

    Example:
        >>> grid_study(stored, dithered, bits=[4])             # doctest: +SKIP
        [{'bits': 4, 'as stored': 0.0, 'dithered': 0.081, 'gaussian': 0.079}]
    """
    sets = {"as stored": _blocks(stored, every), "dithered": _blocks(dithered, every)}
    sets["gaussian"] = jax.random.normal(jax.random.key(seed), sets["dithered"].shape)
    rows = []
    for b in bits:
        spec = Spec(FORMATS[f"UINT{b}"], 32, "float16", offset="float16", rule=minmax)
        row = {name: float(_relative_error(w, spec)) for name, w in sets.items()}
        rows.append({"bits": b, **row})
    return rows


def _blocks(model: Transformer, every: int) -> jax.Array:
    """The weights of every such layer's linears, (blocks, 32)."""
    chosen = [w for path, w in linears(model).items() if int(path.split(".")[1]) % every == 0]
    return jnp.concatenate([as_array(layer.weight).reshape(-1, 32) for layer in chosen])


@partial(jax.jit, static_argnames="spec")
def _relative_error(w: jax.Array, spec: Spec) -> jax.Array:
    return jnp.sqrt(jnp.sum((w - dequantize(quantize(w, spec))) ** 2) / jnp.sum(w * w))
