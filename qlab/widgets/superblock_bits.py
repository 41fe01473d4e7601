"""Which bits of a ggml block a weight hangs on, and what they say.

Where bits lie is asked of the layout itself: its own reader is given every bit alone. Not here:
what encodes (`superblock_data`), how it is drawn (`plots.widget_superblock`).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from qlab.formats import Format
from qlab.io.ggml import TYPE_SPECS
from qlab.io.ggml_layouts import LAYOUTS, Place, Slices
from qlab.plots.widget_parts import number
from qlab.plots.widget_superblock import Field, Number, Spot
from qlab.qtensor import Spec


@functools.cache
def spots(type: str, kind: str) -> tuple[tuple[Spot, ...], ...]:
    """Of every number of a block the bits that it is made of, its highest first.

    Args:
        type: a key of LAYOUTS.
        kind: "codes", "scales" or "minima".

    Example:
        >>> spots("Q4_K", "scales")[5][:3]      # the high bits of scale 5 are at another's top
        (Spot(byte=5, bit=7, place=5), Spot(byte=5, bit=6, place=4), Spot(byte=13, bit=3, place=3))
    """
    layout = LAYOUTS[type]
    places: tuple[Place, ...] = getattr(layout, kind)
    if not places:
        return ()
    size = layout.block.itemsize
    alone = np.zeros((8 * size + 1, size), np.uint8)  # one bit each; in the last none
    bits = np.arange(8 * size)
    alone[bits, bits // 8] = 1 << bits % 8
    read = [place.read(alone.view(layout.block).reshape(-1)) for place in places]
    found = functools.reduce(np.bitwise_or, read)
    moved = found[:-1] ^ found[-1]  # (bits, numbers); what is flipped drops out
    each: list[list[Spot]] = [[] for _ in range(moved.shape[1])]
    for bit, which in zip(*np.nonzero(moved)):
        power = int(moved[bit, which]).bit_length() - 1
        each[which].append(Spot(int(bit) // 8, int(bit) % 8, power))
    return tuple(tuple(sorted(one, key=lambda spot: -spot.place)) for one in each)


def sub_size(type: str) -> int:
    """How many weights share a scale."""
    block: Any = TYPE_SPECS[type].block
    return int(block)


def weights_at(type: str, byte: int, now: int) -> int:
    """Which weight of a block is meant by its byte `byte`: the next after `now` whose code lies in
    it; of a byte of scales the next sub-block's first; else the same.

    Example:
        >>> weights_at("Q4_K", 16, 0), weights_at("Q4_K", 16, 32), weights_at("Q4_K", 13, 0)
        (32, 0, 160)
    """
    found = [i for i, one in enumerate(spots(type, "codes")) if byte in {s.byte for s in one}]
    for kind in ("scales", "minima"):
        found += [
            i * sub_size(type)
            for i, one in enumerate(spots(type, kind))
            if byte in {s.byte for s in one}
        ]
    later = [i for i in sorted(found) if i > now]
    return later[0] if later else min(found, default=now)


@functools.cache
def fields(type: str) -> tuple[Field, ...]:
    """The struct of a block in file order, and what each field is for."""
    layout = LAYOUTS[type]
    codes = [place.field for place in layout.codes if isinstance(place, Slices)]
    roles = {codes[0]: "code"} | dict.fromkeys(codes[1:], "more")
    roles |= {"d": "d", "dmin": "m", "m": "m"}
    known: Any = layout.block.fields
    found = []
    for name in layout.block.names or ():
        kind, start = known[name][:2]
        found.append(Field(name, start, kind.itemsize, roles.get(name, "scale")))
    return tuple(found)


def _number(symbol: str, role: str, found: tuple[Spot, ...], raw: np.ndarray, how: Any) -> Number:
    """A code read from its bits, and what it stands for in `how`, a Format or a Spec of one."""
    bits = [int(raw[spot.byte]) >> spot.bit & 1 for spot in found]
    code = sum(bit << spot.place for bit, spot in zip(bits, found))
    format = _stored(how)
    if not format.is_integer:
        term, value = f"level[{symbol}]", float(format.grid[code])
        said = f"{code} → {value:g}"
    elif format.min == 0:
        term, value, said = symbol, float(code), str(code)
    elif format.bits == 8:  # two's complement, which the code of a Format is not
        term, value = symbol, float(format.grid[code ^ 128])
        said = f"int8 {value:g}"
    else:
        term, value = f"({symbol} − {-format.min:g})", float(format.grid[code])
        said = f"{code} − {-format.min:g} = {value:g}"
    return Number(symbol, term, role, found, value, said.replace("-", "−"))


def _half(symbol: str, role: str, start: int, raw: np.ndarray) -> Number:
    """A float16, its low byte first."""
    found = tuple(Spot(start + 1 - i // 8, 7 - i % 8, 15 - i) for i in range(16))
    value = float(raw[start : start + 2].copy().view("<f2")[0])
    return Number(symbol, symbol, role, found, value, number(value, 4))


def numbers_of(type: str, raw: np.ndarray, element: int) -> tuple[Number, ...]:
    """What one weight of a block hangs on: its code, its sub-block's scale and minimum, the
    block's.

    Args:
        type: a key of LAYOUTS with codes.
        raw: (bytes,) uint8, the block.
        element: which of its weights.
    """
    layout, spec = LAYOUTS[type], TYPE_SPECS[type]
    sub = element // sub_size(type)
    found = [_number("q", "code", spots(type, "codes")[element], raw, spec.format)]
    if layout.scales:
        found.append(_number("s", "scale", spots(type, "scales")[sub], raw, spec.scale))
    if layout.minima:
        found.append(_number("m", "least", spots(type, "minima")[sub], raw, spec.offset))
    for field in fields(type):
        if field.name in (layout.d, layout.m):
            found.append(_half(field.name, field.role, field.start, raw))
    return tuple(found)


def grids(blocks: np.ndarray, type: str) -> tuple[np.ndarray, np.ndarray]:
    """The step and the shift of every sub-block, (blocks, sub-blocks) float32, as `decode` has
    them.
    """
    layout, spec = LAYOUTS[type], TYPE_SPECS[type]
    step = blocks[layout.d].astype(np.float32)[:, None]
    if layout.scales:
        step = step * _stored(spec.scale).grid[_read(blocks, layout.scales)]
    shift = np.zeros_like(step)
    if layout.m is not None:
        shift = blocks[layout.m].astype(np.float32)[:, None]
    if layout.minima:
        shift = -shift * _stored(spec.offset).grid[_read(blocks, layout.minima)]
    return step, shift


def _read(blocks: np.ndarray, places: tuple[Place, ...]) -> np.ndarray:
    return functools.reduce(np.bitwise_or, (place.read(blocks) for place in places))


def _stored(how: Any) -> Format:
    return how.format if isinstance(how, Spec) else how


def levels_of(raw: np.ndarray, type: str) -> np.ndarray:
    """(sub-blocks, levels) ascending: all that a weight can become."""
    step, shift = grids(raw.view(LAYOUTS[type].block).reshape(-1), type)
    values = TYPE_SPECS[type].format.values
    return np.sort((values * step[..., None] + shift[..., None]).reshape(-1, len(values)))
