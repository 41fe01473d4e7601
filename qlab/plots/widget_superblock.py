"""A block of a GGUF file opened: its bytes in file order, the bits of one weight put together and
computed, all 256 weights on the grids of their sub-blocks, and the search that set one of them.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from qlab.plots.svg import Picture
from qlab.plots.widget_parts import PANEL, WIDTH, Axis, number, share, title
from qlab.plots.widget_words import say

HEIGHT = 746
BYTES, BITS, EQUATION, GRIDS = 116, 296, 432, 516  # upper edges of the parts
LEFT, CURVE = 46, 566  # where bytes and grids begin, and the search
STRIP, LEVELS, SEARCH = "bytes", "levels", "search"  # what can be picked
HIGH = 132  # of all rows of bytes together
BIT, SLOT, SUM = 15, 196, 500  # width of a bit and of a byte with its name; where bits are joined
TOP, BOTTOM = GRIDS + 14, GRIDS + 172  # of grids and search
COLOURS = {
    "code": "blue", "more": "sky", "scale": "orange", "least": "purple", "d": "green",
    "m": "vermilion",
}  # fmt: skip
MOST = 2.2  # times plain rounding's loss: what is worse stands at the edge


class Spot(NamedTuple):
    """Bit `bit` of byte `byte` of a block is bit `place` of a number; bit 0 is the lowest."""

    byte: int
    bit: int
    place: int


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of the block's struct; `role` is a key of COLOURS."""

    name: str
    start: int
    count: int
    role: str


@dataclasses.dataclass(frozen=True)
class Number:
    """One of the numbers that a weight is made of.

    Attributes:
        symbol: its letter. term: how it stands in the equation: `(q − 8)`.
        role: a key of COLOURS.
        spots: its bits, the highest first.
        value: what the equation multiplies. said: how that comes from the bits.
    """

    symbol: str
    term: str
    role: str
    spots: tuple[Spot, ...]
    value: float
    said: str


@dataclasses.dataclass(frozen=True)
class Search:
    """What was tried for one sub-block; losses in units of plain rounding's.

    Attributes:
        at: (n,) where among the candidates: plain rounding is at `plain`; in a descent how many
            codes were visited.
        loss: (n,). first: the place of the first candidate; what is before is plain rounding.
        kept: the place of the one that was kept. scale: its scale.
        stored: the loss after scales and codes were rounded again, as the file has them.
        used: whether the encoder searches at all; else this is what a search would find.
        descent: whether codes move one by one, not the scale.
    """

    at: np.ndarray
    loss: np.ndarray
    first: int
    kept: int
    scale: float
    plain: float
    stored: float
    used: bool
    descent: bool


@dataclasses.dataclass(frozen=True)
class SuperblockData:
    """What the picture shows: 256 weights, fewer where a row is shorter.

    Attributes:
        type: of the blocks; asked: the type that was chosen, another where rows do not fit.
        columns: of the row.
        fields: of a block in file order. raw: (blocks, bytes) uint8.
        codes: of every weight of a block the bits of its code.
        size, sub: weights in a block, and under one scale.
        weights, values: (256,) before and after. levels: (sub-blocks, levels) ascending.
        searches: one a sub-block.
        weight: which is looked at. numbers: what it is made of, its code first.
        added, nested: whether there are minima, and whether they are codes under a dmin.
        importance: whether E[x²] weighs the errors.
        where: layer, row and first column.
        code: the lines that compute.
    """

    type: str
    asked: str
    columns: int
    fields: tuple[Field, ...]
    raw: np.ndarray
    codes: tuple[tuple[Spot, ...], ...]
    size: int
    sub: int
    weights: np.ndarray
    values: np.ndarray
    levels: np.ndarray
    searches: tuple[Search, ...]
    weight: int
    numbers: tuple[Number, ...]
    added: bool
    nested: bool
    importance: bool
    where: tuple[str, int, int]
    code: tuple[str, ...]

    @property
    def block(self) -> int:
        """Of the blocks shown the one that holds the weight."""
        return self.weight // self.size

    @property
    def sub_block(self) -> int:
        """Of all sub-blocks shown the weight's."""
        return self.weight // self.sub

    @property
    def terms(self) -> tuple[list[Number], list[Number]]:
        """What is multiplied, and what is then added or subtracted."""
        of = {n.symbol: n for n in self.numbers}
        return [of[a] for a in "dsq" if a in of], [of[a] for a in ("dmin", "m") if a in of]

    @property
    def value(self) -> np.float32:
        """The weight from its numbers, each step rounded to float32 as in ggml."""
        first, then = self.terms
        step, *rest = (np.float32(n.value) for n in first)
        for factor in rest:
            step = step * factor
        if not then:
            return step
        shift = np.prod([np.float32(n.value) for n in then], dtype=np.float32)
        return step - shift if self.nested else step + shift

    @property
    def error(self) -> float:
        """Of the weight, as a part of the rms of all that are shown."""
        rms = float(np.sqrt(np.mean(self.weights.astype(float) ** 2)))
        return abs(float(self.values[self.weight] - self.weights[self.weight])) / max(rms, 1e-30)

    @property
    def all_errors(self) -> float:
        """rms of all errors, as a part of the rms of the weights."""
        wrong = np.square(self.values - self.weights, dtype=float).sum()
        return float(np.sqrt(wrong / max(np.square(self.weights, dtype=float).sum(), 1e-30)))

    @property
    def columns_of_bytes(self) -> int:
        """How many bytes stand side by side: 16 or 32, or a whole small block."""
        return self.raw.shape[1] if len(self.raw) > 1 else 16 if self.raw.size <= 128 else 32

    def field(self, byte: int) -> Field:
        """Whose byte it is."""
        return next(f for f in self.fields if f.start <= byte < f.start + f.count)

    def bits(self, field: Field) -> float:
        """What the field costs a weight."""
        return 8 * field.count / self.size


def draw_superblock(data: SuperblockData, lang: str = "en") -> Picture:
    """The picture of `SuperblockData`; bytes and weights can be picked in it.

    Example:
        >>> draw_superblock(superblock_data(source, state)).figure()   # doctest: +SKIP
    """
    picture = Picture(WIDTH, HEIGHT)
    _head(picture, data, lang)
    _bytes(picture, data, lang)
    _legend(picture, data, lang)
    _bits(picture, data, lang)
    _equation(picture, data, lang)
    _grids(picture, data, lang)
    _search(picture, data, lang)
    for i, line in enumerate(data.code):
        picture.text(LEFT - 32 + 214 * i, HEIGHT - 6, line, size=11, colour="muted")
    return picture


def sentence(data: SuperblockData, lang: str) -> str:
    """Where the weight's numbers come from; or that rows cannot hold what was asked for."""
    if data.type != data.asked:
        words = "Rows of {n} hold no super-block of 256: {type} in its place, as in llama.cpp."
        return say(words, lang, n=data.columns, type=data.type)
    names = {data.field(spot.byte): spot.byte for spot in data.numbers[0].spots}
    where = ", ".join(f"{field.name}[{byte - field.start}]" for field, byte in names.items())
    values = {"k": data.weight, "n": len(data.numbers[0].spots), "where": where}
    values |= {"sub": data.sub_block, "d": "d, m" if data.added else "d"}
    if data.size == data.sub:
        words = "Weight {k} has {n} bits of its own, in {where}; it shares {d} with block {sub}."
    elif data.nested:
        words = (
            "Weight {k} has {n} bits of its own, in {where}; it shares s and m with sub-block "
            "{sub}, d and dmin with all."
        )
    else:
        words = (
            "Weight {k} has {n} bits of its own, in {where}; it shares s with sub-block {sub}, "
            "d with all."
        )
    return say(words, lang, **values)


def _costs(data: SuperblockData, lang: str) -> list[tuple[str, float]]:
    """Bits of a weight for codes, for scales, for 16-bit numbers."""
    scales = "scales, minima" if data.nested else "scales"
    kinds = {"codes": ("code", "more"), scales: ("scale",), "d": ("d", "m")}
    last = ", ".join(f.name for f in data.fields if f.role in kinds["d"])
    found = [
        (name, sum(data.bits(f) for f in data.fields if f.role in roles))
        for name, roles in kinds.items()
    ]
    return [(last if name == "d" else say(name, lang), bits) for name, bits in found if bits]


def _head(picture: Picture, data: SuperblockData, lang: str) -> None:
    bits = sum(data.bits(field) for field in data.fields)
    picture.rect(0, 0, WIDTH, 64, fill="panel", opacity=PANEL)
    costs = " + ".join(f"{cost:g} {name}" for name, cost in _costs(data, lang))
    name = say("bits per weight", lang)
    picture.text(14, 17, name, size=11.5, colour="muted")
    picture.text(14, 52, f"{bits:g}", size=30, bold=True)
    picture.text(40 + 17 * len(f"{bits:g}"), 45, f"= {costs}", size=14)
    shown = (
        (466, say("error of this weight", lang), data.error),
        (606, say("error of all {n}", lang, n=len(data.weights)), data.all_errors),
    )
    for x, words, value in shown:
        picture.text(x, 17, words, size=11.5, colour="muted")
        picture.text(x, 41, share(value), size=18)
        picture.text(x, 57, say("of the weights' rms", lang), size=11, colour="muted")
    words = sentence(data, lang)
    picture.text(0, 88, words, size=13)
    errors = "; ".join(f"{said}: {share(value)}" for _, said, value in shown)
    picture.label = f"{data.type}: {words} {name}: {bits:g} = {costs}; {errors}."


# ---- the bytes -----------------------------------------------------------------------------------


class _Cells(NamedTuple):
    """The rows of bytes: how many a row, their size."""

    columns: int
    wide: float
    high: float

    def at(self, block: int, byte: int) -> tuple[float, float]:
        """Upper left of a byte; every small block has a row."""
        row, column = divmod(byte, self.columns)
        return LEFT + column * self.wide, BYTES + 14 + (block + row) * self.high


def cells(data: SuperblockData) -> tuple[int, int]:
    """Rows and columns of the bytes as they are drawn."""
    columns = data.columns_of_bytes
    return len(data.raw) * -(-data.raw.shape[1] // columns), columns


def _cells(data: SuperblockData) -> _Cells:
    rows, columns = cells(data)
    return _Cells(columns, min((WIDTH - LEFT) / columns, 42), min(HIGH / rows, 24))


def _bytes(picture: Picture, data: SuperblockData, lang: str) -> None:
    """Every byte of the blocks in hexadecimal; the weight's own are framed, their bits marked."""
    grid, (blocks, count) = _cells(data), data.raw.shape
    words = "the {n} bytes of {type} super-block {b} in file order, of row {row}"
    if blocks > 1:
        words = "{type}: {blocks} blocks of {n} bytes in file order, of row {row}"
    layer, row, first = data.where
    said = {"n": count, "type": data.type, "blocks": blocks, "b": first // 256, "row": row}
    title(picture, LEFT - 32, BYTES, say(words, lang, **said))
    near = {spot.byte for spots in _neighbours(data) for spot in spots}
    for block in range(blocks):
        for byte, value in enumerate(data.raw[block].tolist()):
            x, y = grid.at(block, byte)
            used = block == data.block and byte in near
            look = {"fill": COLOURS[data.field(byte).role], "opacity": 0.5 if used else 0.2}
            picture.rect(x + 0.5, y + 0.5, grid.wide - 1, grid.high - 1, **look)
            look = {"size": 11, "anchor": "middle"}
            middle = y + grid.high / 2 + (1 if grid.high > 20 else 4)
            picture.text(x + grid.wide / 2, middle, f"{value:02X}", **look)
        if blocks > 1:
            picture.text(LEFT - 6, grid.at(block, 0)[1] + 12, str(block), size=11,
                         anchor="end", colour="muted", bold=block == data.block)  # fmt: skip
    if blocks == 1:
        for byte in range(0, count, grid.columns):
            y = grid.at(0, byte)[1] + grid.high / 2 + 4
            picture.text(LEFT - 6, y, str(byte), size=11, anchor="end", colour="muted")
    _marked(picture, data, grid)
    rows, columns = cells(data)
    box = (LEFT, BYTES + 14, columns * grid.wide, rows * grid.high)
    picture.pick(STRIP, box, say("choose a byte's weight: click, or arrow keys", lang))


def _neighbours(data: SuperblockData) -> tuple[tuple[Spot, ...], ...]:
    """The codes of the weight's sub-block, as far as they lie in its block."""
    first = data.weight % data.size // data.sub * data.sub
    return data.codes[first : first + data.sub]


def _marked(picture: Picture, data: SuperblockData, grid: _Cells) -> None:
    """A frame around each byte that the weight reads, and its bits as marks below the digits."""
    for n in data.numbers:
        for byte in {spot.byte for spot in n.spots}:
            x, y = grid.at(data.block, byte)
            picture.rect(x, y, grid.wide, grid.high, stroke="ink", width=1.8)
        for spot in n.spots:
            x, y = grid.at(data.block, spot.byte)
            wide = (grid.wide - 3) / 8
            left = x + 1.5 + (7 - spot.bit) * wide
            picture.rect(
                left,
                y + grid.high - 4.5,
                wide,
                3.5,
                fill="ink" if n.role == "code" else COLOURS[n.role],
            )


def _legend(picture: Picture, data: SuperblockData, lang: str) -> None:
    """The struct, and what each field costs."""
    y, x = BITS - 18, LEFT - 32
    for field in data.fields:
        bits, name = data.bits(field), field.name
        words = f"{name}[{field.count}]" if field.role not in ("d", "m") else f"{name} f16"
        words += f": {bits:g} {say('bits', lang)}"
        picture.rect(x, y - 9, 10, 10, fill=COLOURS[field.role])
        picture.text(x + 14, y, words, size=11, colour="muted")
        x += 34 + 6.1 * len(words)


# ---- bits to a number ----------------------------------------------------------------------------


def _bits(picture: Picture, data: SuperblockData, lang: str) -> None:
    """A row for each number: the bytes that hold it, its bits among theirs, what they say."""
    pitch = min(126 / len(data.numbers), 40)
    names = {"code": "code", "scale": "scale", "least": "minimum"}
    for i, n in enumerate(data.numbers):
        y = BITS + 14 + (126 - pitch * len(data.numbers)) / 2 + i * pitch
        picture.text(LEFT - 32, y, n.symbol, size=13, bold=True)
        words = say(names[n.role], lang) if n.role in names else "float16"
        x = LEFT + (8 if len(n.symbol) > 1 else -14)
        picture.text(x, y, words, size=11, colour="muted")
        order = dict.fromkeys(spot.byte for spot in n.spots)  # as the bits are joined
        for slot, byte in enumerate(order):
            _byte(picture, data, n, byte, LEFT + 50 + SLOT * slot, y)
        bits = "".join(str(_bit(data, spot)) for spot in n.spots)
        if len(bits) == 16:
            bits = f"{bits[0]} {bits[1:6]} {bits[6:]}"
        picture.text(SUM, y, bits, size=11, colour="muted")
        picture.text(WIDTH, y, n.said, size=12, anchor="end", bold=True)


def _bit(data: SuperblockData, spot: Spot) -> int:
    return int(data.raw[data.block, spot.byte]) >> spot.bit & 1


def _byte(picture: Picture, data: SuperblockData, n: Number, byte: int, x: float, y: float) -> None:
    """A byte's name, its value, and its eight bits; those of the number stand out."""
    field = data.field(byte)
    name = f"{field.name}[{byte - field.start}]"
    picture.text(x + 62, y, name, size=11, colour="muted", anchor="end")
    mine = {spot.bit for spot in n.spots if spot.byte == byte}
    for bit in range(7, -1, -1):
        left, used = x + 68 + (7 - bit) * BIT, bit in mine
        if used:
            picture.rect(left, y - 13, BIT, 17, fill=COLOURS[n.role], opacity=0.5)
        look = {"stroke": "ink" if used else "faint", "width": 1.3 if used else 0.7}
        picture.rect(left, y - 13, BIT, 17, **look)
        look = {"size": 11, "anchor": "middle", "colour": "ink" if used else "muted"}
        picture.text(left + BIT / 2, y, str(_bit(data, Spot(byte, bit, 0))), bold=used, **look)


def _equation(picture: Picture, data: SuperblockData, lang: str) -> None:
    """The weight computed: letters, numbers, result, and what it was."""
    first, then = data.terms
    sign = "−" if data.nested else "+"
    letters = " · ".join(n.term for n in first)
    factors = " · ".join(_factor(n.value) for n in first)
    if then:
        letters += f" {sign} " + " · ".join(n.term for n in then)
        factors += f" {sign} " + " · ".join(_factor(n.value) for n in then)
    picture.rect(0, EQUATION, WIDTH, 58, fill="panel", opacity=PANEL)
    picture.text(14, EQUATION + 23, f"y = {letters}", size=14, bold=True)
    picture.text(14, EQUATION + 46, f"= {factors} = {number(float(data.value), 5)}", size=14)
    weight = float(data.weights[data.weight])
    shown = ((WIDTH - 250, "weight", weight), (WIDTH - 164, "becomes", float(data.value)),
             (WIDTH - 78, "error", float(data.value) - weight))  # fmt: skip
    for x, name, value in shown:
        picture.text(x, EQUATION + 19, say(name, lang), size=11.5, colour="muted")
        picture.text(x, EQUATION + 44, number(value), size=15)


def _factor(value: float) -> str:
    words = number(value, 4)
    return f"({words})" if value < 0 else words


# ---- 256 weights and their grids -----------------------------------------------------------------


def _grids(picture: Picture, data: SuperblockData, lang: str) -> None:
    """Every weight and the level it got, sub-block by sub-block."""
    count, levels = data.levels.shape
    words = "the {n} weights: every {sub} have a grid of their own"
    title(picture, LEFT - 32, GRIDS, say(words, lang, n=len(data.weights), sub=data.sub))
    both = np.concatenate([data.weights, data.levels.ravel()])
    room = 0.04 * max(float(np.ptp(both)), 1e-30)
    y = Axis(float(both.min()) - room, float(both.max()) + room, BOTTOM, TOP)
    x = Axis(0, count, LEFT, CURVE - 66)
    for tick in y.ticks(5):
        look = {"size": 11, "anchor": "end", "colour": "muted"}
        picture.text(LEFT - 5, float(y(tick)) + 4, number(tick), **look)
    chosen = data.sub_block
    picture.rect(x(chosen), TOP - 2, x(1) - x(0), BOTTOM - TOP + 4, fill="panel", opacity=PANEL)
    left, right = x(np.arange(count) + 0.06), x(np.arange(count) + 0.94)
    if levels <= 32:
        look = {"stroke": "grey", "opacity": 0.45, "width": 0.8}
        picture.segments(left[:, None], y(data.levels), right[:, None], y(data.levels), **look)
    else:
        for a, b, low, high in zip(left, right, y(data.levels[:, 0]), y(data.levels[:, -1])):
            picture.rect(a, high, b - a, low - high, fill="grey", opacity=0.18)
    if data.added:
        low = y(data.levels[:, 0])
        picture.segments(left, low, right, low, stroke=COLOURS["least"], width=2.4)
    picture.segments(x.start, y(0), x.end, y(0), stroke="ink", width=0.9)
    _weights(picture, data, x, y)
    every = 1 if count <= 16 else 2
    for sub in range(0, count, every):
        look = {"bold": sub == chosen, "colour": "ink" if sub == chosen else "muted"}
        middle = float(x(sub + 0.5))
        picture.text(middle, BOTTOM + 15, str(sub), size=11, anchor="middle", **look)
    _grid_legend(picture, data, lang)
    box = (LEFT, TOP, x.end - x.start, BOTTOM - TOP)
    picture.pick(LEVELS, box, say("choose a weight: click, or arrow keys", lang))


def _weights(picture: Picture, data: SuperblockData, x: Axis, y: Axis) -> None:
    """Dots for weights, dashes for what they became; the one that is looked at is large."""
    n, k = np.arange(len(data.weights)), data.weight
    across = x(n // data.sub + 0.06 + 0.88 * (n % data.sub + 0.5) / data.sub)
    became, half = y(data.values), 2.2
    picture.segments(across - half, became, across + half, became, stroke="blue", width=1.6)
    picture.dots(across, y(data.weights), 1.4, fill="ink")
    picture.segments(across[k], TOP, across[k], BOTTOM, stroke="ink", width=1, dash="dot")
    picture.segments(across[k] - 7, became[k], across[k] + 7, became[k], stroke="blue", width=3)
    picture.dots(across[k], y(data.weights[k]), 4, fill="ink")


def _grid_legend(picture: Picture, data: SuperblockData, lang: str) -> None:
    y, x = BOTTOM + 34, LEFT - 32
    picture.dots(x + 4, y - 4, 2.5, fill="ink")
    picture.text(x + 14, y, say("weight", lang), size=11, colour="muted")
    picture.segments(x + 72, y - 4, x + 86, y - 4, stroke="blue", width=2.4)
    picture.text(x + 92, y, say("becomes", lang), size=11, colour="muted")
    words = say("{n} levels", lang, n=data.levels.shape[1])
    picture.segments(x + 158, y - 4, x + 172, y - 4, stroke="grey", width=1, opacity=0.7)
    picture.text(x + 178, y, words, size=11, colour="muted")
    if data.added:
        picture.segments(x + 258, y - 4, x + 272, y - 4, stroke=COLOURS["least"], width=2.4)
        words = "q = 0: −dmin · m, m stored as positive" if data.nested else "q = 0: m"
        picture.text(x + 278, y, say(words, lang), size=11, colour="muted")


# ---- the search ----------------------------------------------------------------------------------


def _search(picture: Picture, data: SuperblockData, lang: str) -> None:
    """What each candidate would lose, plain rounding, the one that was kept, and what is stored."""
    found = data.searches[data.sub_block]
    words = "no search in this type" if data.type == "Q8_0" else "no search without importance"
    if found.used:
        words = "the scales that were tried"
    if found.descent:
        words = "its codes move one by one"
    title(picture, CURVE - 40, GRIDS, say(words, lang))
    words = "error, % of plain rounding's" if found.used else "what one would find, % of plain"
    words = say(words, lang)
    picture.text(CURVE - 40, GRIDS + 15, words, size=11, colour="muted")
    drawn = (found.at >= 0) & (np.arange(len(found.at)) >= found.first)
    at, loss = found.at[drawn], np.minimum(found.loss[drawn], MOST)
    ends = np.array([*at, found.plain])
    x = Axis(float(ends.min()), float(ends.max()), CURVE, WIDTH - 8)
    low = min(loss.min(), found.stored, 1.0)
    y = Axis(100 * max(low - 0.08, 0), 100 * (max(loss.max(), found.stored, 1.0) + 0.06),
             BOTTOM, TOP + 14)  # fmt: skip
    for tick in y.ticks(4):
        picture.segments(x.start, y(tick), x.end, y(tick), stroke="faint", opacity=0.6)
        look = {"size": 11, "anchor": "end", "colour": "muted"}
        picture.text(x.start - 5, float(y(tick)) + 4, f"{tick:g}", **look)
    stored = float(y(100 * min(found.stored, MOST)))
    picture.segments(x.start, stored, x.end, stored, stroke="green", width=1.4, dash="dash")
    order = np.argsort(at, kind="stable")
    colour = "blue" if found.used else "grey"
    picture.line(x(at[order]), y(100 * loss[order]), stroke=colour, width=1.6)
    if not found.descent:
        picture.dots(x(at), y(100 * loss), 2.2, fill=colour)
    plain = float(x(found.plain)), float(y(100))
    picture.dots(*plain, 4.5, fill="vermilion")
    if found.at[found.kept] >= 0:
        a, e = float(x(found.at[found.kept])), float(y(100 * min(found.loss[found.kept], MOST)))
        look = {"fill": "green" if found.used else "grey"}
        picture.polygon([(a, e - 4), (a - 5, e - 13), (a + 5, e - 13)], **look)
    label = "to round: the range divided by" if data.added else "to round: the largest divided by"
    picture.segments(x.start, BOTTOM, x.end, BOTTOM, stroke="faint")
    for tick in x.ticks(4):
        at = float(x(tick))
        picture.segments(at, BOTTOM, at, BOTTOM + 4, stroke="faint")
        look = {"size": 11, "colour": "muted", "anchor": "middle"}
        picture.text(at, BOTTOM + 16, f"{tick:g}", **look)
    words = say("codes visited" if found.descent else label, lang)
    picture.text(x.end, BOTTOM + 31, words, size=11, colour="muted", anchor="end")
    _search_legend(picture, found, lang)


def _search_legend(picture: Picture, found: Search, lang: str) -> None:
    """The three losses in words, under the axis."""
    kept = share(float(found.loss[found.kept]))
    y, x = BOTTOM + 48, CURVE - 40
    rows = (
        ("vermilion", "plain", ""),
        ("green" if found.used else "grey", "best {p}", kept),
        ("green", "stored {p}", share(found.stored)),
    )
    for i, (left, (colour, words, value)) in enumerate(zip((x, x + 54, x + 130), rows)):
        if i == 1:
            corners = [(left + 5, y), (left, y - 9), (left + 10, y - 9)]
            picture.polygon(corners, fill=colour)
        elif i == 2:
            picture.segments(left, y - 4, left + 12, y - 4, stroke=colour, dash="dash", width=1.4)
        else:
            picture.dots(left + 5, y - 4, 4, fill=colour)
        picture.text(left + 15, y, say(words, lang, p=value), size=11, colour="muted")
