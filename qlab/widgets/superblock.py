"""`superblock()`: a block of a GGUF file opened down to the bit. Its bytes, the bits of one weight
put together, the grids of its sub-blocks, and the search that chose a scale.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from qlab.models.load import load
from qlab.models.mixtures import fitting
from qlab.models.transformer import Transformer
from qlab.plots.svg import Picture
from qlab.plots.widget_superblock import LEVELS, STRIP, cells, draw_superblock
from qlab.widgets import controls as make
from qlab.widgets.base import Live
from qlab.widgets.source import Source, source_of
from qlab.widgets.superblock_bits import weights_at
from qlab.widgets.superblock_data import (
    PIECE,
    TYPES,
    SuperblockState,
    pieces,
    superblock_data,
)

KEYS = {"ArrowLeft": -1, "ArrowRight": 1}


class Superblock(Live):
    """The widget; see `superblock`."""

    def __init__(self, source: Source, lang: str = "en", **chosen: Any):
        self.source = source
        s = SuperblockState(**chosen)
        out, columns = source.weight(s.layer).shape
        most = min(PIECE, columns) - 1
        controls = {
            "type": make.choice("block type", TYPES, s.type, lang),
            "importance": make.switch("importance E[x²]", s.importance, lang),
            "layer": make.choice("layer", source.options, s.layer, lang),
            "channel": make.slider("channel", 0, out - 1, s.channel, lang),
            "place": make.slider("place", 0, pieces(columns) - 1, s.place, lang),
            "weight": make.slider("weight k", 0, most, s.weight, lang),
        }
        super().__init__("superblock", SuperblockState, controls, lang)

    def draw(self, state: SuperblockState) -> Picture:
        return draw_superblock(superblock_data(self.source, state), self.lang)

    def arrange(self, changed: str) -> None:
        if changed == "layer":
            out, columns = self.source.weight(self.state.layer).shape
            most = {"channel": out, "place": pieces(columns), "weight": min(PIECE, columns)}
            for name, count in most.items():
                control = self.controls[name]
                control.value, control.max = min(control.value, count - 1), count - 1
        if changed != "weight":
            self.warm_soon()

    def picked(self, name: str, x: float, y: float, key: str) -> None:
        data, weight = superblock_data(self.source, self.state), self.state.weight
        if key:
            step = {**KEYS, "ArrowUp": -data.sub, "ArrowDown": data.sub}.get(key, 0)
            weight += step
        elif name == LEVELS:
            weight = int(x * len(data.weights))
        elif name == STRIP:
            rows, columns = cells(data)
            row, column = min(int(y * rows), rows - 1), min(int(x * columns), columns - 1)
            byte = row * columns + column
            block, byte = (row, column) if len(data.raw) > 1 else (0, byte)
            here = weight - block * data.size
            weight = block * data.size + weights_at(data.type, byte, here)
        self.set(weight=min(max(weight, 0), len(data.weights) - 1))

    def warm(self) -> list[Any]:
        columns = self.source.weight(self.state.layer).shape[1]
        kinds = dict.fromkeys(fitting(type, columns) for type in TYPES)
        states = [replace(self.state, importance=not self.state.importance)]
        states += [replace(self.state, type=type) for type in kinds]
        return [partial(superblock_data, self.source, state) for state in states]


def superblock(
    model: Transformer | Source | None = None, lang: str = "en", **chosen: Any
) -> Superblock:
    """A GGUF super-block of a real tensor: its bytes by field, the bits that make one weight, its
    equation with numbers, the grid of every sub-block, and the scales that ggml's search tried.

    Args:
        model: a Transformer with a tokenizer, or a Source; None: the bundled "tiny". Where rows
            hold no super-block of 256 the type that llama.cpp takes instead is shown.
        lang: "en" or "ko".
        chosen: what to begin with, fields of SuperblockState: `type="Q6_K", weight=7`.

    Returns:
        the widget; `.figure()` is its picture.

    Example:
        >>> qlab.widgets.superblock()   # doctest: +SKIP
    """
    return Superblock(source_of(load("tiny") if model is None else model), lang, **chosen)
