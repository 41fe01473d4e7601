"""A machine's roofline with decode steps and a prompt on it, and how much faster few bits make a
step of every batch; under them the two quotients that decide.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from qlab.evaluation.roofline import Load, Roof
from qlab.plots.svg import Picture
from qlab.plots.widget_parts import (
    PANEL,
    SUPERSCRIPT,
    WIDTH,
    Axis,
    Readout,
    head,
    number,
    share,
    size,
    title,
)
from qlab.plots.widget_words import say

HEIGHT = 558
TITLE, TOP, LOW = 122, 150, 398  # of both plots: their titles' line, their edges
LEFT, RIGHT = (54, 452), (520, WIDTH - 16)  # from, to: the roofline; times faster
CODE = 456  # the worked numbers begin here
LEAST, MOST = 0.25, 65_536.0  # operations a byte that are drawn
MODELS = ("purple", "vermilion", "sky", "grey")  # of measured ones, in order
TITLES = {"own": "under the roof of the two sliders", "measured here": "under the measured roof"}
FULL = 16.0  # bits that others are compared with


@dataclasses.dataclass(frozen=True)
class Measured:
    """A bench's row: what it did, of which model, at which batch; decode or a prompt."""

    model: str
    batch: int
    decode: bool
    intensity: float
    reached: float


@dataclasses.dataclass(frozen=True)
class RooflineData:
    """What the picture shows.

    Attributes:
        machine, parameters, bits, batch, context: what is chosen; parameters as a number.
        roof: of the machine.
        decodes, full: batch -> a step of decode, at `bits` and at 16.
        here: the step that is chosen. weights, cache: bytes that it reads.
        prompt: of `context` tokens for each sequence.
        faster: (batch, times faster than with 16 bits) along the batches.
        cross, cross_full: the batch from which a step multiplies longer than it reads.
        measured: what a bench measured.
        left_out: models of the bench that are not drawn under this roof, in words.
    """

    machine: str
    parameters: float
    bits: float
    batch: int
    context: int
    roof: Roof
    decodes: dict[int, Load]
    full: dict[int, Load]
    here: Load
    weights: float
    cache: float
    prompt: Load
    faster: tuple[tuple[int, float], ...]
    cross: float
    cross_full: float
    measured: tuple[Measured, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def speed(self) -> float:
        """Tokens a second of all sequences, at most."""
        return self.batch / self.here.seconds(self.roof)

    @property
    def gain(self) -> float:
        """How many times faster than with 16 bits the chosen step is."""
        return next(value for batch, value in self.faster if batch == self.batch)


def draw_roofline(data: RooflineData, lang: str = "en") -> Picture:
    """The picture of a state.

    Example:
        >>> from qlab.widgets.roofline_data import RooflineState, roofline_data
        >>> draw_roofline(roofline_data(RooflineState())).label[:30]
        'Decode waits for memory: 4.25 '
    """
    picture = Picture(WIDTH, HEIGHT)
    _head(picture, data, lang)
    x = Axis(LEAST, MOST, *LEFT, log=True)
    lowest = min([data.roof.attainable(LEAST), *(m.reached for m in data.measured)])
    y = Axis(lowest / 1.6, data.roof.peak * 2.2, LOW, TOP, log=True)
    _frame(picture, data, x, y, lang)
    _legend(picture, data, lang)
    _measured(picture, data, x, y)
    _steps(picture, data, x, y)
    _faster(picture, data, lang)
    _worked(picture, data, lang)
    return picture


def sentence(data: RooflineData, lang: str) -> str:
    """What bounds the chosen step, and what fewer bits do about it.

    Example:
        >>> from qlab.widgets.roofline_data import RooflineState, roofline_data
        >>> sentence(roofline_data(RooflineState(batch=1024, context=128)), "en")[:50]
        'Decode multiplies longer than it reads: fewer bits'
    """
    bits, gain = f"{data.bits:g}", f"{data.gain:.2f}"
    if data.here.bound(data.roof) == "compute" and data.bits >= FULL:
        return say("Decode multiplies longer than it reads: fewer bits would not help.", lang)
    if data.here.bound(data.roof) == "compute":
        words = "Decode multiplies longer than it reads: fewer bits help no more ({n} times)."
        return say(words, lang, n=gain)
    if data.bits == FULL:
        return say("Decode waits for memory: fewer bits would make it faster.", lang)
    if data.bits > FULL:
        return say("Decode waits for memory, and {bits} bits are {n} of the speed of 16.", lang,
                   bits=bits, n=gain)  # fmt: skip
    if data.cache > data.weights:
        words = "Decode waits for memory, but mostly for the cache: {bits} bits help {n} times."
        return say(words, lang, bits=bits, n=gain)
    words = "Decode waits for memory: {bits} bits are {n} times faster than 16."
    return say(words, lang, bits=bits, n=gain)


def seconds(value: float) -> str:
    """A time for a reader.

    Example:
        >>> seconds(0.0412), seconds(3.2), seconds(4e-5), seconds(700)
        ('41.2 ms', '3.2 s', '40 µs', '700 s')
    """
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if value >= unit:
            return f"{_short(value / unit)} {name}"
    return f"{_short(value * 1e6)} µs"


def rate(value: float, unit: str) -> str:
    """Something a second, with the prefix that fits.

    Example:
        >>> rate(3.35e12, "B"), rate(93.2e9, "FLOP")
        ('3,350 GB/s', '93.2 GFLOP/s')
    """
    for power, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= (10 * power if prefix == "T" and unit == "B" else power):
            return f"{_short(value / power)} {prefix}{unit}/s"
    return f"{_short(value)} {unit}/s"


def count(value: float) -> str:
    """Operations or parameters: `16.1·10⁹`.

    Example:
        >>> count(8.03e9), count(135e6), count(2.5e13)
        ('8.03·10⁹', '135·10⁶', '25·10¹²')
    """
    power = 3 * int(math.floor(math.log10(value) / 3 + 1e-12)) if value >= 1e6 else 0
    digits = str(power).translate(SUPERSCRIPT)
    return f"{_short(value / 10.0**power)}" + (f"·10{digits}" if power else "")


def batches(value: float, lang: str) -> str:
    """A batch from which on something holds: whole, or never."""
    return f"{math.ceil(value):,}" if math.isfinite(value) else say("never", lang)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _head(picture: Picture, data: RooflineData, lang: str) -> None:
    each = data.speed / data.batch
    parts = say("{w} weights, {c} cache", lang, w=size(data.weights), c=size(data.cache))
    other = say("with 16 bits: {n}", lang, n=batches(data.cross_full, lang))
    readout = Readout(
        (_short(data.speed), say("each sequence {n}", lang, n=_short(each))),
        (
            seconds(data.prompt.seconds(data.roof)),
            say("{n} tokens of prompt", lang, n=f"{data.context:,}"),
        ),
        (size(data.here.bytes), parts),
        (batches(data.cross, lang), other),
    )
    names = ("decode, tokens/s at most", "first token, at least", "a step reads",
             "multiplies longer from batch")  # fmt: skip
    head(picture, readout, sentence(data, lang), lang, names)
    subject = say("{machine}, {n} parameters, {bits} bits, batch {b}", lang, machine=data.machine,
                  n=count(data.parameters), bits=f"{data.bits:g}", b=data.batch)  # fmt: skip
    if data.measured:
        told = [f"{m.model} × {m.batch}: {share(m.reached / data.roof.peak)}"
                for m in data.measured if m.decode]  # fmt: skip
        subject += f"; {say('measured, of the peak', lang)}: {', '.join(told)}"
    if data.left_out:
        subject += f"; {_left_out(data, lang)}"
    picture.label += f"; {subject}."


def _left_out(data: RooflineData, lang: str) -> str:
    """Which models of a bench have another roof."""
    return say("not under this roof: {names}", lang, names=", ".join(data.left_out))


# ---- under the roof ------------------------------------------------------------------------------


def decades(axis: Axis) -> list[float]:
    """The powers of ten inside an axis; 2 and 5 times them too where they are few.

    Example:
        >>> decades(Axis(3, 70, 0, 1)), decades(Axis(0.5, 2000, 0, 1))
        ([5.0, 10.0, 20.0, 50.0], [1.0, 10.0, 100.0, 1000.0])
    """
    low, high = (math.log10(v) for v in (axis.lo, axis.hi))
    powers = range(math.floor(low), math.floor(high) + 1)
    parts = (1, 2, 5) if high - low < 2 else (1,)
    ticks = [float(f"{m}e{k}") for k in powers for m in parts]
    return [tick for tick in ticks if axis.lo <= tick <= axis.hi]


def _frame(picture: Picture, data: RooflineData, x: Axis, y: Axis, lang: str) -> None:
    words = say(TITLES.get(data.machine, "under the roof of {name}"), lang, name=data.machine)
    speeds = (rate(data.roof.bandwidth, "B"), rate(data.roof.peak, "FLOP"))
    told = say("slope: memory {a}; roof: multiplication {b}", lang, a=speeds[0], b=speeds[1])
    title(picture, 0, TITLE, words, note=told)
    for tick in decades(y):
        at = float(y(tick))
        picture.segments(x.start, at, x.end, at, stroke="faint", opacity=0.6)
        words = _prefixed(tick)
        picture.text(x.start - 5, at + 4, words, size=11, colour="muted", anchor="end")
    for tick in decades(x):
        at = float(x(tick))
        picture.segments(at, TOP, at, LOW, stroke="faint", opacity=0.6)
        picture.text(at, LOW + 16, f"{tick:,g}", size=11, colour="muted", anchor="middle")
    picture.segments(x.start, LOW, x.end, LOW, stroke="faint")
    middle = (x.start + x.end) / 2
    words = say("operations a byte; up: operations a second", lang)
    picture.text(middle, LOW + 32, words, size=11, colour="muted", anchor="middle")
    if data.left_out:  # above the slope there is nothing else
        words = _left_out(data, lang)
        words = words if len(words) < 64 else f"{words[:62]}…"
        picture.text(x.start + 6, TOP + 10, words, size=11, colour="muted")
    _roof(picture, data.roof, x, y)


def _prefixed(value: float) -> str:
    """A power of ten a second as a tick: `10 G`, `1 T`, `1 P`."""
    for power, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= power:
            return f"{value / power:g} {prefix}"
    return f"{value:g}"


def _roof(picture: Picture, roof: Roof, x: Axis, y: Axis) -> None:
    """The slope of memory, the roof of multiplication, and where they meet."""
    ridge = min(max(roof.ridge, LEAST), MOST)
    corner = (float(x(ridge)), float(y(roof.attainable(ridge))))
    start = (float(x(LEAST)), float(y(roof.attainable(LEAST))))
    end = (float(x(MOST)), float(y(roof.attainable(MOST))))
    picture.polygon([start, corner, end, (end[0], LOW), (start[0], LOW)], fill="panel",
                    opacity=0.4)  # fmt: skip
    picture.line(*zip(start, corner, end), stroke="ink", width=2.2)
    picture.segments(corner[0], corner[1], corner[0], LOW, stroke="muted", dash="dot")


def _place(data: RooflineData, load: Load, x: Axis, y: Axis) -> tuple[float, float]:
    """Where a predicted step stands: on the roof, at the right edge if beyond."""
    at = min(max(load.intensity, LEAST), MOST)
    return float(x(at)), float(y(data.roof.attainable(at)))


def _steps(picture: Picture, data: RooflineData, x: Axis, y: Axis) -> None:
    """Decode at four batches in 16 bits and in the chosen ones, the chosen step, and the prompt."""
    if data.bits != FULL:
        spots = [_place(data, load, x, y) for load in data.full.values()]
        _batch_names(picture, data.full, spots, below=True)
        xs, ys = zip(*spots)
        picture.dots(xs, ys, 7.0, fill="orange")
        picture.dots(xs, ys, 4.8, fill="paper")
    spots = [_place(data, load, x, y) for load in data.decodes.values()]
    _batch_names(picture, data.decodes, spots, below=False)
    xs, ys = zip(*spots)
    picture.dots(xs, ys, 4.2, fill="blue")
    px, py = _place(data, data.prompt, x, y)
    picture.polygon([(px, py - 7), (px + 7, py), (px, py + 7), (px - 7, py)], fill="green")
    cx, cy = _place(data, data.here, x, y)
    turn = [2 * math.pi * i / 28 for i in range(28)]
    ring = [(cx + 9.5 * math.cos(t), cy + 9.5 * math.sin(t)) for t in turn]
    picture.polygon(ring, stroke="ink", width=1.8)


def _batch_names(
    picture: Picture, steps: dict[int, Load], spots: Sequence[tuple[float, float]], below: bool
) -> None:
    """A batch beside its dot where the one before leaves room."""
    last = -math.inf
    for batch, (px, py) in zip(steps, spots):
        if px - last < 17:
            continue
        last = px
        dx, dy = (10, 14) if below else (-9, -8)
        look = {"size": 11, "anchor": "start" if below else "end", "colour": "muted"}
        picture.text(px + dx, py + dy, f"{batch}", **look)


def _legend(picture: Picture, data: RooflineData, lang: str) -> None:
    """What the marks are, in the empty corner under the roof."""
    rows = [("blue", say("decode in {n} bits, by batch", lang, n=f"{data.bits:g}"))]
    if data.bits != FULL:
        rows.append(("orange", say("the same in 16 bits", lang)))
    rows.append(("green", say("the prompt", lang)))
    names = list(dict.fromkeys(m.model for m in data.measured))[: len(MODELS)]
    rows += list(zip(MODELS, names))
    top, left = LOW - 14 - 17 * (len(rows) - 1), LEFT[1] - 176
    picture.rect(left - 12, top - 16, 188, LOW - top + 14, fill="paper", opacity=0.8)
    for i, (colour, words) in enumerate(rows):
        y = top + 17 * i
        if colour == "orange" and i == 1:
            picture.dots(left, y - 4, 6, fill=colour)
            picture.dots(left, y - 4, 4.0, fill="paper")
        elif words in names:
            picture.rect(left - 4, y - 8, 8, 8, fill=colour)
        elif colour == "green":
            corners = [(left, y - 10), (left + 6, y - 4), (left, y + 2), (left - 6, y - 4)]
            picture.polygon(corners, fill=colour)
        else:
            picture.dots(left, y - 4, 4.2, fill=colour)
        picture.text(left + 12, y, words if len(words) < 30 else f"{words[:28]}…", size=11)


def _measured(picture: Picture, data: RooflineData, x: Axis, y: Axis) -> None:
    """What a bench reached, a colour a model: decode filled and joined, prompts hollow."""
    names = list(dict.fromkeys(m.model for m in data.measured))
    for colour, name in zip(MODELS, names):
        found = [m for m in data.measured if m.model == name]
        spots = {
            kind: [(float(x(min(max(m.intensity, LEAST), MOST))), float(y(m.reached)))
                   for m in found if m.decode is kind]
            for kind in (True, False)
        }  # fmt: skip
        picture.line(*zip(*spots[True]), stroke=colour, width=1)
        for kind, places in spots.items():
            for px, py in places:
                picture.rect(px - 4, py - 4, 8, 8, fill=colour)
                if not kind:
                    picture.rect(px - 2.2, py - 2.2, 4.4, 4.4, fill="paper")


# ---- times faster --------------------------------------------------------------------------------


def _faster(picture: Picture, data: RooflineData, lang: str) -> None:
    """Against the batch: from 16 / bits at small ones down to 1 at large ones."""
    words, told = "decode: times faster than 16 bits", "one model, one context, more sequences"
    title(picture, RIGHT[0] - 30, TITLE, say(words, lang), note=say(told, lang))
    ideal = FULL / data.bits
    x = Axis(1, data.faster[-1][0], *RIGHT, log=True)
    y = Axis(0, max(4.2, 1.12 * ideal), LOW, TOP)
    for tick in y.ticks(5):
        at = float(y(tick))
        picture.segments(x.start, at, x.end, at, stroke="faint", opacity=0.6)
        picture.text(x.start - 6, at + 4, number(tick), size=11, colour="muted", anchor="end")
    for tick in (1, 4, 16, 64, 256, 1024):
        at = float(x(tick))
        picture.segments(at, LOW, at, LOW + 4, stroke="faint")
        picture.text(at, LOW + 16, f"{tick}", size=11, colour="muted", anchor="middle")
    picture.segments(x.start, LOW, x.end, LOW, stroke="faint")
    middle = (x.start + x.end) / 2
    words = say("sequences at once (batch)", lang)
    picture.text(middle, LOW + 32, words, size=11, colour="muted", anchor="middle")
    picture.segments(x.start, y(1), x.end, y(1), stroke="orange", width=1.6)
    picture.segments(x.start, y(ideal), x.end, y(ideal), stroke="muted", dash="dash")
    words = say("16 / {bits} = {n}", lang, bits=f"{data.bits:g}", n=f"{ideal:.2f}")
    picture.text(x.end, float(y(ideal)) - 6, words, size=11, colour="muted", anchor="end")
    if data.bits < FULL:
        words = say("16 bits", lang)
        look = {"size": 11, "colour": "muted", "anchor": "end"}
        picture.text(x.end, float(y(1)) + 15, words, **look)
    curve = [(float(x(batch)), float(y(value))) for batch, value in data.faster]
    picture.line(*zip(*curve), stroke="blue", width=2.2)
    here = (float(x(data.batch)), float(y(data.gain)))
    picture.segments(here[0], here[1], here[0], LOW, stroke="ink", dash="dot")
    picture.dots(*here, 4.6, fill="ink")
    right = here[0] < x.end - 60
    look = {"size": 12.5, "bold": True, "anchor": "start" if right else "end"}
    picture.text(here[0] + (7 if right else -7), LOW - 9, f"{data.gain:.2f} ×", **look)


# ---- the arithmetic ------------------------------------------------------------------------------


def _worked(picture: Picture, data: RooflineData, lang: str) -> None:
    """Both quotients of the chosen step and of the prompt, in numbers; the larger is bold."""
    picture.rect(0, CODE, WIDTH, HEIGHT - CODE, fill="panel", opacity=PANEL)
    roof, rows = data.roof, ((data.here, "decode step"), (data.prompt, "prompt"))
    columns = (14, 118, 432)
    for at, words in zip(columns[1:], ("read", "multiply")):
        picture.text(at, CODE + 20, say(words, lang), size=11.5, colour="muted")
    for i, (load, name) in enumerate(rows):
        y = CODE + 42 + 24 * i
        picture.text(columns[0], y, say(name, lang), size=12.5)
        reading, work = load.bytes / roof.bandwidth, load.operations / roof.peak
        told = (
            (f"{size(load.bytes)} ÷ {rate(roof.bandwidth, 'B')} = ", reading),
            (f"{count(load.operations)} FLOP ÷ {rate(roof.peak, 'FLOP')} = ", work),
        )
        for at, (words, value) in zip(columns[1:], told):
            longer = value == max(reading, work)
            look = {"size": 12.5, "bold": longer, "colour": "ink" if longer else "muted"}
            picture.text(at, y, words + seconds(value), **look)
    words = say("the longer one counts; what unpacking and starting programs take comes on top",
                lang)  # fmt: skip
    picture.text(14, HEIGHT - 10, words, size=11, colour="muted")
