"""A quantized key-value cache: what bits cost, and why keys go by channel and values by token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qlab.plots.style import COLOURS, CYCLE, DASHES, MARKERS, label_ends, new, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def kv_losses(
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    title: str = "What a key-value cache of few bits loses",
    model: str = "",
    xlabel: str = "bits per number outside of the window, scales and minima counted",
) -> Figure:
    """KL from the float cache against the bits of a number in the cache, on logarithmic axes.

    Args:
        series: for every way to quantize, points {"bits", "loss", "bar"}; bar is one standard error
            or None.
        title: of the figure.
        model: name of the model and text.
        xlabel: what the bits are.

    Example:
        >>> point = {"bits": 3.0, "loss": 0.02, "bar": 0.001}
        >>> kv_losses({"keys by channel": [point]}).get_label()[-42:]
        '. keys by channel: 0.02 ± 0.001 at 3 bits.'
    """
    figure, axes = new(9, 4.6)
    ends, words, seen = [], [], set()
    for i, (name, points) in enumerate(series.items()):
        points = sorted(points, key=lambda p: p["bits"])
        x, y = (np.array([p[key] for p in points], float) for key in ("bits", "loss"))
        bars = np.array([p["bar"] or 0.0 for p in points])
        colour = COLOURS[CYCLE[i % len(CYCLE)]]
        axes.plot(x, y, color=colour, ls=DASHES[i % len(DASHES)], lw=1.4)
        low = np.minimum(bars, 0.9 * y)  # a logarithmic axis has no room below zero
        axes.errorbar(x, y, yerr=[low, bars], fmt=MARKERS[i % 6], color=colour, capsize=4, ms=5)
        ends.append((x[-1], y[-1], name, colour))
        seen |= set(x.tolist())
        told = (f"{v:.2g}{f' ± {b:.1g}' if b else ''} at {n:g} bits" for n, v, b in zip(x, y, bars))
        words.append(f"{name}: {', '.join(told)}")
    axes.set(xscale="log", yscale="log", xlabel=xlabel, ylabel="KL divergence, nats per token")
    axes.set_xticks(sorted(seen), [f"{n:g}" for n in sorted(seen)])
    axes.minorticks_off()
    axes.set_title(f"{title}: {model}" if model else title)
    axes.grid(axis="y")
    figure.draw_without_rendering()
    label_ends(axes, ends)
    figure.set_label(f"{title}{': ' + model if model else ''}. {'. '.join(words)}.")
    return figure


@styled
def kv_channels(keys: Any, values: Any, *, model: str = "", heads: int = 1) -> Figure:
    """|key| and |value| of one layer as pictures, token by channel, each on its own scale.

    Args:
        keys: (tokens, channels), magnitudes; all heads side by side.
        values: as `keys`.
        model: name of the model and layer.
        heads: how many heads the channels are of, parted by lines.

    Example:
        >>> kv_channels([[1.0, 8.0]], [[1.0, 1.0]]).get_label()[:29]
        'Keys and values of one layer.'
    """
    figure, pair = new(9, 4.4, ncols=2, sharey=True)
    words = []
    for axes, name, x in zip(pair, ("key", "value"), (keys, values), strict=True):
        x = np.abs(np.asarray(x, float))
        image = axes.imshow(
            x, aspect="auto", cmap="cividis", vmin=0, vmax=np.quantile(x, 0.999),
            interpolation="nearest",
        )  # fmt: skip
        for edge in range(1, heads):
            axes.axvline(edge * x.shape[1] / heads - 0.5, color="white", lw=0.8)
        channel, token = (float(x.max() / np.median(x.max(axis=i))) for i in (0, 1))
        axes.set_title(f"|{name}|, largest channel: {channel:.1f} × median")
        axes.set_xlabel(f"channel, {heads} head{'s' if heads > 1 else ''}")
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02)
        bar.ax.tick_params(labelsize=9)
        words.append(
            f"The largest {name} is {channel:.1f} times the median channel's largest and "
            f"{token:.1f} times the median token's largest"
        )
    pair[0].set_ylabel("token")
    if model:
        figure.suptitle(model, x=0.01, ha="left", fontsize=10, color=COLOURS["grey"])
    at = f" {model}." if model else ""
    figure.set_label(f"Keys and values of one layer.{at} {'. '.join(words)}.")
    return figure
