"""`block_scale(model)`: a block of real weights and the scale it shares. Stretch the range, change
the rule.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from qlab.models.transformer import Transformer
from qlab.plots.svg import Picture
from qlab.plots.widget_block_scale import draw_block_scale
from qlab.plots.widget_words import say
from qlab.widgets import controls as make
from qlab.widgets.base import Live
from qlab.widgets.block_scale_data import (
    INTEGER,
    KINDS,
    LENGTHS,
    RANGES,
    ZERO,
    BlockScaleState,
    block_scale_data,
    offered,
)
from qlab.widgets.known import check_offered
from qlab.widgets.source import Source, source_of


class BlockScale(Live):
    """The widget; see `block_scale`."""

    def __init__(self, source: Source, lang: str = "en", **chosen: Any):
        self.source = source
        start = {"layer": source.layers[len(source.layers) // 2 + 1], "kind": INTEGER, **chosen}
        check_offered("numbers", KINDS, start["kind"])
        rules, length = KINDS[start["kind"]]
        s = BlockScaleState(**{"convention": rules[0], "length": length, **start})
        kinds = [(say(k, lang) if k == INTEGER else k, k) for k in KINDS]
        out, row = source.weight(s.layer).shape
        controls = {
            "layer": make.choice("layer", source.options, s.layer, lang),
            "kind": make.choice("numbers", kinds, s.kind, lang),
            "bits": make.slider("bits", 2, 8, s.bits, lang),
            "length": make.steps("block", self._fitting(row), s.length, lang),
            "convention": make.steps("scale", offered(s.kind, s.bits), s.convention, lang),
            "range": make.steps("range, %", RANGES, s.range, lang),
            "zero": make.switch("zero point", s.zero, lang),
            "channel": make.slider("channel", 0, out - 1, s.channel, lang),
            "place": make.slider("place", 0, row // s.length - 1, s.place, lang),
        }
        super().__init__("block_scale", BlockScaleState, controls, lang)
        self._integers_only(s.kind)

    def _fitting(self, row: int) -> list[int]:
        return [n for n in LENGTHS if row % n == 0]

    def _integers_only(self, kind: str) -> None:
        for name in ("bits", "zero"):
            self.controls[name].disabled = kind != INTEGER

    def draw(self, state: BlockScaleState) -> Picture:
        return draw_block_scale(block_scale_data(self.source, state), self.lang)

    def arrange(self, changed: str) -> None:
        c = self.controls
        out, row = self.source.weight(c["layer"].value).shape
        if changed == "layer":
            length = c["length"].value if row % c["length"].value == 0 else LENGTHS[0]
            c["length"].options, c["length"].value = self._fitting(row), length
            c["channel"].max = out - 1
        if changed in ("bits", "kind"):
            kind, rule = c["kind"].value, c["convention"].value
            rules, length = KINDS[kind]
            c["convention"].options = offered(kind, c["bits"].value)
            c["convention"].value = rule if rule in rules else rules[0]
            if changed == "kind":
                c["length"].value = length if length in c["length"].options else LENGTHS[0]
                self._integers_only(kind)
        c["place"].max = row // c["length"].value - 1

    def picked(self, name: str, x: float, y: float, key: str) -> None:
        if name == "blocks":
            count = self.controls["place"].max + 1
            on = {"ArrowLeft": -1, "ArrowRight": 1}.get(key)
            to = int((x * (count + 0.6)) - 0.3) if key == "" else self.state.place + (on or 0)
            self.set(place=min(max(to, 0), count - 1))
        elif key in ("", "Enter", " "):
            self.set(zero=name == ZERO, **({} if name == ZERO else {"convention": name}))

    def warm(self) -> list[Any]:
        lengths = self.controls["length"].options
        return [
            partial(block_scale_data, self.source, replace(self.state, length=n, place=0))
            for n in lengths
        ]


def block_scale(model: Transformer | Source, lang: str = "en", **chosen: Any) -> BlockScale:
    """One block of real weights: its length, its range, three conventions of symmetric integers, a
    zero point; or floats, by the rules of MX and the two levels of NVFP4.

    Args:
        model: a Transformer with a tokenizer, or a Source.
        lang: "en" or "ko".
        chosen: what to begin with, fields of BlockScaleState: `bits=3, length=16`, or
            `kind="MXFP4"`.

    Returns:
        the widget; `.figure()` is its picture.

    Example:
        >>> qlab.widgets.block_scale(qlab.load("tiny"))   # doctest: +SKIP
    """
    return BlockScale(source_of(model), lang, **chosen)
