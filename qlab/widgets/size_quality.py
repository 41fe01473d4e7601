"""`size_quality()`: what every GGUF file costs in bits and in quality, whether an importance matrix
helps, and what is in the file, tensor by tensor. Over the measured ladder of mixtures.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from qlab.plots.svg import Picture
from qlab.plots.widget_calibration import called
from qlab.plots.widget_size_quality import LIST, SCATTER, draw_size_quality, listed, nearest
from qlab.plots.widget_words import say
from qlab.widgets import controls as make
from qlab.widgets.base import Live
from qlab.widgets.known import check_offered
from qlab.widgets.size_quality_data import (
    SizeQualityState,
    Table,
    size_quality_data,
    table_of,
)

KEYS = {"ArrowLeft": -1, "ArrowDown": -1, "ArrowRight": 1, "ArrowUp": 1}


class SizeQuality(Live):
    """The widget; see `size_quality`."""

    def __init__(self, table: Table, lang: str = "en", **chosen: Any):
        self.table, self.lang = table, lang
        s = SizeQualityState(**chosen)
        table.ladder(s.model)  # refuses an unknown one in words
        judges = [(called(text, lang), text) for text in table.facts["judged"]]
        controls = {
            "model": make.choice("model", table.models, s.model, lang),
            "file": make.steps("file", table.files(s.model), s.file, lang),
            "imatrix": make.choice("imatrix", self._matrices(s), s.imatrix, lang),
            "judged": make.choice("judged on", judges, s.judged, lang),
        }
        super().__init__("size_quality", SizeQualityState, controls, lang)

    def _matrices(self, s: SizeQualityState) -> list[tuple[str, str]]:
        """(what the list shows, text) of the matrices that a file was made with."""
        known = self.table.matrices(s.model, s.file)
        return [
            (called(text, self.lang) if text else say("none", self.lang), text) for text in known
        ]

    def draw(self, state: SizeQualityState) -> Picture:
        return draw_size_quality(size_quality_data(self.table, state), self.lang)

    def arrange(self, changed: str) -> None:
        """A model has its own files, a file its own matrices; what is chosen stays if it can."""
        file, matrix = self.controls["file"], self.controls["imatrix"]
        if changed == "model":
            _offer(file, self.table.files(self.state.model))
        if changed in ("model", "file"):
            _offer(matrix, self._matrices(self.state))

    def set(self, **values: Any) -> None:
        for name in [name for name in ("model", "file") if name in values]:
            value, control = values.pop(name), self.controls[name]
            check_offered(name, control.options, value)
            self._quiet = True
            try:
                control.value = value
                self.arrange(name)
            finally:
                self._quiet = False
        super().set(**values)

    def picked(self, name: str, x: float, y: float, key: str) -> None:
        data = size_quality_data(self.table, self.state)
        files = self.table.files(self.state.model)
        if key:
            to = files.index(self.state.file) + KEYS.get(key, 0)
            self.set(file=files[min(max(to, 0), len(files) - 1)])
        elif name == SCATTER:
            point = nearest(data, x, y)
            self.set(file=point.file, imatrix=point.imatrix)
        elif name == LIST:
            rows = listed(data)
            self.set(file=rows[min(int(y * len(rows)), len(rows) - 1)])


def _offer(control: Any, options: list) -> None:
    """New options; the value stays where it is still one of them."""
    values = [one[1] if isinstance(one, tuple) else one for one in options]
    value = control.value if control.value in values else values[0]
    control.options = options
    control.value = value


def size_quality(
    lang: str = "en",
    table: Mapping[str, Any] | str | os.PathLike | None = None,
    **chosen: Any,
) -> SizeQuality:
    """Which GGUF file: bits per weight against KL for every mixture, with an importance matrix and
    without; what the matrix changes; what the next larger file would gain; what is in the file.

    Args:
        lang: "en" or "ko".
        table: a file that `benchmarks/gguf_ladder.py` wrote, or what is in it; None: the bundled
            one.
        chosen: what to begin with, fields of SizeQualityState: `file="Q2_K", judged="korean"`.

    Returns:
        the widget; `.figure()` is its picture.

    Raises:
        ValueError: a model, file, matrix or text that was not measured; the nearest is named.

    Example:
        >>> qlab.widgets.size_quality(file="Q3_K_M", imatrix="korean")   # doctest: +SKIP
    """
    return SizeQuality(table_of(table), lang, **chosen)
