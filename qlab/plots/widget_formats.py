"""A number as its bits and its neighbours; below, two formats on one line and their relative error,
or every format with few bits and what the number becomes in it.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from qlab.plots.svg import Picture
from qlab.plots.widget_parts import (
    PANEL,
    SUPERSCRIPT,
    WIDTH,
    Axis,
    Readout,
    decibels,
    head,
    number,
    share,
    size,
    title,
    x_axis,
)
from qlab.plots.widget_words import say

HEIGHT = 590
FIELDS = {
    "s": ("sign", "vermilion"),
    "e": ("exponent", "green"),
    "m": ("mantissa", "blue"),
    "i": ("integer", "blue"),
    "t": ("place in the table", "purple"),
}
FIRST, STEP, START, END = 246, 26, 92, 556  # the rows of `_every`: top, height, ends of their line
NAMES = ("bits per number", "SQNR of normal weights", "relative error here", "bytes of 70 billion")


@dataclasses.dataclass(frozen=True)
class Row:
    """One format of many, and what the number becomes in it.

    Attributes:
        name: in FORMATS; label: on the page.
        colour: of its values.
        values: ascending, on the common line.
        nearest: of the number, on the common line; becomes: the same in the format's own units, the
            end where it is beyond.
        cast: what a cast without clipping makes of it: a number, NaN or ±∞.
        gap: between the neighbours around the number, over the number; NaN at 0 and beyond.
        chosen: whether the bits are this format's; pick: whether they can be.
    """

    name: str
    label: str
    colour: str
    values: np.ndarray
    nearest: float
    becomes: float
    cast: float
    gap: float
    chosen: bool
    pick: bool


@dataclasses.dataclass(frozen=True)
class FormatsData:
    """What the picture shows.

    Attributes:
        names: of the two formats.
        layout: one letter a bit of the first format: s e m i t.
        code: its bit pattern.
        value, below, above: the number and its neighbours; NaN where there is none.
        formula: how the value comes out of the bits.
        lines: the values of both formats on the number line, ascending; None: too many to draw.
        mark: where the value is on that line.
        log: whether the line is logarithmic.
        sizes: (n,) magnitudes; errors: (2, n) worst relative error near each, per format.
        bits, sqnr: of the first format; sqnr on normal numbers, the largest of 64 on the format's
            largest.
        rows: every format, in place of the two; empty: the two are drawn.
    """

    names: tuple[str, str]
    layout: str
    code: int
    value: float
    below: float
    above: float
    formula: str
    lines: tuple[np.ndarray | None, np.ndarray | None]
    mark: float
    log: bool
    sizes: np.ndarray
    errors: np.ndarray
    bits: float
    sqnr: float
    rows: tuple[Row, ...] = ()

    @property
    def here(self) -> float:
        """The worst relative error between the value and its neighbours."""
        gaps = [abs(n - self.value) / 2 for n in (self.below, self.above) if np.isfinite(n)]
        if not gaps or self.value == 0 or not np.isfinite(self.value):
            return float("nan")
        return max(gaps) / abs(self.value)


def draw_formats(data: FormatsData, lang: str = "en") -> Picture:
    """The picture of `FormatsData`; every bit can be picked ("bit0" is the lowest), and every row
    ("line:FP8").

    Example:
        >>> draw_formats(formats_data(FormatsState())).figure()   # doctest: +SKIP
    """
    picture = Picture(WIDTH, HEIGHT)
    readout = Readout(
        (
            f"{data.bits:g}",
            say("2{n} patterns", lang, n=str(len(data.layout)).translate(SUPERSCRIPT)),
        ),
        (decibels(data.sqnr), say("in blocks of 64", lang)),
        ("—" if np.isnan(data.here) else share(data.here), say("at most", lang)),
        (size(70e9 * data.bits / 8), say("without scales", lang)),
    )
    head(picture, readout, data.formula, lang, NAMES)
    _bits(picture, data, lang)
    _neighbours(picture, data, lang)
    if data.rows:
        _every(picture, data, lang)
    else:
        _lines(picture, data, lang)
        _errors(picture, data, lang)
    return picture


def _bits(picture: Picture, data: FormatsData, lang: str) -> None:
    n, gap = len(data.layout), 14
    wide = min(26, (WIDTH - 3 * gap) / n)
    fields = list(dict.fromkeys(data.layout))
    for i, letter in enumerate(data.layout):
        field, colour = FIELDS[letter]
        bit = n - 1 - i
        on = data.code >> bit & 1
        box = (2 + i * wide + gap * fields.index(letter), 104, wide - 2, 30)
        picture.rect(*box, fill=colour, opacity=1 if on else 0.22)
        look = {"bold": True, "colour": "paper"} if on else {}
        picture.text(box[0] + wide / 2 - 1, 125, str(on), size=14, anchor="middle", **look)
        label = f"{say(field, lang)}, {say('bit', lang)} {bit}: {on}"
        picture.pick(f"bit{bit}", box, label, checked=bool(on))
    for i, letter in enumerate(fields):
        field, colour = FIELDS[letter]
        x = 2 + data.layout.index(letter) * wide + gap * i
        picture.rect(x, 137, data.layout.count(letter) * wide - 2, 3, fill=colour)
        picture.text(x, 154, say(field, lang), size=11, colour="muted")
    hint = say("click a bit, or Tab and Space", lang)
    picture.text(WIDTH, 154, hint, size=11, colour="muted", anchor="end")


def _neighbours(picture: Picture, data: FormatsData, lang: str) -> None:
    """The value between its neighbours."""
    for x, name, value, big in (
        (120, "next below", data.below, False),
        (370, "value", data.value, True),
        (620, "next above", data.above, False),
    ):
        # The shortest digits that name a float32; every value of these formats is one.
        digits = number(float(str(np.float32(value))), 9)
        words = "—" if np.isnan(value) and not big else digits
        picture.text(x, 204, words, size=24 if big else 15, bold=big, anchor="middle")
        picture.text(x, 176, say(name, lang), size=11, colour="muted", anchor="middle")
    for x, gap in ((245, data.value - data.below), (495, data.above - data.value)):
        if np.isfinite(gap):
            picture.text(x, 199, f"↔ {number(gap, 4)}", size=12, colour="muted", anchor="middle")


def _lines(picture: Picture, data: FormatsData, lang: str) -> None:
    axis = _line_axis([v for v in data.lines if v is not None], data.log, 4, WIDTH - 4)
    title(picture, 0, 244, data.names[0], "blue")
    title(picture, 120, 244, data.names[1], "vermilion")
    for values, colour, y1, y2 in zip(data.lines, ("blue", "vermilion"), (254, 296), (294, 336)):
        if values is None:
            picture.rect(axis.start, y1, axis.end - axis.start, y2 - y1, fill=colour, opacity=0.85)
            continue
        inside = values[(values >= axis.lo) & (values <= axis.hi)]
        x = np.unique(np.round(2 * axis(inside)) / 2)  # more would be the same pixels
        picture.segments(x, y1, x, y2, stroke=colour, width=1 if len(x) > 60 else 2)
    if axis.lo <= data.mark <= axis.hi:
        x = float(axis(data.mark))
        picture.polygon([(x - 6, 240), (x + 6, 240), (x, 251)], fill="ink")
    x_axis(picture, axis, 340, count=10)


def _line_axis(ends: list[np.ndarray], log: bool, start: float, end: float) -> Axis:
    high = max([float(v[-1]) for v in ends], default=1.0)
    if not log:
        low = min([float(v[0]) for v in ends], default=-1.0)
        return Axis(low - 0.01 * (high - low), high + 0.01 * (high - low), start, end)
    low = min([float(v[v > 0][0]) for v in ends], default=high / 2**16)
    return Axis(max(low, high * 2.0**-24) / 1.3, high * 1.3, start, end, log=True)


def _every(picture: Picture, data: FormatsData, lang: str) -> None:
    """A row a format: its values, and where the number goes."""
    axis = _line_axis([row.values for row in data.rows], data.log, START, END)
    bottom = FIRST + STEP * len(data.rows)
    picture.text(0, FIRST - 10, say("format", lang), size=11, colour="muted")
    for x, words in ((646, "becomes"), (WIDTH, "gap / number")):
        picture.text(x, FIRST - 10, say(words, lang), size=11, colour="muted", anchor="end")
    for i, row in enumerate(data.rows):
        _row(picture, row, axis, FIRST + STEP * i, lang)
    if axis.lo <= data.mark <= axis.hi:
        x = float(axis(data.mark))
        picture.segments(x, FIRST - 4, x, bottom, stroke="ink", width=1, opacity=0.6)
        picture.polygon([(x - 6, FIRST - 14), (x + 6, FIRST - 14), (x, FIRST - 3)], fill="ink")
    x_axis(picture, axis, bottom + 4, count=10)


def _row(picture: Picture, row: Row, axis: Axis, top: float, lang: str) -> None:
    if row.chosen:
        picture.rect(0, top, WIDTH, STEP, fill="panel", opacity=PANEL)
        picture.rect(0, top, 4, STEP, fill=row.colour)
    middle = top + STEP / 2
    picture.text(9, middle + 4, row.label, size=12, bold=row.chosen)
    inside = row.values[(row.values >= axis.lo) & (row.values <= axis.hi)]
    x = np.unique(np.round(2 * axis(inside)) / 2)  # more would be the same pixels
    width = 0.8 if len(x) > 60 else 1.6
    picture.segments(x, top + 4, x, top + STEP - 4, stroke=row.colour, width=width)
    lost = not np.isfinite(row.cast)
    if axis.lo <= row.nearest <= axis.hi:
        look = {"fill": "vermilion" if lost else "ink", "stroke": "paper"}
        picture.dots(float(axis(row.nearest)), middle, 4, **look)
    words, gap = number(row.becomes, 4), "—" if np.isnan(row.gap) else share(row.gap)
    if lost:
        words, gap = number(row.cast), say("clipped {n}", lang, n=words)
    picture.text(646, middle + 4, words, size=12, bold=lost, anchor="end")
    picture.text(WIDTH, middle + 4, gap, size=11.5, anchor="end")
    if row.pick:
        picture.pick(f"line:{row.name}", (0, top, WIDTH, STEP), f"{row.label}: {words}, {gap}")


def _errors(picture: Picture, data: FormatsData, lang: str) -> None:
    title(
        picture,
        0,
        400,
        say("relative error against magnitude", lang),
        note=say("half the gap to the neighbour", lang),
    )
    axis = Axis(data.sizes[0], data.sizes[-1], 44, WIDTH - 90, log=True)
    low = -8 if data.errors.min() < 1e-5 else -4
    bottom, top = 552, 428

    def y(error: np.ndarray) -> np.ndarray:
        return bottom - (np.log10(np.clip(error, 10.0**low, 1)) - low) / -low * (bottom - top)

    for power in range(low, 1, 2 if low == -8 else 1):
        height = float(y(np.array(10.0**power)))
        picture.segments(44, height, axis.end, height, stroke="faint", opacity=0.6)
        words = share(10.0**power) if power >= -4 else "10" + str(power).translate(SUPERSCRIPT)
        picture.text(40, height + 4, words, size=11, colour="muted", anchor="end")
    ends = [float(y(e[len(e) * 3 // 4 :]).mean()) for e in data.errors]
    if abs(ends[0] - ends[1]) < 15:
        ends = [ends[0] - 8, ends[0] + 8] if ends[0] <= ends[1] else [ends[1] + 8, ends[1] - 8]
    for error, colour, dash, name, end in zip(
        data.errors, ("blue", "vermilion"), ("", "dash"), data.names, ends
    ):
        picture.line(axis(data.sizes), y(error), stroke=colour, width=2, dash=dash)
        picture.rect(axis.end + 6, end - 5, 8, 8, fill=colour)
        picture.text(axis.end + 17, end + 3, name, size=11)
    x_axis(picture, axis, bottom, count=10)
