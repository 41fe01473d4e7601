"""`awq_curve()`: AWQ's one number, the ratio r. The loss over r, which channels are protected, what
happens to the steps of their grids, and what keeping 1 % of them in float would have given.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from qlab.models.load import load
from qlab.models.transformer import Transformer
from qlab.plots.svg import Picture
from qlab.plots.widget_awq_curve import BARS, CURVE, draw_awq_curve
from qlab.widgets import controls as make
from qlab.widgets.awq_curve_data import (
    BITS,
    RATIOS,
    AwqCurveState,
    awq_curve_data,
    groups,
)
from qlab.widgets.base import Live
from qlab.widgets.source import Source, source_of

KEYS = {"ArrowLeft": -1, "ArrowDown": -1, "ArrowRight": 1, "ArrowUp": 1}


class AwqCurve(Live):
    """The widget; see `awq_curve`."""

    def __init__(self, source: Source, lang: str = "en", **chosen: Any):
        self.source = source
        s = AwqCurveState(**chosen)
        out, inner = source.weight(s.layer).shape
        controls = {
            "layer": make.choice("layer", source.options, s.layer, lang),
            "outliers": make.switch("constructed outliers", s.outliers, lang),
            "bits": make.steps("bits", BITS, s.bits, lang),
            "group": make.steps("block", groups(source, s.layer), s.group, lang),
            "ratio": make.steps("ratio r", [(f"{r:.2f}", r) for r in RATIOS], s.ratio, lang),
            "place": make.slider("input channel", 0, inner - 1, s.place, lang),
            "row": make.slider("row", 0, out - 1, s.row, lang),
        }
        super().__init__("awq_curve", AwqCurveState, controls, lang)

    def draw(self, state: AwqCurveState) -> Picture:
        return draw_awq_curve(awq_curve_data(self.source, state), self.lang)

    def arrange(self, changed: str) -> None:
        if changed == "layer":
            out, inner = self.source.weight(self.state.layer).shape
            for name, most in (("row", out - 1), ("place", inner - 1)):
                control = self.controls[name]
                control.value, control.max = min(control.value, most), most
            group, known = self.state.group, groups(self.source, self.state.layer)
            self.controls["group"].options = known
            self.controls["group"].value = group if group in known else known[-1]
        if changed in ("layer", "outliers"):
            self.warm_soon()

    def picked(self, name: str, x: float, y: float, key: str) -> None:
        field, options = ("ratio", RATIOS) if name == CURVE else ("place", None)
        if name == BARS:
            best = awq_curve_data(self.source, self.state).search.best
            return self.set(ratio=RATIOS[best])
        count = len(options) if options else self.controls["place"].max + 1
        value = getattr(self.state, field)
        now = options.index(value) if options else value
        place = now + KEYS.get(key, 0) if key else int(x * count)
        place = min(max(place, 0), count - 1)
        self.set(**{field: options[place] if options else place})

    def warm(self) -> list[Any]:
        states = [replace(self.state, bits=bits) for bits in BITS]
        states += [replace(self.state, outliers=on) for on in (True, False)]
        states += [replace(self.state, ratio=ratio) for ratio in RATIOS]
        return [partial(awq_curve_data, self.source, state) for state in states]


def awq_curve(
    model: Transformer | Source | None = None, lang: str = "en", **chosen: Any
) -> AwqCurve:
    """AWQ's search on one layer: the error of the output for every ratio r, the channels and their
    scales, how much finer or coarser their steps become, and the grid of one weight before and
    after.

    Args:
        model: a Transformer with a tokenizer, or a Source; None: the bundled "tiny".
        lang: "en" or "ko".
        chosen: what to begin with, fields of AwqCurveState: `layer="layers.0.mlp.up_proj"`.

    Returns:
        the widget; `.figure()` is its picture.

    Example:
        >>> qlab.widgets.awq_curve()   # doctest: +SKIP
    """
    return AwqCurve(source_of(load("tiny") if model is None else model), lang, **chosen)
