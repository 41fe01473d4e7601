"""GGUF, llama.cpp's file: a header of named values, a list of tensors, then their blocks, read here
by memory map.

`read` -> metadata and raw tensors. What a block holds is `io.ggml`'s: `decode`, `encode`,
`to_qtensor`, `from_qtensor` are found here too. File format: ggml/docs/gguf.md. Not here: writing
files, and which tensor belongs where in a model.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np

from qlab.io.ggml import BLOCKS, FLOATS, TYPE_SPECS, decode, encode, from_qtensor, to_qtensor

__all__ = ["BLOCKS", "FLOATS", "TYPE_SPECS", "decode", "encode", "from_qtensor", "to_qtensor"]
__all__ += ["File", "Tensor", "read"]

# Numbers of the types in a file: enum ggml_type of ggml.h.
_TYPE_IDS = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 30: "BF16"}
_TYPE_IDS |= {10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K"}
_TYPE_IDS |= {16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S"}
_TYPE_IDS |= {22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64"}
_TYPE_IDS |= {29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"}
# How a metadata value is stored, by its number; 8 is a string, 9 an array.
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"}
_SCALARS |= {10: "<Q", 11: "<q", 12: "<d"}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file: `raw` is (rows, bytes) uint8 in the memory map; `shape` ends with the
    columns.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    raw: np.ndarray

    def decode(self) -> np.ndarray:
        """The float32 numbers, in `shape`."""
        return decode(self.raw, self.type).reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class File:
    """What `read` found: values by key, tensors by name, in file order."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read(path: str | os.PathLike) -> File:
    """Reads the header of a GGUF file and maps its tensors; no weight is touched until it is
    decoded.

    Args:
        path: a GGUF file, version 2 or 3, little-endian.

    Raises:
        ValueError: the file is not GGUF, ends before what its header promises, or holds a tensor
            of a type that `decode` does not know (the sentence names it).

    Example:
        >>> file = read("model.gguf")   # doctest: +SKIP
        >>> file.tensors["blk.0.attn_q.weight"].type   # doctest: +SKIP
        'Q4_1'
    """
    path = Path(path)
    if path.stat().st_size < 24:
        raise ValueError(f"{path} is no GGUF file: {path.stat().st_size} bytes, a header has 24")
    with open(path, "rb") as handle:
        data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = _Cursor(data, path)
    if cursor.take(4) != b"GGUF":
        raise ValueError(f"{path} is no GGUF file: it begins with {data[:4]!r}, not b'GGUF'")
    version = cursor.scalar("<I")
    if version not in (2, 3):
        raise ValueError(f"{path}: GGUF version {version} is unknown; versions 2 and 3 are read")
    n_tensors, n_values = cursor.scalar("<Q"), cursor.scalar("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(n_values):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.scalar("<I"))
    return File(metadata, _tensors(cursor, n_tensors, metadata.get("general.alignment", 32)))


def _tensors(cursor: _Cursor, count: int, alignment: Any) -> dict[str, Tensor]:
    """Every entry of the tensor list checked against the file's size, as views into the map."""
    if not isinstance(alignment, int) or alignment <= 0:
        raise ValueError(f"{cursor.path}: alignment {alignment!r} is not a positive integer")
    entries = []
    for _ in range(count):
        name, n_axes = cursor.text(), cursor.scalar("<I")
        if n_axes > 4:
            raise ValueError(
                f"{cursor.path}: tensor {name!r} has {n_axes} axes; ggml has 4 at most"
            )
        axes = [cursor.scalar("<Q") for _ in range(n_axes)] or [1]  # columns come first
        entries.append((name, tuple(axes[::-1]), cursor.scalar("<I"), cursor.scalar("<Q")))
    start = -(-cursor.at // alignment) * alignment
    found: dict[str, Tensor] = {}
    for name, shape, type_id, offset in entries:
        if name in found:
            raise ValueError(f"{cursor.path}: two tensors are named {name!r}")
        found[name] = _tensor(cursor, name, shape, type_id, start + offset)
    return found


def _tensor(cursor: _Cursor, name: str, shape: tuple, type_id: int, start: int) -> Tensor:
    kind = _TYPE_IDS.get(type_id, f"number {type_id}")
    if kind not in BLOCKS:
        raise ValueError(
            f"{cursor.path}: tensor {name!r} has type {kind}; read are {', '.join(BLOCKS)}"
        )
    size, block = BLOCKS[kind]
    if shape[-1] % size:
        raise ValueError(
            f"{cursor.path}: tensor {name!r} has {shape[-1]} columns, "
            f"no multiple of {kind}'s {size}"
        )
    rows, row_bytes = 1, shape[-1] // size * block.itemsize
    for n in shape[:-1]:
        rows *= n  # Python integers: a hostile header cannot overflow them
    cursor.at = start
    cursor.need(rows * row_bytes, f"tensor {name!r}")
    raw = np.frombuffer(cursor.data, np.uint8, rows * row_bytes, start)
    return Tensor(name, kind, shape, raw.reshape(rows, row_bytes))


class _Cursor:
    """Reads forward through mapped bytes and refuses to pass their end."""

    def __init__(self, data: mmap.mmap, path: Path):
        self.data, self.path, self.at = data, path, 0

    def need(self, count: int, what: str = "its header") -> None:
        if self.at + count > len(self.data):
            raise ValueError(
                f"{self.path} is truncated or damaged: {what} ends at byte {self.at + count}, "
                f"the file at {len(self.data)}; fetch it again"
            )

    def take(self, count: int) -> bytes:
        self.need(count)
        self.at += count
        return self.data[self.at - count : self.at]

    def scalar(self, code: str) -> Any:
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def text(self) -> str:
        start = self.at
        try:
            return self.take(self.scalar("<Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: the text at byte {start} is not UTF-8") from None

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == 8:
            return self.text()
        if kind != 9 or depth > 4:
            raise ValueError(f"{self.path}: no metadata value has type {kind} (byte {self.at})")
        inner, count = self.scalar("<I"), self.scalar("<Q")
        if inner in _SCALARS:
            code = np.dtype(_SCALARS[inner])
            return np.frombuffer(self.take(count * code.itemsize), code).tolist()
        return [self.value(inner, depth + 1) for _ in range(count)]
