"""`gptq_steps()`: GPTQ column by column. Round one, push its error into the others, see what it
saves; then switch the pushing off, change the order or the damping.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import ipywidgets

from qlab.models.load import load
from qlab.models.transformer import Transformer
from qlab.plots.svg import Picture
from qlab.plots.widget_gptq_steps import draw_gptq_steps
from qlab.plots.widget_words import say
from qlab.widgets import controls as make
from qlab.widgets.base import Live
from qlab.widgets.gptq_steps_data import (
    COLUMNS,
    DAMPS,
    ROWS,
    TOY,
    GptqStepsState,
    gptq_steps_data,
    places,
)
from qlab.widgets.source import Source, source_of

PACE = 700  # ms a column, while it plays


class GptqSteps(Live):
    """The widget; see `gptq_steps`."""

    def __init__(self, source: Source, lang: str = "en", **chosen: Any):
        self.source = source
        s = GptqStepsState(**chosen)
        layers = [(say(TOY, lang), TOY), *source.options]
        controls = {
            "layer": make.choice("layer", layers, s.layer, lang),
            "place": make.slider("piece", 0, places(source, s.layer) - 1, s.place, lang),
            "bits": make.slider("bits", 2, 8, s.bits, lang),
            "damp": make.steps("damping", [(f"{d:g}", d) for d in DAMPS], s.damp, lang),
            "push": make.switch("push the error (GPTQ)", s.push, lang),
            "act_order": make.switch("act-order", s.act_order, lang),
            "row": make.slider("row", 0, ROWS - 1, s.row, lang),
            "column": make.slider("step", 0, COLUMNS - 1, s.column, lang),
        }
        super().__init__(
            "gptq_steps", GptqStepsState, controls, lang, [self._player(controls["column"], lang)]
        )

    def _player(self, column: ipywidgets.IntSlider, lang: str) -> ipywidgets.HBox:
        """Play, back and step; they only move the slider above them."""
        play = ipywidgets.Play(max=COLUMNS - 1, interval=PACE, show_repeat=False)
        self.link = ipywidgets.jslink((play, "value"), (column, "value"))
        small = ipywidgets.Layout(width="66px", margin="2px 0 0 4px")
        back, step = (
            ipywidgets.Button(description=say(words, lang), layout=small)
            for words in ("back", "next")
        )
        back.on_click(lambda _: self._move(-1))
        step.on_click(lambda _: self._move(1))
        return ipywidgets.HBox([play, back, step])

    def _move(self, by: int) -> None:
        self.set(column=min(max(self.state.column + by, 0), COLUMNS - 1))

    def draw(self, state: GptqStepsState) -> Picture:
        return draw_gptq_steps(gptq_steps_data(self.source, state), self.lang)

    def arrange(self, changed: str) -> None:
        if changed == "layer":
            place, most = self.controls["place"], places(self.source, self.state.layer) - 1
            place.value, place.max = min(place.value, most), most
            self.warm_soon()

    def picked(self, name: str, x: float, y: float, key: str) -> None:
        move = {"ArrowLeft": (-1, 0), "ArrowRight": (1, 0), "ArrowUp": (0, -1), "ArrowDown": (0, 1)}
        column, row = int(x * COLUMNS), int(y * ROWS)
        if key in move:
            column, row = self.state.column + move[key][0], self.state.row + move[key][1]
        elif key:
            column, row = self.state.column, self.state.row
        self.set(column=min(max(column, 0), COLUMNS - 1), row=min(max(row, 0), ROWS - 1))

    def warm(self) -> list[Any]:
        states = [replace(self.state, act_order=a) for a in (True, False)]
        states += [replace(self.state, bits=b) for b in (2, 4)]
        return [partial(gptq_steps_data, self.source, state) for state in states]


def gptq_steps(
    model: Transformer | Source | None = None, lang: str = "en", **chosen: Any
) -> GptqSteps:
    """GPTQ on 8 × 16 weights, one column at a time: the weights now, the error just pushed out, the
    row of U that pushes it, and the error of the output so far beside plain rounding's.

    Args:
        model: a Transformer with a tokenizer, or a Source, whose layers can be looked at besides
            the toy; None: the bundled "tiny".
        lang: "en" or "ko".
        chosen: what to begin with, fields of GptqStepsState: `layer="layers.1.self_attn.q_proj"`.

    Returns:
        the widget; `.figure()` is its picture.

    Example:
        >>> qlab.widgets.gptq_steps()   # doctest: +SKIP
    """
    return GptqSteps(source_of(load("tiny") if model is None else model), lang, **chosen)
