"""A report as a map or as a list, and one layer of it in words, beside each other."""

from __future__ import annotations

import dataclasses
import math

from qlab.plots.svg import Picture
from qlab.plots.widget_parts import WIDTH, Readout, head, number, title
from qlab.plots.widget_report_views import draw_list, draw_map, figures
from qlab.plots.widget_words import say

HEIGHT = 586
WORDS = 480  # where the chosen layer's words begin


@dataclasses.dataclass(frozen=True)
class ReportData:
    """What the picture shows.

    Attributes:
        name: of model, method and Spec.
        show: what is shown: a name that `say` knows.
        values, others: of every layer, by path; NaN where there is none. `others` is what each is
            compared with.
        other: what `others` are, "" if there are none.
        kinds: of the map's columns.
        order: paths of the list, from the top.
        as_map: a map of all layers, or the list.
        chosen: a path.
        facts: (name, value) of the chosen layer.
        remarks: (words, their values) about it.
        told: paths with remarks.
        bits: per weight, of all.
        losses: medians of the loss, RTN's, their ratio and that on held-out text; NaN without.
        worse: how many layers lost more than RTN, on either text.
    """

    name: str
    show: str
    values: dict[str, float]
    others: dict[str, float]
    other: str
    kinds: tuple[str, ...]
    order: tuple[str, ...]
    as_map: bool
    chosen: str
    facts: tuple[tuple[str, str], ...]
    remarks: tuple[tuple[str, dict], ...]
    told: frozenset[str]
    bits: float
    losses: tuple[float, float, float, float]
    worse: int


def short(path: str) -> str:
    """The path without what stands before the blocks.

    Example:
        >>> short("model.decoder.layers.3.fc1")
        'layers.3.fc1'
    """
    return path[max(path.find("layers."), 0) :]


def draw_report(data: ReportData, lang: str = "en") -> Picture:
    """The picture of `ReportData`; the map ("map") and the list ("list") can be picked."""
    picture = Picture(WIDTH, HEIGHT)
    loss, theirs, ratio, held = data.losses
    known = math.isfinite(ratio)
    none = say("no held-out text" if known else "no calibration text", lang)
    readout = Readout(
        (f"{data.bits:.4g}", say("{n}× smaller than float32", lang, n=number(32 / data.bits, 2))),
        (figures(loss), f"RTN {figures(theirs)}" if known else none),
        (
            f"{ratio:.2f} ×" if known else "–",
            say("held-out text: {n} ×", lang, n=f"{held:.2f}") if math.isfinite(held) else none,
        ),
        (str(len(data.told)), say("of {n} linears", lang, n=len(data.values))),
    )
    words = say(
        "{what}: {path}, {show} {value}" + ("; {n} linears worse than RTN." if known else "."),
        lang,
        what=data.name,
        path=short(data.chosen),
        show=say(data.show, lang),
        value=figures(data.values[data.chosen]),
        n=data.worse,
    )
    names = ("bits per weight", "median loss", "median ratio to RTN", "with remarks")
    head(picture, readout, words, lang, names)
    (draw_map if data.as_map else draw_list)(picture, data, lang)
    _told(picture, data, lang)
    return picture


# ---- one layer in words --------------------------------------------------------------------------


def _told(picture: Picture, data: ReportData, lang: str) -> None:
    """The chosen layer: every field of its row, then what a reader should know."""
    title(picture, WORDS, 112, short(data.chosen))
    picture.segments(WORDS, 120, WIDTH, 120, stroke="faint")
    y = 138
    for name, value in data.facts:
        picture.text(WORDS, y, say(name, lang), size=11.5, colour="muted")
        picture.text(WIDTH, y, value, size=11.5, anchor="end")
        y += 17
    picture.segments(WORDS, y - 7, WIDTH, y - 7, stroke="faint")
    y += 10
    remarks = data.remarks or (("Nothing stands out in this layer.", {}),)
    for words, values in remarks:
        for i, line in enumerate(wrapped(say(words, lang, **values), 44)):
            if y > HEIGHT - 4:
                return
            if i == 0 and data.remarks:
                picture.rect(WORDS, y - 9, 4, 10, fill="vermilion")
            picture.text(WORDS + 9 * bool(data.remarks), y, line, size=11.5)
            y += 15
        y += 5


def wrapped(words: str, width: int) -> list[str]:
    """Lines of at most `width` letters, broken at spaces; a Hangul letter counts as 1.8.

    Example:
        >>> wrapped("one two three", 8)
        ['one two', 'three']
    """
    lines, room = [""], float(width)
    for word in words.split():
        wide = sum(1.8 if letter >= "ᄀ" else 1.0 for letter in word)
        if lines[-1] and wide + 1 > room:
            lines.append("")
            room = float(width)
        room -= wide + bool(lines[-1])
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
