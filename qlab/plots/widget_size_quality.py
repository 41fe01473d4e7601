"""The ladder of GGUF files: bits per weight against KL, what an importance matrix changes for every
mixture, and the chosen file's tensors as bars of bytes, coloured by type.
"""

from __future__ import annotations

import dataclasses
import math

from qlab.evaluation.bars import with_bar
from qlab.plots.svg import Picture
from qlab.plots.widget_calibration import called, errors_away
from qlab.plots.widget_parts import PANEL, WIDTH, Axis, Readout, head, number, share, size, title
from qlab.plots.widget_words import say

Measured = tuple[float, float]  # a number and its bar, one standard error

HEIGHT = 702
TOP, PLAN, CODE = 152, 468, 654  # upper edges: scatter and list, plan, what was measured
LEFT, LIST_AT = (46, 404), (548, 700)  # from, to: bits per weight; change of the KL
LOW = 420  # lower edge of scatter and list
SCATTER, LIST = "files", "mixtures"  # what can be picked
MANY = 2.0  # standard errors: from here on a difference is taken for one
KINDS = {
    "token_embd": "embedding", "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o",
    "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down", "output": "head",
}  # fmt: skip
SERIES = {"": "ink", "english": "blue", "korean": "vermilion"}
WIDTHS = {  # colour of a type, by the bits in its name
    "32": "ink", "16": "ink", "8": "grey", "6": "purple", "5": "green", "4": "blue",
    "3": "orange", "2": "vermilion",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Point:
    """One file of a model, judged on one text.

    Attributes:
        file, imatrix: its mixture and the text of its matrix. bits: per weight, all tensors.
        kl: from the float model. change: KL less that without a matrix, in pairs.
    """

    file: str
    imatrix: str
    bits: float
    kl: Measured
    change: Measured | None


@dataclasses.dataclass(frozen=True)
class Part:
    """One tensor of a file; `layer` −1: of none. `wanted` is what the mixture asks for."""

    kind: str
    layer: int
    type: str
    wanted: str
    bytes: int
    weights: int


@dataclasses.dataclass(frozen=True)
class SizeQualityData:
    """What the picture shows.

    Attributes:
        model, file, imatrix, judged: what is looked at.
        points: all files, the largest first.
        bits, bytes: of the file's tensors. file_bytes: of all of it.
        top1, dlnppl: how often the first token stays; Δ ln ppl.
        plain: KL less that without a matrix. larger, larger_bits: the next larger file.
        step: KL less the next larger file's, in pairs.
        plan: the tensors. floor: KL of float16.
        scored: windows of every text, and their tokens.
    """

    model: str
    file: str
    imatrix: str
    judged: str
    points: tuple[Point, ...]
    bits: float
    bytes: int
    file_bytes: int
    top1: Measured
    dlnppl: Measured
    plain: Measured | None
    larger: str | None
    larger_bits: float | None
    step: Measured | None
    plan: tuple[Part, ...]
    floor: Measured | None
    scored: tuple[int, int]

    @property
    def here(self) -> Point:
        """The chosen file."""
        return next(p for p in self.points if (p.file, p.imatrix) == (self.file, self.imatrix))

    @property
    def fell_back(self) -> float:
        """The share of the blocks' weights that have another type than was asked for."""
        blocks = [part for part in self.plan if part.layer >= 0 and part.kind != "norms"]
        every = sum(part.weights for part in blocks)
        return sum(part.weights for part in blocks if part.type != part.wanted) / every


def listed(data: SizeQualityData) -> list[str]:
    """The mixtures from the largest to the smallest."""
    return [*dict.fromkeys(point.file for point in data.points)]


def draw_size_quality(data: SizeQualityData, lang: str = "en") -> Picture:
    """The picture of `SizeQualityData`; files can be picked in it.

    Example:
        >>> draw_size_quality(size_quality_data(table_of(), state)).figure()   # doctest: +SKIP
    """
    picture = Picture(WIDTH, HEIGHT)
    _head(picture, data, lang)
    _scatter(picture, data, lang)
    _list(picture, data, lang)
    _plan(picture, data, lang)
    _facts(picture, data, lang)
    return picture


# ---- in words ------------------------------------------------------------------------------------


def sentences(data: SizeQualityData, lang: str) -> list[str]:
    """What the file keeps; what the next larger one costs and gains; what its matrix does."""
    kept = f"{100 * data.top1[0]:.1f}"
    words = "{file} keeps {kept} % of the first tokens at {bits} bits per weight."
    if data.fell_back:
        words = (
            "{file} keeps {kept} % of the first tokens at {bits} bits; "
            "{share} fell back to a fitting type."
        )
    first = say(words, lang, file=data.file, kept=kept, bits=f"{data.bits:.2f}",
                share=share(data.fell_back))  # fmt: skip
    return [first, _step(data, lang), *_matrix(data, lang)]


def _step(data: SizeQualityData, lang: str) -> str:
    if data.larger is None or data.step is None or data.larger_bits is None:
        return say("No larger file was measured with this matrix.", lang)
    value, bar = data.step
    words = "{file} costs {more} bits more and takes {kl} off the KL: {seen}."
    if value < 0:
        words = "{file} costs {more} bits more and adds {kl} to the KL: {seen}."
    more = f"{data.larger_bits - data.bits:.2f}"
    kl = with_bar(abs(value), bar)
    return say(words, lang, file=data.larger, more=more, kl=kl, seen=_seen(data.step, lang))


def _matrix(data: SizeQualityData, lang: str) -> list[str]:
    if data.plain is None:
        return []
    text = called(data.imatrix, lang).capitalize()
    if data.plain == (0.0, 0.0):
        return [say("The {text} matrix changes nothing: this type does not look at it.", lang,
                    text=text)]  # fmt: skip
    percent = change(data.here)
    words = "The {text} matrix changes the KL by {d} %: {seen}."
    return [say(words, lang, text=text, d=_signed(percent), seen=_seen(percent, lang))]


def _seen(measured: Measured, lang: str) -> str:
    clear = errors_away(measured) > MANY
    return say("beyond two bars" if clear else "within two bars, not seen", lang)


def _signed(measured: Measured) -> str:
    return f"{'−' if measured[0] < 0 else '+'}{with_bar(abs(measured[0]), measured[1])}"


def change(point: Point) -> Measured:
    """What a matrix changes, in percent of the KL without it; the bar is the difference's.

    Example:
        >>> change(Point("Q2_K", "english", 3.0, (0.09, 0.01), (-0.01, 0.002)))
        (-10.0, 2.0)
    """
    value, bar = point.change or (0.0, 0.0)
    base = point.kl[0] - value
    return (round(100 * value / base, 6), round(100 * bar / base, 6)) if base else (0.0, 0.0)


def _head(picture: Picture, data: SizeQualityData, lang: str) -> None:
    kl, _, bar = with_bar(*data.here.kl).partition(" ± ")
    if ")" in bar:  # the power of ten belongs to both
        kl, bar = number(data.here.kl[0], 4), number(data.here.kl[1], 2)
    readout = Readout(
        (f"{data.bits:.2f}", say("{size}, the file {all}", lang, size=size(data.bytes),
                                 all=size(data.file_bytes))),
        (kl, f"± {bar} nats"),
        (f"{100 * data.top1[0]:.1f} %", f"± {100 * data.top1[1]:.1f}"),
        (f"{data.dlnppl[0]:+.4f}".replace("-", "−"), f"± {data.dlnppl[1]:.4f}"),
    )  # fmt: skip
    names = ("bits per weight", "KL from the float model", "same first token", "Δ ln perplexity")
    said = sentences(data, lang)
    head(picture, readout, said[0], lang, names)
    for i, words in enumerate(said[1:]):
        picture.text(0, 104 + 18 * i, words, size=13)
    picture.label = f"{' '.join(said)} {picture.label.removeprefix(said[0]).strip()}"


# ---- bits against KL -----------------------------------------------------------------------------


def axes(data: SizeQualityData) -> tuple[Axis, Axis]:
    """Bits per weight to x and KL to y, both logarithmic."""
    bits = [point.bits for point in data.points]
    kls = [point.kl for point in data.points]
    low = min(max(value - bar, value / 2) for value, bar in kls) / 1.35
    high = max(value + bar for value, bar in kls) * 1.35
    x = Axis(min(bits) / 1.04, max(bits) * 1.07, *LEFT, log=True)
    return x, Axis(low, high, LOW, TOP + 16, log=True)


def nearest(data: SizeQualityData, x: float, y: float) -> Point:
    """The file nearest to a place in the scatter, 0 … 1 from its upper left."""
    across, up = axes(data)
    at = (LEFT[0] + x * (LEFT[1] - LEFT[0]), TOP + 16 + y * (LOW - TOP - 16))
    return min(
        data.points,
        key=lambda p: math.dist(at, (float(across(p.bits)), float(up(p.kl[0])))),
    )


def decades(axis: Axis) -> list[float]:
    """1 and 3 times the powers of ten inside an axis."""
    powers = range(math.floor(math.log10(axis.lo)), math.ceil(math.log10(axis.hi)) + 1)
    ticks = [float(f"{m}e{k}") for k in powers for m in (1, 3)]
    return [tick for tick in ticks if axis.lo <= tick <= axis.hi]


def _scatter(picture: Picture, data: SizeQualityData, lang: str) -> None:
    words = say("KL of every file, judged on {text}", lang, text=called(data.judged, lang))
    title(picture, 0, TOP, words)
    x, y = axes(data)
    for tick in decades(y):
        at = float(y(tick))
        picture.segments(x.start, at, x.end, at, stroke="faint", opacity=0.6)
        look = {"size": 11, "colour": "muted", "anchor": "end"}
        picture.text(x.start - 5, at + 4, number(tick), **look)
    for tick in range(math.ceil(x.lo), math.floor(x.hi) + 1):
        at = float(x(tick))
        picture.segments(at, TOP + 16, at, LOW, stroke="faint", opacity=0.6)
        picture.text(at, LOW + 16, f"{tick}", size=11, colour="muted", anchor="middle")
    picture.segments(x.start, LOW, x.end, LOW, stroke="faint")
    middle = (x.start + x.end) / 2
    words = say("bits per weight", lang)
    picture.text(middle, LOW + 31, words, size=11, colour="muted", anchor="middle")
    _names(picture, data, x, y)
    _points(picture, data, x, y)
    box = (x.start, TOP + 16, x.end - x.start, LOW - TOP - 16)
    picture.pick(SCATTER, box, say("choose a file: click, or arrow keys", lang))


def _points(picture: Picture, data: SizeQualityData, x: Axis, y: Axis) -> None:
    """Discs with bars; the chosen one in a ring."""
    for point in data.points:
        colour = SERIES.get(point.imatrix, "sky")
        value, bar = point.kl
        at, here = float(x(point.bits)), float(y(value))
        ends = [float(y(max(value + side * bar, value / 4))) for side in (-1, 1)]
        picture.segments(at, ends[0], at, ends[1], stroke=colour, width=1.4)
        picture.dots(at, here, 3.4, fill=colour)
    at, here = float(x(data.here.bits)), float(y(data.here.kl[0]))
    turn = [2 * math.pi * i / 24 for i in range(24)]
    ring = [(at + 9 * math.cos(t), here + 9 * math.sin(t)) for t in turn]
    picture.polygon(ring, stroke="ink", width=1.8)


# Where a name may stand beside its point, the first that has room: anchor, dx, dy.
PLACES = (
    ("start", 11, -5), ("end", -11, 12), ("start", 11, 13), ("end", -11, -5),
    ("end", -12, 4), ("start", 12, 4), ("end", -24, 24), ("end", -24, 42),
    ("start", 22, -20), ("start", 22, 26), ("end", -24, 60), ("start", 30, -36),
    ("start", 30, 44), ("start", 60, -50), ("end", -60, 40),
)  # fmt: skip


def _names(picture: Picture, data: SizeQualityData, x: Axis, y: Axis) -> None:
    """Names beside the points without a matrix, first the chosen and the next larger file, farther
    ones with a line; a name that finds no room is left to the list.
    """
    spots = {(p.file, p.imatrix): (float(x(p.bits)), float(y(p.kl[0]))) for p in data.points}
    taken = [(px - 4, py - 4, px + 4, py + 4) for px, py in spots.values()]
    px, py = spots[data.file, data.imatrix]
    taken.append((px - 10, py - 10, px + 10, py + 10))  # the ring
    taken.append((LEFT[1] - 92, TOP + 16, LEFT[1] + 20, TOP + 72))  # the legend
    plain, names = [file for file, read in spots if not read], []
    for name in sorted(plain, key=lambda name: (name != data.file, name != data.larger)):
        px, py = spots[name, ""]
        for anchor, dx, dy in PLACES:
            box = _box(name, anchor, px + dx, py + dy)
            end = (px + dx + (-3 if dx > 0 else 3), py + dy - 4)
            far = abs(dx) > 20
            line = _line((px, py), end) if far else []
            if not _free(box, taken) or any(_overlap(a, b) for a in line for b in names):
                continue
            bold = name == data.file
            if far:
                picture.segments(px, py, *end, stroke="faint")
            look = {"size": 11, "anchor": anchor, "bold": bold}
            picture.text(px + dx, py + dy, name, colour="ink" if bold else "muted", **look)
            taken += [box, *line]
            names.append(box)
            break


def _line(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, ...]]:
    """Points along a line, as boxes without a size."""
    steps = [(i / 20, 1 - i / 20) for i in range(21)]
    way = [(a * end[0] + b * start[0], a * end[1] + b * start[1]) for a, b in steps]
    return [(x, y, x, y) for x, y in way]


def _box(name: str, anchor: str, x: float, y: float) -> tuple[float, float, float, float]:
    """The corners of a name."""
    wide = 7.0 * len(name)
    left = x - (wide if anchor == "end" else 0)
    return left, y - 9, left + wide, y + 2


def _free(box: tuple[float, ...], taken: list) -> bool:
    """Whether a box is inside the scatter and on nothing that stands there."""
    inside = LEFT[0] < box[0] and box[2] < LEFT[1] + 20 and TOP + 12 < box[1] and box[3] < LOW
    return inside and not any(_overlap(box, other) for other in taken)


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# ---- what the matrix changes ---------------------------------------------------------------------


def _list(picture: Picture, data: SizeQualityData, lang: str) -> None:
    """Every mixture, and by how much a matrix changes its KL, in pairs."""
    title(picture, 436, TOP, say("what an importance matrix changes", lang))
    files = listed(data)
    high = (LOW - TOP - 16) / max(len(files), 13)
    changes = [(p, change(p)) for p in data.points if p.imatrix and p.change]
    ends = [value + side * bar for _, (value, bar) in changes for side in (-2, 2)]
    axis = Axis(min(-5.0, *ends, 0) * 1.04, max(5.0, *ends, 0) * 1.04, *LIST_AT)
    low = TOP + 16 + high * len(files)
    at = TOP + 16 + high * files.index(data.file)
    picture.rect(436, at, WIDTH - 436, high, fill="panel", opacity=PANEL)
    for tick in axis.ticks(4):
        stroke = {"stroke": "ink", "width": 1.4} if tick == 0 else {"stroke": "faint"}
        picture.segments(axis(tick), TOP + 16, axis(tick), low, **stroke)
        words = number(tick) if tick <= 0 else f"+{number(tick)}"
        picture.text(float(axis(tick)), low + 16, words, size=11, colour="muted", anchor="middle")
    middle = (axis.start + axis.end) / 2
    words = say("change of the KL, %", lang)
    picture.text(middle, low + 31, words, size=11, colour="muted", anchor="middle")
    for i, name in enumerate(files):
        y = TOP + 16 + high * (i + 0.5)
        look = {"size": 11.5, "bold": name == data.file}
        picture.text(440, y + 4, name, **look)
        bits = next(p.bits for p in data.points if p.file == name)
        picture.text(536, y + 4, f"{bits:.2f}", size=11, colour="muted", anchor="end")
    for point, measured in changes:
        y = TOP + 16 + high * (files.index(point.file) + 0.5)
        _dot(picture, axis, y + (-3 if point.imatrix == "english" else 3), measured, point.imatrix)
    _legend(picture, data, lang)
    box = (436, TOP + 16, WIDTH - 436, low - TOP - 16)
    picture.pick(LIST, box, say("choose a file: click, or arrow keys", lang))


def _dot(picture: Picture, axis: Axis, y: float, measured: Measured, text: str) -> None:
    """A change with two standard errors; hollow where they reach 0."""
    value, bar = measured
    colour = SERIES.get(text, "sky")
    ends = [float(axis(value + side * MANY * bar)) for side in (-1, 1)]
    picture.segments(ends[0], y, ends[1], y, stroke=colour, width=1.6)
    picture.dots(float(axis(value)), y, 3.2, fill=colour)
    if errors_away(measured) <= MANY:
        picture.dots(float(axis(value)), y, 1.8, fill="paper")


def _legend(picture: Picture, data: SizeQualityData, lang: str) -> None:
    """The three series, at the upper right of the scatter."""
    texts = [text for text in SERIES if any(p.imatrix == text for p in data.points)]
    names = [called(text, lang) if text else say("no matrix", lang) for text in texts]
    for i, (text, name) in enumerate(zip(texts, names, strict=True)):
        y = TOP + 32 + 16 * i
        picture.dots(LEFT[1] - 82, y - 4, 4, fill=SERIES[text])
        picture.text(LEFT[1] - 73, y, name, size=11)


# ---- the plan ------------------------------------------------------------------------------------


def colour_of(kind: str) -> str:
    """A type's colour, by the bits in its name.

    Example:
        >>> colour_of("Q4_K"), colour_of("IQ4_XS"), colour_of("Q6_K")
        ('blue', 'blue', 'purple')
    """
    digits = "".join(letter for letter in kind.split("_")[0] if letter.isdigit())
    return WIDTHS.get(digits, "sky")


def _plan(picture: Picture, data: SizeQualityData, lang: str) -> None:
    """A bar of bytes for every kind, one piece a layer, in the colour of its type."""
    words = "{file}: bytes of every kind of tensor, a piece a layer"
    title(picture, 0, PLAN, say(words, lang, file=data.file))
    kinds = [*dict.fromkeys(part.kind for part in data.plan)]
    groups = {kind: [part for part in data.plan if part.kind == kind] for kind in kinds}
    most = max(sum(part.bytes for part in group) for group in groups.values())
    axis, high = Axis(0, most, 78, 400), 158 / len(kinds)
    for i, (kind, group) in enumerate(groups.items()):
        y, at = PLAN + 14 + high * i, 0
        picture.text(72, y + 12, say(kind, lang), size=11.5, anchor="end")
        for part in group:
            x, wide = float(axis(at)), float(axis(at + part.bytes) - axis(at))
            faint = 0.5 if part.type != part.wanted else 1.0
            gap = 1 if wide > 3 else 0
            look = {"fill": colour_of(part.type), "opacity": faint}
            picture.rect(x, y + 2, max(wide - gap, 0.5), high - 4, **look)
            at += part.bytes
        bits = 8 * at / sum(part.weights for part in group)
        picture.text(452, y + 12, f"{bits:.2f}", size=11, colour="muted", anchor="end")
        _types(picture, group, 464, y + 12, lang)
    words = say("bits", lang)
    picture.text(452, PLAN, words, size=11, colour="muted", anchor="end")


def _types(picture: Picture, group: list[Part], x: float, y: float, lang: str) -> None:
    """The types of a kind, each with the number of its layers."""
    counts: dict[tuple[str, str], int] = {}
    for part in group:
        counts[part.type, part.wanted] = counts.get((part.type, part.wanted), 0) + 1
    for (kind, wanted), count in counts.items():
        picture.rect(x, y - 9, 9, 9, fill=colour_of(kind), opacity=1.0 if kind == wanted else 0.5)
        words = (
            kind if kind == wanted else say("{kind} for {wanted}", lang, kind=kind, wanted=wanted)
        )
        words += f" ×{count}" if count > 1 else ""
        picture.text(x + 13, y, words, size=11)
        x += 22 + 6.6 * len(words)


def _facts(picture: Picture, data: SizeQualityData, lang: str) -> None:
    """The equation and what was measured."""
    picture.rect(0, CODE, WIDTH, HEIGHT - CODE, fill="panel", opacity=PANEL)
    picture.text(14, CODE + 19, "KL = Σₜ p(t) ln p(t)/q(t),   p float, q file", size=12.5)
    words = "bars: one standard error, over windows; right: two, in pairs; hollow: they reach 0"
    words = say(words, lang)
    picture.text(WIDTH - 14, CODE + 19, words, size=11, colour="muted", anchor="end")
    words = say("{model}, {n} windows of {t} tokens", lang, model=data.model, n=data.scored[0],
                t=data.scored[1])  # fmt: skip
    picture.text(14, CODE + 37, words, size=11, colour="muted")
    if data.floor:
        words = say("F16, not drawn: KL {kl}", lang, kl=number(data.floor[0], 2))
        picture.text(WIDTH - 14, CODE + 37, words, size=11, colour="muted", anchor="end")
