"""SmoothQuant on one layer: the error of the W8A8 product over α beside no smoothing and
LLM.int8(), the largest input and weight of every channel before and after, one token's codes.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from qlab.plots.svg import Picture
from qlab.plots.widget_awq_curve import tenths
from qlab.plots.widget_parts import PANEL, WIDTH, Axis, number, power_of_two, title, x_axis
from qlab.plots.widget_words import say

HEIGHT = 704
LEFT, RIGHT = 36, 396  # where the two halves begin
TOP, MIDDLE = 116, 340  # upper edges of the first two rows of panels
GRIDS, CODE = 536, 656  # of the codes and of equation and code
CURVE, CHANNELS, WEIGHTS, BARS = "curve", "channels", "weights", "bars"  # what can be picked
# How the inputs share scales at each of the paper's levels, and the dash of its curve.
GRANULARITY = {"O1": "per token", "O2": "per tensor", "O3": "static"}
DASHES = {"O1": "dot", "O2": "", "O3": "dash"}
LARGEST = 127  # code of INT8


@dataclasses.dataclass(frozen=True)
class Smoothed:
    """What smoothing does, for all α.

    Attributes:
        alphas: (n,). scales: (n, in), s. errors: level -> (n,) √(E‖ΔY‖² / E‖Y‖²) on held inputs.
        plain: level -> the same without smoothing. mixed: of LLM.int8().
        kept: channels that LLM.int8() keeps in float, the most of a sequence.
        amax_x, amax_w: (in,) max|X_j|, max|W_j|. order: (in,) channels, the largest inputs first.
    """

    alphas: np.ndarray
    scales: np.ndarray
    errors: dict[str, np.ndarray]
    plain: dict[str, float]
    mixed: float
    kept: int
    amax_x: np.ndarray
    amax_w: np.ndarray
    order: np.ndarray


@dataclasses.dataclass(frozen=True)
class Grid:
    """The int8 codes of one token (in,), and how many levels each channel reaches on all (in,)."""

    codes: np.ndarray
    reach: np.ndarray

    @property
    def median(self) -> int:
        """Levels that the median channel reaches."""
        return int(np.median(self.reach))


@dataclasses.dataclass(frozen=True)
class SmoothQuantData:
    """What the picture shows.

    Attributes:
        found: for all α. level: of GRANULARITY. alpha: the place of the chosen α.
        place: of the channel looked at, in `found.order`. token: whose codes are drawn.
        grids: without smoothing and with it. code: the two lines that compute.
    """

    found: Smoothed
    level: str
    alpha: int
    place: int
    token: int
    grids: tuple[Grid, Grid]
    code: tuple[str, ...]

    @property
    def channel(self) -> int:
        """The channel looked at."""
        return int(self.found.order[self.place])

    @property
    def best(self) -> int:
        """The place of the α with the least error at this level."""
        return int(self.found.errors[self.level].argmin())

    @property
    def error(self) -> float:
        """Of the output, at this level and α."""
        return float(self.found.errors[self.level][self.alpha])

    @property
    def scale(self) -> float:
        """s of the channel looked at."""
        return float(self.found.scales[self.alpha, self.channel])


def place_of(x: float, channels: int) -> int:
    """Which channel's bar is at x (0 … 1) of the logarithmic axis of ranks.

    Example:
        >>> place_of(0.0, 256), place_of(0.5, 255), place_of(1.0, 256)
        (0, 15, 255)
    """
    return min(int((channels + 1) ** x + 1e-9), channels) - 1


def draw_smoothquant(data: SmoothQuantData, lang: str = "en") -> Picture:
    """The picture of `SmoothQuantData`; α and channel can be picked in it.

    Example:
        >>> draw_smoothquant(smoothquant_data(source, state)).figure()   # doctest: +SKIP
    """
    picture = Picture(WIDTH, HEIGHT)
    _head(picture, data, lang)
    _curve(picture, data, lang)
    _bars(picture, data, lang)
    found, s = data.found, data.found.scales[data.alpha]
    y = _common_axis(found)
    look = {"picture": picture, "data": data, "y": y, "lang": lang}
    _mountain(**look, left=LEFT, name=CHANNELS, before=found.amax_x, after=found.amax_x / s)
    _mountain(**look, left=RIGHT + 34, name=WEIGHTS, before=found.amax_w, after=found.amax_w * s)
    _grids(picture, data, lang)
    _code(picture, data, lang)
    return picture


def sentence(data: SmoothQuantData, lang: str) -> str:
    """What α does to the channel looked at and to the grid of the median channel."""
    words = (
        "α = {a}: X's channel {j} is divided by {s}, W's multiplied; "
        "the median channel reaches {n} of 255 levels, not {m}."
    )
    before, after = (grid.median for grid in data.grids)
    alpha = f"{data.found.alphas[data.alpha]:.2f}"
    return say(words, lang, a=alpha, j=data.channel, s=number(data.scale), n=after, m=before)


def _head(picture: Picture, data: SmoothQuantData, lang: str) -> None:
    found, errors = data.found, data.found.errors[data.level]
    picture.rect(0, 0, WIDTH, 64, fill="panel", opacity=PANEL)
    name = say("output error at α = {a}", lang, a=f"{found.alphas[data.alpha]:.2f}")
    picture.text(14, 17, name, size=11.5, colour="muted")
    picture.text(14, 52, tenths(data.error), size=30, bold=True)
    plain = say("no smoothing", lang)
    least = say("the best, α = {a}", lang, a=f"{found.alphas[data.best]:.2f}")
    before, after = (grid.median for grid in data.grids)
    for x, words, value in (
        (RIGHT - 176, plain, tenths(found.plain[data.level])),
        (RIGHT, least, tenths(float(errors[data.best]))),
        (RIGHT + 176, say("levels of the median channel", lang), f"{before} → {after}"),
    ):
        picture.text(x, 17, words, size=11.5, colour="muted")
        picture.text(x, 45, value, size=18)
    words = sentence(data, lang)
    picture.text(0, 88, words, size=13)
    picture.label = (
        f"{words} {say(GRANULARITY[data.level], lang)}. {name}: {tenths(data.error)}; "
        f"{plain}: {tenths(found.plain[data.level])}; {least}: {tenths(float(errors[data.best]))}."
    )


def _across(picture: Picture, x: Axis, y: Axis, ticks: list[float], words=number) -> None:
    """Faint lines at the ticks of `y`, their numbers at the left."""
    for tick in ticks:
        picture.segments(x.start, y(tick), x.end, y(tick), stroke="faint", opacity=0.6)
        look = {"size": 11, "anchor": "end", "colour": "muted"}
        picture.text(x.start - 5, float(y(tick)) + 4, words(tick), **look)


def _curve(picture: Picture, data: SmoothQuantData, lang: str) -> None:
    """The error over α at every granularity, the level of no smoothing, LLM.int8()."""
    found, bottom = data.found, TOP + 160
    title(picture, LEFT - 28, TOP, say("error of the W8A8 output over α, %", lang))
    every = [*found.errors.values(), list(found.plain.values()), [found.mixed]]
    every = 100 * np.concatenate(every)
    x = Axis(0, 1, LEFT, RIGHT - 88)
    y = Axis(every.min() / 1.15, every.max() * 1.15, bottom, TOP + 12, log=True)
    _across(picture, x, y, y.ticks(6))
    for level, dash in DASHES.items():
        mine = level == data.level
        errors, plain = 100 * found.errors[level], float(y(100 * found.plain[level]))
        look = {"stroke": "vermilion" if mine else "grey", "width": 1.8 if mine else 1}
        picture.segments(x.start, plain, x.end, plain, dash="dash" if mine else dash, **look)
        look = {"stroke": "blue" if mine else "grey", "width": 2.4 if mine else 1.2}
        picture.line(x(found.alphas), y(errors), dash="" if mine else dash, **look)
        if mine:
            picture.dots(x(found.alphas), y(errors), 2.4, fill="blue")
            picture.text(x.end + 4, plain + 4, say("unsmoothed", lang), size=11.5)
    mixed = float(y(100 * found.mixed))
    picture.segments(x.start, mixed, x.end, mixed, stroke="green", width=1.6, dash="dash")
    picture.text(x.end + 4, mixed + 4, "LLM.int8()", size=11.5)
    _here(picture, data, x, y, lang)
    x_axis(picture, x, bottom, count=5)
    picture.text(x.end + 8, bottom + 16, "α", size=11.5, colour="muted")
    _legend(picture, data, lang, bottom + 36)
    box = (x.start, TOP + 10, x.end - x.start, 150)
    picture.pick(CURVE, box, say("choose α: click, or arrow keys", lang))


def _here(picture: Picture, data: SmoothQuantData, x: Axis, y: Axis, lang: str) -> None:
    """The chosen α and the best."""
    errors = 100 * data.found.errors[data.level]
    a, e = float(x(data.found.alphas[data.best])), float(y(errors[data.best]))
    picture.polygon([(a, e - 6), (a - 5, e - 15), (a + 5, e - 15)], fill="green")
    picture.text(a, e - 19, say("best", lang), size=11, anchor="middle")
    here = float(x(data.found.alphas[data.alpha]))
    picture.segments(here, y.start, here, y.end, stroke="ink", width=1, dash="dot")
    picture.dots(here, float(y(errors[data.alpha])), 5.5, fill="ink")


def _legend(picture: Picture, data: SmoothQuantData, lang: str, y: float) -> None:
    """Which curve is which granularity."""
    for i, (level, dash) in enumerate(DASHES.items()):
        mine, x = level == data.level, LEFT + 100 * i
        look = {"stroke": "blue" if mine else "grey", "width": 2.4 if mine else 1.2}
        picture.segments(x, y - 4, x + 22, y - 4, dash="" if mine else dash, **look)
        picture.text(x + 27, y, say(GRANULARITY[level], lang), size=11.5, bold=mine)


def _bars(picture: Picture, data: SmoothQuantData, lang: str) -> None:
    """What granularity alone achieves, LLM.int8(), SmoothQuant here and at its best."""
    found = data.found
    title(picture, RIGHT, TOP, say("error of the W8A8 output", lang))
    rows = [
        (f"{say('no smoothing', lang)}, {say(GRANULARITY[level], lang)}", value,
         "vermilion" if level == data.level else "grey")
        for level, value in sorted(found.plain.items(), key=lambda item: -item[1])
    ]  # fmt: skip
    rows += [
        (say("LLM.int8(), {n} channels float", lang, n=found.kept), found.mixed, "green"),
        (say("SmoothQuant here", lang), data.error, "sky"),
        (say("SmoothQuant at its best", lang), found.errors[data.level][data.best], "blue"),
    ]
    x = Axis(0, max(value for _, value, _ in rows), RIGHT + 182, WIDTH - 50)
    for i, (name, value, colour) in enumerate(rows):
        y = TOP + 16 + 25 * i
        picture.text(RIGHT + 176, y + 13, name, size=11.5, anchor="end")
        picture.rect(x.start, y, max(float(x(value)) - x.start, 1), 17, fill=colour)
        picture.text(float(x(value)) + 5, y + 13, tenths(float(value)), size=11.5, colour="muted")
    words = say("weights in int8: per row for LLM.int8(), else one scale", lang)
    picture.text(RIGHT, TOP + 196, words, size=11, colour="muted")
    label = say("go to the best α", lang)
    picture.pick(BARS, (RIGHT, TOP + 16 + 25 * (len(rows) - 1) - 2, WIDTH - RIGHT, 21), label)


def _common_axis(found: Smoothed) -> Axis:
    """One for X and W and all α, so that nothing jumps and equal factors are equal heights."""
    product = found.amax_x * found.amax_w  # max|X̂_j| at α = 0 and max|Ŵ_j| at α = 1
    every = np.concatenate([found.amax_x, found.amax_w, product, [1.0]])
    every = np.log2(every[every > 0])
    high = np.ceil(every.max())
    low = max(np.floor(every.min() - 0.5), high - 18)  # a channel that is almost 0 may fall out
    return Axis(2.0**low, 2.0**high, MIDDLE + 140, MIDDLE + 12, log=True)


def _mountain(
    picture: Picture, data: SmoothQuantData, y: Axis, lang: str, left: float, name: str,
    before: np.ndarray, after: np.ndarray,
) -> None:  # fmt: skip
    """max|·| of every channel, filled after migration, dashed before; an arrow at the cursor."""
    order, inputs = data.found.order, name == CHANNELS
    what = (
        "inputs' max|Xⱼ|: before (dashed), after ÷ s"
        if inputs
        else "weights' max|Wⱼ|: before (dashed), after × s"
    )
    title(picture, left - (28 if inputs else 34), MIDDLE, say(what, lang))
    x = Axis(1, len(order) + 1, left, left + 294, log=True)
    _across(picture, x, y, y.ticks(4), power_of_two)
    edges = x(np.arange(1, len(order) + 2))
    tops = [y(np.maximum(values[order], y.lo)) for values in (before, after)]
    picture.bars(edges, tops[1], y.start, fill="blue" if inputs else "orange", opacity=0.75)
    steps = np.repeat(edges, 2)[1:-1]
    picture.line(steps, np.repeat(tops[0], 2), stroke="ink", width=1.3, dash="dash")
    here = float(x(np.sqrt((data.place + 1) * (data.place + 2))))
    ends = [float(top[data.place]) for top in tops]
    down = np.sign(ends[1] - ends[0])
    picture.segments(here, ends[0], here, ends[1], stroke="ink", width=2.4)
    if abs(ends[1] - ends[0]) > 6:
        base = ends[1] - 8 * down
        picture.polygon([(here, ends[1]), (here - 5, base), (here + 5, base)], fill="ink")
    picture.dots(here, ends[0], 3, fill="ink")
    _ranks(picture, x, y.start, say("channels, the largest max|X| first", lang))
    box = (x.start, MIDDLE + 8, x.end - x.start, 132)
    picture.pick(name, box, say("choose a channel: click, or arrow keys", lang))


def _ranks(picture: Picture, x: Axis, y: float, label: str) -> None:
    """A logarithmic axis of ranks 1, 2, 4, …"""
    picture.segments(x.start, y, x.end, y, stroke="faint")
    for rank in 2 ** np.arange(int(np.log2(x.hi)) + 1):
        at = float(x(rank))
        picture.segments(at, y, at, y + 4, stroke="faint")
        look = {"size": 11, "colour": "muted", "anchor": "middle"}
        picture.text(at, y + 16, str(rank), **look)
    picture.text((x.start + x.end) / 2, y + 31, label, size=11, colour="muted", anchor="middle")


def _grids(picture: Picture, data: SmoothQuantData, lang: str) -> None:
    """How many channels of one token fall on each of the int8 levels, without and with s."""
    words = say("token {t} on the int8 grid: its channels at each level", lang, t=data.token)
    title(picture, LEFT - 28, GRIDS, words)
    x = Axis(-LARGEST - 1, LARGEST + 1, LEFT + 34, WIDTH - 188)
    most = np.log2(1 + len(data.found.order))
    for i, (name, grid) in enumerate(zip(("before", "after"), data.grids, strict=True)):
        y, colour = GRIDS + 42 + 42 * i, "vermilion" if i == 0 else "blue"
        picture.text(LEFT - 28, y + 4, say(name, lang), size=11.5)
        picture.segments(x.start, y, x.end, y, stroke="faint")
        levels, counts = np.unique(grid.codes, return_counts=True)
        tops = y - 30 * np.log2(1 + counts) / most
        picture.segments(x(levels), y, x(levels), tops, stroke=colour, width=1.8)
        picture.dots(float(x(grid.codes[data.channel])), y, 4, fill="ink")
        for tick in (-LARGEST, -64, 0, 64, LARGEST) if i else ():
            look = {"size": 11, "colour": "muted", "anchor": "middle"}
            picture.text(float(x(tick)), y + 16, number(tick), **look)
        used = say("{n} levels used", lang, n=len(levels))
        picture.text(x.end + 12, y - 10, used, size=11.5)
        median = say("median channel, all tokens: {n}", lang, n=grid.median)
        picture.text(x.end + 12, y + 6, median, size=11.5)


def _code(picture: Picture, data: SmoothQuantData, lang: str) -> None:
    picture.rect(0, CODE, WIDTH, HEIGHT - CODE, fill="panel", opacity=PANEL)
    words = "X Wᵀ = (X diag s⁻¹)(W diag s)ᵀ,   sⱼ = max|Xⱼ|ᵅ / max|Wⱼ|¹⁻ᵅ"
    picture.text(14, CODE + 19, words, size=12.5)
    words = say("measured on held text; scales and ranges from other text", lang)
    picture.text(14, CODE + 37, words, size=11, colour="muted")
    for i, line in enumerate(data.code):
        picture.text(RIGHT + 44, CODE + 19 + 18 * i, line, size=11, colour="muted")
