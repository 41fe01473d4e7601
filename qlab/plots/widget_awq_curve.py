"""AWQ on one layer: the loss over the ratio, 1 % kept in float beside it, the channels with their
scales, their steps after over before, and the grid of a single weight before and after.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from qlab.plots.svg import Picture
from qlab.plots.widget_parts import PANEL, WIDTH, Axis, number, power_of_two, share, title, x_axis
from qlab.plots.widget_words import say

HEIGHT = 652
LEFT, RIGHT = 36, 396  # where the two halves begin
TOP, MIDDLE = 116, 322  # upper edges of the first two rows of panels
GRID, CODE = 512, 604  # of the number lines and of equation and code
CURVE, CHANNELS, BARS = "curve", "channels", "bars"  # names of what can be picked


@dataclasses.dataclass(frozen=True)
class Search:
    """What the search found, for all ratios.

    Attributes:
        ratios: (n,). scales: (n, in). errors: (n,) √(E‖ΔW x‖² / E‖W x‖²) of the output.
        kept: how 1 % of the channels was chosen -> error when they stay float, no scaling.
        size: (in,) E|x|. order: (in,) channels, the largest inputs first.
    """

    ratios: np.ndarray
    scales: np.ndarray
    errors: np.ndarray
    kept: dict[str, float]
    size: np.ndarray
    order: np.ndarray

    @property
    def best(self) -> int:
        """The place of the ratio with the least error."""
        return int(self.errors.argmin())


@dataclasses.dataclass(frozen=True)
class Line:
    """The levels that a weight can take, ascending; the weight; the level it takes."""

    levels: np.ndarray
    weight: float
    rounded: float


@dataclasses.dataclass(frozen=True)
class AwqCurveData:
    """What the picture shows.

    Attributes:
        search: what was found. ratio: the place of the chosen ratio.
        place: of the channel looked at, in `search.order`. row: of the weight looked at.
        bits: of a code. group: weights that share a scale.
        finer: (in,) step after over step before, geometric mean over the rows, in `search.order`.
        lines: the grid of the weight (row, channel), without scaling and with it.
        code: the two lines that search.
    """

    search: Search
    ratio: int
    place: int
    row: int
    bits: int
    group: int
    finer: np.ndarray
    lines: tuple[Line, Line]
    code: tuple[str, ...]

    @property
    def channel(self) -> int:
        """The channel looked at."""
        return int(self.search.order[self.place])


def draw_awq_curve(data: AwqCurveData, lang: str = "en") -> Picture:
    """The picture of `AwqCurveData`; ratio and channel can be picked in it.

    Example:
        >>> draw_awq_curve(awq_curve_data(source, state)).figure()   # doctest: +SKIP
    """
    picture = Picture(WIDTH, HEIGHT)
    _head(picture, data, lang)
    _curve(picture, data, lang)
    _bars(picture, data, lang)
    _channels(picture, data, lang)
    _steps(picture, data, lang)
    _grids(picture, data, lang)
    _code(picture, data, lang)
    return picture


def tenths(value: float) -> str:
    """A fraction in percent, to a tenth: candidates differ by little.

    Example:
        >>> tenths(0.1043)
        '10.4 %'
    """
    return f"{100 * value:.1f} %"


def sentence(data: AwqCurveData, lang: str) -> str:
    """What the ratio does to the channel looked at and to the output."""
    found, r = data.search, data.search.ratios[data.ratio]
    error, rtn = found.errors[data.ratio], found.errors[0]
    words = "r = {r}: channel {j}, times {s} before rounding, has a step {n} times {finer}; {all}"
    change = float(data.finer[data.place])
    if data.ratio == 0:
        return say("r = 0: no channel is scaled, this is plain rounding.", lang)
    all_in_all = "the output is better than rounding's." if error < rtn else "the output is worse."
    return say(
        words, lang, r=f"{r:.2f}", j=data.channel,
        s=number(float(found.scales[data.ratio, data.channel])),
        n=number(max(change, 1 / change)), finer=say("finer" if change < 1 else "coarser", lang),
        all=say(all_in_all, lang),
    )  # fmt: skip


def _head(picture: Picture, data: AwqCurveData, lang: str) -> None:
    found = data.search
    r, best = found.ratios[data.ratio], found.ratios[found.best]
    picture.rect(0, 0, WIDTH, 64, fill="panel", opacity=PANEL)
    name = say("output error at r = {r}", lang, r=f"{r:.2f}")
    picture.text(14, 17, name, size=11.5, colour="muted")
    picture.text(14, 52, tenths(float(found.errors[data.ratio])), size=30, bold=True)
    rtn = say("plain rounding, r = 0", lang)
    least = say("the best, r = {r}", lang, r=f"{best:.2f}")
    for x, words, value in (
        (RIGHT - 176, rtn, tenths(float(found.errors[0]))),
        (RIGHT, least, tenths(float(found.errors[found.best]))),
        (RIGHT + 176, say("scale of this channel", lang),
         number(float(found.scales[data.ratio, data.channel]))),
    ):  # fmt: skip
        picture.text(x, 17, words, size=11.5, colour="muted")
        picture.text(x, 45, value, size=18)
    words = sentence(data, lang)
    picture.text(0, 88, words, size=13)
    picture.label = (
        f"{words} {name}: {tenths(float(found.errors[data.ratio]))}; "
        f"{rtn}: {tenths(float(found.errors[0]))}; {least}: "
        f"{tenths(float(found.errors[found.best]))}."
    )


def _axis(picture: Picture, x: Axis, y: Axis, ticks: list[float], words: Any = number) -> None:
    """Faint lines across at the ticks of `y`, their numbers at the left."""
    for tick in ticks:
        picture.segments(x.start, y(tick), x.end, y(tick), stroke="faint", opacity=0.6)
        look = {"size": 11, "anchor": "end", "colour": "muted"}
        picture.text(x.start - 5, float(y(tick)) + 4, words(tick), **look)


def _curve(picture: Picture, data: AwqCurveData, lang: str) -> None:
    """The loss over r: rounding's level, the best, where we are."""
    found = data.search
    title(picture, LEFT - 28, TOP, say("output error over r, %", lang))
    errors, bottom = 100 * found.errors, TOP + 160
    x = Axis(0, 1, LEFT, RIGHT - 66)
    y = Axis(0, 1.06 * float(errors.max()), bottom, TOP + 14)
    _axis(picture, x, y, y.ticks(4))
    level = float(y(errors[0]))
    picture.segments(x.start, level, x.end, level, stroke="vermilion", width=1.6, dash="dash")
    picture.text(x.end + 4, level + 4, "RTN", size=11.5)
    picture.line(x(found.ratios), y(errors), stroke="blue", width=2.4)
    picture.dots(x(found.ratios), y(errors), 2.4, fill="blue")
    best = (float(x(found.ratios[found.best])), float(y(errors[found.best])))
    triangle = [(best[0], best[1] + 6), (best[0] - 5, best[1] + 15), (best[0] + 5, best[1] + 15)]
    picture.polygon(triangle, fill="green")
    picture.text(best[0], best[1] + 28, say("best", lang), size=11, anchor="middle")
    here = float(x(found.ratios[data.ratio]))
    picture.segments(here, y.start, here, y.end, stroke="ink", width=1, dash="dot")
    picture.dots(here, float(y(errors[data.ratio])), 5.5, fill="ink")
    x_axis(picture, x, bottom, count=5)
    picture.text(x.end + 8, bottom + 16, "r", size=11.5, colour="muted")
    box = (x.start, TOP + 10, x.end - x.start, 150)
    picture.pick(CURVE, box, say("choose r: click, or arrow keys", lang))


def _bars(picture: Picture, data: AwqCurveData, lang: str) -> None:
    """The paper's comparison: 1 % of the channels in float, by what they were chosen; and AWQ."""
    found = data.search
    count = max(1, round(0.01 * len(found.size)))
    head = say("{n} of {all} channels kept in float (1 %)", lang, n=count, all=len(found.size))
    title(picture, RIGHT, TOP, head)
    rows = [
        (say("none: plain rounding", lang), float(found.errors[0]), "vermilion"),
        *(
            (say(f"by {name}" if name != "random" else "at random", lang), value, "grey")
            for name, value in sorted(found.kept.items(), key=lambda item: -item[1])
        ),
        (say("AWQ here, nothing in float", lang), float(found.errors[data.ratio]), "sky"),
        (say("AWQ at its best", lang), float(found.errors[found.best]), "blue"),
    ]
    x = Axis(0, max(value for _, value, _ in rows), RIGHT + 166, WIDTH - 46)
    for i, (name, value, colour) in enumerate(rows):
        y = TOP + 16 + 25 * i
        picture.text(RIGHT + 160, y + 13, name, size=11.5, anchor="end")
        picture.rect(x.start, y, max(float(x(value)) - x.start, 1), 17, fill=colour)
        picture.text(float(x(value)) + 5, y + 13, tenths(value), size=11.5, colour="muted")
    label = say("go to the best r", lang)
    picture.pick(BARS, (RIGHT, TOP + 16 + 25 * (len(rows) - 1) - 2, WIDTH - RIGHT, 21), label)


def _channels(picture: Picture, data: AwqCurveData, lang: str) -> None:
    """E|x| and the scale of every channel, sorted."""
    found, bottom = data.search, MIDDLE + 128
    size = found.size[found.order]
    size = np.maximum(size / np.median(size), 2.0**-9)
    scale = found.scales[data.ratio][found.order]
    title(picture, LEFT - 28, MIDDLE, say("the channels: inputs and scales", lang))
    x = Axis(0, len(size), LEFT, RIGHT - 66)
    low, high = min(size.min(), scale.min(), 0.5), max(size.max(), scale.max(), 2.0)
    y = Axis(
        2.0 ** np.floor(np.log2(low)), 2.0 ** np.ceil(np.log2(high)), bottom, MIDDLE + 12, True
    )
    _axis(picture, x, y, y.ticks(4), power_of_two)
    at = x(np.arange(len(size)) + 0.5)
    picture.line(at, y(size), stroke="orange", width=2, dash="dash")
    picture.line(at, y(scale), stroke="blue", width=2)
    ends = [float(y(size[-1])), float(y(scale[-1]))]
    apart = max(0.0, 14 - abs(ends[0] - ends[1])) / 2
    signs = (1, -1) if ends[0] >= ends[1] else (-1, 1)
    for words, end, sign in zip(("E|x|", "s"), ends, signs, strict=True):
        picture.text(x.end + 5, end + 4 + sign * apart, words, size=11.5)
    _cursor(picture, data, x, y)
    x_axis(picture, x, bottom, say("channels, the largest E|x| first", lang), 4)
    box = (x.start, MIDDLE + 8, x.end - x.start, 124)
    picture.pick(CHANNELS, box, say("choose a channel: click, or arrow keys", lang))


def _cursor(picture: Picture, data: AwqCurveData, x: Axis, y: Axis) -> None:
    here = float(x(data.place + 0.5))
    picture.segments(here, y.start, here, y.end, stroke="ink", width=1.2, dash="dot")


def _steps(picture: Picture, data: AwqCurveData, lang: str) -> None:
    """Every channel's step after over before: below 1 protected, above 1 it pays."""
    bottom, finer = MIDDLE + 128, data.finer
    title(picture, RIGHT, MIDDLE, say("their steps, after / before", lang))
    x = Axis(0, len(finer), RIGHT + 34, WIDTH - 62)
    low, high = min(float(finer.min()), 0.5), max(float(finer.max()), 2.0)
    y = Axis(
        2.0 ** np.floor(np.log2(low)), 2.0 ** np.ceil(np.log2(high)), bottom, MIDDLE + 12, True
    )
    _axis(picture, x, y, y.ticks(4), power_of_two)
    one, edges = float(y(1.0)), x(np.arange(len(finer) + 1))
    for colour, tops in (("green", np.minimum(finer, 1)), ("vermilion", np.maximum(finer, 1))):
        picture.bars(edges, y(tops), one, fill=colour)
    picture.segments(x.start, one, x.end, one, stroke="ink", width=1)
    protected = share(float((finer < 1).mean()))
    for place, words in ((one - 8, "coarser"), (one + 16, "finer")):
        picture.text(x.end + 5, place, say(words, lang), size=11.5)
    _cursor(picture, data, x, y)
    words = say("{part} of the channels are finer", lang, part=protected)
    x_axis(picture, x, bottom, words, 4)


def _grids(picture: Picture, data: AwqCurveData, lang: str) -> None:
    """The levels that one weight can take: without scaling and with it."""
    words = say(
        "the grid of one weight: row {row}, channel {j}", lang, row=data.row, j=data.channel
    )
    title(picture, LEFT - 28, GRID, words)
    reach = 1.15 * max(
        float(np.abs(np.append(line.levels, line.weight)).max()) for line in data.lines
    )
    x = Axis(-reach, reach, LEFT + 70, WIDTH - 118)
    for i, (name, line) in enumerate(zip(("before", "after"), data.lines, strict=True)):
        y = GRID + 30 + 32 * i
        colour = "vermilion" if i == 0 else "blue"
        picture.text(LEFT - 28, y + 4, say(name, lang), size=11.5)
        picture.segments(x.start, y, x.end, y, stroke="faint")
        picture.segments(x(line.levels), y - 7, x(line.levels), y + 7, stroke=colour, width=2)
        picture.dots(float(x(line.weight)), y, 5, fill="ink")
        error = say("error {e}", lang, e=number(abs(line.weight - line.rounded), 2))
        picture.text(x.end + 10, y + 4, error, size=11.5)


def _code(picture: Picture, data: AwqCurveData, lang: str) -> None:
    picture.rect(0, CODE, WIDTH, HEIGHT - CODE, fill="panel", opacity=PANEL)
    picture.text(14, CODE + 19, "Ŵ = Q(W·diag s)·diag s⁻¹,   s = E|x|ʳ", size=12.5)
    words = say("s centred so that max s · min s = 1; r is the only unknown", lang)
    picture.text(14, CODE + 37, words, size=11, colour="muted")
    for i, line in enumerate(data.code):
        picture.text(RIGHT - 2, CODE + 19 + 18 * i, line, size=11, colour="muted")
