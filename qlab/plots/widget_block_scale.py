"""One block of real weights on its grid: what saturates, what vanishes, how wide the range should
be, the conventions or scale rules side by side.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from qlab.plots.svg import Picture
from qlab.plots.widget_parts import (
    PANEL,
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

HEIGHT = 600
NAMES = ("bits per weight", "SQNR", "output error of this block", "bytes")


@dataclasses.dataclass
class Variant:
    """One way to find the range of the block.

    Attributes:
        rule: its name in RULES.
        words: its formula.
        scale, zero: numbers; zero is None without a zero point.
        levels: (k,) ascending.
        values: (n,) what the weights become.
        sweep: (p,) signal to noise at every range of `BlockScaleData.ranges`.
        taken: whether a method that tries several takes this one.
    """

    rule: str
    words: str
    scale: float
    zero: float | None
    levels: np.ndarray
    values: np.ndarray
    sweep: np.ndarray
    taken: bool = False

    def saturated(self, w: np.ndarray) -> np.ndarray:
        """(n,) bool: beyond the last level by more than rounding would put it."""
        low, high = np.diff(self.levels)[[0, -1]] / 2 * 1.0001
        return (w > self.levels[-1] + high) | (w < self.levels[0] - low)

    def vanished(self, w: np.ndarray) -> np.ndarray:
        """(n,) bool: not zero before, zero now."""
        return (w != 0) & (self.values == 0)

    def sqnr(self, w: np.ndarray) -> float:
        return float((w**2).sum() / max(((w - self.values) ** 2).sum(), 1e-30))


@dataclasses.dataclass(frozen=True)
class Row:
    """The blocks of a row under two ends.

    Attributes:
        six, four: (n,) signal to noise of each, its largest weight on 6 and on 4.
        here: which of them is shown.
    """

    six: np.ndarray
    four: np.ndarray
    here: int


@dataclasses.dataclass(frozen=True)
class BlockScaleData:
    """What the picture shows.

    Attributes:
        weights: (n,).
        variants: the conventions and the zero point.
        chosen: which of them is drawn large.
        ranges: (p,) ranges tried, parts of max|w|; `range` the chosen one.
        where: layer, channel, first column.
        bits: per weight, scale and zero point counted.
        error: √(E‖Δw·x‖² / E‖w·x‖²) of this block's part of the output.
        row: all blocks of the row, where there are two ends to choose from.
    """

    weights: np.ndarray
    variants: tuple[Variant, ...]
    chosen: int
    ranges: np.ndarray
    range: float
    where: tuple[str, int, int]
    bits: float
    error: float
    row: Row | None = None


def draw_block_scale(data: BlockScaleData, lang: str = "en") -> Picture:
    """The picture of `BlockScaleData`; every variant can be picked by its rule's name, and a block
    of the row ("blocks").

    Example:
        >>> draw_block_scale(block_scale_data(source, state)).figure()  # doctest: +SKIP
    """
    picture = Picture(WIDTH, HEIGHT)
    w, now = data.weights, data.variants[data.chosen]
    counts = {"s": int(now.saturated(w).sum()), "v": int(now.vanished(w).sum()), "n": len(w)}
    words = say("{s} of {n} weights saturate, {v} vanish (become 0).", lang, **counts)
    readout = Readout(
        (f"{data.bits:.4g}", say("{n}× smaller than float32", lang, n=number(32 / data.bits, 2))),
        (decibels(now.sqnr(w)), say("higher is better", lang)),
        (share(data.error), say("on real inputs", lang)),
        (size(data.bits * len(w) / 8), say("of {n}", lang, n=size(4 * len(w)))),
    )
    head(picture, readout, words, lang, NAMES)
    _weights(picture, data, now, lang)
    if data.row is None:
        _sweep(picture, data, now, lang)
    else:
        _blocks(picture, data.row, lang)
    _rows(picture, data, lang)
    return picture


def _weights(picture: Picture, data: BlockScaleData, now: Variant, lang: str) -> None:
    """Every weight at its place in the block, and the level that it goes to."""
    w, n = data.weights, len(data.weights)
    layer, channel, start = data.where
    where = {"channel": channel, "first": start, "last": start + n - 1}
    title(
        picture, 0, 118, say("output channel {channel}, weights {first} to {last}", lang, **where)
    )
    end = 1.18 * float(np.abs(w).max()) or 1.0
    y = Axis(-end, end, 330, 130)
    x = Axis(-0.7, n - 0.3, 46, 490)(np.arange(n))
    picture.rect(46, 130, 444, 200, fill="panel", opacity=PANEL)
    inside = now.levels[np.abs(now.levels) < end]
    faint = 1 if len(inside) <= 40 else 0.2
    picture.segments(46, y(inside), 490, y(inside), stroke="green", width=0.8, opacity=faint)
    for tick in y.ticks(4):
        picture.text(42, float(y(tick)) + 4, number(tick), size=11, colour="muted", anchor="end")
    saturated, vanished = now.saturated(w), now.vanished(w)
    picture.segments(x, y(w), x, y(now.values), stroke="muted", width=1.5)
    radius = 3.5 if n <= 64 else 2.4
    fine = ~(saturated | vanished)
    picture.dots(x[fine], y(w[fine]), radius, fill="blue")
    picture.dots(x[vanished], y(w[vanished]), radius, fill="paper", stroke="ink", width=1.2)
    picture.dots(x[saturated], y(w[saturated]), radius + 1.5, fill="vermilion", stroke="ink")
    for place, colour, stroke, name in (
        (46, "blue", "none", "weights"),
        (140, "paper", "ink", "vanish"),
        (234, "vermilion", "ink", "saturate"),
    ):
        picture.dots(place + 4, 343, 4, fill=colour, stroke=stroke)
        picture.text(place + 13, 347, say(name, lang), size=11, colour="muted")
    picture.segments(328, 343, 344, 343, stroke="green", width=2)
    picture.text(350, 347, say("levels", lang), size=11, colour="muted")


def _sweep(picture: Picture, data: BlockScaleData, now: Variant, lang: str) -> None:
    """SQNR against the range: a narrower range has finer steps and more that saturates."""
    title(picture, 528, 118, say("SQNR against the range", lang))
    decibel = 10 * np.log10(np.maximum(now.sweep, 1e-3))
    low, high = float(decibel.min()), float(decibel.max())
    edge = 0.08 * (high - low) + 0.5
    y = Axis(low - edge, high + edge, 330, 130)
    x = Axis(100 * data.ranges[0] - 2, 100 * data.ranges[-1] + 2, 556, 724)
    for tick in y.ticks(4):
        picture.segments(556, y(tick), 724, y(tick), stroke="faint", opacity=0.6)
        picture.text(552, float(y(tick)) + 4, number(tick), size=11, colour="muted", anchor="end")
    picture.line(x(100 * data.ranges), y(decibel), stroke="blue", width=2)
    picture.dots(x(100 * data.ranges), y(decibel), 2.5, fill="blue")
    here = int(np.abs(data.ranges - data.range).argmin())
    picture.dots(x(100 * data.range), y(decibel[here]), 6, fill="ink")
    x_axis(picture, x, 330, say("range, % of the largest weight", lang), 4)


def _blocks(picture: Picture, row: Row, lang: str) -> None:
    """Every block of the row under both ends, a line between: blue on top ends at 6."""
    better = int((row.four > row.six).sum())
    words = say("{m} of {n} blocks of the row end at 4", lang, m=better, n=len(row.six))
    title(picture, 528, 118, words)
    six, four = (10 * np.log10(np.maximum(r, 1e-3)) for r in (row.six, row.four))
    low, high = float(min(six.min(), four.min())), float(max(six.max(), four.max()))
    y = Axis(low - 0.5, high + 0.5, 330, 130)
    x = Axis(-0.8, len(six) - 0.2, 556, WIDTH)
    picture.rect(float(x(row.here)) - 5, 130, 10, 200, fill="panel")
    for tick in y.ticks(4):
        picture.segments(556, y(tick), WIDTH, y(tick), stroke="faint", opacity=0.6)
        picture.text(552, float(y(tick)) + 4, number(tick), size=11, colour="muted", anchor="end")
    at = x(np.arange(len(six)))
    picture.segments(at, y(six), at, y(four), stroke="muted", width=1)
    radius = 3.4 if len(six) <= 32 else 2
    picture.dots(at, y(six), radius, fill="blue")
    picture.dots(at, y(four), radius, fill="vermilion")
    picture.segments(556, 330, WIDTH, 330, stroke="faint")
    for place, colour, end in ((556, "blue", 6), (650, "vermilion", 4)):
        picture.dots(place + 4, 343, 4, fill=colour)
        note = say("dB, ends at {n}", lang, n=end)
        picture.text(place + 13, 347, note, size=11, colour="muted")
    picture.pick("blocks", (556, 130, WIDTH - 556, 200), say("choose a block: click", lang))


def _rows(picture: Picture, data: BlockScaleData, lang: str) -> None:
    """All conventions on one axis, one under the other: where their levels are and what it
    costs.
    """
    w = data.weights
    end = 1.18 * float(np.abs(w).max()) or 1.0
    axis = Axis(-end, end, 250, WIDTH - 8)
    title(picture, 0, 384, say("the conventions side by side", lang))
    for i, variant in enumerate(data.variants):
        top = 394 + 43 * i
        if i == data.chosen:
            picture.rect(0, top, WIDTH, 41, fill="panel", opacity=PANEL)
            picture.rect(0, top, 4, 41, fill="blue")
        picture.text(12, top + 17, variant.words, size=12.5, bold=i == data.chosen)
        counts = {"s": int(variant.saturated(w).sum()), "v": int(variant.vanished(w).sum())}
        note = say("{s} saturate, {v} vanish", lang, **counts)
        note = f"{decibels(variant.sqnr(w))} · {note}"
        note += f" · {say('taken', lang)}" if variant.taken else ""
        picture.text(12, top + 34, note, size=11, colour="muted")
        inside = variant.levels[(variant.levels >= -end) & (variant.levels <= end)]
        width = 2.5 if len(inside) <= 32 else 1
        picture.segments(
            axis(inside), top + 19, axis(inside), top + 37, stroke="green", width=width
        )
        saturated = variant.saturated(w)
        picture.dots(axis(w[~saturated]), top + 9, 2.6, fill="blue")
        picture.dots(axis(w[saturated]), top + 9, 4.5, fill="vermilion", stroke="ink")
        picture.pick(variant.rule, (0, top, WIDTH, 41), f"{variant.words}: {note}")
    x_axis(picture, axis, 394 + 43 * len(data.variants) + 2, count=8)
