"""Model surgery: a model is a pytree, so replacing its linear layers is one `tree_map`, and a new
model comes out.

The head and the embedding are not linears here: they are quantized, if at all, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from qlab.kernels import Packed
from qlab.models.transformer import Block, Linear, Transformer, as_array


def _is_linear(node: object) -> bool:
    return isinstance(node, Linear)


def _path(keys: tuple) -> str:
    return jax.tree_util.keystr(keys, simple=True, separator=".")


def linears(model: Transformer) -> dict[str, Linear]:
    """The linear layers of the blocks by hub path, in forward order: `layers.0.self_attn.q_proj`
    first.

    Example:
        >>> list(linears(model))[:2]   # doctest: +SKIP
        ['layers.0.self_attn.q_proj', 'layers.0.self_attn.k_proj']
    """
    return {
        f"layers.{i}.{path}": get(block, path)
        for i, block in enumerate(model.layers)
        for path in paths(block)
    }


def paths(block: Block) -> list[str]:
    """The linears of a block by their path inside it, in forward order: `self_attn.q_proj`, …"""
    return [path for stage in block.STAGES for path in stage]


def get(module: Any, path: str) -> Any:
    """The part of a module at a path: `get(block, "self_attn.q_proj")`."""
    for name in path.split("."):
        module = getattr(module, name)
    return module


def put(module: Any, path: str, part: Any) -> None:
    """Sets the part of a module at a path, in place."""
    above, _, name = path.rpartition(".")
    setattr(get(module, above) if above else module, name, part)


def map_linears(model: Transformer, change: Callable[[str, Linear], Linear]) -> Transformer:
    """A new model whose linear at every path is `change(path, linear)`; `model` stays as it was."""

    def visit(keys: tuple, node: object) -> object:
        if isinstance(node, Linear) and keys[0].name == "layers":
            return change(_path(keys), node)
        return node

    return jax.tree_util.tree_map_with_path(visit, model, is_leaf=_is_linear)


def dense(model: Transformer) -> Transformer:
    """The same function with every QTensor, and every weight in training, as float32.

    All quantized variants of a model become one structure and so share one compiled program.
    Linears whose inputs are quantized too keep their codes: they multiply integers or FP8. Packed
    linears stay packed.
    """

    def floats(_: str, layer: Linear) -> Linear:
        if layer.act is not None or isinstance(layer.weight, Packed):
            return layer
        return Linear(_dequantize(layer.weight), layer.bias)

    model = map_linears(model, floats)
    model.embed_tokens.weight = _dequantize(model.embed_tokens.weight)
    if model.lm_head is not None and not isinstance(model.lm_head.weight, Packed):
        model.lm_head.weight = _dequantize(model.lm_head.weight)
    return model


_dequantize = jax.jit(as_array)
