"""How ggml lays a block of weights out in bytes: one literal a type, drawn as the C struct it is.

`LAYOUTS[type]` holds the struct and says where in it the codes, the scales and the minima lie; the
same literal reads and writes. Source: ggml, ggml-common.h, and the order of its dequantize_row_*.
The codebook types IQ1_* to IQ3_* have a size only. Not here: what the codes stand for (`io.ggml`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

# ---- where codes lie -----------------------------------------------------------------------------
# A code is cut into slices of `bits` bits, and a byte of a field holds 8 / bits of them. Bytes come
# in runs: the lowest slices of a run's bytes are its first elements, the next higher slices the
# following ones. With 4 bits in runs of 32 (Q4_K):
#
#     byte             0      1    …   31       32   …
#     high nibble   x[32]  x[33]  …  x[63]    x[96]  …
#     low nibble    x[0]   x[1]   …  x[31]    x[64]  …
#
# A run of 1 puts neighbours side by side in one byte: bit i of Q5_0's qh belongs to weight i.


def _namespace(x: Any) -> Any:
    """numpy or jax.numpy, whichever the array is of."""
    return x.__array_namespace__()


@dataclasses.dataclass(frozen=True)
class Slices:
    """`bits` bits of every code, in one field of the block.

    Attributes:
        field: of the struct; of `length` bytes.
        run: bytes of a run.
        bits: 1, 2, 4 or 8.
        shift: the place of these bits in the code.
        flip: bits to turn over: 128 makes a two's-complement int8 the code of INT8.
        only: of the slices of a byte take just this one, 0 the lowest; None: all.
    """

    field: str
    run: int
    bits: int
    shift: int = 0
    flip: int = 0
    only: int | None = None

    def _places(self) -> list[int]:
        """The lowest bit of every slice in a byte."""
        return list(range(0, 8, self.bits)) if self.only is None else [self.bits * self.only]

    def read(self, blocks: np.ndarray) -> np.ndarray:
        """(blocks, elements) uint8, in place of the code."""
        if self.run == self.bits == 1 and not self.flip:
            bits = np.unpackbits(blocks[self.field], axis=-1, bitorder="little")
            return np.left_shift(bits, np.uint8(self.shift), out=bits)
        raw = blocks[self.field].reshape(len(blocks), -1, self.run)
        places, mask = self._places(), np.uint8((1 << self.bits) - 1)
        out = np.empty((len(blocks), raw.shape[1], len(places), self.run), np.uint8)
        for i, place in enumerate(places):
            np.bitwise_and(raw >> np.uint8(place), mask, out=out[:, :, i])
        if self.shift:
            out <<= np.uint8(self.shift)
        if self.flip:
            out ^= np.uint8(self.flip)
        return out.reshape(len(blocks), -1)

    def write(self, codes: Any) -> dict[str, Any]:
        """The reverse, of an array of numpy or jax: bits of other slices stay 0."""
        places = np.array(self._places(), np.uint8)[:, None]
        slots = codes.reshape(len(codes), -1, len(places), self.run)
        slices = (slots ^ self.flip) >> self.shift & (1 << self.bits) - 1
        field = (slices << places).sum(axis=2, dtype=np.uint8)  # no bit twice: a sum is an or
        return {self.field: field.reshape(len(codes), -1)}


@dataclasses.dataclass(frozen=True)
class SixBits:
    """Eight scales and eight minima of six bits in the 12 bytes of Q4_K and Q5_K.

    byte        0 … 3                4 … 7                8 … 11
    bits 7 6    scale 4 … 7: high    min 4 … 7: high      min 4 … 7: low four in bits 7 – 4
    bits 5 – 0  scale 0 … 3          min 0 … 3            scale 4 … 7: low four in bits 3 – 0
    """

    part: int  # 0: the scales, 1: the minima
    field: str = "scales"

    def read(self, blocks: np.ndarray) -> np.ndarray:
        raw = blocks[self.field]
        own = raw[:, 4 * self.part : 4 * self.part + 4]
        low = raw[:, 8:] >> np.uint8(4 * self.part) & 15
        return np.concatenate([own & 63, low | own >> 6 << 4], axis=1)

    def write(self, codes: Any) -> dict[str, Any]:
        own = codes[:, :4] | codes[:, 4:] >> 4 << 6
        low = (codes[:, 4:] & 15) << 4 * self.part
        both = [0 * own, own] if self.part else [own, 0 * own]
        return {self.field: _namespace(codes).concat([*both, low], axis=1)}


@dataclasses.dataclass(frozen=True)
class Trits:
    """Five trits in a byte, first the most significant: byte = ⌈256 · (their number) / 3⁵⌉, so that
    the top of 3·byte is the first trit, and byte · 3 mod 256 brings up the next.

    `parts`: (field, first byte, bytes, trits in each). A run is a part.
    """

    parts: tuple[tuple[str, int, int, int], ...]

    def read(self, blocks: np.ndarray) -> np.ndarray:
        found = []
        for field, start, count, trits in self.parts:
            raw = blocks[field][:, None, start : start + count]
            powers = 3 ** np.arange(trits, dtype=np.uint8)[:, None]
            top = (raw * powers).astype(np.uint16) * 3 >> 8  # the product wraps, as a byte
            found.append(top.astype(np.uint8).reshape(len(blocks), -1))
        return np.concatenate(found, axis=1)

    def write(self, codes: Any) -> dict[str, Any]:
        at, found = 0, {}
        for field, _, count, trits in self.parts:
            part = codes[:, at : at + count * trits].reshape(len(codes), trits, count)
            powers = 3 ** np.arange(4, 4 - trits, -1, dtype=np.uint16)[:, None]
            number = (part.astype(np.uint16) * powers).sum(axis=1, dtype=np.uint16)
            found.setdefault(field, []).append(((number * 256 + 242) // 243).astype(np.uint8))
            at += count * trits
        return {f: _namespace(codes).concat(parts, axis=1) for f, parts in found.items()}


Place = Slices | SixBits | Trits

# ---- the types -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layout:
    """One type of ggml.

    Attributes:
        size: weights in a block.
        block: its C struct, little-endian; numpy's structs have no gaps.
        codes: where the codes lie; nowhere in floats and codebooks.
        scales, minima: the same of the sub-blocks' scales and minima.
        d: the field of the scale, or of the scale of the scales.
        m: the field of the offset ("m", added) or of the scale of the minima ("dmin", subtracted).
        spec: its name in SPECS, where that is another than the type's in small letters.
    """

    size: int
    block: np.dtype
    codes: tuple[Place, ...] = ()
    scales: tuple[Place, ...] = ()
    minima: tuple[Place, ...] = ()
    d: str | None = "d"
    m: str | None = None
    spec: str | None = None


def _struct(*fields: tuple) -> np.dtype:
    """("d", "f2"), ("qs", 16): a dtype, or a count of bytes."""
    return np.dtype([(n, "<" + t) if isinstance(t, str) else (n, "u1", (t,)) for n, t in fields])


_D, _M = ("d", "f2"), ("m", "f2")
_NIBBLES = (Slices("qs", 16, 4),)
_FIFTH = Slices("qh", 1, 1, shift=4)
_SIX_BITS = (SixBits(0),), (SixBits(1),)
_CRUMBS = Slices("qs", 32, 2)

#   the struct, field by field                                         bytes   x =
LAYOUTS: dict[str, Layout] = {
    "F32": Layout(1, np.dtype("<f4"), d=None),  #                         4   x
    "F16": Layout(1, np.dtype("<f2"), d=None),  #                         2   x
    "BF16": Layout(1, np.dtype("<u2"), d=None),  #                        2   upper half of x
    # | d f16 | qs[16] |                                                 18   d·(q − 8)
    "Q4_0": Layout(32, _struct(_D, ("qs", 16)), _NIBBLES),
    # | d f16 | m f16 | qs[16] |                                         20   d·q + m
    "Q4_1": Layout(32, _struct(_D, _M, ("qs", 16)), _NIBBLES, m="m"),
    # | d f16 | qh[4] | qs[16] |                                         22   d·(q − 16)
    "Q5_0": Layout(32, _struct(_D, ("qh", 4), ("qs", 16)), (*_NIBBLES, _FIFTH)),
    # | d f16 | m f16 | qh[4] | qs[16] |                                 24   d·q + m
    "Q5_1": Layout(32, _struct(_D, _M, ("qh", 4), ("qs", 16)), (*_NIBBLES, _FIFTH), m="m"),
    # | d f16 | int8 qs[32] |                                            34   d·q
    "Q8_0": Layout(32, _struct(_D, ("qs", 32)), (Slices("qs", 32, 8, flip=128),)),
    # | d f16 | qs[16] |                                                 18   d·level[q]
    "IQ4_NL": Layout(32, _struct(_D, ("qs", 16)), _NIBBLES),
    # | e: 2^(e − 127) | qs[16] |                                        17   2^(e − 127)·fp4[q]
    "MXFP4": Layout(
        32, _struct(("e", 1), ("qs", 16)), _NIBBLES, (Slices("e", 1, 8),), d=None
    ),
    # | d[4]: UE4M3, one for 16 weights | qs[32] |                       36   s·fp4[q]
    "NVFP4": Layout(
        64, _struct(("d", 4), ("qs", 32)), (Slices("qs", 8, 4),), (Slices("d", 1, 8),), d=None,
        spec="nvfp4_ggml",
    ),
    # | scales[16]: min, scale of 4 bits | qs[64] | d f16 | dmin f16 |   84   d·s·q − dmin·m
    "Q2_K": Layout(
        256, _struct(("scales", 16), ("qs", 64), _D, ("dmin", "f2")), (_CRUMBS,),
        (Slices("scales", 16, 4, only=0),), (Slices("scales", 16, 4, only=1),), m="dmin",
    ),
    # | hmask[32]: third bits | qs[64] | scales[12]: low 4, high 2 bits | d f16 |
    #                                                                   110   d·(s − 32)·(q − 4)
    "Q3_K": Layout(
        256, _struct(("hmask", 32), ("qs", 64), ("low", 8), ("high", 4), _D),
        (_CRUMBS, Slices("hmask", 32, 1, shift=2)),
        (Slices("low", 8, 4), Slices("high", 4, 2, shift=4)),
    ),
    # | d f16 | dmin f16 | scales[12] | qs[128] |                       144   d·s·q − dmin·m
    "Q4_K": Layout(
        256, _struct(_D, ("dmin", "f2"), ("scales", 12), ("qs", 128)), (Slices("qs", 32, 4),),
        *_SIX_BITS, m="dmin",
    ),
    # | d f16 | dmin f16 | scales[12] | qh[32]: fifth bits | qs[128] |  176   d·s·q − dmin·m
    "Q5_K": Layout(
        256, _struct(_D, ("dmin", "f2"), ("scales", 12), ("qh", 32), ("qs", 128)),
        (Slices("qs", 32, 4), Slices("qh", 32, 1, shift=4)), *_SIX_BITS, m="dmin",
    ),
    # | ql[128] | qh[64]: high 2 bits | int8 scales[16] | d f16 |       210   d·s·(q − 32)
    "Q6_K": Layout(
        256, _struct(("ql", 128), ("qh", 64), ("scales", 16), _D),
        (Slices("ql", 64, 4), Slices("qh", 32, 2, shift=4)), (Slices("scales", 16, 8, flip=128),),
    ),
    # | d f16 | scales_h[2]: high 2 bits | scales_l[4] | qs[128] |      136   d·(s − 32)·level[q]
    "IQ4_XS": Layout(
        256, _struct(_D, ("high", 2), ("low", 4), ("qs", 128)), (Slices("qs", 16, 4),),
        (Slices("low", 1, 4), Slices("high", 1, 2, shift=4)),
    ),
    # | qs[48]: 5 trits a byte | qh[4]: 4 trits a byte | d f16 |         54   d·(q − 1)
    "TQ1_0": Layout(
        256, _struct(("qs", 48), ("qh", 4), _D),
        (Trits((("qs", 0, 32, 5), ("qs", 32, 16, 5), ("qh", 0, 4, 4))),),
    ),
    # | qs[64]: 4 trits a byte | d f16 |                                 66   d·(q − 1)
    "TQ2_0": Layout(256, _struct(("qs", 64), _D), (_CRUMBS,)),
    # Codebooks of 4 or 8 weights and signs; gguf's tables.
    "IQ1_S": Layout(256, _struct(_D, ("qs", 32), ("qh", 16))),
    "IQ1_M": Layout(256, _struct(("qs", 32), ("qh", 16), ("scales", 8))),
    "IQ2_XXS": Layout(256, _struct(_D, ("qs", 64))),
    "IQ2_XS": Layout(256, _struct(_D, ("qs", 64), ("scales", 8))),
    "IQ2_S": Layout(256, _struct(_D, ("qs", 64), ("qh", 8), ("scales", 8))),
    "IQ3_XXS": Layout(256, _struct(_D, ("qs", 96))),
    "IQ3_S": Layout(256, _struct(_D, ("qs", 64), ("qh", 8), ("signs", 32), ("scales", 4))),
}  # fmt: skip
