"""`smoothquant()`: SmoothQuant's one number, α. The outliers of the inputs move into the weights,
the error of the W8A8 product over α, and one token on the int8 grid before and after.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from qlab.methods.smoothquant import LEVELS
from qlab.models.load import load
from qlab.models.transformer import Transformer
from qlab.plots.svg import Picture
from qlab.plots.widget_smoothquant import (
    BARS,
    CURVE,
    GRANULARITY,
    draw_smoothquant,
    place_of,
)
from qlab.plots.widget_words import say
from qlab.widgets import controls as make
from qlab.widgets.base import Live
from qlab.widgets.smoothquant_data import (
    CHOICES,
    LENGTH,
    SEQUENCES,
    SmoothQuantState,
    smoothquant_data,
)
from qlab.widgets.source import Source, source_of

KEYS = {"ArrowLeft": -1, "ArrowDown": -1, "ArrowRight": 1, "ArrowUp": 1}


class SmoothQuant(Live):
    """The widget; see `smoothquant`."""

    def __init__(self, source: Source, lang: str = "en", **chosen: Any):
        self.source = source
        s = SmoothQuantState(**chosen)
        inner = source.weight(s.layer).shape[1]
        levels = [(f"{say(GRANULARITY[name], lang)} ({name})", name) for name in LEVELS]
        alphas = [(f"{alpha:.2f}", alpha) for alpha in CHOICES]
        controls = {
            "layer": make.choice("layer", source.options, s.layer, lang),
            "outliers": make.switch("constructed outliers", s.outliers, lang),
            "level": make.choice("granularity", levels, s.level, lang),
            "alpha": make.steps("alpha α", alphas, s.alpha, lang),
            "place": make.slider("channel j", 0, inner - 1, s.place, lang),
            "token": make.slider("token", 0, SEQUENCES * LENGTH - 1, s.token, lang),
        }
        super().__init__("smoothquant", SmoothQuantState, controls, lang)

    def draw(self, state: SmoothQuantState) -> Picture:
        return draw_smoothquant(smoothquant_data(self.source, state), self.lang)

    def arrange(self, changed: str) -> None:
        if changed == "layer":
            control, most = self.controls["place"], self.source.weight(self.state.layer).shape[1]
            control.value, control.max = min(control.value, most - 1), most - 1
        if changed in ("layer", "outliers"):
            self.warm_soon()

    def picked(self, name: str, x: float, y: float, key: str) -> None:
        state = self.state
        if name == BARS:
            best = smoothquant_data(self.source, state).best
            return self.set(alpha=CHOICES[best])
        step = KEYS.get(key, 0)
        if name == CURVE:
            last = len(CHOICES) - 1
            place = CHOICES.index(state.alpha) + step if key else round(x * last)
            return self.set(alpha=CHOICES[min(max(place, 0), last)])
        last = self.controls["place"].max
        place = state.place + step if key else place_of(x, last + 1)
        self.set(place=min(max(place, 0), last))

    def warm(self) -> list[Any]:
        states = [replace(self.state, level=level) for level in LEVELS]
        states += [replace(s, outliers=not s.outliers) for s in states]
        states += [replace(self.state, alpha=alpha) for alpha in CHOICES]
        states += [replace(self.state, layer=layer, place=0) for layer in self.source.layers]
        return [partial(smoothquant_data, self.source, state) for state in states]


def smoothquant(
    model: Transformer | Source | None = None, lang: str = "en", **chosen: Any
) -> SmoothQuant:
    """SmoothQuant on one layer: the largest inputs and weights of every channel before and after
    migration, the error of the W8A8 product for every α and granularity, beside LLM.int8(), and
    the int8 codes of one token.

    Args:
        model: a Transformer with a tokenizer, or a Source; None: the bundled "tiny".
        lang: "en" or "ko".
        chosen: what to begin with, fields of SmoothQuantState: `layer="layers.0.mlp.up_proj"`.

    Returns:
        the widget; `.figure()` is its picture.

    Example:
        >>> qlab.widgets.smoothquant()   # doctest: +SKIP
    """
    return SmoothQuant(source_of(load("tiny") if model is None else model), lang, **chosen)
