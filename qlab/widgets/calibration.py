"""`calibration()`: does it matter which text a method is calibrated on, and how much of it? The
measured table of the calibration lab, with its error bars, and the verdict in words.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from qlab.models.transformer import Transformer
from qlab.plots.svg import Picture
from qlab.plots.widget_calibration import CURVE, MATRIX, called, draw_calibration
from qlab.plots.widget_words import say
from qlab.widgets import controls as make
from qlab.widgets.base import Live
from qlab.widgets.calibration_data import (
    MEASURES,
    CalibrationState,
    Table,
    calibration_data,
    table_of,
)

KEYS = {"ArrowLeft": -1, "ArrowDown": -1, "ArrowRight": 1, "ArrowUp": 1}


class Calibration(Live):
    """The widget; see `calibration`."""

    def __init__(self, table: Table, lang: str = "en", **chosen: Any):
        self.table = table
        s = table.start(**chosen)
        methods = [(name.upper(), name) for name in table.values(0)]
        sizes = [(f"{n}", n) for n in table.values(3)]
        judges = [(called(text, lang), text) for text in table.judges]
        measures = [(say(name, lang), name) for name in MEASURES]
        controls = {
            "method": make.choice("method", methods, s.method, lang),
            "bits": make.steps("bits", sorted(table.values(1)), s.bits, lang),
            "windows": make.steps("windows", sizes, s.windows, lang),
            "judged": make.choice("judged on", judges, s.judged, lang),
            "measure": make.choice("measure", measures, s.measure, lang),
        }
        super().__init__("calibration", CalibrationState, controls, lang)

    def draw(self, state: CalibrationState) -> Picture:
        return draw_calibration(calibration_data(self.table, state), self.lang)

    def picked(self, name: str, x: float, y: float, key: str) -> None:
        step = KEYS.get(key, 0)
        if name == CURVE:
            sizes = self.table.values(3)
            self.set(windows=_moved(sizes, self.state.windows, x, step, key))
        elif name == MATRIX:
            judges = self.table.judges
            place = min(int(x * len(judges)), len(judges) - 1) / max(len(judges) - 1, 1)
            self.set(judged=_moved(judges, self.state.judged, place, step, key))


def _moved(values: tuple, now: Any, x: float, step: int, key: str) -> Any:
    """The value at x (0 … 1) of evenly spaced ones, or a key's step away."""
    last = len(values) - 1
    place = values.index(now) + step if key else round(x * last)
    return values[min(max(place, 0), last)]


def calibration(
    model: Transformer | str = "tiny",
    lang: str = "en",
    table: Mapping[str, Any] | str | os.PathLike | None = None,
    **chosen: Any,
) -> Calibration:
    """What the calibration text does: the cost of five texts beside rounding, which reads none;
    their differences to mixed text in pairs; KL over the number of windows; all judges at once.

    Args:
        model: whose rows of the table, a model or its name.
        lang: "en" or "ko".
        table: a file that `benchmarks/calibration_lab.py` wrote, or what is in it; None: the
            bundled one.
        chosen: what to begin with, fields of CalibrationState: `bits=2, judged="code"`.

    Returns:
        the widget; `.figure()` is its picture.

    Raises:
        ValueError: a model that the table does not have, or a table with holes.

    Example:
        >>> qlab.widgets.calibration(bits=2, judged="english")   # doctest: +SKIP
    """
    name = model.name if isinstance(model, Transformer) else model
    return Calibration(table_of(name, table), lang, **chosen)
