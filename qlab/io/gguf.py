"""GGUF, llama.cpp's file: a header of named values, a list of tensors, then their blocks, read here
by memory map.

`read` -> metadata and raw tensors; `decode` -> the float32 numbers of raw blocks, bit for bit
ggml's; `to_qtensor` -> the same blocks as a `QTensor`, nothing rounded. A block is drawn as the C
struct it is (`BLOCKS`; source: ggml-common.h, file format: ggml/docs/gguf.md). Not here: writing
files, the k-quants, and which tensor belongs where in a model.
"""

from __future__ import annotations

import dataclasses
import mmap
import os
import struct
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qlab.qtensor import QTensor
from qlab.specs import SPECS

# One block of `size` weights as it lies in the file, little-endian. For all 4- and 5-bit types:
#   qs[j]      low nibble: weight j           high nibble: weight j + 16
#   qh bit i   the fifth, highest bit of weight i
#              +---------+---------+--------+----------+
#   Q5_1       | d  f16  | m  f16  | qh u32 | qs[16]   |   x = d·q + m   24 bytes
#              +---------+---------+--------+----------+
_QS = ("qs", "u1", (16,))
BLOCKS: dict[str, tuple[int, np.dtype]] = {
    # type: (weights in a block, the C struct)                             x =           bytes
    "F32": (1, np.dtype("<f4")),  #                                        x              4
    "F16": (1, np.dtype("<f2")),  #                                        x              2
    "BF16": (1, np.dtype("<u2")),  #       the upper half of a float32     x              2
    "Q4_0": (32, np.dtype([("d", "<f2"), _QS])),  #                        d·(q − 8)     18
    "Q4_1": (32, np.dtype([("d", "<f2"), ("m", "<f2"), _QS])),  #          d·q + m       20
    "Q5_0": (32, np.dtype([("d", "<f2"), ("qh", "<u4"), _QS])),  #         d·(q − 16)    22
    "Q5_1": (32, np.dtype([("d", "<f2"), ("m", "<f2"), ("qh", "<u4"), _QS])),  # d·q + m 24
    "Q8_0": (32, np.dtype([("d", "<f2"), ("qs", "i1", (32,))])),  #        d·q           34
}
# Subtracted from a stored code before the scale multiplies it; 0 where the block has a minimum m
# instead.
_MIDDLE = {"Q4_0": 8, "Q5_0": 16, "Q8_0": 128, "Q4_1": 0, "Q5_1": 0}
FLOATS = ("F32", "F16", "BF16")
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


def decode(raw: np.ndarray, type: str) -> np.ndarray:
    """The numbers that raw blocks stand for, bit for bit what ggml's `dequantize_row_*` gives.

    Args:
        raw: (rows, bytes) uint8.
        type: a key of `BLOCKS`.

    Returns:
        (rows, cols) float32.

    Raises:
        ValueError: an unknown type, or rows that are no whole number of blocks.

    Example:
        >>> raw = np.array([[0x00, 0x3C] + [255] * 32], np.uint8)      # d = 1, every int8 = -1
        >>> decode(raw, "Q8_0")[0, :3].tolist()
        [-1.0, -1.0, -1.0]
    """
    blocks = _blocks(raw, type)
    if type in ("F32", "F16"):
        return blocks.astype(np.float32)
    if type == "BF16":
        return (blocks.astype(np.uint32) << 16).view(np.float32)
    # d has 11 bits and q at most 8, so d·q is exact in float32 and only the addition of m rounds.
    q = _codes(blocks, type).astype(np.float32) - np.float32(_MIDDLE[type])
    x = blocks["d"].astype(np.float32)[..., None] * q  # (rows, blocks, size)
    if "m" in (blocks.dtype.names or ()):
        x += blocks["m"].astype(np.float32)[..., None]
    return x.reshape(len(raw), -1)


def to_qtensor(raw: np.ndarray, type: str) -> QTensor:
    """The same blocks as a QTensor of `SPECS[type.lower()]`: codes, scales and minima as stored,
    nothing rounded.

    Args:
        raw: (rows, bytes) uint8.
        type: "Q4_0", "Q4_1", "Q5_0", "Q5_1" or "Q8_0".

    Returns:
        a QTensor of (rows, cols) whose `dequantize` equals `decode(raw, type)` bit for bit.

    Raises:
        ValueError: a type that is not made of codes and scales, or is unknown.

    Example:
        >>> raw = np.array([[0x00, 0x3C] + [255] * 32], np.uint8)
        >>> to_qtensor(raw, "Q8_0").codes[0, 0]                # int8 −1 is code 127 = 255 ^ 128
        Array(127, dtype=uint8)
    """
    if type not in _MIDDLE:
        raise ValueError(f"type {type!r} is no QTensor; one of {', '.join(_MIDDLE)} is")
    blocks = _blocks(raw, type)
    offset = jnp.asarray(blocks["m"]) if "m" in (blocks.dtype.names or ()) else None
    return QTensor(
        codes=jnp.asarray(_codes(blocks, type).reshape(len(raw), -1)),
        scale=jnp.asarray(blocks["d"]),
        zero=None,
        offset=offset,
        perm=None,
        channel_scale=None,
        spec=SPECS[type.lower()],
    )


def _blocks(raw: np.ndarray, type: str) -> np.ndarray:
    """(rows, bytes) uint8 seen as (rows, blocks) of the type's struct."""
    if type not in BLOCKS:
        raise ValueError(f"block type {type!r} is unknown; known are {', '.join(BLOCKS)}")
    block = BLOCKS[type][1]
    if raw.dtype != np.uint8 or raw.ndim != 2:
        raise ValueError(f"raw blocks are uint8 (rows, bytes), not {raw.dtype} {raw.shape}")
    if raw.shape[1] % block.itemsize:
        raise ValueError(f"{raw.shape[1]} bytes a row are no multiple of {type}'s {block.itemsize}")
    return np.ascontiguousarray(raw).view(block)


def _codes(blocks: np.ndarray, type: str) -> np.ndarray:
    """Stored codes of every weight, (rows, blocks, 32) uint8; a two's-complement int8 becomes int8
    + 128.
    """
    if type == "Q8_0":
        return blocks["qs"].view(np.uint8) ^ np.uint8(128)
    q = np.concatenate([blocks["qs"] & 15, blocks["qs"] >> 4], axis=-1)
    if type in ("Q5_0", "Q5_1"):
        high = blocks["qh"][..., None] >> np.arange(32, dtype=np.uint32) & 1
        q |= (high << 4).astype(np.uint8)
    return q
