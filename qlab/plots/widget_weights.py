"""A layer's weights fall onto a grid: histogram, the chosen block's levels, the error on the same
axis, where it sits, numbers.
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

HEIGHT = 556
HEAT = (516.0, 138.0, 222.0, 246.0)  # x, y, width, height of the heat map
SHOWN = 12  # weights of the block whose numbers are written out


@dataclasses.dataclass(frozen=True)
class WeightsData:
    """What the picture shows; all arrays NumPy.

    Attributes:
        format, block: of the Spec.
        edges: (bins + 1,) of both histograms, in units of weights.
        weights, errors: (bins,) counts of w and of ŵ − w.
        heat: (rows, columns), root mean square error of a tile over that of the layer's weights.
        cell: (row, column) of the heat map in which the chosen block lies.
        per_row: how many output channels share a row of the heat map.
        channel, start: where the chosen weights are: output row, first column.
        block_weights, block_values, block_codes: (n,) the chosen weights.
        levels: (k,) ascending, the values that this block can take.
        scale, zero: of their block; zero is None without a zero point.
        bits, sqnr, error, bytes: bits per weight, ratio of powers, √(E‖ΔWx‖²/E‖Wx‖²), bytes as
            stored.
        zeros: share of weights that become exactly 0.
    """

    format: str
    block: int | str
    edges: np.ndarray
    weights: np.ndarray
    errors: np.ndarray
    heat: np.ndarray
    cell: tuple[int, int]
    per_row: int
    channel: int
    start: int
    block_weights: np.ndarray
    block_values: np.ndarray
    block_codes: np.ndarray
    levels: np.ndarray
    scale: float
    zero: float | None
    bits: float
    sqnr: float
    error: float
    bytes: float
    zeros: float


def draw_weights(data: WeightsData, lang: str = "en") -> Picture:
    """The picture of `WeightsData`; the heat map can be picked ("heat").

    Example:
        >>> draw_weights(weights_data(source, WeightsState())).figure()   # doctest: +SKIP
    """
    picture = Picture(WIDTH, HEIGHT)
    narrower = np.sqrt(data.sqnr) if data.sqnr else 0
    shared = {"row": "one scale a row", "tensor": "one scale for all"}
    block = say(shared.get(str(data.block), "blocks of {n}"), lang, n=data.block)
    words = say(
        "{what}: the error is {n} times smaller than the weights; {zeros} of the weights become 0.",
        lang,
        what=f"{data.format}, {block}",
        n=number(narrower, 2),
        zeros=share(data.zeros),
    )
    readout = Readout(
        (f"{data.bits:.4g}", say("{n}× smaller than float32", lang, n=number(32 / data.bits, 2))),
        (decibels(data.sqnr), say("higher is better", lang)),
        (share(data.error), say("on real inputs", lang)),
        (size(data.bytes), say("of {n}", lang, n=size(data.bytes * 32 / data.bits))),
    )
    head(picture, readout, words, lang)
    axis = Axis(data.edges[0], data.edges[-1], 6, 480)
    _histograms(picture, data, axis, lang)
    _snapping(picture, data, axis, lang)
    _heat_map(picture, data, lang)
    _numbers(picture, data, lang)
    return picture


def _histograms(picture: Picture, data: WeightsData, axis: Axis, lang: str) -> None:
    """The weights upwards, their errors downwards on the same axis: the error is visibly the
    narrower one.
    """
    title(picture, 0, 112, say("all weights of the layer", lang), "blue")
    title(picture, 0, 270, say("their errors", lang), "vermilion")
    edges = axis(data.edges)
    picture.bars(edges, 208 - 92 * data.weights / data.weights.max(), 208, fill="blue")
    picture.bars(edges, 209 + 60 * data.errors / data.errors.max(), 209, fill="vermilion")
    x_axis(picture, axis, 276)


def _snapping(picture: Picture, data: WeightsData, axis: Axis, lang: str) -> None:
    """The chosen block, enlarged: every weight runs from where it is to the level that it falls
    on.
    """
    both = np.concatenate([data.block_weights, data.block_values])
    low, high = float(both.min()), float(both.max())
    edge = 0.03 * (high - low) or 1e-3
    near = Axis(low - edge, high + edge, axis.start, axis.end)
    lens = [[axis(near.lo), 300], [axis(near.hi), 300], [near.end, 322], [near.start, 322]]
    picture.polygon(lens, fill="panel", opacity=PANEL)
    picture.rect(near.start, 322, near.end - near.start, 62, fill="panel", opacity=PANEL)
    inside = near(data.levels[(data.levels >= near.lo) & (data.levels <= near.hi)])
    picture.segments(inside, 368, inside, 384, stroke="green", width=1 if len(inside) > 60 else 3)
    before, after = near(data.block_weights), near(data.block_values)
    picture.segments(before, 336, after, 366, stroke="muted")
    picture.dots(before, 332, 3.5, fill="blue")
    x_axis(picture, near, 384)
    words = say("one block, enlarged ({n} levels)", lang, n=len(data.levels))
    title(picture, 0, 424, words, "green")


def _place(data: WeightsData, lang: str) -> str:
    last = data.start + len(data.block_weights) - 1
    where = {"channel": data.channel, "first": data.start, "last": last}
    return say("output channel {channel}, weights {first} to {last}", lang, **where)


def _heat_map(picture: Picture, data: WeightsData, lang: str) -> None:
    x, y, w, h = HEAT
    rows, columns = data.heat.shape
    w, h = columns * (w // columns), rows * (h // rows)  # whole pixels: no seams between cells
    low, high = float(data.heat.min()), float(data.heat.max())
    shades = (
        0.1 + 0.9 * (data.heat - low) / (high - low)
        if high > low
        else 0.5 * np.ones_like(data.heat)
    )
    note = say("across: along a row; down: output channels", lang)
    title(picture, x, 112, say("where the error is", lang), "vermilion", note)
    picture.cells((x, y, w, h), shades - 0.05, fill="vermilion")
    r, c = data.cell
    frame = (x + c * w / columns, y + r * h / rows, w / columns, max(h / rows, 5))
    picture.rect(*frame, stroke="paper", width=5)
    picture.rect(*frame, stroke="ink", width=2.5)
    picture.pick("heat", (x, y, w, h), say("choose a block: click, or arrow keys", lang))
    for i in range(10):
        picture.rect(x + 50 + 11 * i, y + h + 10, 11, 9, fill="vermilion", opacity=(i + 1) / 10)
    picture.text(x + 44, y + h + 19, share(low), size=11, colour="muted", anchor="end")
    picture.text(x + 166, y + h + 19, share(high), size=11, colour="muted")


def _numbers(picture: Picture, data: WeightsData, lang: str) -> None:
    """The first weights of the chosen block, written out."""
    y = 456
    line = f"{_place(data, lang)}: {say('scale', lang)} {number(data.scale, 4)}"
    if data.zero is not None:
        line += f", {say('zero point', lang)} {number(data.zero)}"
    picture.text(0, y, line, size=12.5, bold=True)
    picture.segments(0, y + 8, WIDTH, y + 8, stroke="faint")
    w, v = data.block_weights[:SHOWN], data.block_values[:SHOWN]
    rows = (
        ("weight", [f"{n:+.4f}" for n in w], "blue"),
        ("code", [str(n) for n in data.block_codes[:SHOWN]], "muted"),
        ("value", [f"{n:+.4f}" for n in v], "green"),
        ("error", [f"{n:+.4f}" for n in v - w], "vermilion"),
    )
    for i, (name, cells, colour) in enumerate(rows):
        line_y = y + 28 + 21 * i
        picture.rect(0, line_y - 9, 4, 11, fill=colour)
        picture.text(10, line_y, say(name, lang), size=11.5, colour="muted")
        for j, words in enumerate(cells):
            words = words.removeprefix("+").removeprefix("-") if words[1:] == "0.0000" else words
            words = words.replace("-", "−")
            picture.text(100 + 58 * j, line_y, words, size=11.5, anchor="end")
