"""Which file fits: weights, KV cache and reserve of every file as stacked bars against the memory,
with speed and loss beside them and the recommended marked.
"""

from __future__ import annotations

from qlab.evaluation.advice import Advice, gigabytes, span
from qlab.evaluation.evidence import LOSSES, TASKS, WORN
from qlab.evaluation.fits import Fit
from qlab.evaluation.mixtures import FILES, SERVED
from qlab.evaluation.shapes import SHAPES
from qlab.plots.svg import Picture
from qlab.plots.widget_parts import PANEL, WIDTH, Axis, x_axis
from qlab.plots.widget_report import wrapped
from qlab.plots.widget_words import say

HEIGHT = 556
HEAD = 24  # where the numbers begin, under the line that says what they are of
TOP, ROW = 176, 22  # the first row's middle, and the distance of rows
GAP = 30  # before the servers' formats
BITS, START, END, NEED, SPEED, LOSS = 128, 140, 520, 588, 666, WIDTH - 2  # columns
BOTTOM = TOP + ROW * (len(FILES) + len(SERVED)) + GAP - 12
PARTS = (("weights", "blue"), ("KV cache", "orange"), ("reserve", "grey"))


def draw_advisor(data: Advice, lang: str = "en") -> Picture:
    """The picture of an `Advice`.

    Example:
        >>> draw_advisor(qlab.advise("70B", memory="24 GB")).figure()   # doctest: +SKIP
    """
    picture = Picture(WIDTH, HEIGHT)
    _head(picture, data, lang)
    capacity = data.question.machine.capacity
    most = max(1.4 * capacity, 1.08 * data.best.need if data.best else 0)
    x = Axis(0, most / 1e9, START, END)
    _columns(picture, lang)
    for i, file in enumerate((*FILES, *SERVED)):
        found = [f for f in data.fits if f.file == file]
        y = TOP + ROW * i + (GAP if file in SERVED else 0)
        if found:
            _row(picture, found[0], x, y, found[0] in (data.best, data.served))
        else:
            picture.text(16, y + 4, file, size=12, colour="faint")
            words = "not for this hardware" if data.question.machine.device else "name a GPU for it"
            picture.text(START + 4, y + 4, say(words, lang), size=11, colour="muted")
    words = say("GPU servers' formats, embedding and head in 16 bits", lang)
    picture.text(0, TOP + ROW * len(FILES) + 12, words, size=11, colour="muted")
    _memory(picture, x, capacity, lang)
    x_axis(picture, x, BOTTOM, count=6)
    picture.text(END + 22, BOTTOM + 16, "GB", size=11, colour="muted")
    words = say("KL: published, of Llama-3-8B", lang)
    picture.text(LOSS, BOTTOM + 16, words, size=11, colour="muted", anchor="end")
    _legend(picture, lang)
    return picture


def sentence(data: Advice, lang: str) -> str:
    """What to take and why not better; or what to do where nothing good fits."""
    best, other = data.best, data.smaller
    rather = f"{other.question.shape.name} ({other.file})" if other else ""
    if best is None:
        gap = gigabytes(data.target.outside)
        floor, file = TASKS[data.question.task].floor, data.target.file
        if not other:
            return say(
                "Nothing suitable fits: {file} is {gap} too large.", lang, file=file, gap=gap
            )
        if floor >= 8:
            words = (
                "Nothing with {n} bits fits: {file} is {gap} too large. A smaller model: {other}."
            )
            return say(words, lang, n=floor, file=file, gap=gap, other=rather)
        words = "Nothing fits; {file} is {gap} too large. A smaller model would fit: {other}."
        return say(words, lang, file=file, gap=gap, other=rather)
    if best.bits < WORN and other:
        words = (
            "Nothing better than {file} fits. "
            "A smaller model at 4 bits or more is usually better: {other}."
        )
        return say(words, lang, file=best.file, other=rather)
    better = [f for f in data.fits if f.gguf][: data.fits.index(best)]
    if not better:
        return say("{file}, the best of all, fits with its context.", lang, file=best.file)
    words = "{file} is the best that fits with its context; {next} is {gap} too large."
    return say(words, lang, file=best.file, next=better[-1].file, gap=gigabytes(better[-1].outside))


def about(data: Advice, lang: str) -> str:
    """The model, the context and what else was asked.

    Example:
        >>> about(qlab.advise("llama-3.1-70b", memory="24 GB"), "en")   # doctest: +SKIP
        'llama-3.1-70b, 8,192 tokens of context'
    """
    q = data.question
    model = q.shape.name
    if q.shape.like and model not in SHAPES:  # a mere size
        model += f" ({say('shape of {name}', lang, name=q.shape.like)})"
    parts = [model, say("{n} tokens of context", lang, n=f"{q.context:,}")]
    if q.batch > 1:
        parts.append(say("{n} sequences at once", lang, n=q.batch))
    if q.kv_bits != 16:
        parts.append(say("KV cache in {n} bits", lang, n=f"{q.kv_bits:g}"))
    if q.task != "general":
        parts.append(say(q.task, lang))
    return ", ".join(parts)


def _head(picture: Picture, data: Advice, lang: str) -> None:
    f, q = data.best or data.target, data.question
    subject = about(data, lang)
    picture.text(0, 13, subject, size=13, bold=True)
    picture.rect(0, HEAD, WIDTH, 64, fill="panel", opacity=PANEL)
    name = say("{file} needs" if data.best else "{file} would need", lang, file=f.file)
    picture.text(14, HEAD + 17, name, size=11.5, colour="muted")
    picture.text(14, HEAD + 52, gigabytes(f.need), size=30, bold=True)
    slots = (
        (220, say("memory for a model", lang), gigabytes(q.machine.capacity)),
        (392, say("longest context that fits", lang), f"{f.room:,}" if f.room else "—"),
        (580, say("tokens/s, all sequences", lang), span(f.speed if f.fits else None)),
    )
    for x, words, value in slots:
        picture.text(x, HEAD + 17, words, size=11.5, colour="muted")
        picture.text(x, HEAD + 45, value, size=18)
    said = sentence(data, lang)
    for i, line in enumerate(wrapped(said, 112)):
        picture.text(0, HEAD + 86 + 17 * i, line, size=13)
    told = ", ".join(f"{words}: {value}" for _, words, value in slots)
    picture.label = f"{subject}; {q.machine.said}: {said} {name} {gigabytes(f.need)}; {told}."


def _columns(picture: Picture, lang: str) -> None:
    for x, words in (
        (BITS, "bits"),
        (NEED, "together, GB"),
        (SPEED, "tokens/s"),
        (LOSS, "KL, 8B"),
    ):
        look = {"size": 11, "colour": "muted", "anchor": "end"}
        picture.text(x, TOP - 20, say(words, lang), **look)


def _row(picture: Picture, f: Fit, x: Axis, y: float, chosen: bool) -> None:
    """One file: its bar, cut off where the picture ends, and its numbers."""
    if chosen:
        picture.rect(0, y - 10, WIDTH, 20, fill="panel", opacity=PANEL)
        picture.polygon([(3, y - 5), (11, y), (3, y + 5)], fill="ink")
    colour = "ink" if f.fits else "muted"
    picture.text(16, y + 4, f.file, size=12, bold=chosen, colour=colour)
    parts = (f.weights, f.question.cache, f.question.reserve)
    at = float(x.start)
    for part, (_, fill) in zip(parts, PARTS, strict=True):
        end = min(at + float(x(part / 1e9)) - x.start, x.end)
        if end > at:
            picture.rect(at, y - 7, end - at, 14, fill=fill, opacity=1 if f.fits else 0.4)
        at = end
    if f.need / 1e9 > x.hi:  # it goes on
        picture.polygon([(END - 3, y - 8), (END + 6, y), (END - 3, y + 8)], fill="muted")
    kl = LOSSES.get(f.file, (0, None, ""))[1]
    for column, words in (
        (BITS, f"{f.bits:.2f}"),
        (NEED, gigabytes(f.need).removesuffix(" GB")),
        (SPEED, span(f.speed) if f.fits else "—"),
        (LOSS, "—" if kl is None else f"{kl:.4f}"),
    ):
        picture.text(column, y + 4, words, size=11.5, anchor="end", colour=colour, bold=chosen)


def _memory(picture: Picture, x: Axis, capacity: float, lang: str) -> None:
    """The line that a bar may not cross."""
    at = float(x(capacity / 1e9))
    picture.segments(at, TOP - 14, at, BOTTOM, stroke="ink", width=2)
    words = say("memory {size}", lang, size=gigabytes(capacity))
    picture.text(at, TOP - 20, words, size=11.5, bold=True, anchor="middle")


def _legend(picture: Picture, lang: str) -> None:
    y = HEIGHT - 10
    for i, (name, fill) in enumerate(PARTS):
        picture.rect(START + 110 * i, y - 9, 10, 10, fill=fill)
        picture.text(START + 110 * i + 15, y, say(name, lang), size=11.5)
    words = say("faint: does not fit", lang)
    picture.text(START + 330, y, words, size=11.5, colour="muted")
