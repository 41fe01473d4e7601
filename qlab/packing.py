"""Codes to dense bytes and back: what a tensor takes on disk.

Integers of b bits form one little-endian bit stream: code i occupies bits b·i … b·i + b − 1. Trits
at 1.625 bits go five to a byte, Σ 3ʲ·cⱼ, in blocks of 256 that take 52 bytes. Element orders of
other people's files live in `io`.
"""

from __future__ import annotations

import math

import numpy as np

from qlab.formats import Format

_TRITS = 3 ** np.arange(5)  # the place values of a byte
_BLOCK, _BYTES = 256, 52  # 51 bytes of five trits and one of a single trit


def packed_size(count: int, format: Format) -> int:
    """Bytes that `count` codes take.

    Example:
        >>> from qlab.formats import INT3
        >>> packed_size(10, INT3)
        4
    """
    if format.bits == 1.625:
        return -(-count // _BLOCK) * _BYTES
    return math.ceil(count * format.bits / 8)


def pack(codes: np.ndarray, format: Format) -> np.ndarray:
    """Codes as dense bytes.

    Args:
        codes: uint8 of any shape; taken in row-major order.
        format: their Format.

    Returns:
        (packed_size,) uint8.

    Raises:
        ValueError: if a code is not below the number of codes of the format.

    Example:
        >>> from qlab.formats import INT4
        >>> pack(np.array([1, 2, 15], np.uint8), INT4).tolist()
        [33, 15]
    """
    flat = np.asarray(codes, np.uint8).reshape(-1)
    if flat.size and int(flat.max()) >= len(format.grid):
        raise ValueError(f"code {int(flat.max())} is not below the {len(format.grid)} of {format}")
    if format.bits == 8:
        return flat.copy()
    if format.bits == 1.625:
        blocks = np.zeros((-(-flat.size // _BLOCK), 5 * _BYTES), np.uint8)
        blocks[:, :_BLOCK] = np.pad(flat, (0, -flat.size % _BLOCK)).reshape(-1, _BLOCK)
        return (blocks.reshape(-1, 5) @ _TRITS).astype(np.uint8)
    bits = np.unpackbits(flat[:, None], axis=1, count=int(format.bits), bitorder="little")
    return np.packbits(bits.reshape(-1), bitorder="little")


def unpack(data: np.ndarray, format: Format, shape: tuple[int, ...]) -> np.ndarray:
    """The codes again, uint8 of `shape`.

    Raises:
        ValueError: if `data` is not as long as the shape needs (both numbers), or holds a code that
            the format lacks.

    Example:
        >>> from qlab.formats import INT4
        >>> unpack(np.array([33, 15], np.uint8), INT4, (3,)).tolist()
        [1, 2, 15]
    """
    data, count = np.asarray(data, np.uint8).reshape(-1), math.prod(shape)
    if data.size != packed_size(count, format):
        raise ValueError(
            f"{count} codes of {format} take {packed_size(count, format)} bytes, not {data.size}"
        )
    if format.bits == 8:
        codes = data.copy()
    elif format.bits == 1.625:
        codes = (data[:, None] // _TRITS % 3).astype(np.uint8).reshape(-1, 5 * _BYTES)
        codes = codes[:, :_BLOCK].reshape(-1)[:count]
    else:
        width = int(format.bits)
        bits = np.unpackbits(data, count=count * width, bitorder="little").reshape(-1, width)
        codes = np.packbits(bits, axis=1, bitorder="little").reshape(-1)
    if codes.size and int(codes.max()) >= len(format.grid):
        raise ValueError(f"code {int(codes.max())} is not below the {len(format.grid)} of {format}")
    return codes.reshape(shape)
