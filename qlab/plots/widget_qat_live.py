"""Training with the quantizer in the loop, as it happens: the loss on held-out text beside the
float model's and plain rounding's; a layer's weights between the levels of their grid, before and
now; how its numbers are rounded, and what slope the estimator pretends that this has.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from qlab.plots.svg import Picture
from qlab.plots.widget_parts import WIDTH, Axis, Readout, head, number, share, title, x_axis
from qlab.plots.widget_words import say

HEIGHT = 612
LEFT, RIGHT = 40, 422  # where panels begin
CURVE, LOWER = 116, 346  # upper edges of the rows
END = 628  # of the loss; the names of its lines stand behind it
MIDDLE = 336  # end of the panel at the left
BOTTOM = 566
RECORDED, READY, PREPARING, TRAINING = "recorded", "ready", "preparing", "training"
PAUSED, FINISHED, FAILED = "paused", "finished", "failed"


@dataclasses.dataclass(frozen=True)
class Phase:
    """Steps with the same settings.

    Attributes:
        begin: steps taken before it.
        bits, method, teacher: as chosen; `bits` in words.
        rounded: held-out loss of the float model rounded so, and not trained.
        losses: held-out loss of the rounded model, before the first step and after each.
    """

    begin: int
    bits: str
    method: str
    teacher: bool
    rounded: float
    losses: tuple[float, ...]

    @property
    def end(self) -> int:
        """Steps taken at its end."""
        return self.begin + len(self.losses) - 1


@dataclasses.dataclass(frozen=True)
class Levels:
    """The weights of one layer in codes, w / s + z: its levels are whole numbers.

    Attributes:
        edges, before, now: a histogram of all weights, shares, untrained and as they are.
        block: (n,) the weights of one block. zero: its zero point.
        moved, last: shares of the layer with another level than untrained, than a step ago.
    """

    edges: np.ndarray
    before: np.ndarray
    now: np.ndarray
    block: np.ndarray
    zero: float
    moved: float
    last: float


@dataclasses.dataclass(frozen=True)
class Slopes:
    """What an estimator makes of rounding, over w in codes, at a step of 1.

    Attributes:
        at: (k,) w / s + z. value: (k,) its code. weight: (k,) ∂ŵ/∂w. step: (k,) ∂ŵ/∂s, or None.
    """

    at: np.ndarray
    value: np.ndarray
    weight: np.ndarray
    step: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class QatLiveData:
    """What the picture shows.

    Attributes:
        layer, bits, method, teacher: as chosen; `bits` in words.
        width: bits per weight.
        levels: the values of the grid.
        start: held-out loss of the float model; NaN before it is known.
        phases: what has been trained.
        steps: of a phase, in all.
        status: one of the words above. error: what went wrong, where it has.
    """

    layer: str
    bits: str
    method: str
    teacher: bool
    width: float
    levels: tuple[float, ...]
    start: float
    phases: tuple[Phase, ...]
    weights: Levels
    slopes: Slopes
    steps: int
    status: str
    error: str = ""

    @property
    def regained(self) -> float:
        """Which part of what rounding costs training has won back; NaN where it costs nothing."""
        if not self.phases or not self.phases[-1].rounded > self.start:
            return float("nan")
        last = self.phases[-1]
        return (last.rounded - last.losses[-1]) / (last.rounded - self.start)


def draw_qat_live(data: QatLiveData, lang: str = "en") -> Picture:
    """The picture of `QatLiveData`."""
    picture = Picture(WIDTH, HEIGHT)
    _head(picture, data, lang)
    _loss(picture, data, lang)
    _histogram(picture, data, lang)
    x = Axis(data.slopes.at[0], data.slopes.at[-1], RIGHT, WIDTH - 8)
    _rounding(picture, data, x, lang)
    _slopes(picture, data, x, lang)
    return picture


def sentence(data: QatLiveData, lang: str) -> str:
    """What is going on."""
    how = say("{bits}, {method}", lang, bits=say(data.bits, lang), method=data.method)
    if data.status == FAILED:
        return data.error if len(data.error) < 96 else data.error[:95] + "…"
    if data.status == PREPARING:
        return say("{how}: the step is compiled first, which takes some seconds.", lang, how=how)
    if not data.phases:
        return say("{how}: rounded, not trained yet. Press start.", lang, how=how)
    last = data.phases[-1]
    n, loss = len(last.losses) - 1, f"{last.losses[-1]:.3f}"
    words = {
        RECORDED: "Recorded: {n} steps have brought the loss from {from_} to {loss}. "
        "Press start to train here.",
        TRAINING: "Training, step {n} of {all}: the loss came from {from_} to {loss}.",
        PAUSED: "Paused after step {n} of {all}: the loss came from {from_} to {loss}.",
        FINISHED: "All {n} steps are done: the loss came from {from_} to {loss}.",
    }[data.status]
    return say(words, lang, n=n, all=data.steps, loss=loss, from_=f"{last.losses[0]:.3f}")


def _head(picture: Picture, data: QatLiveData, lang: str) -> None:
    last = data.phases[-1] if data.phases else None
    rounded, now = (last.rounded, last.losses[-1]) if last else (float("nan"), float("nan"))

    def known(value: float, words: str) -> str:
        return "–" if np.isnan(value) else words

    note = say("float {a}, rounded {b}", lang, a=known(data.start, f"{data.start:.3f}"),
               b=known(rounded, f"{rounded:.3f}"))  # fmt: skip
    won = data.regained
    percent = share(abs(won)) if won >= 0 else f"−{share(abs(won))}"
    learns = "from the float model" if data.teacher else "from the next token"
    head(
        picture,
        Readout(
            (known(now, f"{now:.3f}"), note),
            (known(won, percent), say("of what rounding costs", lang)),
            (share(data.weights.moved), say("{n} in the last step", lang,
                                            n=share(data.weights.last))),
            (f"{data.width:.4g}", say(learns, lang)),
        ),
        sentence(data, lang),
        lang,
        ("held-out loss", "won back", "changed their level", "bits per weight"),
    )  # fmt: skip


# ---- the loss ------------------------------------------------------------------------------------


def _loss(picture: Picture, data: QatLiveData, lang: str) -> None:
    """Held-out loss over the steps; the phases one after another."""
    title(picture, 0, CURVE, say("loss on held-out text, nats a token", lang))
    top, bottom = CURVE + 24, CURVE + 176
    phases = data.phases
    x = Axis(0, max([data.steps, *(p.begin + data.steps for p in phases[-1:])]), LEFT, END)
    if not phases:
        x_axis(picture, x, bottom, say("steps", lang))
        words = say("three lines, once training has begun: float, rounded, trained", lang)
        picture.text((LEFT + END) / 2, (top + bottom) / 2, words, size=12, colour="muted",
                     anchor="middle")  # fmt: skip
        return
    seen = [data.start, *(v for p in phases for v in (p.rounded, *p.losses))]
    room = 0.08 * max(max(seen) - min(seen), 0.05)
    y = Axis(min(seen) - room, max(seen) + room, bottom, top)
    _grid(picture, x, y, 4)
    picture.line([x.start, x.end], float(y(data.start)), stroke="ink", width=1.5, dash="dash")
    for phase in phases:
        _phase(picture, phase, phase is phases[-1], x, y, data, lang)
    last = phases[-1]
    ends = [(y(last.rounded), "orange", "rounded only"), (y(data.start), "ink", "float"),
            (y(last.losses[-1]), "blue", "trained")]  # fmt: skip
    for (_, colour, words), place in zip(ends, _apart([float(e[0]) for e in ends], 15)):
        picture.segments(END + 8, place, END + 22, place, stroke=colour, width=2.4,
                         dash="dash" if colour == "ink" else "")  # fmt: skip
        picture.text(END + 27, place + 4, say(words, lang), size=11.5)
    x_axis(picture, x, bottom, say("steps", lang))


def _phase(
    picture: Picture, phase: Phase, last: bool, x: Axis, y: Axis, data: QatLiveData, lang: str
) -> None:
    end = phase.begin + data.steps if last else phase.end
    picture.line([x(phase.begin), x(end)], float(y(phase.rounded)), stroke="orange", width=2)
    steps = x(phase.begin + np.arange(len(phase.losses)))
    picture.line(steps, y(np.array(phase.losses)), stroke="blue", width=2.6)
    picture.dots(float(steps[-1]), float(y(phase.losses[-1])), 3.5, fill="blue")
    at = float(x(phase.begin))
    if phase.begin:
        picture.segments(at, y.start, at, y.end, stroke="ink", width=1, dash="dot")
    words = f"{say(phase.bits, lang)} · {phase.method}"
    wide = float(x(end)) - at
    if wide > 7 * len(words):
        picture.text(at + 5, y.end - 3, words, size=11, colour="muted")


def _apart(places: list[float], gap: float) -> list[float]:
    """Places of labels, moved down so that neighbours are `gap` from each other."""
    found = list(places)
    order = sorted(range(len(places)), key=places.__getitem__)
    for one, other in zip(order, order[1:]):
        found[other] = max(found[other], found[one] + gap)
    return found


def _grid(picture: Picture, x: Axis, y: Axis, count: int) -> None:
    """Faint lines at the ticks of `y`, their numbers at the left."""
    for tick in y.ticks(count):
        picture.segments(x.start, y(tick), x.end, y(tick), stroke="faint", opacity=0.6)
        look = {"size": 11, "anchor": "end", "colour": "muted"}
        picture.text(x.start - 6, float(y(tick)) + 4, number(tick), **look)


# ---- the weights ---------------------------------------------------------------------------------


def _histogram(picture: Picture, data: QatLiveData, lang: str) -> None:
    """All weights of the layer in codes, untrained and now; levels and where rounding changes."""
    words = say("weights of {layer}, in codes", lang, layer=data.layer.removeprefix("layers."))
    title(picture, 0, LOWER, words)
    found, top = data.weights, LOWER + 34
    x = Axis(float(found.edges[0]), float(found.edges[-1]), LEFT - 32, MIDDLE)
    highest = max(float(found.before.max()), float(found.now.max()))
    y = Axis(0, 1.05 * highest, BOTTOM, top)
    levels = np.array(data.levels)
    cuts = (levels[1:] + levels[:-1]) / 2
    if len(levels) <= 8:
        picture.segments(x(cuts), y.end, x(cuts), BOTTOM, stroke="muted", width=1, dash="dot")
    picture.bars(x(found.edges), y(found.now), BOTTOM, fill="blue", opacity=0.65)
    steps = np.repeat(x(found.edges), 2)[1:-1]
    picture.line(steps, y(np.repeat(found.before, 2)), stroke="ink", width=1.2)
    picture.segments(x(levels), BOTTOM, x(levels), BOTTOM + 7, stroke="vermilion", width=2.6)
    picture.segments(2, LOWER + 14, 20, LOWER + 14, stroke="ink", width=1.2)
    look = {"size": 11, "colour": "muted"}
    picture.text(26, LOWER + 18, say("untrained", lang), **look)
    picture.rect(98, LOWER + 9, 14, 10, fill="blue", opacity=0.65)
    picture.text(118, LOWER + 18, say("now", lang), **look)
    picture.segments(168, LOWER + 9, 168, LOWER + 19, stroke="vermilion", width=2.6)
    picture.text(175, LOWER + 18, say("levels", lang), **look)
    if len(levels) <= 8:
        picture.segments(232, LOWER + 8, 232, LOWER + 20, stroke="muted", dash="dot")
        picture.text(239, LOWER + 18, say("rounding changes", lang), **look)
    _codes_axis(picture, x, data, lang)


def _codes_axis(picture: Picture, x: Axis, data: QatLiveData, lang: str) -> None:
    """The codes below a panel, and what they are."""
    picture.segments(x.start, BOTTOM, x.end, BOTTOM, stroke="faint")
    every = max(1, len(data.levels) // 8)
    for level in data.levels[::every]:
        look = {"size": 11, "colour": "muted", "anchor": "middle"}
        picture.text(float(x(level)), BOTTOM + 20, number(level), **look)
    words = say("w / s + z: levels are whole numbers", lang)
    look = {"size": 11, "colour": "muted", "anchor": "middle"}
    picture.text((x.start + x.end) / 2, BOTTOM + 37, words, **look)


def _rounding(picture: Picture, data: QatLiveData, x: Axis, lang: str) -> None:
    """The stairs of rounding, and where the weights of one block stand on them."""
    words = say("{n} weights of one block on the stairs of rounding", lang,
                n=len(data.weights.block))  # fmt: skip
    title(picture, RIGHT - 32, LOWER, words)
    top, bottom = LOWER + 14, LOWER + 86
    slopes = data.slopes
    y = Axis(data.levels[0] - 0.6, data.levels[-1] + 0.6, bottom, top)
    _cuts(picture, data, x, top, BOTTOM)
    flat = np.split(np.arange(len(slopes.at)), np.flatnonzero(np.diff(slopes.value)) + 1)
    for part in flat:
        picture.line(x(slopes.at[part]), y(slopes.value[part]), stroke="ink", width=1.8)
    inside = _inside(data)
    picture.dots(x(inside), y(_at(slopes, slopes.value, inside)), 3, fill="green", opacity=0.6)
    look = {"size": 11, "anchor": "end", "colour": "muted"}
    for level in (data.levels[0], data.levels[-1]):
        picture.text(x.start - 6, float(y(level)) + 4, number(level), **look)


def _cuts(picture: Picture, data: QatLiveData, x: Axis, top: float, bottom: float) -> None:
    levels = np.array(data.levels)
    if len(levels) <= 8:
        cuts = x((levels[1:] + levels[:-1]) / 2)
        picture.segments(cuts, top, cuts, bottom, stroke="muted", width=0.8, dash="dot")


def _inside(data: QatLiveData) -> np.ndarray:
    block, at = data.weights.block, data.slopes.at
    return block[(block >= at[0]) & (block <= at[-1])]


def _at(slopes: Slopes, values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The values at the points nearest to `at`: nothing is drawn between two steps of a stair."""
    step = slopes.at[1] - slopes.at[0]
    return values[np.clip(np.round((at - slopes.at[0]) / step).astype(int), 0, len(values) - 1)]


def _slopes(picture: Picture, data: QatLiveData, x: Axis, lang: str) -> None:
    """∂ŵ/∂w as the estimator has it, ∂ŵ/∂s where the step is learned."""
    top, slopes = LOWER + 124, data.slopes
    title(picture, RIGHT - 32, top - 10, say("the slope that {method} says it has", lang,
                                             method=data.method))  # fmt: skip
    curves = [(slopes.weight, "vermilion", "∂ŵ/∂w")]
    if slopes.step is not None:
        curves.append((slopes.step, "purple", "∂ŵ/∂s"))
    low = min(0.0, *(float(curve.min()) for curve, *_ in curves))
    high = max(1.0, *(float(curve.max()) for curve, *_ in curves))
    y = Axis(low - 0.1 * (high - low), high + 0.1 * (high - low), BOTTOM, top + 18)
    _grid(picture, x, y, 3)
    for i, (curve, colour, name) in enumerate(curves):
        breaks = np.flatnonzero(np.abs(np.diff(curve)) > 0.4) + 1
        for part in np.split(np.arange(len(curve)), breaks):
            picture.line(x(slopes.at[part]), y(curve[part]), stroke=colour, width=2.2)
        inside = _inside(data)
        picture.dots(x(inside), y(_at(slopes, curve, inside)), 2.6, fill="green", opacity=0.5)
        at = RIGHT - 32 + 84 * i
        picture.segments(at, top + 4, at + 16, top + 4, stroke=colour, width=2.4)
        picture.text(at + 21, top + 8, name, size=11.5)
    at = RIGHT - 32 + 84 * len(curves)
    picture.text(at, top + 8, say("(the stairs' own is 0)", lang), size=11, colour="muted")
    _codes_axis(picture, x, data, lang)
