"""The house's look: Okabe and Ito's colours, safe for colour-blind eyes, and direct labels.

Text at 900 pixels of README width is no smaller than the page's own.
"""

from __future__ import annotations

import functools
import io
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qlab.io.atomic import atomic_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "black": "#222222",
    "grey": "#767676",
}
CYCLE = ("blue", "vermilion", "green", "purple", "orange", "sky")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)))

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["grey"],
    "axes.labelcolor": COLOURS["black"],
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "text.color": COLOURS["black"],
    "xtick.color": COLOURS["black"],
    "ytick.color": COLOURS["black"],
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "qlab",  # the same numbers give the same bytes
    "svg.fonttype": "path",
}

Drawing = TypeVar("Drawing", bound=Callable[..., Any])


def styled(draw: Drawing) -> Drawing:
    """Runs a drawing function under the house's style, whatever the reader's own settings are."""

    @functools.wraps(draw)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        import matplotlib

        settings: Any = {**matplotlib.rcParamsDefault, **STYLE}
        with matplotlib.rc_context(settings):
            return draw(*args, **kwargs)

    return wrapped  # type: ignore[return-value]


def new(width: float, height: float, **grid: Any) -> tuple[Figure, Any]:
    """A figure of `width` × `height` inches without pyplot, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**grid)


def label_ends(
    axes: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float = 0.065
) -> None:
    """Writes (x, y, text, colour) beside the ends of curves, moved apart where they would overlap.

    `gap` is the least distance between two labels, as a part of the axes' height.
    """
    to_axes = axes.transAxes.inverted()
    spots = [to_axes.transform(axes.transData.transform((x, y))) for x, y, _, _ in ends]
    order = sorted(range(len(ends)), key=lambda i: spots[i][1])
    heights = [float(spots[i][1]) for i in order]
    heights = _apart(heights, gap)
    right = max(float(x) for x, _ in spots)
    for i, height in zip(order, heights):
        _, _, text, colour = ends[i]
        axes.annotate(
            text,
            (right, height),
            xycoords="axes fraction",
            xytext=(8, 0),
            textcoords="offset points",
            color=colour,
            va="center",
            fontweight="bold",
            annotation_clip=False,
        )


def _apart(heights: list[float], gap: float, lowest: float = 0.03) -> list[float]:
    """Ascending heights, pushed apart until neighbours are `gap` from each other."""
    for _ in range(200):  # both give way, so a crowd spreads around its middle
        for i in range(1, len(heights)):
            overlap = gap - (heights[i] - heights[i - 1])
            if overlap > 0:
                heights[i] += overlap / 2
                heights[i - 1] -= overlap / 2
    heights[0] = max(heights[0], lowest)
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    return heights


def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as the bytes of a PNG."""
    return _render(figure, format="png", dpi=dpi, metadata={"Software": None})


def _render(figure: Figure, **settings: Any) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings():
        # A broken model may write in any script; a box stands for what the font has not.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(out, **settings)
    return out.getvalue()


def save(figure: Figure, path: str | os.PathLike, dpi: int = 150) -> list[Path]:
    """Writes `path`.svg, `path`.png and `path`.txt, the alternative text; returns the three.

    Raises:
        ValueError: the figure has no alternative text.

    Example:
        >>> save(size_quality(series), "figures/quality")   # doctest: +SKIP
    """
    import matplotlib

    alt = figure.get_label()
    if not alt:
        raise ValueError("the figure has no alternative text: figure.set_label(words)")
    with matplotlib.rc_context({"svg.hashsalt": "qlab", "svg.fonttype": "path"}):
        told = {"Date": None, "Description": str(alt)}
        svg = _render(figure, format="svg", metadata=told)
    written = []
    contents = {".svg": svg, ".png": png(figure, dpi), ".txt": f"{alt}\n".encode()}
    for suffix, content in contents.items():
        target = Path(f"{os.fspath(path)}{suffix}")
        with atomic_file(target, overwrite=True) as sink:
            sink.write(content)
        written.append(target)
    return written
