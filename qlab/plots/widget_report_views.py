"""The two views of a report: a map, blocks down and kinds across; a list, the worst on top."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from qlab.plots.layers import place
from qlab.plots.svg import Picture
from qlab.plots.widget_parts import Axis, number, title
from qlab.plots.widget_words import say

if TYPE_CHECKING:
    from qlab.plots.widget_report import ReportData

TOP, ROOM = 142, 390  # where map and list begin, and how high they may be
MAP = (34, 424)  # from, to: the map's columns
DOTS, LAST = (112, 388), 464  # the list's axis, its right end
SHOWN = 30  # rows of the list that are seen at once: the blocks of a small model
INK = 0.7  # opacity of the strongest cell: the number in it stays readable, light or dark


def blocks_of(data: ReportData) -> list[int]:
    """The rows of the map."""
    return sorted({place(path)[0] for path in data.values})


def window(data: ReportData) -> tuple[str, ...]:
    """The part of the list that is seen, the chosen layer in it."""
    first = data.order.index(data.chosen) - SHOWN // 2
    first = max(0, min(first, len(data.order) - SHOWN))
    return data.order[first : first + SHOWN]


def figures(value: float) -> str:
    """Three figures, thousands in full, – for none.

    Example:
        >>> figures(0.1), figures(14336), figures(float("nan"))
        ('0.100', '14,336', '–')
    """
    if not math.isfinite(value):
        return "–"
    if value and abs(value) < 1e-3:
        return number(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


# ---- the map -------------------------------------------------------------------------------------


def draw_map(picture: Picture, data: ReportData, lang: str) -> None:
    """Every layer a cell; it can be picked ("map")."""
    blocks, kinds = blocks_of(data), data.kinds
    high, wide = max(2, min(64, ROOM // len(blocks))), (MAP[1] - MAP[0]) // len(kinds)
    box = (MAP[0], TOP, wide * len(kinds), high * len(blocks))
    title(picture, 0, 112, say(data.show, lang), "vermilion")
    shades = {name: np.zeros((len(blocks), len(kinds))) for name in ("blue", "vermilion")}
    corners = {}
    for path, value in data.values.items():
        block, kind = place(path)
        row, column = blocks.index(block), kinds.index(kind)
        colour, shade = _shade(data, value)
        shades[colour][row, column] = shade
        corners[path] = (MAP[0] + column * wide, TOP + row * high)
    for name, values in shades.items():
        picture.cells(box, values, fill=name)
    x, y = corners[data.chosen]
    picture.rect(x, y, wide, high, stroke="paper", width=4)
    picture.rect(x, y, wide, high, stroke="ink", width=2)
    for path, (x, y) in corners.items():
        _cell(picture, data, path, (x, y, wide, high))
    for column, kind in enumerate(kinds):
        name = kind.removesuffix("_proj") if wide < 58 else kind
        look = {"size": 10.5, "colour": "muted", "anchor": "middle"}
        picture.text(MAP[0] + (column + 0.5) * wide, TOP - 6, name, **look)
    for row in range(0, len(blocks), -(-11 // high)):
        look = {"size": min(10.5, max(high - 2, 9)), "colour": "muted", "anchor": "end"}
        picture.text(MAP[0] - 6, TOP + (row + 0.5) * high + 3.5, str(blocks[row]), **look)
    picture.pick("map", box, say("choose a layer: click, or arrow keys", lang))
    _key(picture, data, TOP + high * len(blocks) + 20, lang)


def _cell(picture: Picture, data: ReportData, path: str, box: tuple) -> None:
    """A number where there is room, below it what it is compared with, and a flag."""
    x, y, wide, high = box
    beside = data.others[path]
    two = high >= 40 and math.isfinite(beside)
    if high >= 12:
        look = {"size": min(11, high - 3), "anchor": "middle"}
        picture.text(
            x + wide / 2, y + high / 2 + (-2 if two else 3.5), figures(data.values[path]), **look
        )
    if two:
        words = figures(beside) if data.other != "RTN" else f"RTN {figures(beside)}"
        picture.text(x + wide / 2, y + high / 2 + 13, words, size=9.5, anchor="middle")
    if path in data.told:
        _flag(picture, x + wide - 1, y + 1, min(7, high - 1))


def _shade(data: ReportData, value: float) -> tuple[str, float]:
    """Colour and strength of a cell: a ratio leaves 1 in two directions, all else starts at the
    least value.
    """
    found = [v for v in data.values.values() if math.isfinite(v)]
    if not math.isfinite(value):
        return "vermilion", 0.0
    if data.show.endswith("ratio to RTN"):
        logs = [abs(math.log(v)) for v in found if v > 0]
        most = max([*logs, 1e-9])
        away = math.log(value) / most if value > 0 else -1.0
        if away > 0:
            return "vermilion", INK * (0.5 + 0.5 * away)  # seen, however little worse
        return "blue", INK * -away
    low, high = min(found), max(found)
    if low > 0:
        low, high, value = math.log(low), math.log(high), math.log(value)
    part = (value - low) / (high - low) if high > low else 0.5
    return "vermilion", INK * (0.1 + 0.9 * part)


def _flag(picture: Picture, x: float, y: float, size: float) -> None:
    """A corner of ink, (x, y) its tip: there is something to read."""
    picture.polygon([(x - size, y), (x, y), (x, y + size)], fill="ink")


def _key(picture: Picture, data: ReportData, y: float, lang: str) -> None:
    found = [v for v in data.values.values() if math.isfinite(v)]
    low, high = min(found), max(found)
    x = MAP[0] + 44
    parts = np.exp(np.linspace(math.log(low), math.log(high), 10)) if low > 0 else None
    parts = np.linspace(low, high, 10) if parts is None else parts
    for i, value in enumerate(parts if high > low else [low]):
        colour, shade = _shade(data, float(value))
        picture.rect(x + 11 * i, y - 9, 11, 9, fill=colour, opacity=math.ceil(shade * 10) / 10)
    picture.text(x - 6, y, figures(low), size=11, colour="muted", anchor="end")
    if high > low:
        picture.text(x + 116, y, figures(high), size=11, colour="muted")
    _flag(picture, MAP[0] + 230, y - 9, 8)
    picture.text(MAP[0] + 236, y, say("has remarks", lang), size=11, colour="muted")


# ---- the list ------------------------------------------------------------------------------------


def draw_list(picture: Picture, data: ReportData, lang: str) -> None:
    """Every layer a row, a part of them seen; it can be picked ("list")."""
    seen = window(data)
    line = int(min(22, ROOM / len(seen)))
    first = data.order.index(seen[0]) + 1
    rows = {"first": first, "last": first + len(seen) - 1, "all": len(data.order)}
    note = say("{first} to {last} of {all}", lang, **rows)
    title(picture, 0, 112, say(data.show, lang), "blue", note)
    if data.other:
        picture.rect(DOTS[0], 119, 8, 8, stroke="vermilion", width=1.6)
        picture.text(DOTS[0] + 14, 127, say(data.other, lang), size=11, colour="muted")
    axis, low = _axis(data), TOP + line * len(seen)
    if data.show.endswith("ratio to RTN") and axis.lo <= 1 <= axis.hi:
        picture.segments(axis(1), TOP, axis(1), low, stroke="ink", dash="dash")
    for i, path in enumerate(seen):
        _row(picture, data, path, axis, TOP + line * (i + 0.5))
    picture.segments(*DOTS[:1], low + 4, DOTS[1], low + 4, stroke="faint")
    for tick in _ticks(axis):
        picture.segments(axis(tick), low + 4, axis(tick), low + 8, stroke="faint")
        look = {"size": 11, "colour": "muted", "anchor": "middle"}
        picture.text(float(axis(tick)), low + 20, number(tick), **look)
    frame = (0, TOP + line * seen.index(data.chosen), LAST, line)
    picture.rect(*frame, stroke="ink", width=1.6)
    box = (0, TOP, LAST, line * len(seen))
    picture.pick("list", box, say("choose a layer: click, or arrow keys", lang))


def _row(picture: Picture, data: ReportData, path: str, axis: Axis, y: float) -> None:
    """A layer: its name, a dot, a square for what it is compared with, the number, a flag."""
    block, kind = place(path)
    here, there = (float(axis(v)) for v in (data.values[path], data.others[path]))
    picture.text(22, y + 4, str(block), size=10.5, colour="muted", anchor="end")
    picture.text(32, y + 4, kind, size=10.5)
    picture.segments(*DOTS[:1], y, DOTS[1], y, stroke="faint", width=0.5)
    if math.isfinite(here) and math.isfinite(there):
        picture.segments(here, y, there, y, stroke="muted", width=1.5)
    if math.isfinite(here):
        picture.dots(here, y, 3.5, fill="blue")
    if math.isfinite(there):
        picture.rect(there - 4.5, y - 4.5, 9, 9, stroke="vermilion", width=1.4)
    picture.text(444, y + 4, figures(data.values[path]), size=10.5, anchor="end")
    if path in data.told:
        _flag(picture, LAST - 5, y - 4, 8)


def _ticks(axis: Axis) -> list[float]:
    """Round numbers; on a logarithmic axis 1, 2 and 5 of every decade."""
    if not axis.log:
        return axis.ticks(5)
    steps = [step * 10.0**power for power in range(-12, 12) for step in (1, 2, 5)]
    return [step for step in steps if axis.lo <= step <= axis.hi]


def _axis(data: ReportData) -> Axis:
    """From the least to the largest number of the list, in powers of two where they differ much."""
    both = [values[path] for path in data.order for values in (data.values, data.others)]
    found = [v for v in both if math.isfinite(v)] or [0.0]
    low, high = min(found), max(found)
    if low > 0 and high > 4 * low:
        return Axis(low / 1.1, high * 1.1, *DOTS, log=True)
    edge = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return Axis(low - edge, high + edge, *DOTS)
