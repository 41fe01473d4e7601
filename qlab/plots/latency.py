"""How fast, and how near to what the machine can do: rooflines with measured points on them, and
tokens/s against the batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qlab.plots.style import COLOURS, CYCLE, DASHES, MARKERS, label_ends, new, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOFS = {"float32": "-", "bfloat16": "--", "int8": "-.", "float8_e4m3fn": ":"}
DTYPES = {"float8_e4m3fn": "float8"}


@styled
def latency(bench: Any, *, title: str = "") -> Figure:
    """Measured speeds under the machine's roofline, and new tokens a second against the batch.

    Left: operations a second against operations a byte; filled marks are decode steps, from the
    smallest batch at the left to the largest, hollow marks are prompts. Right: tokens of all
    sequences together, with the least and the most of the rounds.

    Args:
        bench: what `qlab.bench` returned.
        title: of the figure; "" says on what it was measured.

    Example:
        >>> qlab.bench(qlab.load("tiny"), batch=[1, 4]).figure()   # doctest: +SKIP
    """
    figure, (left, right) = new(11, 4.6, ncols=2)
    looks = {
        name: {"color": COLOURS[CYCLE[i % len(CYCLE)]], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(bench.models)
    }
    roofs = _rooflines(left, bench, looks)
    words = _speeds(right, bench, looks)
    label_ends(left, roofs, gap=0.12)
    figure.suptitle(title or f"Measured on {bench.device}", x=0.01, ha="left", fontweight="bold")
    figure.set_label(
        f"{title or 'Speed of decode'}, {bench.context} tokens of prompt, on {bench.device}. "
        f"{'; '.join(words)}."
    )
    return figure


def _rooflines(axes: Any, bench: Any, looks: dict[str, dict[str, Any]]) -> list[tuple]:
    """Roofs and marks; returns what is to be written beside the roofs' ends."""
    from matplotlib.patheffects import withStroke

    loads = [load for row in bench.rows for load in (row.prompt, row.decode)]
    low, high = (f(load.intensity for load in loads) for f in (min, max))
    dtypes = list(dict.fromkeys(row.products for row in bench.rows))
    ridges = [bench.speeds.roof(dtype).ridge for dtype in dtypes]
    x = (min(low, *ridges) / 2.5, max(high, *ridges) * 2.5)
    ends = []
    slope = bench.speeds.roof(dtypes[0]).bandwidth  # the same for all of them
    axes.plot([x[0], max(ridges)], [x[0] * slope / 1e9, max(ridges) * slope / 1e9],
              color=COLOURS["black"], lw=1.6, zorder=1)  # fmt: skip
    for dtype, ridge in zip(dtypes, ridges):
        peak = bench.speeds.roof(dtype).peak / 1e9
        axes.plot([ridge, x[-1]], [peak] * 2, color=COLOURS["black"], lw=1.6, zorder=1,
                  ls=ROOFS[dtype])  # fmt: skip
        words = f"{DTYPES.get(dtype, dtype)}\n{peak:,.0f} G/s"
        ends.append((x[-1], peak, words, COLOURS["black"]))
    for i, (name, look) in enumerate(looks.items()):
        rows = sorted((row for row in bench.rows if row.model == name), key=lambda row: row.batch)
        for row in {rows[0].batch: rows[0], rows[-1].batch: rows[-1]}.values() if i == 0 else ():
            spot = (row.decode.intensity, row.decode.operations / row.seconds / 1e9)
            axes.annotate(f"batch {row.batch}", spot, xytext=(-9, 0), ha="right", va="center",
                          textcoords="offset points", fontsize=8.5, zorder=4,
                          path_effects=[withStroke(linewidth=3, foreground="white")])  # fmt: skip
        _points(axes, [(r.decode, r.seconds) for r in rows], look)
        _points(axes, [(r.prompt, r.first_token) for r in rows], {**look, "mfc": "white"})
    axes.set(xscale="log", yscale="log", xlabel="operations a byte", ylabel="10⁹ operations/s")
    words = f"slope: memory,\n{slope / 1e9:,.3g} GB/s"
    axes.text(0.015, 0.98, words, transform=axes.transAxes, va="top", fontsize=8.5)
    axes.set_xlim(x[0] / 4, x[-1])
    axes.set_title("Under the roof: decode filled, prompts hollow")
    _plain(axes)
    return ends


def _plain(axes: Any) -> None:
    """Powers of ten, and 2 and 5 times them where there is room, as people write them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        subs = (1.0,) if high / low > 300 else (1.0, 2.0, 5.0)
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major")


def _points(axes: Any, steps: list[tuple[Any, float]], look: dict[str, Any]) -> None:
    xs = [load.intensity for load, _ in steps]
    ys = [load.operations / seconds / 1e9 for load, seconds in steps]
    axes.plot(xs, ys, ls="-", lw=0.8, ms=6, zorder=3, **look)


def _speeds(axes: Any, bench: Any, looks: dict[str, dict[str, Any]]) -> list[str]:
    """Tokens/s against the batch; returns them in words."""
    words, ends = [], []
    for i, (name, look) in enumerate(looks.items()):
        rows = sorted((row for row in bench.rows if row.model == name), key=lambda row: row.batch)
        batch, speed = [row.batch for row in rows], [row.tokens_per_second for row in rows]
        low, high = zip(*(row.spread for row in rows))
        bars = np.abs(np.array([low, high]) - speed)
        line = {"ls": DASHES[i % len(DASHES)], "lw": 1.4, "ms": 6, "capsize": 3, "elinewidth": 1}
        moved = [n * 1.03 ** (i - (len(looks) - 1) / 2) for n in batch]  # bars beside each other
        axes.errorbar(moved, speed, yerr=bars, **line, **look)
        ends.append((batch[-1], speed[-1], name, look["color"]))
        told = ", ".join(f"{n}: {value:,.0f}" for n, value in zip(batch, speed))
        words.append(f"{name}, tokens a second by batch: {told}")
    batches = sorted({row.batch for row in bench.rows})
    axes.set(xscale="log", yscale="log", xlabel="sequences at once", ylabel="new tokens/s, all")
    axes.margins(x=0.12)
    _plain(axes)
    axes.set_xticks(batches, [str(n) for n in batches])
    axes.minorticks_off()
    axes.set_title("Decode: median, least and most of the rounds")
    axes.figure.draw_without_rendering()
    label_ends(axes, ends)
    return words
