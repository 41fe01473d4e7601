"""The metadata of a GGUF file: named values of eleven kinds of scalar, texts, and arrays of either.

A `Value` is its bytes and the number of its type, so that a value read from one file and written to
another stays the same bit for bit, and so that a large array costs nothing until it is looked at.
Not here: the file around them (`gguf`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from qlab.suggest import near

# How a metadata value is stored: the number of its type, and struct's letter for one.
_STRUCT = {
    "u8": (0, "<B"), "i8": (1, "<b"), "u16": (2, "<H"), "i16": (3, "<h"), "u32": (4, "<I"),
    "i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<?"), "u64": (10, "<Q"), "i64": (11, "<q"),
    "f64": (12, "<d"),
}  # fmt: skip
SCALARS = {number: (code, struct.calcsize(code)) for number, code in _STRUCT.values()}
TEXT, ARRAY, BOOL = 8, 9, 7
WORDS = {number: word for word, (number, _) in _STRUCT.items()} | {TEXT: "str", ARRAY: "array"}
_NUMBERS = {word: number for number, word in WORDS.items()}
LEAST = {TEXT: 8, ARRAY: 12}  # bytes of an empty text, of an empty array
DEPTH = 4  # arrays within arrays


class Value:
    r"""One metadata value as its bytes lie in a file, so that copying it changes nothing.

    Attributes:
        kind: "u8" … "u64", "i8" … "i64", "f32", "f64", "bool", "str", or of what an array is:
            "[str]", "[[i32]]".
        value: the same as Python has it: a number, a text, a list.
        raw: the bytes.
        number: of its type, as a file has it.
        at, end: where the bytes lie in the file it came from.

    Example:
        >>> one = Value.of("u32", 7)
        >>> one.kind, one.value, one.raw
        ('u32', 7, b'\x07\x00\x00\x00')
        >>> Value.of("[str]", ["a", ""]).value
        ['a', '']
    """

    __slots__ = ("_data", "at", "end", "number")

    def __init__(self, number: int, data: Any, at: int, end: int):
        self.number, self._data, self.at, self.end = number, data, at, end

    @staticmethod
    def of(kind: str, value: Any) -> Value:
        """A value of a kind.

        Raises:
            ValueError: an unknown kind, or a value that it cannot hold.
        """
        inner = kind
        while inner.startswith("[") and inner.endswith("]"):
            inner = inner[1:-1]
        if inner not in _NUMBERS or inner == "array":
            known = [word for word in _NUMBERS if word != "array"]
            raise ValueError(f"no metadata value is a {kind!r}; {near(inner, known)}")
        try:
            raw = pack(kind, value)
        except (struct.error, TypeError, AttributeError, OverflowError, UnicodeError):
            raise ValueError(f"{value!r:.60} is no {kind}") from None
        return Value(ARRAY if kind.startswith("[") else _NUMBERS[kind], raw, 0, len(raw))

    @staticmethod
    def guess(value: Any) -> Value:
        """A value of the kind that files use for its Python type: int u32 (below zero i32, above
        2³² i64), float f32, bool, str; of lists alike, integers i32.

        Raises:
            ValueError: of no such type, or an empty list, whose kind is unknown.
        """
        if isinstance(value, Value):
            return value
        if isinstance(value, np.generic | np.ndarray):
            value = value.tolist()
        if isinstance(value, list | tuple):
            if not value:
                raise ValueError("of what an empty list is cannot be guessed: give Value.of('[…]')")
            return Value.of(f"[{_guessed(value[0], 'i32')}]", value)
        return Value.of(_guessed(value, "u32"), value)

    @property
    def kind(self) -> str:
        """What it is, in a word."""
        word, at = WORDS[self.number], self.at
        depth = 0
        while word == "array":
            word, at, depth = WORDS[unpack("<I", self._data, at)], at + 12, depth + 1
            if word == "array" and at >= self.end:
                break  # an empty array of arrays says no more
        return "[" * depth + word + "]" * depth

    @property
    def value(self) -> Any:
        """What it is for Python."""
        return _decoded(self._data, self.number, self.at)[0]

    @property
    def raw(self) -> bytes:
        """Its bytes."""
        return bytes(self._data[self.at : self.end])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value) and self.number == other.number and self.raw == other.raw

    def __hash__(self) -> int:
        return hash((self.number, self.raw))

    def __repr__(self) -> str:
        return f"Value.of({self.kind!r}, {self.value!r:.60})"


class Metadata(Mapping):
    """Values by key as Python has them, decoded when they are looked at.

    Example:
        >>> Metadata({"general.name": Value.of("str", "tiny")})["general.name"]
        'tiny'
    """

    def __init__(self, values: Mapping[str, Value]):
        self.values_by_key = values

    def __getitem__(self, key: str) -> Any:
        return self.values_by_key[key].value

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_key)

    def __len__(self) -> int:
        return len(self.values_by_key)


def _guessed(value: Any, integer: str) -> str:
    for kind, python in (("bool", bool), ("str", str), ("f32", float)):
        if isinstance(value, python):
            return kind
    if isinstance(value, int):
        low, high = (-(1 << 31), 1 << 31) if integer == "i32" else (0, 1 << 32)
        return integer if low <= value < high else "i32" if -(1 << 31) <= value < 0 else "i64"
    raise ValueError(f"{value!r:.60} is no metadata value: it is a {type(value).__name__}")


def pack(kind: str, value: Any) -> bytes:
    """A value's bytes in a file."""
    if not kind.startswith("["):
        if kind == "str":
            text = value.encode("utf-8")
            return struct.pack("<Q", len(text)) + text
        if kind == "bool" and not isinstance(value, bool | np.bool_):
            raise TypeError
        return struct.pack(_STRUCT[kind][1], value)
    inner = kind[1:-1]
    if isinstance(value, str | bytes):
        raise TypeError
    number = ARRAY if inner.startswith("[") else _NUMBERS[inner]
    parts = [pack(inner, one) for one in value]
    return struct.pack("<IQ", number, len(parts)) + b"".join(parts)


def unpack(code: str, data: Any, at: int) -> Any:
    """One scalar by struct's letter."""
    return struct.unpack_from(code, data, at)[0]


def _decoded(data: Any, number: int, at: int) -> tuple[Any, int]:
    """The value at a place that was checked before, and where it ends."""
    if number in SCALARS:
        code, size = SCALARS[number]
        return unpack(code, data, at), at + size
    if number == TEXT:
        end = at + 8 + unpack("<Q", data, at)
        return bytes(data[at + 8 : end]).decode("utf-8"), end
    inner, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if inner in SCALARS:
        code, size = SCALARS[inner]
        return np.frombuffer(data, code, count, at).tolist() if count else [], at + count * size
    found = []
    for _ in range(count):
        one, at = _decoded(data, inner, at)
        found.append(one)
    return found, at
