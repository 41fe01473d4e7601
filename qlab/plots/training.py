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


@styled
def training_arms(
    runs: Mapping[str, Sequence[Mapping[str, Sequence]]],
    *,
    title: str = "Training in four arithmetics",
) -> Figure:
    """The loss of several ways to train, and what each costs against the first, in pairs.

    Args:
        runs: way -> its runs, in the same order of seeds for all: {"loss": of every step,
            "held_out": [[step, loss], …]}, nats a token. The first is compared with.
        title: of the figure.

    Example:
        >>> run = {"loss": [5.0, 4.0], "held_out": [[1, 5.1], [2, 4.2]]}
        >>> figure = training_arms({"float32": [run, run], "FP8": [run, run]})
    """
    figure, (left, right) = new(11, 4.2, ncols=2)
    first, words, ends = next(iter(runs)), [], []
    steps = np.array([step for step, _ in runs[first][0]["held_out"]])
    base = np.array([[loss for _, loss in run["held_out"]] for run in runs[first]])
    for i, (name, seeds) in enumerate(runs.items()):
        colour = COLOURS["black"] if i == 0 else COLOURS[CYCLE[i - 1]]
        curves = np.array([_smooth(np.asarray(run["loss"], float), 0.08) for run in seeds])
        x = np.arange(1, curves.shape[1] + 1)
        left.fill_between(x, curves.min(0), curves.max(0), color=colour, alpha=0.13, lw=0)
        left.plot(x, curves.mean(0), color=colour, ls=DASHES[i % len(DASHES)], lw=1.5, label=name)
        held = np.array([[loss for _, loss in run["held_out"]] for run in seeds])
        less = held - base
        bar = less.std(0, ddof=1) / np.sqrt(len(less)) if len(less) > 1 else np.zeros(len(steps))
        last = f"{held[:, -1].mean():.3f}"
        if i:
            at = steps + (i - len(runs) / 2) * 0.08 * (steps[0] if len(steps) else 1)
            right.errorbar(
                at, less.mean(0), yerr=bar, color=colour, fmt="o-", ms=4, lw=1.2, capsize=2
            )
            ends.append((at[-1], less.mean(0)[-1], name, colour))
            last += f", {less.mean(0)[-1]:+.3f} ± {bar[-1]:.3f} from {first}"
        words.append(f"{name} {last}")
    left.set(xlabel="step", ylabel="training loss, nats per token", xlim=(0, None))
    left.set_title(title)
    left.legend(frameon=False, title="mean and range over seeds", alignment="left")
    right.axhline(0, color=COLOURS["black"], lw=1)
    right.set(xlabel="step", ylabel="nats per token", xlim=(0, None))
    right.set_title(f"Held-out loss less that of {first}, same seeds")
    for axes in (left, right):
        axes.grid(axis="y")
    figure.draw_without_rendering()
    label_ends(right, ends)
    figure.set_label(f"{title}. Held-out loss at the end: {'; '.join(words)}.")
    return figure
