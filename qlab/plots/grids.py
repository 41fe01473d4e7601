"""Weights falling on a grid: what rounding does, and what a grid already in them hides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from qlab.plots.style import COLOURS, CYCLE, DASHES, MARKERS, label_ends, new, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def weights_on_grid(
    weights: np.ndarray,
    levels: Mapping[str, np.ndarray],
    *,
    layer: str = "a layer",
    title: str = "Every weight goes to the nearest point of a grid",
) -> Figure:
    """A layer's weights with the levels of several grids, and below each the error w − ŵ.

    Args:
        weights: any shape, float.
        levels: name of a grid to its levels, sorted or not, in the units of the weights.
        layer: what the weights are.
        title: of the figure.

    Example:
        >>> grid = np.linspace(-2, 2, 15)
        >>> figure = weights_on_grid(np.random.default_rng(0).normal(size=999), {"INT4": grid})
    """
    w = np.sort(np.asarray(weights, np.float64).reshape(-1))
    edge = float(np.abs(np.concatenate([w[[0, -1]], *levels.values()])).max()) * 1.04
    figure, grid = new(
        9.4, 4.8, nrows=2, ncols=len(levels), sharex=True, squeeze=False, height_ratios=(1.25, 1)
    )
    worst, words = 0.0, []
    for i, (name, points) in enumerate(levels.items()):
        points = np.sort(np.asarray(points, np.float64))
        error = w - _nearest(w, points)
        share = float(np.sqrt((error**2).mean() / (w**2).mean()))
        colour = COLOURS[CYCLE[i % len(CYCLE)]]
        _counts(grid[0, i], w, points, edge, colour)
        grid[0, i].set_title(f"{name}: {len(points)} levels, error {_percent(share)}")
        some = np.linspace(0, len(w) - 1, min(len(w), 4000)).astype(int)
        grid[1, i].plot(w[some], error[some], ".", ms=1.6, color=colour, rasterized=True)
        grid[1, i].axhline(0, color=COLOURS["grey"], lw=0.8)
        worst = max(worst, float(np.abs(error).max()))
        words.append(f"{name}, {len(points)} levels: relative error {_percent(share)}")
    for i in range(len(levels)):
        grid[1, i].set(ylim=(-1.15 * worst, 1.15 * worst), xlim=(-edge, edge), xlabel="weight w")
        if i:
            grid[1, i].tick_params(labelleft=False)
    grid[0, 0].set_ylabel("how many weights")
    grid[1, 0].set_ylabel("w − nearest level")
    figure.suptitle(f"{title} · {layer}", x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.set_label(
        f"{title}. {len(w):,} weights of {layer}: most of them near zero. "
        + "; ".join(words)
        + ". "
        "The error is a sawtooth: zero on a level, largest half way between two; "
        "relative error is root mean square of the error over that of the weights."
    )
    return figure


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def _nearest(w: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The closest of sorted `points` for every w."""
    return points[np.searchsorted((points[1:] + points[:-1]) / 2, w)]


def _counts(axes, w: np.ndarray, points: np.ndarray, edge: float, colour: str) -> None:
    """The histogram of the weights, and a tick of colour for every level below it."""
    axes.hist(w, bins=121, range=(-edge, edge), color="#C9C9C9")
    top = axes.get_ylim()[1]
    width = 0.5 if len(points) > 40 else 1.3
    axes.vlines(points, -0.13 * top, -0.03 * top, color=colour, lw=width, clip_on=False)
    if len(points) <= 40:
        axes.vlines(points, 0, top, color=colour, lw=0.9, alpha=0.55)
    axes.set(ylim=(-0.14 * top, top), yticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(labelbottom=False, bottom=False)


@styled
def grid_study(
    bits: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    *,
    title: str = "Weights that already lie on a grid flatter the method that finds it",
    model: str = "",
) -> Figure:
    """Relative error of rounding against bits, for several sets of weights.

    Args:
        bits: widths.
        curves: name to relative error at every width, √(Σ (w − ŵ)² / Σ w²); zeros are drawn at the
            foot.
        title: of the figure.
        model: whose weights.

    Example:
        >>> figure = grid_study([3, 4], {"as stored": [0.15, 0.0], "Gaussian": [0.16, 0.08]})
    """
    figure, axes = new(9, 4.6)
    positive = [v for c in curves.values() for v in c if v > 1e-6]
    foot = 0.4 * min(positive)
    ends, words = [], []
    for i, (name, errors) in enumerate(curves.items()):
        colour, y = COLOURS[CYCLE[i]], np.asarray(errors, float)
        shown = np.maximum(y, foot)
        axes.plot(bits, shown, color=colour, ls=DASHES[i], marker=MARKERS[i])
        for x, value in zip(bits, y):
            if value < foot:
                axes.annotate(
                    f"{value:.4f}: the grid is found", (x, foot), xytext=(12, 6),
                    textcoords="offset points", color=colour,
                )  # fmt: skip
        ends.append((bits[-1], shown[-1], name, colour))
        words.append(f"{name}: " + ", ".join(f"{b} bits {v:.4f}" for b, v in zip(bits, y)))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda v, _: f"{v:g}")
    axes.set(xlabel="bits (asymmetric, blocks of 32)", ylabel="relative error of the weights")
    axes.set_xticks(list(bits))
    axes.set_title(title)
    axes.grid(axis="y")
    figure.draw_without_rendering()
    label_ends(axes, ends)
    figure.set_label(f"{title}{' (' + model + ')' if model else ''}. " + "; ".join(words) + ".")
    return figure
