"""Pictures: pure functions from numbers to a matplotlib `Figure`, in one style.

A figure's label (`figure.get_label()`) is its alternative text, in words and with the numbers.
`save` writes SVG, PNG and that text side by side. Nothing here opens a window; matplotlib loads
when the first picture is drawn.
"""

from qlab.plots.bars import paired_bars
from qlab.plots.grids import grid_study, weights_on_grid
from qlab.plots.kv import kv_channels, kv_losses
from qlab.plots.latency import latency
from qlab.plots.layers import layer_losses
from qlab.plots.quality import continuations, size_quality
from qlab.plots.style import COLOURS, png, save
from qlab.plots.training import training_arms, training_curve

__all__ = [
    "COLOURS",
    "continuations",
    "grid_study",
    "kv_channels",
    "kv_losses",
    "latency",
    "layer_losses",
    "paired_bars",
    "png",
    "save",
    "size_quality",
    "training_arms",
    "training_curve",
    "weights_on_grid",
]
