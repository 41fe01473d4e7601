"""GGUF, llama.cpp's file: a header of named values, a list of tensors, then their blocks.

`read` maps a file and trusts nothing in it: what is damaged ends in a ValueError that says at which
byte. `write` puts one together, tensor by tensor. What a block holds is `io.ggml`'s: `decode`,
`encode`, `to_qtensor`, `from_qtensor` are found here too. File format: ggml/docs/gguf.md. Not here:
which tensor belongs where in a model.
"""

from __future__ import annotations

import dataclasses
import math
import mmap
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qlab.io.atomic import atomic_file
from qlab.io.ggml import BLOCKS, FLOATS, TYPE_SPECS, decode, encode, from_qtensor, to_qtensor
from qlab.io.gguf_values import (
    ARRAY,
    BOOL,
    DEPTH,
    LEAST,
    SCALARS,
    TEXT,
    WORDS,
    Metadata,
    Value,
    pack,
    unpack,
)
from qlab.suggest import near

__all__ = [
    "ALIGNMENT",
    "BLOCKS",
    "FLOATS",
    "File",
    "TYPES",
    "TYPE_SPECS",
    "Tensor",
    "decode",
    "encode",
    "from_qtensor",
    "read",
    "row_bytes",
    "to_qtensor",
    "write",
]

# Every type that a file may hold: its number (enum ggml_type of ggml.h), weights in a block, bytes
# of a block. Types that are not in BLOCKS are mapped, sized and copied, but not decoded.
TYPES: dict[str, tuple[int, int, int]] = {
    "F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "F64": (28, 1, 8),
    "I8": (24, 1, 1), "I16": (25, 1, 2), "I32": (26, 1, 4), "I64": (27, 1, 8),
    "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22), "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34), "Q8_1": (9, 32, 40), "Q1_0": (41, 128, 18), "Q2_0": (42, 64, 18),
    "Q2_K": (10, 256, 84), "Q3_K": (11, 256, 110), "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176), "Q6_K": (14, 256, 210), "Q8_K": (15, 256, 292),
    "IQ1_S": (19, 256, 50), "IQ1_M": (29, 256, 56), "IQ2_XXS": (16, 256, 66),
    "IQ2_XS": (17, 256, 74), "IQ2_S": (22, 256, 82), "IQ3_XXS": (18, 256, 98),
    "IQ3_S": (21, 256, 110), "IQ4_NL": (20, 32, 18), "IQ4_XS": (23, 256, 136),
    "TQ1_0": (34, 256, 54), "TQ2_0": (35, 256, 66), "MXFP4": (39, 32, 17), "NVFP4": (40, 64, 36),
}  # fmt: skip
_TYPE_IDS = {number: name for name, (number, _, _) in TYPES.items()}

MOST = 65_536  # values and tensors of a file: each costs memory beyond its bytes
LONGEST = 63  # bytes of a tensor's name (GGML_MAX_NAME counts the closing zero)
ALIGNMENT = "general.alignment"


# ---- reading -------------------------------------------------------------------------------------


class Tensor:
    """One tensor of a file.

    Attributes:
        name, type: as the file has them; `type` is a key of `TYPES`.
        shape: ends with the columns.
        raw: (rows, bytes) uint8, a view of the memory map.
    """

    __slots__ = ("_at", "_data", "name", "shape", "type")

    def __init__(self, name: str, type: str, shape: tuple[int, ...], data: Any, at: int = 0):
        self.name, self.type, self.shape, self._data, self._at = name, type, shape, data, at

    @property
    def raw(self) -> np.ndarray:
        rows, row = math.prod(self.shape[:-1]), row_bytes(self.type, self.shape[-1])
        return np.frombuffer(self._data, np.uint8, rows * row, self._at).reshape(rows, row)

    def decode(self) -> np.ndarray:
        """The float32 numbers, in `shape`.

        Raises:
            ValueError: of a type that is not decoded here, by name.
        """
        if self.type not in BLOCKS:
            raise ValueError(
                f"tensor {self.name!r:.80} has type {self.type}; decoded are {', '.join(BLOCKS)}"
            )
        return decode(self.raw, self.type).reshape(self.shape)

    def __repr__(self) -> str:
        return f"Tensor({self.name!r}, {self.type}, {self.shape})"


def row_bytes(type: str, columns: int) -> int:
    """Bytes of a row of `columns` weights.

    Raises:
        ValueError: an unknown type, or columns that are no whole number of its blocks.

    Example:
        >>> row_bytes("Q4_K", 512)
        288
    """
    if type not in TYPES:
        raise ValueError(f"no ggml type is called {type!r}; {near(type, TYPES)}")
    _, size, stored = TYPES[type]
    if columns % size:
        raise ValueError(f"{columns} columns are no multiple of {type}'s {size}")
    return columns // size * stored


@dataclasses.dataclass(frozen=True)
class File:
    """What `read` found.

    Attributes:
        values: metadata by key, as stored.
        tensors: by name, in the order of the file's list.
        alignment: tensors begin at multiples of it.
    """

    values: dict[str, Value]
    tensors: dict[str, Tensor]
    alignment: int = 32

    @property
    def metadata(self) -> Metadata:
        """Metadata by key, as Python values."""
        return Metadata(self.values)


def read(path: str | os.PathLike) -> File:
    """Reads the header of a GGUF file and maps its tensors; no weight is touched until asked for.

    Every count, length and offset is held against the bytes that are there before anything is
    allocated or walked, and nothing is copied but keys and names.

    Args:
        path: a GGUF file, version 2 or 3, little-endian.

    Raises:
        ValueError: the file is not GGUF, ends before what its header promises, or contradicts
            itself; the sentence names the byte.

    Example:
        >>> file = read("model.gguf")   # doctest: +SKIP
        >>> file.tensors["blk.0.attn_q.weight"].type   # doctest: +SKIP
        'Q4_1'
    """
    path = Path(path)
    size = path.stat().st_size
    if size < 24:
        raise ValueError(f"{path} is no GGUF file: it ends at byte {size}, a header at 24")
    with open(path, "rb") as handle:
        data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = _Cursor(data, path)
    if data[:4] != b"GGUF":
        raise ValueError(f"{path} is no GGUF file: at byte 0 stands {data[:4]!r}, not b'GGUF'")
    cursor.at = 4
    version = cursor.scalar("<I")
    if version not in (2, 3):
        big = ", big-endian" if int.from_bytes(data[4:8], "big") in (2, 3) else ""
        raise cursor.wrong(f"GGUF version {version}{big}; little-endian 2 and 3 are read", 4)
    n_tensors, n_values = cursor.scalar("<Q"), cursor.scalar("<Q")
    cursor.bounded(n_values, 14, "values", 16)
    cursor.bounded(n_tensors, 24, "tensors", 8)
    values = _values(cursor, n_values)
    alignment = _alignment(cursor, values)
    return File(values, _tensors(cursor, n_tensors, alignment), alignment)


def _values(cursor: _Cursor, count: int) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for _ in range(count):
        at = cursor.at
        key = cursor.text("a key")
        if not key or key in values:
            said = f"the key {key!r:.80} stands there twice" if key else "a key is empty"
            raise cursor.wrong(said, at)
        number, start = cursor.scalar("<I"), cursor.at
        cursor.skip(number)
        values[key] = Value(number, cursor.data, start, cursor.at)
    return values


def _alignment(cursor: _Cursor, values: Mapping[str, Value]) -> int:
    if ALIGNMENT not in values:
        return 32
    value = values[ALIGNMENT]
    found = value.value if value.kind == "u32" else 0
    if found == 0 or found & (found - 1):
        said = f"{ALIGNMENT} is {value.kind} {found}, not a power of two in a u32"
        raise cursor.wrong(said, value.at)
    return found


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, Tensor]:
    """Every entry of the tensor list, held against the file's size and against each other."""
    found: dict[str, Tensor] = {}
    places = []  # (offset, bytes, entry's byte, tensor)
    for _ in range(count):
        at = cursor.at
        tensor, offset, size = _entry(cursor, at)
        if tensor.name in found:
            raise cursor.wrong(f"two tensors are named {tensor.name!r:.80}", at)
        if offset % alignment:
            said = f"tensor {tensor.name!r:.80} begins at {offset}, no multiple of {alignment}"
            raise cursor.wrong(said, at)
        found[tensor.name] = tensor
        places.append((offset, size, at, tensor))
    start, end = -(-cursor.at // alignment) * alignment, 0
    last = None
    for offset, size, at, tensor in sorted(places, key=lambda place: place[:2]):
        if last is not None and offset < end:
            said = f"tensors {last.name!r:.80} and {tensor.name!r:.80} overlap"
            raise cursor.wrong(said, at)
        cursor.need(size, f"tensor {tensor.name!r:.80}", start + offset)
        tensor._at, end, last = start + offset, offset + size, tensor
    return found


def _entry(cursor: _Cursor, at: int) -> tuple[Tensor, int, int]:
    """One entry of the tensor list: the tensor, its offset, its bytes."""
    name, n_axes = cursor.text("a tensor's name"), cursor.scalar("<I")
    said = f"tensor {name!r:.80}"
    if n_axes > 4:
        raise cursor.wrong(f"{said} has {n_axes} axes; ggml has 4 at most", at)
    axes = [cursor.scalar("<Q") for _ in range(n_axes)] or [1]  # columns come first
    number, offset = cursor.scalar("<I"), cursor.scalar("<Q")
    if 0 in axes:
        raise cursor.wrong(f"{said} has an axis of 0 in {tuple(axes[::-1])}", at)
    if number not in _TYPE_IDS:
        raise cursor.wrong(f"{said} is of type number {number}, which ggml does not have", at)
    shape, kind = tuple(axes[::-1]), _TYPE_IDS[number]
    try:
        row = row_bytes(kind, shape[-1])
    except ValueError as error:
        raise cursor.wrong(f"{said}: {error}", at) from None
    # Python integers: a hostile header cannot overflow them.
    return Tensor(name, kind, shape, cursor.data), offset, math.prod(shape[:-1]) * row


class _Cursor:
    """Reads forward through mapped bytes and refuses to pass their end."""

    def __init__(self, data: Any, path: Path):
        self.data, self.path, self.at, self.size = data, path, 0, len(data)

    def wrong(self, said: str, at: int) -> ValueError:
        return ValueError(f"{self.path}: {said} (byte {at})")

    def need(self, count: int, what: str, at: int | None = None) -> None:
        start = self.at if at is None else at
        if start + count > self.size:
            raise ValueError(
                f"{self.path} is truncated or damaged: {what} at byte {start} ends at byte "
                f"{start + count}, the file at {self.size}; fetch it again"
            )

    def bounded(self, count: int, least: int, what: str, at: int) -> None:
        """A count held against the bytes that so many would take at least."""
        if count > MOST:
            raise self.wrong(f"{count} {what}; files have {MOST} at most", at)
        self.need(count * least, f"a list of {count} {what}")

    def scalar(self, code: str) -> Any:
        self.need(struct.calcsize(code), "a number")
        self.at += struct.calcsize(code)
        return unpack(code, self.data, self.at - struct.calcsize(code))

    def text(self, what: str = "a text") -> str:
        start = self.at
        length = self.scalar("<Q")
        self.need(length, what)
        self.at += length
        try:
            return str(self.data[start + 8 : self.at], "utf-8")
        except UnicodeDecodeError as error:
            raise self.wrong(f"{what} is not UTF-8", start + 8 + error.start) from None

    def skip(self, number: int, depth: int = 0) -> None:
        """Walks over a value of a type and checks it on the way; nothing of it is kept."""
        if number in SCALARS:
            self._bools(number, self.at, 1)
            self.at += SCALARS[number][1]
        elif number == TEXT:
            self.text()
        elif number == ARRAY:
            self._skip_array(depth)
        else:
            raise self.wrong(f"no metadata value is of type number {number}", self.at - 4)

    def _skip_array(self, depth: int) -> None:
        start = self.at
        inner, count = self.scalar("<I"), self.scalar("<Q")
        if depth == DEPTH:
            raise self.wrong(f"arrays lie more than {DEPTH} deep", start)
        if inner in SCALARS:
            self._bools(inner, self.at, count)
            self.at += count * SCALARS[inner][1]
        elif inner in LEAST:
            self.need(count * LEAST[inner], f"an array of {count}")
            for _ in range(count):
                self.skip(inner, depth + 1)
        else:
            raise self.wrong(f"no array is of type number {inner}", start)

    def _bools(self, number: int, at: int, count: int) -> None:
        """So many scalars are there, and booleans are 0 or 1."""
        word = WORDS[number] if count == 1 else f"an array of {count}"
        self.need(count * SCALARS[number][1], word)
        if number == BOOL and count and np.frombuffer(self.data, np.uint8, count, at).max() > 1:
            raise self.wrong("a bool is neither 0 nor 1", at)


# ---- writing -------------------------------------------------------------------------------------

Data = np.ndarray | bytes | Callable[[], "np.ndarray | bytes"]


def write(
    path: str | os.PathLike,
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, str, tuple[int, ...], Data]],
    alignment: int | None = None,
    *,
    overwrite: bool = False,
) -> Path:
    """Writes a GGUF file, version 3. It appears whole or not at all.

    Args:
        path: the file.
        metadata: by key, in order: `Value`s, or Python values whose kind is guessed
            (`Value.guess`).
        tensors: (name, type, shape, data) each; `shape` ends with the columns; `data` are the
            tensor's bytes in file order, (rows, bytes) or flat, or a function that makes them: it
            is called when their turn comes, so that only one tensor lives in memory.
        alignment: tensors begin at its multiples; None: what `metadata` says, else 32.
        overwrite: replace a file that is there.

    Returns:
        the path.

    Raises:
        ValueError: the file exists; a name is taken twice, empty or longer than ggml's 63 bytes; a
            shape does not fit the type; data of another size; an alignment that is no power of two
            or contradicts the metadata.

    Example:
        >>> w = np.ones((2, 4), np.float32)
        >>> tensor = ("w", "F32", (2, 4), w)
        >>> write("w.gguf", {"general.name": "ones"}, [tensor])   # doctest: +SKIP
    """
    values = {key: Value.guess(value) for key, value in metadata.items()}
    alignment = _alignment_of(values, alignment)
    entries = [_checked(*entry) for entry in tensors]
    header = _header(values, entries, alignment)
    with atomic_file(path, overwrite) as sink:
        sink.write(header)
        sink.write(bytes(-len(header) % alignment))
        for name, _, _, size, data in entries:
            sink.write(_bytes(name, size, data() if callable(data) else data))
            sink.write(bytes(-size % alignment))
    return Path(path)


def _header(values: dict[str, Value], entries: list[tuple], alignment: int) -> bytes:
    """All that stands before the first tensor."""
    header = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(entries), len(values)))
    for key, value in values.items():
        header += pack("str", key) + struct.pack("<I", value.number) + value.raw
    offset, seen = 0, set()
    for name, kind, shape, size, _ in entries:
        if name in seen:
            raise ValueError(f"two tensors are named {name!r}")
        seen.add(name)
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        header += pack("str", name) + axes + struct.pack("<IQ", TYPES[kind][0], offset)
        offset += size + -size % alignment
    return bytes(header)


def _alignment_of(values: dict[str, Value], given: int | None) -> int:
    """The alignment of a file to write, which its metadata then tell unless it is 32."""
    told = values[ALIGNMENT].value if ALIGNMENT in values else None
    alignment = given or told or 32
    if told not in (None, alignment):
        raise ValueError(f"alignment={given}, but {ALIGNMENT} in the metadata is {told}")
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"alignment={alignment!r} is no power of two")
    if told is None and alignment != 32:
        values[ALIGNMENT] = Value.of("u32", alignment)
    return alignment


def _checked(name: str, kind: str, shape: Iterable[int], data: Data) -> tuple:
    """An entry of the tensor list with its bytes counted."""
    length, shape = len(name.encode("utf-8")), tuple(int(n) for n in shape)
    if not 0 < length <= LONGEST:
        raise ValueError(f"a tensor's name has 1 to {LONGEST} bytes, {name!r:.80} has {length}")
    if not 0 < len(shape) <= 4 or min(shape) < 1:
        raise ValueError(f"tensor {name!r} has shape {shape}; ggml takes 1 to 4 axes above 0")
    try:
        size = math.prod(shape[:-1]) * row_bytes(kind, shape[-1])
    except ValueError as error:
        raise ValueError(f"tensor {name!r}: {error}") from None
    return name, kind, shape, size, data


def _bytes(name: str, size: int, data: Any) -> memoryview:
    """The bytes of a tensor, as many as its shape says."""
    found = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else np.asarray(data)
    if found.nbytes != size:
        raise ValueError(f"tensor {name!r} has {found.nbytes} bytes of data, its shape {size}")
    return np.ascontiguousarray(found).reshape(-1).view(np.uint8).data
