"""The calibration lab: what each calibration text costs beside rounding, its difference to mixed
text in pairs, KL over the number of windows, and every text against every judge.
"""

from __future__ import annotations

import dataclasses
import math

from qlab.evaluation.bars import with_bar
from qlab.plots.svg import Picture
from qlab.plots.widget_parts import PANEL, WIDTH, Axis, Readout, head, number, title
from qlab.plots.widget_words import say

HEIGHT = 616
PPL, KL = "Δ ln perplexity", "KL from the float model"  # what can be measured
MIXED = "mixed"  # the text that all others are compared with
TOP, MIDDLE, CODE = 116, 344, 568  # upper edges: dots, curve and matrix, what was measured
COST, DIFFERENCE = (84, 336), (404, 624)  # from, to: the two axes of dots
ROW = 30  # of a text in them
CURVE, MATRIX = "windows", "judges"  # what can be picked
MANY = 2.0  # standard errors: from here on a difference is taken for one
COLOURS = {
    "english": "blue", "korean": "vermilion", "code": "green", "math": "purple",
    MIXED: "ink", "random": "orange",
}  # fmt: skip

Measured = tuple[float, float]  # a number and its bar, one standard error


@dataclasses.dataclass(frozen=True)
class CalibrationData:
    """What the picture shows.

    Attributes:
        model, method, bits, windows, judged, measure: what is looked at; `measure` is PPL or KL.
        texts: calibrated on. judges: judged on. sizes: numbers of windows, ascending.
        costs: text -> the measure against the float model, judged on `judged`. rtn: rounding's.
        differences: text -> judge -> what it differs by from mixed text of the same size.
        curves: text -> KL for every size. rtn_kl: rounding's.
        context: tokens of a calibration window.
        scored: windows of every judge, and their tokens.
        control: runs of RTN after different texts, and how many of them moved.
    """

    model: str
    method: str
    bits: int
    windows: int
    judged: str
    measure: str
    texts: tuple[str, ...]
    judges: tuple[str, ...]
    sizes: tuple[int, ...]
    costs: dict[str, Measured]
    rtn: Measured
    differences: dict[str, dict[str, Measured]]
    curves: dict[str, list[Measured]]
    rtn_kl: Measured
    context: int
    scored: tuple[int, int]
    control: tuple[int, int]

    @property
    def others(self) -> tuple[str, ...]:
        """The texts that are compared with mixed text."""
        return tuple(text for text in self.texts if text != MIXED)

    @property
    def farthest(self) -> str:
        """The text that differs from mixed by the most standard errors on this judge."""
        return max(self.others, key=lambda text: errors_away(self.differences[text][self.judged]))

    @property
    def matters(self) -> bool:
        """Whether any text differs from mixed by more than two standard errors."""
        return errors_away(self.differences[self.farthest][self.judged]) > MANY


def errors_away(measured: Measured) -> float:
    """How many standard errors from 0.

    Example:
        >>> errors_away((-0.06, 0.02)), errors_away((0.0, 0.0))
        (3.0, 0.0)
    """
    value, bar = abs(measured[0]), measured[1]
    return round(value / bar, 9) if bar else (math.inf if value else 0.0)


def called(text: str, lang: str) -> str:
    """A text's name in the language; a text of the reader's own keeps its name."""
    return say(text, lang) if text in COLOURS else text


def signed(value: float, bar: float | None = None) -> str:
    """A difference with its sign.

    Example:
        >>> signed(0.0784, 0.0141), signed(-0.0074)
        ('+0.078 ± 0.014', '−0.007')
    """
    words = with_bar(abs(value), bar) if bar is not None else f"{abs(value):.3f}"
    return f"{'−' if value < 0 else '+'}{words}"


def draw_calibration(data: CalibrationData, lang: str = "en") -> Picture:
    """The picture of `CalibrationData`; windows and judge can be picked in it.

    Example:
        >>> draw_calibration(calibration_data(table, state)).figure()   # doctest: +SKIP
    """
    picture = Picture(WIDTH, HEIGHT)
    _head(picture, data, lang)
    _costs(picture, data, lang)
    _differences(picture, data, lang)
    _curve(picture, data, lang)
    _matrix(picture, data, lang)
    _facts(picture, data, lang)
    return picture


def sentence(data: CalibrationData, lang: str) -> str:
    """Whether the choice of text matters here."""
    value, bar = data.differences[data.farthest][data.judged]
    judged = called(data.judged, lang)
    if not data.matters:
        words = (
            "Judged on {judged}: no text differs from mixed by more than two standard errors; "
            "the choice does not show."
        )
        return say(words, lang, judged=judged)
    words = (
        "Judged on {judged}: from mixed to {text} text {d}, {n} standard errors: "
        "the choice of text matters."
    )
    n = f"{errors_away((value, bar)):.1f}"
    text = called(data.farthest, lang)
    return say(words, lang, judged=judged, text=text, d=signed(value, bar), n=n)


def _head(picture: Picture, data: CalibrationData, lang: str) -> None:
    """What mixed text, no text, the best and the worst one cost."""
    ranked = sorted(data.texts, key=lambda text: data.costs[text][0])

    def slot(measured: Measured, name: str = "") -> tuple[str, str]:
        if data.measure == KL:
            return f"{measured[0]:.3f}", name
        more = f"{100 * math.expm1(measured[0]):+.1f} %".replace("-", "−")
        note = say("perplexity {more}", lang, more=more)
        return signed(measured[0]), f"{name} · {note}" if name else note

    readout = Readout(
        slot(data.rtn),
        slot(data.costs[MIXED]),
        slot(data.costs[ranked[0]], called(ranked[0], lang)),
        slot(data.costs[ranked[-1]], called(ranked[-1], lang)),
    )
    first = "RTN, no text: KL" if data.measure == KL else "RTN, no text: Δ ln ppl"
    names = (first, "mixed text", "the best text", "the worst text")
    head(picture, readout, sentence(data, lang), lang, names)
    what = f"{data.method.upper()}, {data.bits} {say('bits', lang)}, {data.windows}"
    picture.label += f" {what} {say('windows', lang)}."


# ---- dots ----------------------------------------------------------------------------------------


def _rows(data: CalibrationData) -> dict[str, float]:
    """The height of every text."""
    return {text: TOP + 34 + ROW * i for i, text in enumerate(data.texts)}


def _ground(picture: Picture, axis: Axis, label: str, low: float) -> None:
    """Faint lines at round numbers, which stand below."""
    picture.segments(axis.start, low, axis.end, low, stroke="faint")
    for tick in axis.ticks(4):
        at, words = float(axis(tick)), number(tick)
        picture.segments(at, TOP + 16, at, low, stroke="faint", opacity=0.6)
        picture.text(at, low + 16, words, size=11, colour="muted", anchor="middle")
    middle = (axis.start + axis.end) / 2
    picture.text(middle, low + 31, label, size=11, colour="muted", anchor="middle")


def _dot(picture: Picture, axis: Axis, y: float, measured: Measured, colour: str) -> None:
    """A number with one standard error thick and two thin."""
    value, bar = measured
    for errors, width in ((1, 3.0), (2, 1.2)):
        ends = [float(axis(value + side * errors * bar)) for side in (-1, 1)]
        picture.segments(ends[0], y, ends[1], y, stroke=colour, width=width)
    picture.dots(float(axis(value)), y, 5, fill=colour)


def _costs(picture: Picture, data: CalibrationData, lang: str) -> None:
    """Δ ln ppl from the float model for every text; rounding as a line with its bar."""
    title(picture, 0, TOP, say("calibrated on: the cost against float", lang))
    every = [data.rtn, *data.costs.values()]
    low = min(0.0, *(value - 2 * bar for value, bar in every))
    axis = Axis(low, 1.04 * max(value + 2 * bar for value, bar in every), *COST)
    rows = _rows(data)
    bottom = max(rows.values()) + 20
    _ground(picture, axis, say(data.measure, lang), bottom)
    value, bar = data.rtn
    ends = [float(axis(value + side * bar)) for side in (-1, 1)]
    picture.rect(ends[0], TOP + 16, ends[1] - ends[0], bottom - TOP - 16, fill="grey", opacity=0.22)
    at = float(axis(value))
    picture.segments(at, TOP + 16, at, bottom, stroke="grey", width=1.8, dash="dash")
    picture.text(at, TOP + 13, "RTN", size=11, colour="muted", anchor="middle")
    for text, y in rows.items():
        _dot(picture, axis, y, data.costs[text], COLOURS.get(text, "sky"))
        look = {"size": 12, "bold": text == MIXED, "anchor": "end"}
        picture.text(COST[0] - 10, y + 4, called(text, lang), **look)


def _differences(picture: Picture, data: CalibrationData, lang: str) -> None:
    """From mixed text; in pairs, what both share has gone out of the bars."""
    how = "against mixed text, in pairs" if data.measure == PPL else "against mixed text"
    title(picture, DIFFERENCE[0] - 22, TOP, say(how, lang))
    found = {text: data.differences[text][data.judged] for text in data.others}
    reach = 1.08 * max(abs(value) + 2 * bar for value, bar in found.values())
    axis, rows = Axis(-reach or -1, reach or 1, *DIFFERENCE), _rows(data)
    bottom = max(rows.values()) + 20
    _ground(picture, axis, say("← better       worse →", lang), bottom)
    picture.segments(axis(0), TOP + 16, axis(0), bottom, stroke="ink", width=1.4)
    for text, y in rows.items():
        if text == MIXED:
            picture.dots(float(axis(0)), y, 5, fill="ink")
            continue
        clear = errors_away(found[text]) > MANY
        _dot(picture, axis, y, found[text], COLOURS.get(text, "sky"))
        if not clear:
            picture.dots(float(axis(found[text][0])), y, 3, fill="paper")
        look = {"size": 11.5, "anchor": "end", "bold": clear}
        picture.text(WIDTH, y + 4, signed(*found[text]), **look)


# ---- the amount of text --------------------------------------------------------------------------


def _curve(picture: Picture, data: CalibrationData, lang: str) -> None:
    """KL over the number of windows for every text; rounding as a line."""
    words = say("KL from float over windows of {n} tokens", lang, n=data.context)
    title(picture, 0, MIDDLE, words)
    low, sizes = MIDDLE + 178, data.sizes
    every = [data.rtn_kl, *(point for curve in data.curves.values() for point in curve)]
    y = Axis(0, 1.05 * max(value + bar for value, bar in every), low, MIDDLE + 16)
    x = Axis(0, max(len(sizes) - 1, 1), 40, 262)
    picture.segments(x.start - 8, low, x.end + 8, low, stroke="faint")
    for tick in y.ticks(4):
        picture.segments(x.start - 8, y(tick), x.end + 8, y(tick), stroke="faint", opacity=0.6)
        look = {"size": 11, "colour": "muted", "anchor": "end"}
        picture.text(x.start - 12, float(y(tick)) + 4, number(tick), **look)
    at = float(x(sizes.index(data.windows)))
    picture.rect(at - 11, MIDDLE + 14, 22, low - MIDDLE - 14, fill="panel", opacity=PANEL)
    rtn = float(y(data.rtn_kl[0]))
    picture.segments(x.start - 8, rtn, x.end + 8, rtn, stroke="grey", width=1.8, dash="dash")
    ends = {"RTN": rtn}
    for text, curve in data.curves.items():
        colour = COLOURS.get(text, "sky")
        ys = [float(y(value)) for value, _ in curve]
        xs = [float(x(i)) for i in range(len(sizes))]
        picture.line(xs, ys, stroke=colour, width=2)
        bars = [[float(y(v + side * bar)) for v, bar in curve] for side in (-1, 1)]
        picture.segments(xs, bars[0], xs, bars[1], stroke=colour, width=1.2)
        picture.dots(xs, ys, 3, fill=colour)
        ends[called(text, lang)] = ys[-1]
    for (name, there), level in zip(ends.items(), apart(list(ends.values())), strict=True):
        picture.segments(x.end + 9, there, x.end + 18, level, stroke="faint")
        picture.text(x.end + 21, level + 4, name, size=11)
    for i, size in enumerate(sizes):
        look = {"size": 11, "anchor": "middle", "bold": size == data.windows}
        picture.text(float(x(i)), low + 16, f"{size}", **look)
    words = say("windows", lang)
    picture.text((x.start + x.end) / 2, low + 31, words, size=11, colour="muted", anchor="middle")
    box = (x.start, MIDDLE + 14, x.end - x.start, low - MIDDLE - 14)
    picture.pick(CURVE, box, say("choose the windows: click, or arrow keys", lang))


def apart(heights: list[float], gap: float = 14) -> list[float]:
    """Heights pushed from each other until labels there would not overlap, order kept.

    Example:
        >>> apart([50.0, 52.0, 90.0])
        [44.0, 58.0, 90.0]
    """
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    moved = [heights[i] for i in order]
    for _ in range(200):  # both give way, so a crowd spreads around its middle
        for i in range(1, len(moved)):
            overlap = gap - (moved[i] - moved[i - 1])
            if overlap > 1e-6:
                moved[i - 1] -= overlap / 2
                moved[i] += overlap / 2
    return [round(moved[order.index(i)], 3) for i in range(len(heights))]


# ---- every text against every judge --------------------------------------------------------------


def _matrix(picture: Picture, data: CalibrationData, lang: str) -> None:
    """Differences to mixed text; rows: calibrated on, columns: judged on."""
    title(picture, 382, MIDDLE, say("every text (rows) before every judge (columns)", lang))
    left, top, wide, high = 452.0, MIDDLE + 34, 288 / len(data.judges), 28.0
    most = max(abs(v) for row in data.differences.values() for v, _ in row.values()) or 1.0
    for j, judge in enumerate(data.judges):
        look = {"size": 11.5, "anchor": "middle", "bold": judge == data.judged}
        picture.text(left + (j + 0.5) * wide, top - 7, called(judge, lang), **look)
        for i, text in enumerate(data.texts):
            measured = data.differences[text][judge]
            x, y, (value, _) = left + j * wide, top + i * high, measured
            colour = "vermilion" if value > 0 else "blue"
            clear = errors_away(measured) > MANY
            shade = 0.65 * abs(value) / most if clear else 0.0
            picture.rect(x, y, wide - 2, high - 2, fill=colour, opacity=round(shade, 3))
            words = "0" if text == MIXED else signed(value)
            look = {"size": 11.5, "anchor": "middle", "bold": clear}
            colour = "ink" if clear else "muted"
            picture.text(x + wide / 2 - 1, y + 17, words, colour=colour, **look)
    for i, text in enumerate(data.texts):
        look = {"size": 11.5, "anchor": "end"}
        picture.text(left - 8, top + i * high + 17, called(text, lang), **look)
    box = (left, top, wide * len(data.judges), high * len(data.texts))
    x = left + data.judges.index(data.judged) * wide
    picture.rect(x - 2, top - 2, wide + 2, box[3] + 2, stroke="ink", width=1.6)
    picture.pick(MATRIX, box, say("choose the judge: click, or arrow keys", lang))
    pairs = len(data.others) * len(data.judges)
    note = say("shaded: beyond two standard errors; of {n}, chance alone shades one", lang, n=pairs)
    picture.text(WIDTH, top + box[3] + 17, note, size=11, colour="muted", anchor="end")


def _facts(picture: Picture, data: CalibrationData, lang: str) -> None:
    """The equation of the bars and what was measured."""
    picture.rect(0, CODE, WIDTH, HEIGHT - CODE, fill="panel", opacity=PANEL)
    equations = {
        PPL: "d = mean over windows w of  NLL(text, w) − NLL(mixed, w)",
        KL: "d = KL(text) − KL(mixed),   σ² = σ²(text) + σ²(mixed)",
    }
    picture.text(14, CODE + 19, equations[data.measure], size=12.5)
    words = say("bar: of the judge's windows, by bootstrap; one draw of calibration text", lang)
    picture.text(WIDTH - 14, CODE + 19, words, size=11, colour="muted", anchor="end")
    (count, tokens), (runs, differ) = data.scored, data.control
    words = say("{model}, groups of 64, judged on {n} windows of {t}", lang,
                model=data.model, n=count, t=tokens)  # fmt: skip
    picture.text(14, CODE + 37, words, size=11, colour="muted")
    words = say("control: of {runs} runs of RTN, {differ} moved in any bit", lang,
                runs=runs, differ=differ)  # fmt: skip
    picture.text(WIDTH - 14, CODE + 37, words, size=11, colour="muted", anchor="end")
