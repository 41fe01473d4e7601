"""`weights(model)`: a real layer falls onto a grid. Choose the layer, the numbers, the block, the
rule.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from qlab.models.transformer import Transformer
from qlab.plots.svg import Picture
from qlab.plots.widget_weights import draw_weights
from qlab.plots.widget_words import say
from qlab.widgets import controls as make
from qlab.widgets.base import Live
from qlab.widgets.choices import BLOCKS, KINDS
from qlab.widgets.quantized import segment
from qlab.widgets.source import Source, source_of
from qlab.widgets.weights_data import WeightsState, weights_data


class Weights(Live):
    """The widget; see `weights`."""

    def __init__(self, source: Source, lang: str = "en", **chosen: Any):
        self.source = source
        state = WeightsState(**{"layer": source.layers[len(source.layers) // 2 + 1], **chosen})
        formats, rules = KINDS[state.kind]
        out, blocks = self._fitting(state.layer)
        controls = {
            "layer": make.choice("layer", self.source.options, state.layer, lang),
            "kind": make.choice("numbers", [(say(k, lang), k) for k in KINDS], state.kind, lang),
            "bits": make.steps("bits", formats, state.bits, lang),
            "block": make.steps("block", blocks, state.block, lang),
            "rule": make.choice("range rule", rules, state.rule, lang),
            "channel": make.slider("channel", 0, out - 1, state.channel, lang),
            "place": make.slider("place", 0, self._places(state), state.place, lang),
        }
        super().__init__("weights", WeightsState, controls, lang)

    def _fitting(self, layer: str) -> tuple[int, list[int | str]]:
        """Output channels, and the blocks that divide the rows."""
        out, row = self.source.weight(layer).shape
        return out, [b for b in BLOCKS if isinstance(b, str) or row % b == 0]

    def _places(self, state: WeightsState) -> int:
        row = self.source.weight(state.layer).shape[1]
        return row // segment(state.block, row) - 1

    def draw(self, state: WeightsState) -> Picture:
        return draw_weights(weights_data(self.source, state), self.lang)

    def arrange(self, changed: str) -> None:
        c = self.controls
        if changed == "kind":
            formats, rules = KINDS[c["kind"].value]
            bits = min(formats, key=lambda b: abs(b - c["bits"].value))
            c["bits"].options, c["bits"].value = list(formats), bits
            c["rule"].options = rules
        if changed == "layer":
            out, blocks = self._fitting(c["layer"].value)
            block = c["block"].value if c["block"].value in blocks else blocks[0]
            c["channel"].max = out - 1
            c["block"].options, c["block"].value = blocks, block
        c["place"].max = self._places(self.state)
        if changed in ("layer", "kind"):
            self.warm_soon()

    def picked(self, name: str, x: float, y: float, key: str) -> None:
        places, channels = self.controls["place"].max + 1, self.controls["channel"].max + 1
        move = {"ArrowLeft": (-1, 0), "ArrowRight": (1, 0), "ArrowUp": (0, -1), "ArrowDown": (0, 1)}
        if key in move:
            dx, dy = move[key]
            place, channel = self.state.place + dx, self.state.channel + dy
        else:
            place, channel = int(x * places), int(y * channels)
        self.set(place=min(max(place, 0), places - 1), channel=min(max(channel, 0), channels - 1))

    def warm(self) -> list[Any]:
        return [
            partial(weights_data, self.source, replace(self.state, block=b, place=0))
            for b in self.controls["block"].options
        ]


def weights(model: Transformer | Source, lang: str = "en", **chosen: Any) -> Weights:
    """A real layer falls onto a grid: histogram, levels, error, where the error sits, and the
    numbers of one block.

    Args:
        model: a Transformer with a tokenizer, or a Source.
        lang: "en" or "ko".
        chosen: what to begin with, fields of WeightsState: `bits=3, block=64`.

    Returns:
        the widget; `.figure()` is its picture.

    Example:
        >>> qlab.widgets.weights(qlab.load("tiny"))   # doctest: +SKIP
    """
    return Weights(source_of(model), lang, **chosen)
