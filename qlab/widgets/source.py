"""Where a widget's numbers come from: a model's weights, and the inputs that its layers see on
bundled text, computed once.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

import qlab.data
from qlab.models.surgery import linears
from qlab.models.taps import layer_inputs
from qlab.models.transformer import Transformer, as_array
from qlab.stats import Stats
from qlab.suggest import near

WINDOWS, LENGTH = 4, 128  # of English calibration text


class Source:
    """A model opened for widgets; several widgets may share one.

    Args:
        model: a Transformer with a tokenizer.

    Attributes:
        name: of the model.
        layers: hub paths in forward order.

    Example:
        >>> source = Source(qlab.load("tiny"))                        # doctest: +SKIP
        >>> source.weight("layers.0.self_attn.q_proj").shape          # doctest: +SKIP
        (256, 256)
    """

    def __init__(self, model: Transformer):
        self.model, self.name = model, model.name
        self._linears = linears(model)
        self.layers = tuple(self._linears)
        self.weight = functools.cache(self._weight)
        self.stats = functools.cache(self._stats)

    def _weight(self, layer: str) -> np.ndarray:
        """(out, in) float32; computed once a layer."""
        if layer not in self._linears:
            raise ValueError(f"the model has no layer {layer!r}: {near(layer, self.layers)}")
        return np.asarray(as_array(self._linears[layer].weight), np.float32)

    @property
    def options(self) -> list[tuple[str, str]]:
        """(what a list shows, path) of every layer: `layers.` before each would only be cut off."""
        return [(path.removeprefix("layers."), path) for path in self.layers]

    @functools.cached_property
    def inputs(self) -> dict[str, Any]:
        """What every layer reads on the calibration windows: path -> (sequences, time, in)."""
        if self.model.tokenizer is None:
            raise ValueError("the model has no tokenizer, so it cannot read the calibration text")
        text = qlab.data.texts("english", "calibration")
        ids = self.model.tokenizer.encode(text[: 16 * WINDOWS * LENGTH])[: WINDOWS * LENGTH]
        return layer_inputs(self.model, np.array(ids).reshape(WINDOWS, LENGTH))

    def _stats(self, layer: str) -> Stats:
        """Stats of the layer's input; computed once a layer."""
        self.weight(layer)  # an unknown name is told there
        return Stats.from_inputs(self.inputs[layer])


def source_of(model: Transformer | Source) -> Source:
    """A Source as it is, a model opened.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(model, (Source, Transformer)):
        raise ValueError(f"a widget takes a model, such as qlab.load('tiny'), not {model!r:.60}")
    return model if isinstance(model, Source) else Source(model)
