"""Where a quantized model hurts: the error of every linear's output over depth, beside rounding.

One panel for each kind of linear, so a bad block, a bad kind and a bad single layer look different.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from qlab.models.report import WORSE
from qlab.plots.style import COLOURS, new, styled
from qlab.suggest import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4  # attention's four linears above, the MLP's below, and room for the legend
NAMED = 3  # worst layers of a panel whose block is written beside them
LISTED = 3  # worst layers that are written out
# field of the method, field of RTN, what they were measured on
PAIRS = (
    ("loss", "rtn_loss", "calibration text"),
    ("held_out_loss", "held_out_rtn_loss", "held-out text"),
)
# field, height of its marks as a part of the panel's, marker, colour
FOOT = (("rung", 0.16, "^", "purple"), ("dead", 0.06, "x", "black"))
METHOD, RTN = {"marker": "o", "color": COLOURS["blue"]}, {"marker": "s"}
RTN["color"] = COLOURS["vermilion"]


def rows_of(report: Any) -> list[dict[str, Any]]:
    """The rows of a Report, or of its `to_dict()`, as dicts.

    Raises:
        ValueError: the report has no layers.
    """
    found = report if isinstance(report, Mapping) else report.to_dict()
    rows = [dict(row) for row in found["layers"]]
    if not rows:
        raise ValueError(f"the report of {found['model']!r} has no quantized layers to show")
    return rows


def place(path: str) -> tuple[int, str]:
    """(block, kind) of a hub path; a linear outside the blocks counts as block 0.

    Example:
        >>> place("model.decoder.layers.11.self_attn.q_proj")
        (11, 'q_proj')
    """
    parts = path.split(".")
    return next((int(part) for part in parts if part.isdigit()), 0), parts[-1]


def kinds_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """The kinds of linear in forward order."""
    return list(dict.fromkeys(place(row["path"])[1] for row in rows))


def ratio(row: Mapping[str, Any], pair: tuple[str, str, str] = PAIRS[0]) -> float:
    """The method's loss over RTN's on the same inputs; NaN where either is missing or RTN's is 0.

    Example:
        >>> ratio({"loss": 0.25, "rtn_loss": 0.5})
        0.5
    """
    ours, theirs = row.get(pair[0]), row.get(pair[1])
    return float("nan") if ours is None or not theirs else ours / theirs


def worse(rows: Iterable[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], int, float]]:
    """(row, index in PAIRS, ratio) of every layer that lost more than RTN, the worst first; what
    rounding errors could make does not count.
    """
    found = [(row, i, ratio(row, pair)) for row in rows for i, pair in enumerate(PAIRS)]
    return sorted((f for f in found if f[2] > WORSE), key=lambda f: -f[2])


@styled
def layer_losses(report: Any, *, title: str = "") -> Figure:
    """The error of every linear's output over depth, the method's and RTN's, on a logarithmic axis.

    Layers that lost more than RTN are ringed and named; climbed ladders and channels that no token
    reached are marked at the foot. Without calibration inputs there are no losses: the error of the
    weights is drawn instead, and the title says so.

    Args:
        report: a `qlab.models.report.Report`, or its `to_dict()`.
        title: of the figure; "" says what is shown, of which model.

    Raises:
        ValueError: the report has no layers.

    Example:
        >>> row = {"path": "layers.0.mlp.up_proj", "error": 0.1, "loss": 0.02, "rtn_loss": 0.04}
        >>> report = {"model": "m", "method": "gptq", "spec": "int4", "layers": [row]}
        >>> layer_losses(report).get_label()[:40]
        'Error of every layer’s output: m, gptq, '
    """
    found = report if isinstance(report, Mapping) else report.to_dict()
    rows = rows_of(report)
    curves = _curves(rows, found["method"])
    measured = curves[0][0] != "error"
    what = "Error of every layer’s output" if measured else "Error of every layer’s weights"
    head = f"{what}: {found['model']}, {found['method']}, {found['spec']}"
    head = title or (head if measured else f"{head} (no calibration text, so no loss)")
    kinds = kinds_of(rows)
    columns = min(COLUMNS, len(kinds) + 1)
    lines = -(-(len(kinds) + 1) // columns)
    width, height = max(2.35 * columns, 7), 1.15 + 2.0 * lines
    figure, grid = new(
        width, height, nrows=lines, ncols=columns, squeeze=False, sharex=True, sharey=True
    )
    panels, rest = grid.ravel()[: len(kinds)], grid.ravel()[len(kinds) :]
    _scale(panels[0], rows, curves)
    for axes, kind in zip(panels, kinds):
        _panel(axes, [row for row in rows if place(row["path"])[1] == kind], curves)
        axes.set_title(kind)
    _tidy(grid, len(kinds))
    _legend(rest, curves, rows)
    words = _summary(rows, measured)
    said = textwrap.wrap(words, int(13 * width))
    figure.suptitle(head + "\n " * len(said), x=0.01, ha="left", fontsize=11, fontweight="bold")
    figure.text(0.01, 1 - 0.27 / height, "\n".join(said), va="top", fontsize=9.5, linespacing=1.5)
    named = "output\n√(E‖(W − Ŵ)x‖² / E‖Wx‖²)" if measured else "weights\n‖W − Ŵ‖ / ‖W‖"
    figure.supylabel(f"relative error of the {named}", fontsize=9.5)
    figure.supxlabel("block, in forward order", fontsize=9.5)
    figure.set_label(_alternative(head, rows, words))
    return figure


def _curves(rows: Sequence[Mapping[str, Any]], method: str) -> list[tuple[str, str, dict]]:
    """(field, what it is, look) of what there is to draw; RTN beside itself is drawn once."""
    curves = []
    for ours, theirs, text in PAIRS:
        held = text == PAIRS[1][2]
        same = all(row.get(ours) == row.get(theirs) for row in rows)
        for field, name, look in ((ours, method, METHOD), (theirs, "RTN", RTN)):
            if any(row.get(field) is not None for row in rows) and not (field == theirs and same):
                line = {"ls": "none", "mfc": "none", "mew": 1.0} if held else {}
                dashed = {} if held or field == ours else {"ls": (0, (4, 1.5)), "mec": "none"}
                curves.append((field, f"{name}, {text}", {"lw": 1.2, **look, **line, **dashed}))
    return curves or [("error", method, {"lw": 1.2, **METHOD})]


def _scale(axes: Any, rows: Sequence[Mapping[str, Any]], curves: list) -> None:
    """The axes that all panels share: every block, every positive loss, room for marks below."""
    blocks = [place(row["path"])[0] for row in rows]
    found = [row[field] for row in rows for field, _, _ in curves if row.get(field)]
    low, high = (min(found), max(found)) if found else (1e-3, 1.0)
    wide = max(3.0, high / low)  # else the scatter of equal layers would look like a finding
    middle = (low * high) ** 0.5
    axes.set_yscale("log")
    marked = any(row.get(field) for row in rows for field, *_ in FOOT)
    axes.set_ylim(middle / wide ** (0.85 if marked else 0.6), middle * wide**0.62)
    axes.set_xlim(min(blocks) - 0.6, max(blocks) + 0.6)


def _panel(axes: Any, rows: Sequence[Mapping[str, Any]], curves: list) -> None:
    blocks = np.array([place(row["path"])[0] for row in rows])
    foot = axes.get_ylim()[0] * 1.02
    size = 4.0 if np.ptp(axes.get_xlim()) < 14 else 2.2
    for field, _, look in curves:
        values = [row.get(field) for row in rows]
        y = np.array([np.nan if v is None else max(v, foot) for v in values], float)
        # Held-out marks go round the others: where both agree, both are seen.
        axes.plot(blocks, y, ms=size + 2 if look.get("ls") == "none" else size, **look)
    bad = worse(rows)
    for row, i, _ in bad:
        spot = (place(row["path"])[0], row[PAIRS[i][0]])
        axes.plot(*spot, "o", mfc="none", mec=COLOURS["black"], mew=1.4, ms=size + 7, zorder=5)
    named: list[int] = []
    for path in list(dict.fromkeys(row["path"] for row, _, _ in bad))[:NAMED]:
        if any(abs(place(path)[0] - other) < 0.07 * np.ptp(axes.get_xlim()) for other in named):
            continue  # one number would cover the other
        named.append(place(path)[0])
        top = max(row[PAIRS[i][0]] for row, i, _ in bad if row["path"] == path)
        axes.annotate(
            str(place(path)[0]), (place(path)[0], top), xytext=(0, size + 3), ha="center",
            textcoords="offset points", fontsize=9, fontweight="bold", va="bottom",
        )  # fmt: skip
    _foot(axes, rows, size)


def _foot(axes: Any, rows: Sequence[Mapping[str, Any]], size: float) -> None:
    """Marks below the curves: the rung that a layer stands on, and how many channels are dead."""
    low = axes.get_xaxis_transform()  # x in blocks, y as a part of the height
    for field, height, marker, colour in FOOT:
        for row in rows:
            if row.get(field):
                spot = (place(row["path"])[0], height)
                axes.plot(*spot, marker, color=COLOURS[colour], ms=size + 2, transform=low)
                where = {"xycoords": low, "textcoords": "offset points", "xytext": (size + 1, 0)}
                axes.annotate(str(row[field]), spot, va="center", fontsize=8, **where)


def _tidy(grid: Any, kinds: int) -> None:
    """Round numbers on the axes, and blocks named under the lowest panel of every column."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    low, high = grid[0, 0].get_ylim()
    steps = (1, 1.5, 2, 3, 5, 7) if high < 9 * low else (1, 2, 5) if high < 99 * low else (1,)
    ticks = [step * 10.0**power for power in range(-12, 4) for step in steps]
    for i, axes in enumerate(grid.ravel()[:kinds]):
        axes.yaxis.set_major_locator(FixedLocator([t for t in ticks if low <= t <= high]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
        axes.grid(axis="y")
        axes.tick_params(labelbottom=i + grid.shape[1] >= kinds)


def _legend(rest: Sequence[Any], curves: list, rows: Sequence[Mapping[str, Any]]) -> None:
    """The free cell: who is who, and which marks occur."""
    from matplotlib.lines import Line2D

    for axes in rest:
        axes.set_axis_off()
    marks = [Line2D([], [], ms=5, label=name, **look) for _, name, look in curves]
    plain: dict[str, Any] = {"ls": "none", "color": COLOURS["black"]}
    if worse(rows):
        ring: dict[str, Any] = {"marker": "o", "mfc": "none", "mew": 1.4, "ms": 10}
        marks.append(Line2D([], [], label="worse than RTN, its block", **ring, **plain))
    for (field, _, marker, colour), name in zip(FOOT, ("damping raised, rung", "dead channels")):
        if any(row.get(field) for row in rows):
            look = {**plain, "color": COLOURS[colour], "marker": marker}
            marks.append(Line2D([], [], ms=6, label=name, **look))
    spot = {"loc": "upper left", "bbox_to_anchor": (0, 1.08), "borderaxespad": 0}
    rest[0].legend(handles=marks, frameon=False, fontsize=9, handlelength=2.2, **spot)


def _summary(rows: Sequence[Mapping[str, Any]], measured: bool) -> str:
    """The result in a line."""
    found = [np.array([ratio(row, pair) for row in rows]) for pair in PAIRS]
    known, held = (ratios[np.isfinite(ratios)] for ratios in found)
    field = "loss" if measured else "error"
    top = max(rows, key=lambda row: row.get(field) or 0.0)
    if not len(known) or (known == 1).all():
        error = f"the largest error: {_short(top)}, {top.get(field) or 0:.2g}"
        return f"{counted(len(rows), 'linear')}; {error}"
    beside = f", held out {np.median(held):.2f} ×" if len(held) else ""
    bad = {}
    for row, i, times in worse(rows):
        bad.setdefault(_short(row), f"{times:.2f} ×{' held out' * i}")
    named = [f"{name} ({times})" for name, times in list(bad.items())[:LISTED]]
    more = " …" if len(bad) > LISTED else ""
    count = f"{len(bad) or 'none'} of {len(known)} worse"
    return f"median {np.median(known):.2f} × RTN’s{beside}; {count}" + (
        f": {', '.join(named)}{more}" if bad else ""
    )


def _short(row: Mapping[str, Any]) -> str:
    block, kind = place(row["path"])
    return f"{kind} {block}"


def _alternative(head: str, rows: Sequence[Mapping[str, Any]], words: str) -> str:
    """The figure in words: every kind's range, every layer that stands out."""
    said = []
    for kind in kinds_of(rows):
        own = [row for row in rows if place(row["path"])[1] == kind]
        values = [v for row in own if (v := row.get("loss")) is not None]
        values = values or [row["error"] for row in own]
        said.append(f"{kind} {min(values):.3g} to {max(values):.3g}")
    bad = [f"{row['path']} ({PAIRS[i][2]}, {r:.2f} times)" for row, i, r in worse(rows)]
    rungs = [f"{row['path']} (rung {row['rung']})" for row in rows if row.get("rung")]
    dead = [f"{row['path']} ({row['dead']})" for row in rows if row.get("dead")]
    extra = (("Worse than RTN", bad), ("Damping raised", rungs), ("Dead channels", dead))
    return f"{head}. {counted(len(rows), 'linear')}: {', '.join(said)}. {words}." + "".join(
        f" {name}: {', '.join(found)}." for name, found in extra if found
    )
