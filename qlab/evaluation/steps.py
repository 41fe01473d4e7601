"""What a step of a loaded model reads and multiplies, counted from its arrays as they lie there.

Weights are read once a step, whatever the batch; the cache whole, with its room for tokens to
come. Not counted: what is unpacked on the way, activations, and copies that XLA makes. Predicting
from a shape is `roofline`.
"""

from __future__ import annotations

import math
from typing import Any

import jax

from qlab.activations import Act, product
from qlab.evaluation.roofline import Load
from qlab.evaluation.shapes import Shape
from qlab.formats import INT8
from qlab.kernels import Packed
from qlab.models.kv import KVCache
from qlab.models.surgery import linears
from qlab.models.transformer import Linear, Transformer
from qlab.qtensor import QTensor

PRODUCTS = {"int": "int8", "fp8": "float8_e4m3fn", "float": "float32"}


def matrices(model: Transformer) -> list[Linear]:
    """Every matrix that a step multiplies by, the head last."""
    return [*linears(model).values(), model.lm_head or Linear(model.embed_tokens.weight)]


def read_bytes(model: Transformer) -> int:
    """Bytes of all matrices with their scales, and of biases and norms.

    Example:
        >>> read_bytes(qlab.load("tiny"))   # doctest: +SKIP
        16786432
    """
    return _bytes((model.layers, model.norm, model.lm_head or model.embed_tokens))


def _bytes(tree: Any) -> int:
    """Also of arrays that are only planned (`jax.eval_shape`)."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def multiplied(model: Transformer) -> dict[str, int]:
    """dtype of the products -> weights that are multiplied so, the most first."""
    found: dict[str, int] = {}
    for layer in matrices(model):
        kind = _kind(layer)
        found[kind] = found.get(kind, 0) + math.prod(layer.weight.shape)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _kind(layer: Linear) -> str:
    weight, act = layer.weight, layer.act
    if isinstance(weight, Packed) and act is None:
        return weight.dtype or "float32"
    if isinstance(weight, Packed) and isinstance(act, Act):
        return "int8" if act.spec.format == INT8 else PRODUCTS["fp8"]
    if isinstance(weight, QTensor) and isinstance(act, Act):
        return PRODUCTS[product(weight, act)]
    return "float32"


def shape_of(model: Transformer) -> Shape:
    """A loaded model's shape, of any architecture, as `roofline` counts it."""
    c = model.config
    weights = sum(multiplied(model).values())
    weights += 0 if c.tie_word_embeddings else math.prod(model.embed_tokens.weight.shape)
    ffn = getattr(c, "intermediate_size", None) or c.ffn_dim
    return Shape(
        model.name or "model", c.num_hidden_layers, c.hidden_size, ffn, c.num_attention_heads,
        c.num_key_value_heads, c.head_dim, c.vocab_size, c.max_position_embeddings,
        c.tie_word_embeddings, total=weights, active_total=weights, source="its own config",
    )  # fmt: skip


def _room(cache: Any) -> tuple[int, int]:
    """(sequences, positions with their room) of one layer's cache."""
    if isinstance(cache, KVCache):
        return cache.keys.recent.shape[0], cache.keys.length
    return cache.keys.shape[0], cache.keys.shape[1]


def load_of(model: Transformer, caches: list[Any], tokens: int) -> Load:
    """A step of `tokens` tokens for each sequence of the caches; 1 is decode, more are a prompt.

    The head reads out one position of each sequence. Attention multiplies every query with all
    positions of the cache, seen or not, as the model does.

    Args:
        model: as it runs: `models.surgery.dense`.
        caches: of `model.caches`.
        tokens: of each sequence.
    """
    batch, length = _room(caches[0])
    *body, head = (math.prod(layer.weight.shape) for layer in matrices(model))
    c = model.config
    pairs = batch * tokens * length
    work = 2 * batch * (tokens * sum(body) + head)
    work += 4 * c.num_hidden_layers * c.num_attention_heads * c.head_dim * pairs
    return Load(read_bytes(model) + _bytes(caches), work)
