"""The state and the numbers of `report(q)`: which measure, in which order, of which layers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qlab.io.safetensors import MANIFEST, read_json
from qlab.models.report import Report
from qlab.models.transformer import Transformer
from qlab.plots.layers import PAIRS, kinds_of, place, ratio, rows_of, worse
from qlab.plots.widget_report import ReportData
from qlab.widgets.report_words import facts, remarks

ALL, FORWARD, WORST = "all kinds", "forward order", "worst first"
Of = Callable[[dict[str, Any]], float | None]


def _spread(row: dict[str, Any]) -> float | None:
    return row["scale"][1] / row["scale"][0] if row["scale"] and row["scale"][0] else None


# what is shown -> (of a row, what it is compared with, what that is called)
MEASURES: dict[str, tuple[Of, Of, str]] = {
    "loss": (lambda r: r["loss"], lambda r: r["rtn_loss"], "RTN"),
    "held-out loss": (lambda r: r["held_out_loss"], lambda r: r["held_out_rtn_loss"], "RTN"),
    "ratio to RTN": (ratio, lambda r: ratio(r, PAIRS[1]), "on held-out text"),
    "held-out ratio to RTN": (lambda r: ratio(r, PAIRS[1]), ratio, "on calibration text"),
    "weight error": (lambda r: r["error"], lambda r: None, ""),
    "clipped, %": (lambda r: 100 * r["clipped"], lambda r: None, ""),
    "tokens": (lambda r: r["tokens"] or None, lambda r: None, ""),
    "scale range": (_spread, lambda r: None, ""),
    "bits per weight": (lambda r: r["bits_per_weight"], lambda r: None, ""),
}


@dataclass(frozen=True)
class ReportState:
    """What is chosen."""

    show: str
    order: str
    kind: str
    layer: str


def report_of(q: Transformer | Report | str | os.PathLike) -> Report:
    """The report of a quantized model, of a folder that `qlab.save` wrote, or a Report itself.

    Raises:
        ValueError: it is none of these, or nothing in it is quantized.
    """
    report: Any = q
    if isinstance(q, Transformer):
        report = q.report
    elif isinstance(q, (str, os.PathLike)):  # its weights need not be read
        found = read_json(Path(q).expanduser() / MANIFEST)["report"]
        report = found and Report.from_dict(found)
    if not isinstance(report, Report) and report is not None:
        raise ValueError(f"a quantized model, its report or its folder is needed, not {q!r:.60}")
    if report is None:
        name = q.name if isinstance(q, Transformer) else q
        raise ValueError(f"{name} has no report: nothing in it is quantized")
    rows_of(report)  # refuses one without layers
    return report


def values_of(report: Report, of: Of) -> dict[str, float]:
    """Path -> a number of its row; NaN where there is none."""
    found = {row.path: of(vars(row)) for row in report.layers}
    return {path: float("nan") if v is None else float(v) for path, v in found.items()}


def measures_of(report: Report) -> list[str]:
    """The measures that this report has."""
    found = {name: list(values_of(report, MEASURES[name][0]).values()) for name in MEASURES}
    return [name for name, values in found.items() if np.isfinite(values).any()]


def order_of(report: Report, show: str, order: str, kind: str) -> tuple[str, ...]:
    """The paths of one kind, or of all, in forward order or the largest value first."""
    values = values_of(report, MEASURES[show][0])
    paths = [path for path in values if kind in (ALL, place(path)[1])]
    if order == WORST:
        paths.sort(key=lambda path: -np.nan_to_num(values[path], nan=-np.inf))
    return tuple(paths)


def _median(values: Iterable[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else float("nan")


def report_data(report: Report, state: ReportState) -> ReportData:
    """Everything that the picture shows."""
    of, other_of, other = MEASURES[state.show]
    rows = [vars(row) for row in report.layers]
    chosen = next(row for row in report.layers if row.path == state.layer)
    fields = (lambda r: r["loss"], lambda r: r["rtn_loss"], ratio, lambda r: ratio(r, PAIRS[1]))
    medians = [_median(values_of(report, field).values()) for field in fields]
    return ReportData(
        name=f"{report.model} {report.method} {report.spec}",
        show=state.show, values=values_of(report, of), others=values_of(report, other_of),
        other=other, kinds=tuple(kinds_of(rows)),
        order=order_of(report, state.show, state.order, state.kind),
        as_map=state.order == FORWARD and state.kind == ALL,
        chosen=state.layer, facts=facts(chosen), remarks=remarks(chosen),
        told=frozenset(row.path for row in report.layers if remarks(row)),
        bits=report.bits_per_weight,
        losses=tuple(medians),  # type: ignore
        worse=len({row["path"] for row, _, _ in worse(rows)}),
    )  # fmt: skip
