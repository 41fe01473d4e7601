"""`hqq_steps()`: HQQ's search step by step. The levels of a group slide as its zero point moves;
what that does to its errors, to the layer's and to the output; and which errors shrinking keeps.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import ipywidgets

from qlab.models.load import load
from qlab.models.transformer import Transformer
from qlab.plots.svg import Picture
from qlab.plots.widget_hqq_steps import ZEROS, draw_hqq_steps, group_at
from qlab.widgets import controls as make
from qlab.widgets.base import Live
from qlab.widgets.hqq_steps_data import (
    BETAS,
    BITS,
    ITERS,
    POWERS,
    HqqStepsState,
    hqq_steps_data,
    neighbour,
    sizes,
)
from qlab.widgets.source import Source, source_of

PACE = 500  # ms a step, while it plays
SIDEWAYS = {"ArrowLeft": -1, "ArrowRight": 1}
UPWARDS = {"ArrowDown": -1, "ArrowUp": 1}


class HqqSteps(Live):
    """The widget; see `hqq_steps`."""

    def __init__(self, source: Source, lang: str = "en", **chosen: Any):
        self.source = source
        s = HqqStepsState(**chosen)
        out, inner = source.weight(s.layer).shape
        betas = [(f"{beta:g}", beta) for beta in BETAS]
        controls = {
            "layer": make.choice("layer", source.options, s.layer, lang),
            "bits": make.steps("bits", BITS, s.bits, lang),
            "block": make.steps("block", sizes(source, s.layer), s.block, lang),
            "p": make.steps("power p", POWERS, s.p, lang),
            "beta": make.steps("beta β", betas, s.beta, lang),
            "channel": make.slider("channel", 0, out - 1, s.channel, lang),
            "place": make.slider("place", 0, inner // s.block - 1, s.place, lang),
            "step": make.slider("search step", 0, ITERS, s.step, lang),
        }
        play = ipywidgets.Play(value=s.step, max=ITERS, interval=PACE, show_repeat=False)
        self.link = ipywidgets.jslink((play, "value"), (controls["step"], "value"))
        super().__init__("hqq_steps", HqqStepsState, controls, lang, [play])

    def draw(self, state: HqqStepsState) -> Picture:
        return draw_hqq_steps(hqq_steps_data(self.source, state), self.lang)

    def arrange(self, changed: str) -> None:
        block, layer = self.controls["block"], self.state.layer
        if changed == "layer" and block.options != sizes(self.source, layer):
            kept, block.options = block.value, sizes(self.source, layer)
            block.value = kept if kept in block.options else block.options[-1]
        if changed in ("layer", "block"):
            out, inner = self.source.weight(layer).shape
            for name, most in (("channel", out - 1), ("place", inner // block.value - 1)):
                control = self.controls[name]
                control.value, control.max = min(control.value, most), most
            self.warm_soon()

    def picked(self, name: str, x: float, y: float, key: str) -> None:
        data = hqq_steps_data(self.source, self.state)
        step = self.state.step + SIDEWAYS.get(key, 0) if key else round(x * ITERS)
        step, group = min(max(step, 0), ITERS), data.index
        if name == ZEROS:
            group = neighbour(data, UPWARDS.get(key, 0)) if key else group_at(data, y, step)
        channel, place = divmod(group, data.found.zeros.shape[2])
        self.set(step=step, channel=channel, place=place)

    def warm(self) -> list[Any]:
        states = [replace(self.state, bits=bits) for bits in BITS]
        states += [replace(self.state, beta=beta) for beta in BETAS]
        blocks = sizes(self.source, self.state.layer)
        states += [replace(self.state, block=block, place=0) for block in blocks]
        return [partial(hqq_steps_data, self.source, state) for state in states]


def hqq_steps(
    model: Transformer | Source | None = None, lang: str = "en", **chosen: Any
) -> HqqSteps:
    """HQQ on one layer, a step of its search at a time: a group's weights on levels that slide with
    its zero point, the errors before and now, those that shrinking keeps, and what the layer's
    errors and its output make of it, though no text is read.

    Args:
        model: a Transformer with a tokenizer, or a Source; None: the bundled "tiny".
        lang: "en" or "ko".
        chosen: what to begin with, fields of HqqStepsState: `bits=2, beta=1000.0`.

    Returns:
        the widget; `.figure()` is its picture.

    Example:
        >>> qlab.widgets.hqq_steps()   # doctest: +SKIP
    """
    return HqqSteps(source_of(load("tiny") if model is None else model), lang, **chosen)
