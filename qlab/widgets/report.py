"""`report(q)`: what quantization did to every layer, as a map or the worst first, and one layer in
words.
"""

from __future__ import annotations

import os
from typing import Any

from qlab.models.report import Report
from qlab.models.transformer import Transformer
from qlab.plots.layers import kinds_of, place
from qlab.plots.svg import Picture
from qlab.plots.widget_report import draw_report
from qlab.plots.widget_report_views import blocks_of, window
from qlab.plots.widget_words import say
from qlab.widgets import controls as make
from qlab.widgets.base import Live
from qlab.widgets.report_data import (
    ALL,
    FORWARD,
    WORST,
    ReportState,
    measures_of,
    order_of,
    report_data,
    report_of,
)

MOVES = {"ArrowLeft": (-1, 0), "ArrowRight": (1, 0), "ArrowUp": (0, -1), "ArrowDown": (0, 1)}


class LayerReports(Live):
    """The widget; see `report`."""

    def __init__(self, report: Report, lang: str = "en", **chosen: Any):
        self.report = report
        shows = measures_of(report)
        kinds = [ALL, *kinds_of(vars(row) for row in report.layers)]
        start = {"show": shows[0], "order": FORWARD, "kind": ALL, **chosen}
        paths = order_of(report, start["show"], start["order"], start["kind"])
        state = ReportState(**{"layer": paths[0], **start})
        orders = [(say(name, lang), name) for name in (FORWARD, WORST)]
        names = [(say(name, lang), name) for name in shows]
        some = [(say(ALL, lang), ALL), *((kind, kind) for kind in kinds[1:])]
        controls = {
            "show": make.choice("show", names, state.show, lang),
            "order": make.choice("order", orders, state.order, lang),
            "kind": make.choice("kind", some, state.kind, lang),
            "layer": make.choice("layer", _named(paths), state.layer, lang),
        }
        super().__init__("report", ReportState, controls, lang)

    def draw(self, state: ReportState) -> Picture:
        return draw_report(report_data(self.report, state), self.lang)

    def arrange(self, changed: str) -> None:
        if changed == "layer":
            return
        state, layer = self.state, self.controls["layer"]
        paths = order_of(self.report, state.show, state.order, state.kind)
        stays = state.layer in paths and state.order == FORWARD
        layer.options = _named(paths)
        layer.value = state.layer if stays else paths[0]  # the worst, where it is asked for

    def picked(self, name: str, x: float, y: float, key: str) -> None:
        data = report_data(self.report, self.state)
        if name == "list":
            seen = window(data)
            step = MOVES[key][1] if key in MOVES else None
            now = data.order.index(data.chosen)
            to = now + step if step is not None else data.order.index(seen[int(y * len(seen))])
            path = data.order[min(max(to, 0), len(data.order) - 1)]
        else:
            at = {(data.kinds.index(place(p)[1]), place(p)[0]): p for p in data.values}
            blocks, (block, kind) = blocks_of(data), place(data.chosen)
            column, row = data.kinds.index(kind), blocks.index(block)
            if key in MOVES:
                column, row = column + MOVES[key][0], row + MOVES[key][1]
            elif key == "":
                column, row = int(x * len(data.kinds)), int(y * len(blocks))
            block = blocks[min(max(row, 0), len(blocks) - 1)]
            path = at.get((column, block), data.chosen)  # a float layer has no row to open
        self.set(layer=path)


def _named(paths: tuple[str, ...]) -> list[tuple[str, str]]:
    """(what the list shows, path): `layers.` before each would only be cut off."""
    return [(path.rpartition("layers.")[2], path) for path in paths]


def report(
    q: Transformer | Report | str | os.PathLike, lang: str = "en", **chosen: Any
) -> LayerReports:
    """What quantization did to every layer: a map of its loss (or its error, ratio to RTN …), the
    worst layers in order, and everything that is known about one of them, in words.

    Args:
        q: a quantized model, its report, or a folder that `qlab.save` wrote.
        lang: "en" or "ko".
        chosen: what to begin with, fields of ReportState: `show="ratio to RTN"`.

    Returns:
        the widget; `.figure()` is its picture.

    Raises:
        ValueError: nothing in `q` is quantized.

    Example:
        >>> qlab.widgets.report(qlab.quantize_model(model, "rtn", "int4_g64"))   # doctest: +SKIP
    """
    return LayerReports(report_of(q), lang, **chosen)
