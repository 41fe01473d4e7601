"""HQQ's steps: one group of weights on levels that slide as its zero point moves; its errors, what
they cost and which of them the next step puts up with; the layer's errors and all zero points over
the steps.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from qlab.plots.svg import Picture
from qlab.plots.widget_parts import PANEL, WIDTH, Axis, number, share, title, x_axis
from qlab.plots.widget_words import say

HEIGHT = 730
LEFT, RIGHT = 40, 410  # where the panels of the two halves begin
LINE, MIDDLE, LOWER, CODE = 116, 302, 482, 662  # upper edges of the rows
HIGH = 116  # of a panel
END = 648  # of the panels at the right; the names of their curves stand behind it
CURVES, ZEROS = "curves", "zeros"  # what can be picked
SHOWN = 16  # levels on the line, at most
DRAWN = 60  # zero points over the steps, at most


@dataclasses.dataclass(frozen=True)
class Searched:
    """All steps of a layer's search, the grid of minimum and maximum first; n counts it too.

    Attributes:
        zeros: (n, rows, groups) zero points, in codes, as they are stored.
        costs: (n, 3) Σ|W − Ŵ|^p, Σ(W − Ŵ)² and the squared relative error of the output.
        kept: (n,) which part of the errors the next step puts up with.
        steps: that the search has taken; after them nothing moves.
        rose: whether it ended because the mean error no longer fell.
    """

    zeros: np.ndarray
    costs: np.ndarray
    kept: np.ndarray
    steps: int
    rose: bool


@dataclasses.dataclass(frozen=True)
class Group:
    """One group of m weights at each of n steps.

    Attributes:
        w: (m,). scale: () in weights. zeros: (n,) in codes. codes: (n, m) int.
        w_hat: (n, m) what the codes stand for. kept: (n, m) W_e, the errors put up with.
    """

    w: np.ndarray
    scale: float
    zeros: np.ndarray
    codes: np.ndarray
    w_hat: np.ndarray
    kept: np.ndarray

    @property
    def errors(self) -> np.ndarray:
        """(n, m) W − Ŵ, in steps of the grid."""
        return (self.w - self.w_hat) / self.scale


@dataclasses.dataclass(frozen=True)
class HqqStepsData:
    """What the picture shows.

    Attributes:
        found: of the layer. group: that is drawn, `place` of row `channel`.
        curve: errors and what shrinking leaves of them, both in steps of the grid.
        bits, p, beta: as chosen. step: after how many steps.
        code: the two lines that compute a step.
    """

    found: Searched
    group: Group
    curve: tuple[np.ndarray, np.ndarray]
    bits: int
    p: float
    beta: float
    channel: int
    place: int
    step: int
    code: tuple[str, ...]

    @property
    def change(self) -> np.ndarray:
        """(3,) the costs now beside plain rounding's: −0.1 is a tenth less."""
        start = np.where(self.found.costs[0] == 0, 1.0, self.found.costs[0])
        return (self.found.costs[self.step] - self.found.costs[0]) / start

    @property
    def moved(self) -> np.ndarray:
        """(n, groups of the layer) how far every zero point has moved since the start, in codes."""
        zeros = self.found.zeros.reshape(len(self.found.zeros), -1)
        return zeros - zeros[0]

    @property
    def index(self) -> int:
        """The place of the group among all of the layer, row by row."""
        return self.channel * self.found.zeros.shape[2] + self.place

    @property
    def threshold(self) -> float:
        """Smaller errors shrink to 0: where |x| = |x|^(p−1) / β, β^(−1/(2−p))."""
        return self.beta ** (-1 / (2 - self.p))

    @property
    def changed(self) -> np.ndarray:
        """(m,) bool, the weights with another level than at the start."""
        return self.group.codes[self.step] != self.group.codes[0]


def signed(value: float, digits: int = 2) -> str:
    """`+0.021`, `−0.3`; what rounds to zero is 0.

    Example:
        >>> signed(0.0214), signed(0.0)
        ('+0.021', '0')
    """
    return ("+" if value > 0 else "") + number(value, digits)


def percent(value: float) -> str:
    """A change in tenths of a percent: `−2.2 %`.

    Example:
        >>> percent(-0.0216), percent(-1e-9)
        ('−2.2 %', '0.0 %')
    """
    text = f"{100 * value:+.1f} %".replace("-", "−")
    return text if text[1:] != "0.0 %" else text[1:]


def draw_hqq_steps(data: HqqStepsData, lang: str = "en") -> Picture:
    """The picture of `HqqStepsData`; a step and a group can be picked in it.

    Example:
        >>> draw_hqq_steps(hqq_steps_data(source, state)).figure()   # doctest: +SKIP
    """
    picture = Picture(WIDTH, HEIGHT)
    _head(picture, data, lang)
    _line(picture, data, lang)
    reach = 0.15 + np.ceil(10 * max(0.6, np.abs(data.group.errors).max())) / 10 - 0.1
    x = Axis(-reach, reach, LEFT, RIGHT - 92)  # of both panels of errors, in steps of the grid
    _errors(picture, data, x, lang)
    _shrink(picture, data, x, lang)
    x = Axis(0, len(data.found.costs) - 1, RIGHT + 8, END)
    _curves(picture, data, x, lang)
    _zeros(picture, data, x, lang)
    _code(picture, data, lang)
    return picture


def sentence(data: HqqStepsData, lang: str) -> str:
    """What the step has done; at the end what has come of it."""
    k, found, one = data.step, data.found, data.group
    if k == 0:
        return say("Step 0 is plain rounding: the group's ends lie on the ends of its grid.", lang)
    if k >= found.steps:
        why = "the mean error no longer fell" if found.rose else "no more are allowed"
        fell = data.change[2] < 0
        output = "the output error fell" if fell else "the output error did not fall"
        words = "The search ends with step {k}: {why}; {output}, and no text was read."
        return say(words, lang, k=found.steps, why=say(why, lang), output=say(output, lang))
    words = "Step {k}: this zero point moves by {d} codes; {n} of {m} weights changed their level."
    by = float(one.zeros[k] - one.zeros[k - 1])
    n = int((one.codes[k] != one.codes[k - 1]).sum())
    return say(words, lang, k=k, d=signed(by), n=n, m=len(one.w))


def _head(picture: Picture, data: HqqStepsData, lang: str) -> None:
    """One large number, what it costs elsewhere, and what just happened."""
    picture.rect(0, 0, WIDTH, 64, fill="panel", opacity=PANEL)
    objective, squared, output = (percent(value) for value in data.change)
    name = say("Σ|W−Ŵ|ᵖ of the layer, p = {p}", lang, p=f"{data.p:g}")
    picture.text(14, 17, name, size=11.5, colour="muted")
    picture.text(14, 52, objective, size=30, bold=True)
    squares = say("squared error Σe²", lang)
    outputs = say("squared output error", lang)
    stops = say("the search stops", lang)
    after = say("after step {k}", lang, k=data.found.steps)
    for x, words, value in (
        (258, squares, squared), (RIGHT, outputs, output), (594, stops, after)
    ):  # fmt: skip
        picture.text(x, 17, words, size=11.5, colour="muted")
        picture.text(x, 45, value, size=18)
    words = sentence(data, lang)
    picture.text(0, 88, words, size=13)
    picture.label = (
        f"{words} {name}: {objective}; {squares}: {squared}; {outputs}: {output}; {stops} {after}."
    )


def _window(data: HqqStepsData) -> tuple[int, int]:
    """The first and the last code on the line: all, or those around the median weight."""
    last = 2**data.bits - 1
    if last < SHOWN:
        return 0, last
    middle = int(np.median(data.group.codes[0]))
    first = int(np.clip(middle - SHOWN // 2, 0, last - SHOWN + 1))
    return first, first + SHOWN - 1


def _line(picture: Picture, data: HqqStepsData, lang: str) -> None:
    """The weights, and under each of them the level that stands for it; the starting grid below."""
    one, k = data.group, data.step
    first, last = _window(data)
    words = say("group {g} of row {row} on its levels", lang, g=data.place, row=data.channel)
    if last - first + 1 < 2**data.bits:
        part = say("{n} of {all} levels", lang, n=SHOWN, all=2**data.bits)
        words = f"{words}: {part}"
    title(picture, 0, LINE, words)
    levels = np.arange(first, last + 1)
    start, now = ((levels - one.zeros[i]) * one.scale for i in (0, k))
    room = 0.75 * one.scale
    x = Axis(float(start[0] - room), float(start[-1] + room), LEFT + 28, WIDTH - 8)
    top, middle, bottom = LINE + 28, LINE + 86, LINE + 118
    _links(picture, data, x, top, middle - 8)
    for y, words in ((top, "weights"), (middle, "levels now"), (bottom, "at the start")):
        picture.text(0, y + 4, say(words, lang), size=11.5, colour="muted")
    picture.segments(x(start), bottom - 6, x(now), middle + 7, stroke="muted", width=0.8)
    picture.segments(x(now), middle - 8, x(now), middle + 7, stroke="blue", width=3)
    picture.segments(x(start), bottom - 6, x(start), bottom + 5, stroke="muted", width=1.8)
    for code, at in zip(levels, x(start)):
        look = {"size": 11, "colour": "muted", "anchor": "middle"}
        picture.text(float(at), bottom + 17, str(code), **look)
    _nought(picture, data, x, top, middle, lang)
    _line_key(picture, lang)


def _links(picture: Picture, data: HqqStepsData, x: Axis, top: float, y: float) -> None:
    """Every weight and its way to its level; those put up with stand out."""
    one, k = data.group, data.step
    inside = (one.w > x.lo) & (one.w < x.hi) & (one.w_hat[k] > x.lo) & (one.w_hat[k] < x.hi)
    kept = one.kept[k] != 0
    for which, colour, width in ((~kept, "grey", 0.9), (kept, "vermilion", 1.3)):
        which = which & inside
        ends = x(one.w[which]), top, x(one.w_hat[k][which]), y
        picture.segments(*ends, stroke=colour, width=width, opacity=0.8)
    picture.dots(x(one.w[inside & ~data.changed]), top, 3.2, fill="ink", opacity=0.75)
    picture.dots(x(one.w[inside & data.changed]), top, 4, fill="green")


def _nought(
    picture: Picture, data: HqqStepsData, x: Axis, top: float, middle: float, lang: str
) -> None:
    """Where the real number 0 lies: its code is the zero point."""
    if not x.lo < 0 < x.hi:
        return
    at = float(x(0))
    picture.segments(at, top - 11, at, middle + 8, stroke="ink", width=1, dash="dot")
    z = f"{data.group.zeros[data.step]:.3f}"
    words = say("0 = code {z}", lang, z=z)
    right = at > WIDTH - 120
    look = {"size": 11, "anchor": "end" if right else "start"}
    picture.text(at + (-4 if right else 4), top - 8, words, **look)


def _line_key(picture: Picture, lang: str) -> None:
    """What the colours mean, at the right of the title."""
    picture.dots(RIGHT - 44, LINE - 4, 4, fill="green")
    look = {"size": 11, "colour": "muted"}
    picture.text(RIGHT - 35, LINE, say("other level than at the start", lang), **look)
    picture.segments(RIGHT + 150, LINE - 4, RIGHT + 172, LINE - 4, stroke="vermilion", width=2.4)
    picture.text(RIGHT + 178, LINE, say("error that is put up with", lang), **look)


def _panel(picture: Picture, x: Axis, y: Axis, ticks: list[float], words=number) -> None:
    """Faint lines at the ticks of `y`, their numbers at the left."""
    for tick in ticks:
        picture.segments(x.start, y(tick), x.end, y(tick), stroke="faint", opacity=0.6)
        look = {"size": 11, "anchor": "end", "colour": "muted"}
        picture.text(x.start - 6, float(y(tick)) + 4, words(tick), **look)


def _errors(picture: Picture, data: HqqStepsData, x: Axis, lang: str) -> None:
    """How many errors of the group are how large, before and now; what an error costs."""
    title(picture, 0, MIDDLE, say("errors of the group: at the start (dashed) and now", lang))
    errors, bottom = data.group.errors, MIDDLE + 14 + HIGH
    bins = np.arange(-round((x.hi - 0.05) * 10), round((x.hi - 0.05) * 10) + 2) / 10 - 0.05
    counts = [np.histogram(errors[i], bins)[0] for i in (0, data.step)]
    every = [np.histogram(e, bins)[0].max() for e in errors]
    y = Axis(0, 1.08 * max(every), bottom, MIDDLE + 14)  # one for all steps: nothing jumps
    _panel(picture, x, y, [tick for tick in y.ticks(3) if tick == round(tick)])
    picture.bars(x(bins), y(counts[1]), bottom, fill="blue", opacity=0.7)
    steps = np.repeat(x(bins), 2)[1:-1]
    picture.line(steps, y(np.repeat(counts[0], 2)), stroke="ink", width=1.3, dash="dash")
    e = np.linspace(x.lo, x.hi, 201)
    top = y.hi / 1.08
    picture.text(x.end + 6, y.end + 2, say("their cost", lang), size=11, colour="muted")
    for power, colour, words in ((data.p, "purple", "|e|ᵖ"), (2, "orange", "e²")):
        picture.line(x(e), y(top * np.abs(e / x.hi) ** power), stroke=colour, width=1.8)
        at = 0.32 if power == 2 else 0.14
        place = x.end + 6, float(y(top * (1 - at)))
        picture.text(*place, words, size=11.5)
        picture.segments(x.end + 6, place[1] + 4, x.end + 30, place[1] + 4, stroke=colour, width=2)
    x_axis(picture, x, bottom)


def _shrink(picture: Picture, data: HqqStepsData, x: Axis, lang: str) -> None:
    """Shrinking: the errors now, and what of them the next step puts up with."""
    one, k, bottom = data.group, data.step, LOWER + 14 + HIGH
    title(picture, 0, LOWER, say("which errors the next step puts up with: Wₑ", lang))
    y = Axis(x.lo, x.hi, bottom, LOWER + 14)
    reach = min(data.threshold / one.scale, x.hi)
    picture.rect(
        x(-reach), y.end, x(reach) - x(-reach), bottom - y.end, fill="panel", opacity=PANEL
    )
    _panel(picture, x, y, y.ticks(3))
    picture.segments(x(x.lo), y(y.lo), x(x.hi), y(y.hi), stroke="faint", dash="dash")
    inside = (np.abs(data.curve[0]) <= x.hi) & (np.abs(data.curve[1]) <= y.hi)
    picture.line(x(data.curve[0][inside]), y(data.curve[1][inside]), stroke="ink", width=1.6)
    errors, kept = one.errors[k], one.kept[k] / one.scale
    for which, colour in ((kept == 0, "blue"), (kept != 0, "vermilion")):
        picture.dots(x(errors[which]), y(kept[which]), 3, fill=colour, opacity=0.8)
    x_axis(picture, x, bottom, say("error W − Ŵ, in steps of the grid", lang))
    n = int((kept != 0).sum())
    words = "none: all are below {t} steps" if n == 0 else "{n} of {m}: those beyond {t} steps"
    said = say(words, lang, n=n, m=len(kept), t=number(data.threshold / one.scale, 2))
    picture.text((x.start + x.end) / 2, y.end + 14, said, size=11.5, anchor="middle")
    picture.text(x.end + 6, y.end + 14, share(float(data.found.kept[k])), size=11.5)
    picture.text(x.end + 6, y.end + 29, say("of the layer", lang), size=11, colour="muted")


def _now(picture: Picture, data: HqqStepsData, x: Axis, y: Axis) -> None:
    """The steps after the last in grey, the step that is shown dotted."""
    stop = float(x(data.found.steps))
    if stop < x.end:
        picture.rect(stop, y.end, x.end - stop, y.start - y.end, fill="panel", opacity=PANEL)
    here = float(x(data.step))
    picture.segments(here, y.start, here, y.end, stroke="ink", width=1, dash="dot")


def _curves(picture: Picture, data: HqqStepsData, x: Axis, lang: str) -> None:
    """The three costs over the steps, beside plain rounding's."""
    bottom = MIDDLE + 14 + HIGH
    title(picture, RIGHT - 32, MIDDLE, say("errors of the layer, % of plain rounding's", lang))
    costs = data.found.costs
    values = 100 * costs / np.where(costs[0] == 0, 1.0, costs[0])
    low, high = float(values.min()), float(values.max())
    room = 0.08 * max(high - low, 0.5)
    y = Axis(low - room, high + room, bottom, MIDDLE + 14)
    _panel(picture, x, y, y.ticks(4))
    _now(picture, data, x, y)
    names = ("Σ|e|ᵖ", "Σe²", say("output", lang))
    colours, dashes = ("purple", "orange", "green"), ("", "", "dash")
    places = _apart([float(y(v)) for v in values[-1]], 17, y.end + 6, bottom)
    for i, name in enumerate(names):
        look = {"stroke": colours[i], "width": 2.4, "dash": dashes[i]}
        picture.line(x(np.arange(len(values))), y(values[:, i]), **look)
        picture.dots(float(x(data.step)), float(y(values[data.step, i])), 4.5, fill=colours[i])
        picture.text(x.end + 8, places[i] + 3, name, size=11.5, bold=i == 0)
        picture.segments(x.end + 8, places[i] + 8, x.end + 32, places[i] + 8, **look)
    x_axis(picture, x, bottom)
    box = (x.start, y.end, x.end - x.start, bottom - y.end)
    picture.pick(CURVES, box, say("choose a step: click, or arrow keys", lang))


def _apart(places: list[float], gap: float, top: float, bottom: float) -> list[float]:
    """The places of labels, moved so that neighbours are `gap` from each other, in the panel."""
    order = np.argsort(places, kind="stable")
    ends = np.array(places, float)[order]
    for i in range(1, len(ends)):
        ends[i] = max(ends[i], ends[i - 1] + gap)
    ends -= max(0.0, float(ends[-1]) - bottom)
    for i in range(len(ends) - 2, -1, -1):
        ends[i] = min(ends[i], ends[i + 1] - gap)
    ends = np.maximum(ends, top + gap * np.arange(len(ends)))
    back = np.empty_like(ends)
    back[order] = ends
    return back.tolist()


def _zeros_axis(data: HqqStepsData) -> Axis:
    """How far zero points move, to the pixels of their panel."""
    moved = data.moved
    low, high = min(float(moved.min()), -0.01), max(float(moved.max()), 0.01)
    room = 0.05 * (high - low)
    return Axis(low - room, high + room, LOWER + 14 + HIGH, LOWER + 14)


def group_at(data: HqqStepsData, y: float, step: int) -> int:
    """The group, counted row by row, whose zero point is nearest to y (0 … 1 from above)."""
    axis = _zeros_axis(data)
    value = axis.hi + y * (axis.lo - axis.hi)
    return int(np.abs(data.moved[step] - value).argmin())


def _zeros(picture: Picture, data: HqqStepsData, x: Axis, lang: str) -> None:
    """How far the zero points have moved: some of all groups, the one that is drawn on top."""
    moved, y = data.moved, _zeros_axis(data)
    n = moved.shape[1]
    shown = np.argsort(moved[-1], kind="stable")
    shown = shown[np.unique(np.linspace(0, n - 1, min(n, DRAWN)).round().astype(int))]
    words = "zero points since the start, codes: {n} of {all} groups"
    said = say(words, lang, n=len(shown), all=f"{n:,}")
    title(picture, RIGHT - 32, LOWER, said)
    _panel(picture, x, y, y.ticks(4))
    _now(picture, data, x, y)
    steps = x(np.arange(len(moved)))
    for one in shown:
        picture.line(steps, y(moved[:, one]), stroke="grey", width=0.8, opacity=0.55)
    picture.line(steps, y(moved[:, data.index]), stroke="blue", width=2.6)
    here = float(y(moved[data.step, data.index]))
    picture.dots(float(x(data.step)), here, 4.5, fill="blue")
    end = float(np.clip(y(moved[-1, data.index]), y.end + 8, y.start - 4))
    picture.text(x.end + 8, end + 3, say("this group", lang), size=11.5)
    picture.segments(x.end + 8, end + 8, x.end + 32, end + 8, stroke="blue", width=2.6)
    x_axis(picture, x, y.start, say("steps of the search", lang))
    box = (x.start, y.end, x.end - x.start, y.start - y.end)
    picture.pick(ZEROS, box, say("choose a step and a group: click, or arrow keys", lang))


def _code(picture: Picture, data: HqqStepsData, lang: str) -> None:
    """The step in equations and in code, and with this group's numbers."""
    picture.rect(0, CODE, WIDTH, HEIGHT - CODE, fill="panel", opacity=PANEL)
    equations = (
        "Wₑ = sign(e) · max(|e| − |e|ᵖ⁻¹ / β, 0),   e = W − Ŵ",
        "z ← mean[ q − (W − Wₑ) / s ]",
    )
    for i, (equation, line) in enumerate(zip(equations, data.code, strict=True)):
        picture.text(14, CODE + 19 + 19 * i, equation, size=12)
        picture.text(RIGHT - 32, CODE + 19 + 19 * i, line, size=11, colour="muted")
    one, k = data.group, min(data.step + 1, data.found.steps)
    numbers = f"s = {number(one.scale, 4)},  z = {one.zeros[data.step]:.4f}"
    if k > data.step:
        numbers += f" → {one.zeros[k]:.4f}"
    words = say("this group's next step: {numbers}", lang, numbers=numbers)
    if k <= data.step:
        words = say("this group: {numbers}; the scale has stayed", lang, numbers=numbers)
    picture.text(14, CODE + 57, words, size=11.5, colour="muted")
