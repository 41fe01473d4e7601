"""Bits per weight of whole files: which tensor gets which type, and what that costs.

A "4-bit" GGUF is a mixture: `TYPES` are llama.cpp's rules (`llama_tensor_get_type`, without an
importance matrix but for IQ4_XS and below, whose files are made with one), so the bits of a file
follow from the model's shape. They equal llama.cpp's table for Llama-3.1-8B to four decimals.
Formats of servers quantize the blocks and leave embedding and head in 16 bits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

from qlab.evaluation.shapes import SHAPES, Shape
from qlab.qtensor import Spec, bits_per_weight
from qlab.specs import SPECS

# Bits of a weight in each ggml type; those that are a Spec here are taken from it.
_KNOWN = (
    "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_XS", "IQ4_NL", "Q5_1", "Q5_0", "Q4_0"
)  # fmt: skip
BITS: dict[str, float] = {
    "F32": 32.0,
    "BF16": 16.0,
    **{name: float(bits_per_weight(SPECS[name.lower()])) for name in _KNOWN},
    "IQ2_XS": 74 * 8 / 256,  # bytes of a super-block of 256, ggml-common.h
    "IQ2_XXS": 66 * 8 / 256,
}
# Super-blocks need rows that are a multiple of 256; where they are not, llama.cpp takes these.
SUPER = {"Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0", "Q3_K": "Q4_0", "Q2_K": "Q4_0",
         "IQ4_XS": "IQ4_NL", "IQ2_XS": "IQ4_NL", "IQ2_XXS": "IQ4_NL"}  # fmt: skip


def _more(i: int, n: int) -> bool:
    """Layers to which the M mixtures give more bits: the first and last eighth, a third between."""
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _shared(shape: Shape) -> bool:
    """Four or more query heads share a value head."""
    return shape.heads >= 4 * shape.kv_heads


# file -> (its base type, {kind of tensor: (layer, shape) -> type}); what is not named has the base.
Rule = Callable[[int, Shape], str]
_M: Rule = lambda i, s: "Q6_K" if _more(i, s.layers) else ""  # noqa: E731
_DOWN2: Rule = lambda i, s: "Q2_K" if i < s.layers // 8 else ""  # noqa: E731
_V2: Rule = lambda i, s: "Q4_K" if _shared(s) else "Q2_K"  # noqa: E731
TYPES: dict[str, tuple[str, dict[str, Rule]]] = {
    "BF16": ("BF16", {"head": lambda i, s: "BF16"}),
    "Q8_0": ("Q8_0", {"head": lambda i, s: "Q8_0"}),
    "Q6_K": ("Q6_K", {}),
    "Q5_K_M": ("Q5_K", {"v": _M, "down": _M}),
    "Q4_K_M": ("Q4_K", {"v": _M, "down": _M}),
    "IQ4_XS": ("IQ4_XS", {"v": lambda i, s: "Q5_K" if _shared(s) else ""}),
    "Q3_K_M": ("Q3_K", {
        "v": lambda i, s: "Q5_K" if i < 2 else "Q4_K",
        "down": lambda i, s: "Q5_K" if i < s.layers // 16 else "Q4_K",
        "o": lambda i, s: "Q4_K",
    }),
    "Q2_K": ("Q2_K", {
        "v": lambda i, s: "Q4_K" if _shared(s) else "Q3_K",
        "down": lambda i, s: "Q3_K",
        "o": lambda i, s: "Q3_K",
    }),
    "IQ2_XS": ("IQ2_XS", {"v": _V2, "down": _DOWN2, "head": lambda i, s: "Q5_K",
                          "table": lambda i, s: "Q2_K"}),
    "IQ2_XXS": ("IQ2_XXS", {"v": _V2, "down": _DOWN2, "head": lambda i, s: "Q5_K",
                            "table": lambda i, s: "Q2_K"}),
}  # fmt: skip
# Formats of GPU servers -> the Spec of the blocks' matrices.
SERVED = {"FP8": "fp8_channel", "INT8": "int8_channel", "AWQ 4-bit": "awq_g128", "NVFP4": "nvfp4"}
# Bits of the codes alone, for rules that speak of bits: a file of Q8_0 is "8 bits".
NOMINAL = {"BF16": 16, "FP8": 8, "INT8": 8, "Q8_0": 8, "Q6_K": 6, "Q5_K_M": 5, "Q4_K_M": 4,
           "AWQ 4-bit": 4, "NVFP4": 4, "IQ4_XS": 4, "Q3_K_M": 3, "Q2_K": 2, "IQ2_XS": 2,
           "IQ2_XXS": 2}  # fmt: skip


def tensor_type(file: str, kind: str, layer: int, columns: int, shape: Shape) -> str:
    """The ggml type of one tensor in a file.

    Args:
        file: a key of TYPES.
        kind: q k v o gate up down, "head" (or a tied table), "table".
        layer: from 0.
        columns: of the tensor.
        shape: of the model.

    Example:
        >>> tensor_type("Q4_K_M", "v", 0, 4096, SHAPES["llama-3.1-8b"])
        'Q6_K'
    """
    base, rules = TYPES[file]
    if kind == "head":
        if columns % 256 and base in SUPER:
            return "Q8_0"
        return rules["head"](layer, shape) if "head" in rules else "Q6_K"
    found = (rules[kind](layer, shape) if kind in rules else "") or base
    # 80 layers with shared heads is what llama.cpp calls a 70B: the small value matrices get more.
    many = shape.layers == 80 and shape.heads > shape.kv_heads and not file.startswith("IQ2")
    if kind == "v" and many and found in ("Q3_K", "Q4_K"):
        found = "Q5_K"
    return SUPER.get(found, found) if columns % 256 else found


def _tensors(shape: Shape) -> Iterator[tuple[str, int, int, int]]:
    """(kind, layer, weights, columns) of every matrix."""
    yield "head", 0, shape.table, shape.hidden
    if not shape.tied:
        yield "table", 0, shape.table, shape.hidden
    for kind, (count, columns) in {**shape.attention, **shape.mlp}.items():
        for layer in range(shape.layers):
            yield kind, layer, count, columns


@functools.lru_cache(maxsize=1024)
def file_bits(file: str, shape: Shape) -> float:
    """Bits per weight of a whole file, everything counted.

    Raises:
        ValueError: a file that is neither in TYPES nor in SERVED.

    Example:
        >>> round(file_bits("Q4_K_M", SHAPES["llama-3.1-8b"]), 4)
        4.8944
    """
    if file not in TYPES and file not in SERVED:
        raise ValueError(f"no file is called {file!r}: known are {', '.join((*TYPES, *SERVED))}")
    if shape.like:
        return file_bits(file, SHAPES[shape.like])
    bits, weights = 32.0 * shape.vectors, shape.vectors
    for kind, layer, count, columns in _tensors(shape):
        each = (
            BITS[tensor_type(file, kind, layer, columns, shape)]
            if file in TYPES
            else _served(SPECS[SERVED[file]], kind, columns)
        )
        bits, weights = bits + each * count, weights + count
    return bits / weights


def _served(spec: Spec, kind: str, columns: int) -> float:
    """Bits of a weight on a server: 16 in embedding and head, the Spec's in the blocks."""
    if kind in ("head", "table"):
        return BITS["BF16"]
    if spec.block == "row":
        spec = dataclasses.replace(spec, block=columns)
    return float(bits_per_weight(spec))
