"""Bits per weight of whole files, from a model's shape.

A "4-bit" GGUF is a mixture: which tensor gets which type is `models.mixtures`' (llama.cpp's own
rules; IQ4_XS and below as their files are made, with an importance matrix), so the bits of a file
follow from the shape. They equal llama.cpp's table for Llama-3.1-8B to four decimals. Formats of
servers quantize the blocks and leave embedding and head in 16 bits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from types import SimpleNamespace

from qlab.evaluation.shapes import SHAPES, Shape
from qlab.models import mixtures
from qlab.qtensor import Spec, bits_per_weight
from qlab.specs import SPECS

# The GGUF files that are weighed against each other, the best first: keys of `mixtures.MIXTURES`.
FILES = ("BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q2_K", "IQ2_XS",
         "IQ2_XXS")  # fmt: skip
# A matrix of `Shape` -> its name in GGUF.
NAMES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "o": "attn_output", "gate": "ffn_gate",
         "up": "ffn_up", "down": "ffn_down"}  # fmt: skip
# Formats of GPU servers -> the Spec of the blocks' matrices.
SERVED = {"FP8": "fp8_channel", "INT8": "int8_channel", "AWQ 4-bit": "awq_g128", "NVFP4": "nvfp4"}
# Bits of the codes alone, for rules that speak of bits: a file of Q8_0 is "8 bits".
NOMINAL = {"BF16": 16, "FP8": 8, "INT8": 8, "Q8_0": 8, "Q6_K": 6, "Q5_K_M": 5, "Q4_K_M": 4,
           "AWQ 4-bit": 4, "NVFP4": 4, "IQ4_XS": 4, "Q3_K_M": 3, "Q2_K": 2, "IQ2_XS": 2,
           "IQ2_XXS": 2}  # fmt: skip


def plan(file: str, shape: Shape) -> list[mixtures.Row]:
    """The type and bytes of every matrix of a published shape in a GGUF file; experts of a layer
    are one matrix.

    Args:
        file: a key of `mixtures.MIXTURES`.
        shape: of the model.

    Example:
        >>> rows = {row.name: row.type for row in plan("Q4_K_M", SHAPES["llama-3.1-8b"])}
        >>> rows["blk.0.attn_v.weight"], rows["blk.0.attn_q.weight"]
        ('Q6_K', 'Q4_K')
    """
    config = SimpleNamespace(
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
    )
    return mixtures.plan(file, _tensors(shape), config, importance=file.startswith("IQ"))


def _tensors(shape: Shape) -> Iterator[tuple[str, tuple[int, int], str]]:
    """(GGUF name, (rows, columns), type now) of every matrix."""
    table = (shape.vocab, shape.hidden)
    yield "token_embd.weight", table, "F32"
    if not shape.tied:
        yield "output.weight", table, "F32"
    for kind, (count, columns) in {**shape.attention, **shape.mlp}.items():
        for layer in range(shape.layers):
            yield f"blk.{layer}.{NAMES[kind]}.weight", (count // columns, columns), "F32"


@functools.lru_cache(maxsize=1024)
def file_bits(file: str, shape: Shape) -> float:
    """Bits per weight of a whole file, everything counted.

    Raises:
        ValueError: a file that is neither in FILES nor in SERVED.

    Example:
        >>> round(file_bits("Q4_K_M", SHAPES["llama-3.1-8b"]), 4)
        4.8944
    """
    if file not in FILES and file not in SERVED:
        raise ValueError(f"no file is called {file!r}: known are {', '.join((*FILES, *SERVED))}")
    if shape.like:
        return file_bits(file, SHAPES[shape.like])
    if file in FILES:
        rows = [(8 * row.bytes, row.weights) for row in plan(file, shape)]
    else:
        spec = SPECS[SERVED[file]]
        sizes = [(name, n * columns, columns) for name, (n, columns), _ in _tensors(shape)]
        rows = [(_served(spec, name, columns) * count, count) for name, count, columns in sizes]
    bits = 32.0 * shape.vectors + sum(b for b, _ in rows)
    return bits / (shape.vectors + sum(count for _, count in rows))


def _served(spec: Spec, name: str, columns: int) -> float:
    """Bits of a weight on a server: 16 in embedding and head, the Spec's in the blocks."""
    if not name.startswith("blk."):
        return 16.0
    if spec.block == "row":
        spec = dataclasses.replace(spec, block=columns)
    return float(bits_per_weight(spec))
