"""How a model came to be: its loss while it was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qlab.plots.style import COLOURS, CYCLE, DASHES, label_ends, new, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def training_curve(
    tokens: Sequence[float],
    loss: Sequence[float],
    held_out: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    *,
    title: str = "Training the tiny model",
) -> Figure:
    """Loss against tokens seen, as measured and smoothed, with held-out texts.

    Args:
        tokens: tokens seen at every measurement.
        loss: nats per token there.
        held_out: name to (tokens, loss) on text that is not trained on.
        title: of the figure.

    Example:
        >>> figure = training_curve([1e6, 2e6], [5.0, 4.0], {"english": ([2e6], [4.4])})
    """
    figure, axes = new(9, 4.6)
    x, y = np.asarray(tokens, float) / 1e6, np.asarray(loss, float)
    axes.plot(x, y, color="#C9C9C9", lw=0.7)
    smooth = _smooth(y)
    axes.plot(x, smooth, color=COLOURS["black"], lw=1.6)
    ends = [(x[-1], smooth[-1], "training mixture", COLOURS["black"])]
    for i, (name, (seen, value)) in enumerate((held_out or {}).items()):
        colour = COLOURS[CYCLE[i % len(CYCLE)]]
        at = np.asarray(seen, float) / 1e6
        axes.plot(at, value, color=colour, ls=DASHES[i], marker=".")
        ends.append((at[-1], value[-1], f"{name}, held out", colour))
    axes.set(xlabel="million tokens seen", ylabel="loss, nats per token", xlim=(0, None))
    axes.set_title(title)
    axes.grid(axis="y")
    figure.draw_without_rendering()
    label_ends(axes, ends)
    last = "; ".join(f"{text} {value:.2f}" for _, value, text, _ in ends)
    figure.set_label(
        f"{title}: loss falls from {y[0]:.2f} nats per token over {x[-1]:.1f} million tokens. "
        f"At the end: {last}."
    )
    return figure


def _smooth(y: np.ndarray, share: float = 0.03) -> np.ndarray:
    """A running mean over `share` of the curve, shorter at its ends."""
    half = max(1, int(share * len(y) / 2))
    total = np.concatenate([[0.0], np.cumsum(y)])
    i = np.arange(len(y))
    low, high = np.maximum(i - half, 0), np.minimum(i + half + 1, len(y))
    return (total[high] - total[low]) / (high - low)
