"""What bits buy: loss against bits per weight, one curve a text, with error bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qlab.plots.style import COLOURS, CYCLE, DASHES, MARKERS, label_ends, new, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def size_quality(
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    floor: Mapping[str, float] | None = None,
    title: str = "What bits buy",
    model: str = "",
    ylabel: str = "KL divergence from the float model, nats per token",
) -> Figure:
    """Loss against bits per weight on a logarithmic scale.

    Args:
        series: for every text, points {"name", "bits", "loss", "bar"}; bar is one standard error or
            None.
        floor: for every text, the loss that rounding alone makes (the float model at another batch
            size).
        title: of the figure.
        model: name of the model, for the alternative text and the title.
        ylabel: what the loss is.

    Example:
        >>> point = {"name": "int4_g64", "bits": 4.25, "loss": 0.02, "bar": 0.001}
        >>> size_quality({"english": [point]}).get_label()[:13]
        'What bits buy'
    """
    figure, axes = new(9, 5)
    ends, words = [], []
    for i, (text, points) in enumerate(series.items()):
        points = sorted(points, key=lambda p: p["bits"])
        colour = COLOURS[CYCLE[i % len(CYCLE)]]
        x = np.array([p["bits"] for p in points]) * (1 + 0.004 * i)  # so that bars do not hide bars
        y = np.array([p["loss"] for p in points])
        bars = np.array([p["bar"] or 0.0 for p in points])
        low = np.minimum(bars, 0.9 * y)  # a logarithmic axis has no room below zero
        axes.plot(x, y, color=colour, ls=DASHES[i], lw=1.2, alpha=0.7)
        axes.errorbar(
            x, y, yerr=[low, bars], fmt=MARKERS[i], color=colour, capsize=4, elinewidth=1.4, ms=5
        )
        ends.append((x[-1], y[-1], text, colour))
        words.append(
            f"{text}: " + ", ".join(f"{p['name']} {_number(p['loss'], p['bar'])}" for p in points)
        )
    axes.set_yscale("log")
    axes.set_xlabel("bits per weight in the linear layers, scales counted")
    axes.set_ylabel(ylabel)
    axes.set_title(f"{title}: {model}" if model else title)
    axes.grid(axis="y")
    if floor:
        words.append(_floor(axes, floor))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.28)  # room for the names of the rows
    _name_points(axes, series)
    figure.draw_without_rendering()
    label_ends(axes, ends)
    figure.set_label(f"{title}{': ' + model if model else ''}. {ylabel}. " + ". ".join(words) + ".")
    return figure


def _floor(axes: Any, floor: Mapping[str, float]) -> str:
    """Says where the noise of float arithmetic lies; off the picture, in words."""
    top = max(floor.values())
    found = f"{top:.0e}" if top > 0 else "0 to the last bit"
    words = f"noise floor of the arithmetic (same weights, another batch size): {found}"
    axes.text(0.01, 0.02, words, transform=axes.transAxes, fontsize=9, color=COLOURS["grey"])
    return words


def _name_points(axes: Any, series: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """The name of every row, upright above the highest point it has."""
    top: dict[str, tuple[float, float]] = {}
    for points in series.values():
        for p in points:
            height = p["loss"] + (p["bar"] or 0.0)
            top[p["name"]] = max(top.get(p["name"], (p["bits"], 0.0)), (p["bits"], height))
    for name, (bits, height) in top.items():
        axes.annotate(
            name,
            (bits, height),
            xytext=(0, 9),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=9,
            color=COLOURS["grey"],
        )


def _number(value: float, bar: float | None) -> str:
    return f"{value:.2g} ± {bar:.1g}" if bar else f"{value:.2g}"


@styled
def continuations(prompt: str, texts: Mapping[str, str], *, model: str = "", width: int = 100):
    """The same sentence continued by several models, as a picture of text.

    Args:
        prompt: what all of them read.
        texts: name of the row to what it wrote.
        model: name of the model.
        width: characters a line.

    Example:
        >>> figure = continuations("It was", {"float": " a dark night", "INT2": " was was was"})
    """
    import textwrap

    wrapped = {
        name: textwrap.wrap(" ".join(t.split()), width) or ["…"] for name, t in texts.items()
    }
    lines = 2 + sum(len(w) + 1.2 for w in wrapped.values())
    figure, axes = new(9, 0.23 * lines + 0.3)
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(lines, 0))
    axes.set_title(f"One sentence, continued{' by ' + model if model else ''}")
    axes.text(0, 0.8, f"“{prompt.strip()} …”", style="italic", fontsize=10.5)
    y = 2.4
    for i, (name, rows) in enumerate(wrapped.items()):
        axes.text(0, y, name, color=COLOURS[CYCLE[i % len(CYCLE)]], fontweight="bold", va="top")
        for row in rows:
            axes.text(0.14, y, row, family="DejaVu Sans", va="top", fontsize=9.5)
            y += 1
        y += 1.2
    figure.set_label(
        f"The sentence “{prompt.strip()}” continued. "
        + " ".join(f"{name}: “{' '.join(t.split())}”." for name, t in texts.items())
    )
    return figure
