"""Why differences are paired: one difference with two bars, unpaired and paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qlab.plots.style import COLOURS, new, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@styled
def paired_bars(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str = "Scored on the same text, a small difference can be seen",
    text: str = "",
) -> Figure:
    """Differences in ln perplexity from the float model, each drawn with two bars.

    Args:
        rows: {"name", "difference", "paired", "unpaired"}, bars in the units of the difference.
        title: of the figure.
        text: what was scored.

    Example:
        >>> row = {"name": "INT8", "difference": 0.001, "paired": 0.0005, "unpaired": 0.08}
        >>> figure = paired_bars([row])
    """
    figure, axes = new(9, 0.55 * len(rows) + 1.8)
    words = []
    for i, row in enumerate(rows):
        d, paired, apart = row["difference"], row["paired"], row["unpaired"]
        style = {"capsize": 4, "ms": 5}
        axes.errorbar(d, i - 0.14, xerr=apart, fmt="s", color=COLOURS["vermilion"], **style)
        axes.errorbar(d, i + 0.14, xerr=paired, fmt="o", color=COLOURS["blue"], **style)
        ratio = apart / paired if paired else float("inf")
        axes.annotate(
            f"paired bar {ratio:.0f}× smaller" if paired else "", (d + apart, i), xytext=(10, 0),
            textcoords="offset points", va="center", fontsize=9, color=COLOURS["grey"],
        )  # fmt: skip
        words.append(f"{row['name']}: {d:.4f} ± {paired:.4f} paired, ± {apart:.4f} unpaired")
    axes.axvline(0, color=COLOURS["grey"], lw=0.8)
    axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.95)
    axes.margins(x=0.14)
    axes.set_xlabel("difference in ln perplexity from the float model, ± one standard error")
    axes.set_title(f"{title} ({text})" if text else title)
    first = rows[0]["difference"]
    axes.annotate(
        "as if on different text", (first, -0.14), xytext=(0, 11), textcoords="offset points",
        color=COLOURS["vermilion"], fontweight="bold", fontsize=9, ha="center",
    )  # fmt: skip
    axes.annotate(
        "paired, window by window", (first, 0.14), xytext=(0, -16), textcoords="offset points",
        color=COLOURS["blue"], fontweight="bold", fontsize=9, ha="center",
    )  # fmt: skip
    figure.set_label(f"{title}{', ' + text if text else ''}. " + "; ".join(words) + ".")
    return figure
