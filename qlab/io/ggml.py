"""ggml's blocks: bytes <-> codes and scales <-> numbers.

`decode` gives the numbers of raw blocks, bit for bit those of ggml's dequantize_row_*; `to_qtensor`
and `from_qtensor` move codes between blocks and a `QTensor`, nothing rounded; `encode` fills blocks
as ggml does (`methods.kquants`). The codebook types IQ1_* to IQ3_* are only read, with the tables
of the package gguf. Not here: where the bytes lie (`io.ggml_layouts`), files (`io.gguf`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlab.formats import E8M0, FP4, TERNARY, TERNARY2, UE4M3, Format
from qlab.io.ggml_layouts import LAYOUTS, Layout, Place
from qlab.methods.kquants import encoded
from qlab.methods.kquants_blocks import Parts
from qlab.qtensor import QTensor, Spec
from qlab.specs import SPECS, name_of
from qlab.suggest import near

BLOCKS: dict[str, tuple[int, np.dtype]] = {n: (x.size, x.block) for n, x in LAYOUTS.items()}
FLOATS = ("F32", "F16", "BF16")
# Type -> the Spec whose container it is; floats and codebooks are none.
TYPE_SPECS = {n: SPECS[x.spec or n.lower()] for n, x in LAYOUTS.items() if x.codes}
_CHUNK = 1 << 16  # weights decoded at a time: what lies between stays in cache


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
    blocks, layout = _blocks(raw, type), LAYOUTS[type]
    if type in ("F32", "F16"):
        return blocks.astype(np.float32)
    if type == "BF16":
        return (blocks.astype(np.uint32) << 16).view(np.float32)
    if not layout.codes:
        return _from_codebook(raw, type)
    blocks = blocks.reshape(-1)
    out = np.empty((len(blocks), layout.size), np.float32)
    step = max(_CHUNK // layout.size, 1)
    for start in range(0, len(blocks), step):
        _numbers(blocks[start : start + step], layout, TYPE_SPECS[type], out[start : start + step])
    return out.reshape(len(raw), -1)


def _numbers(blocks: np.ndarray, layout: Layout, spec: Spec, out: np.ndarray) -> None:
    """out = (d·s)·value[q] + m, or − dmin·t; in ggml's order, so every step rounds as there."""
    step = np.ones((len(blocks), 1), np.float32)
    if layout.d is not None:
        step = blocks[layout.d].astype(np.float32)[:, None]
    if layout.scales:
        step = step * _values(_read(blocks, layout.scales), _format(spec.scale))
    _values(_read(blocks, layout.codes), spec.format, out)
    parts = out.reshape(*step.shape, -1)  # (blocks, sub-blocks, weights of one)
    parts *= step[..., None]
    if layout.m is not None:
        shift = blocks[layout.m].astype(np.float32)[:, None]
        if layout.minima:
            shift = -shift * _values(_read(blocks, layout.minima), _format(spec.offset))
        parts += shift[..., None]


def _format(how: Any) -> Format:
    return how.format if isinstance(how, Spec) else how


def _values(codes: np.ndarray, format: Format, out: np.ndarray | None = None) -> np.ndarray:
    """What codes stand for, float32; of FP4 the double and of its scales the half, as in ggml."""
    if format.is_integer or format in (TERNARY, TERNARY2):  # 2 bits may also hold 3, which is 2
        if out is None:
            out = np.empty(codes.shape, np.float32)
        np.copyto(out, codes)
        out += np.float32(format.min)
        return out
    return np.take(_table(format), codes, out=out, mode="clip")


@functools.cache
def _table(format: Format) -> np.ndarray:
    code = np.arange(256, dtype=np.uint32)
    if format == FP4:
        return 2 * format.grid + 0.0  # code 8 is +0 here
    if format == E8M0:  # 2^(e − 128), two of them subnormal; 255 is a number
        bits = np.where(code < 2, 0x200000 << np.minimum(code, 1), (code - 1) << 23)
        return bits.astype(np.uint32).view(np.float32)
    if format == UE4M3:  # the sign is not read, and 127 is 0
        exponent, mantissa = (code >> 3 & 15).astype(np.float32), code & 7
        small, normal = mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        value = np.where(exponent == 0, small, normal) / 2
        return np.where(code == 127, 0, value).astype(np.float32)
    return format.grid


def _from_codebook(raw: np.ndarray, type: str) -> np.ndarray:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    return dequantize(np.ascontiguousarray(raw), GGMLQuantizationType[type])


def to_qtensor(raw: np.ndarray, type: str) -> QTensor:
    """The same blocks as a QTensor: codes, scales and minima as stored, nothing rounded.

    Args:
        raw: (rows, bytes) uint8.
        type: a key of `TYPE_SPECS`: the blocks of codes and scales.

    Returns:
        a QTensor of (rows, cols) and TYPE_SPECS[type] whose `dequantize` equals `decode(raw, type)`
        (where no scale is subnormal, which XLA reads as 0).

    Raises:
        ValueError: a type that is not made of codes and scales, or is unknown; TQ2_0 with a code
            that is no trit.

    Example:
        >>> raw = np.array([[0x00, 0x3C] + [255] * 32], np.uint8)
        >>> to_qtensor(raw, "Q8_0").codes[0, 0]                # int8 −1 is code 127 = 255 ^ 128
        Array(127, dtype=uint8)
    """
    if type in BLOCKS and type not in TYPE_SPECS:
        raise ValueError(f"type {type!r} is no QTensor; one of {', '.join(TYPE_SPECS)} is")
    blocks = _blocks(raw, type).reshape(-1)
    layout, spec = LAYOUTS[type], TYPE_SPECS[type]
    codes = _read(blocks, layout.codes)
    if codes.max(initial=0) >= len(spec.format.grid):
        raise ValueError(f"{type} holds code {codes.max()}; {spec.format} ends at 2")
    shape = (len(raw), -1)
    d = None if layout.d is None else jnp.asarray(blocks[layout.d])
    m = None if layout.m is None else jnp.asarray(blocks[layout.m])
    if m is not None and layout.minima:
        m = -m  # a block stores dmin, which is subtracted; a QTensor's offset is added
    return QTensor(
        codes=jnp.asarray(codes.reshape(shape)),
        scale=_nested(blocks, layout.scales, d, spec.scale, shape),
        zero=None,
        offset=_nested(blocks, layout.minima, m, spec.offset, shape),
        spec=spec,
    )


def _nested(
    blocks: np.ndarray, places: tuple[Place, ...], d: jax.Array | None, how: Any, shape: tuple
) -> Any:
    """Scales or minima of a QTensor: one number a block, or codes flat under them."""
    if not places:
        return None if d is None else d.reshape(shape)
    how = Spec(how, scale=None) if isinstance(how, Format) else how
    return QTensor(jnp.asarray(_read(blocks, places).reshape(-1)), d, None, None, spec=how)


def from_qtensor(q: QTensor, type: str) -> np.ndarray:
    """The reverse of `to_qtensor`: a QTensor's codes and scales as ggml's bytes, nothing rounded.

    Args:
        q: a QTensor of TYPE_SPECS[type], (rows, cols), whatever method made it.
        type: a key of `TYPE_SPECS`.

    Returns:
        (rows, bytes) uint8.

    Raises:
        ValueError: a type that is no container; a QTensor of another Spec, not a matrix, or with a
            column order or channel scales, for which a block has no place.

    Example:
        >>> raw = np.arange(18, dtype=np.uint8)[None]
        >>> bool((from_qtensor(to_qtensor(raw, "Q4_0"), "Q4_0") == raw).all())
        True
    """
    if type not in TYPE_SPECS:
        raise ValueError(f"type {type!r} holds no QTensor: {near(type, TYPE_SPECS)}")
    layout, spec = LAYOUTS[type], TYPE_SPECS[type]
    if q.spec != spec:
        raise ValueError(f"{type} holds a QTensor of {name_of(spec)}, not of {name_of(q.spec)}")
    if q.codes is None or q.codes.ndim != 2 or q.codes.shape[1] % layout.size:
        raise ValueError(f"{type} holds rows of {layout.size} codes, not a QTensor of {q.shape}")
    if q.perm is not None or q.channel_scale is not None:
        raise ValueError(f"{type} has no place for a column order or channel scales")
    blocks = np.empty(q.codes.size // layout.size, layout.block)
    flat: Any = lambda a: None if a is None else np.asarray(a).reshape(len(blocks), -1)  # noqa: E731
    (d, scales), (m, minima) = (_taken(ranges) for ranges in (q.scale, q.offset))
    parts = Parts(*map(flat, (q.codes, d, m, scales, minima)))
    for field, values in _fields(parts, layout).items():
        blocks[field] = values.reshape(blocks[field].shape)
    return blocks.view(np.uint8).reshape(len(q.codes), -1)


def _taken(ranges: Any) -> tuple[Any, Any]:
    """Numbers and codes of stored scales or minima: the reverse of `_nested`."""
    return (ranges.scale, ranges.codes) if isinstance(ranges, QTensor) else (ranges, None)


def _fields(parts: Parts, layout: Layout) -> dict[str, Any]:
    """The fields of the struct, (blocks, …), from parts of numpy or of jax whose first axis is the
    blocks; dmin is stored without its sign.
    """
    fields: dict[str, Any] = {}
    stored = (layout.codes, parts.codes), (layout.scales, parts.scales)
    for places, codes in (*stored, (layout.minima, parts.minima)):
        for place in places:
            for field, part in place.write(codes).items():
                fields[field] = fields[field] | part if field in fields else part
    for field, numbers in (layout.d, parts.d), (layout.m, parts.m):
        if field is not None and numbers is not None:
            fields[field] = -numbers if field == "dmin" else numbers
    return fields


def encode(w: Any, type: str, importance: Any = None) -> np.ndarray:
    """Weights as ggml's bytes, those that its `ggml_quantize_chunk` writes.

    Args:
        w: (rows, cols) floating point.
        type: a key of `BLOCKS`, but no codebook.
        importance: (cols,) float ≥ 0, mean x² of every input channel (the imatrix); None: the
            weights alone decide. Columns below 10⁻⁶ of the mean are raised to it (`kquants`).

    Returns:
        (rows, bytes) uint8.

    Raises:
        ValueError: an unknown type or a codebook; weights of another shape, columns that the block
            does not divide, NaN or infinity; importance of another length, negative or not finite.

    Example:
        >>> float(decode(encode(np.full((1, 32), 127.0), "Q8_0"), "Q8_0")[0, 0])
        127.0
    """
    if type not in BLOCKS:
        raise ValueError(f"block type {type!r} is unknown: {near(type, BLOCKS)}")
    if type not in TYPE_SPECS and type not in FLOATS:
        written = ", ".join([*FLOATS, *TYPE_SPECS])
        raise ValueError(f"{type} is read, but not written; written are {written}")
    w, size = np.asarray(w), BLOCKS[type][0]
    if w.ndim != 2 or not jnp.issubdtype(w.dtype, jnp.floating):
        raise ValueError(f"weights are floating point (rows, cols), not {w.dtype} {w.shape}")
    if w.shape[1] % size:
        raise ValueError(f"{w.shape[1]} columns are no multiple of {type}'s {size}")
    w = np.ascontiguousarray(w, np.float32)
    if type in FLOATS:
        return _float_bytes(w, type).view(np.uint8).reshape(len(w), -1)
    then = _bytes_of(type)
    blocks, _ = encoded(w, None, TYPE_SPECS[type], importance, saturate=False, then=then)
    return blocks.reshape(len(w), -1)


@functools.cache
def _bytes_of(type: str) -> Callable[[Parts], jax.Array]:
    """What `from_qtensor` does, for `encoded` to do at once: codes become bytes while they are in
    cache. One function a type, so that it compiles once.
    """
    layout = LAYOUTS[type]

    def write(parts: Parts) -> jax.Array:
        # Else XLA works every code out again for each byte that it is part of.
        parts = jax.lax.optimization_barrier(parts)
        blocks = parts.codes.size // layout.size
        fields = _fields(jax.tree.map(lambda a: a.reshape(blocks, -1), parts), layout)
        ordered = (jax.lax.optimization_barrier(fields[name]) for name in layout.block.names or ())
        raw = (jax.lax.bitcast_convert_type(a, jnp.uint8).reshape(blocks, -1) for a in ordered)
        return jnp.concatenate([*raw], axis=1)

    return jax.jit(write)


def _float_bytes(w: np.ndarray, type: str) -> np.ndarray:
    if type == "F32":
        return w
    if type == "F16":
        with np.errstate(over="ignore"):  # beyond half precision is infinity, as in ggml
            return w.astype(np.float16)
    bits = w.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16  # half to even
    return np.where(np.isnan(w), bits >> 16 | 64, rounded).astype(np.uint16)


def _blocks(raw: np.ndarray, type: str) -> np.ndarray:
    """(rows, bytes) uint8 seen as (rows, blocks) of the type's struct."""
    if type not in BLOCKS:
        raise ValueError(f"block type {type!r} is unknown: {near(type, BLOCKS)}")
    block = BLOCKS[type][1]
    if raw.dtype != np.uint8 or raw.ndim != 2:
        raise ValueError(f"raw blocks are uint8 (rows, bytes), not {raw.dtype} {raw.shape}")
    if raw.shape[1] % block.itemsize:
        raise ValueError(f"{raw.shape[1]} bytes a row are no multiple of {type}'s {block.itemsize}")
    return np.ascontiguousarray(raw).view(block)


def _read(blocks: np.ndarray, places: tuple[Place, ...]) -> np.ndarray:
    """Codes, (blocks, elements) uint8: the bits of every place together."""
    return functools.reduce(np.bitwise_or, (place.read(blocks) for place in places))
