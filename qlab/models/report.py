"""What quantization did to every layer: one row a linear, kept with the model and saved beside it.

    error = ‖W − Ŵ‖ / ‖W‖ on the weights
    loss  = √(E‖(W − Ŵ)x‖² / E‖W x‖²) on calibration inputs, where a method had them

The rows say what happened, clipped weights and dead channels included, so that no fallback goes
unseen.
"""

from __future__ import annotations

import dataclasses
import html
import importlib
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from qlab.suggest import counted

WORSE = 1.001  # less than this beyond RTN's loss is the noise of float32 sums
MANY = 6  # warnings of one kind that are spelt out


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One linear layer.

    Attributes:
        path: the hub path.
        shape: (out, in).
        spec: the Spec's name, or its fields where it has none.
        bits_per_weight: true cost, scales counted.
        error: ‖W − Ŵ‖ / ‖W‖.
        max_error: max |W − Ŵ|.
        clipped: share of weights more than half a step beyond the ends of their block's range.
        loss: relative error of the output on calibration inputs; None without them.
        rtn_loss: the same for rounding to nearest into the same Spec.
        held_out_loss, held_out_rtn_loss: both on inputs that the method never saw; None without.
        scaled: how its input channels were scaled before (the ratio r of E|x|^r, or α) and what
            took the inverse; None where they were not.
        unscaled_loss: of the quantizer alone, without scaling, on held-out inputs where there are
            any; None where that is RTN or nothing was scaled.
        tokens: input vectors that calibration counted.
        dead: input channels that were zero in all of them.
        floored: columns whose importance was raised, because it was below 10⁻⁶ of their mean; None
            where the method weighs no columns.
        damp: damping added to the diagonal, relative to its mean; None where there is none.
        rung: how many steps of the Cholesky ladder were climbed, 0 for none.
        scale: smallest and largest magnitude of the scales as stored, zeros left out; None without.
        seconds: spent on this layer by the method itself; neither saved nor compared.
        notes: what else a reader should know: dead columns, constant rows, fallbacks.
    """

    path: str
    shape: tuple[int, ...]
    spec: str
    bits_per_weight: float
    error: float
    max_error: float
    clipped: float
    loss: float | None = None
    rtn_loss: float | None = None
    held_out_loss: float | None = None
    held_out_rtn_loss: float | None = None
    scaled: tuple[float, str] | None = None
    unscaled_loss: float | None = None
    tokens: int = 0
    dead: int = 0
    floored: int | None = None
    damp: float | None = None
    rung: int = 0
    scale: tuple[float, float] | None = None
    seconds: float = dataclasses.field(default=0.0, compare=False)
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        """out · in."""
        return int(np.prod(self.shape))

    @property
    def worse_than_rtn(self) -> str | None:
        """Both numbers, on the inputs where rounding to nearest does better; None: nowhere."""
        pairs = (
            ("calibration", self.loss, self.rtn_loss),
            ("held out", self.held_out_loss, self.held_out_rtn_loss),
        )
        said = [
            f"{where}: loss {mine:.4g}, RTN's {other:.4g}"
            for where, mine, other in pairs
            if mine is not None and other is not None and mine > other * WORSE
        ]
        return f"{self.path} is worse than RTN ({'; '.join(said)})" if said else None

    @property
    def worse_than_unscaled(self) -> str | None:
        """Both numbers, where the quantizer alone does better; None: it does not, or is RTN."""
        mine = self.loss if self.held_out_loss is None else self.held_out_loss
        if mine is None or self.unscaled_loss is None or mine <= self.unscaled_loss * WORSE:
            return None
        where = "calibration" if self.held_out_loss is None else "held out"
        numbers = f"loss {mine:.4g}, {self.unscaled_loss:.4g} without"
        return f"{self.path} is worse than without scaling ({where}: {numbers})"

    @staticmethod
    def from_dict(found: dict[str, Any]) -> LayerReport:
        """The row again, from `dataclasses.asdict` by way of JSON."""
        lists = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        return LayerReport(**{**found, **lists})


@dataclasses.dataclass(frozen=True)
class Report:
    """All layers of one `quantize_model`; `print` it, or let a notebook show it."""

    model: str
    method: str
    spec: str
    layers: tuple[LayerReport, ...]
    float_layers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def bits_per_weight(self) -> float:
        """Mean over the weights of the quantized linears."""
        return _mean(self.layers, "bits_per_weight")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader should know first: layers worse than RTN, a Cholesky that needed help, too
        little text.
        """
        worse = [said for row in self.layers if (said := row.worse_than_rtn)]
        worse += [said for row in self.layers if (said := row.worse_than_unscaled)]
        climbed = [
            f"{row.path}: Cholesky failed at the damping asked for and held at rung {row.rung} "
            f"(damping {row.damp:.3g} of the mean)"
            for row in self.layers
            if row.rung
        ]
        return (*worse, *climbed, *self._too_little_text())

    def _too_little_text(self) -> list[str]:
        """One line for each kind of linear whose Hessian cannot have full rank."""
        found: dict[tuple[str, int, int], int] = {}
        for row in self.layers:
            if row.loss is not None and row.tokens < row.shape[-1]:
                key = (row.path.rpartition(".")[2], row.tokens, row.shape[-1])
                found[key] = found.get(key, 0) + 1
        return [
            f"{count} × {kind} saw {counted(tokens, 'token')}, fewer than their "
            f"{counted(width, 'input')}: H has not full rank, the damping decides the rest"
            for (kind, tokens, width), count in found.items()
        ]

    def figure(self, **settings: Any) -> Any:
        """Both losses of every layer as a picture: `qlab.plots.layer_losses`."""
        plots = importlib.import_module("qlab.plots")  # drawn above models, and only when asked for
        return plots.layer_losses(self, **settings)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, the same in every run: seconds are left out."""
        found = dataclasses.asdict(self)
        for row in found["layers"]:
            del row["seconds"]
        return found

    @staticmethod
    def from_dict(found: dict[str, Any]) -> Report:
        """The report again."""
        layers = tuple(LayerReport.from_dict(row) for row in found["layers"])
        rest = {"float_layers": tuple(found["float_layers"]), "notes": tuple(found["notes"])}
        return Report(**{**found, "layers": layers, **rest})

    def __str__(self) -> str:
        rows, same = _shown([HEADER, *_summary(self.layers), *self._worst()])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = [self._title(), *(f"! {warning}" for warning in _some(self.warnings))]
        for row in rows:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines + [f"· {note}" for note in (same, *self._notes()) if note])

    def _repr_html_(self) -> str:
        short = _table([HEADER, *_summary(self.layers)])
        marks = {i for i, row in enumerate(self.layers) if row.worse_than_rtn}
        full = _table([HEADER, *(_cells(row.path, [row], row.spec) for row in self.layers)], marks)
        many = len(self.layers) > 1
        layers = ("all " if many else "") + counted(len(self.layers), "layer")
        warnings = _list([f"⚠ {warning}" for warning in _some(self.warnings)])
        return (
            f"<p>{html.escape(self._title())}</p>{warnings}{short}{_list(self._notes())}"
            f"<details><summary>{layers}</summary>{full}</details>"
        )

    def _title(self) -> str:
        return (
            f"{self.model}: {self.method}, {self.spec}, {counted(len(self.layers), 'linear')} at "
            f"{self.bits_per_weight:.4g} bits per weight"
        )

    def _worst(self) -> list[tuple[str, ...]]:
        """The three layers that lost most: of their output where it is known, else of weights."""
        known = all(row.loss is not None for row in self.layers)
        lost = (lambda row: -row.loss) if known else (lambda row: -row.error)
        worst = sorted(self.layers, key=lost)[:3]
        return [_cells(f"worst: {row.path}", [row], row.spec) for row in worst]

    def _notes(self) -> list[str]:
        notes = list(self.notes)
        if self.float_layers:
            some = ", ".join(self.float_layers[:3]) + (" …" if len(self.float_layers) > 3 else "")
            count = len(self.float_layers)
            notes.append(f"{count} linear{'s stay' if count > 1 else ' stays'} float: {some}")
        scaled = [row.scaled for row in self.layers if row.scaled is not None]
        if scaled:
            ratios = [ratio for ratio, _ in scaled]
            into = ", ".join(dict.fromkeys(feeder for _, feeder in scaled))
            span = f"{min(ratios):.2g}" + (
                f" to {max(ratios):.2g}" if max(ratios) > min(ratios) else ""
            )
            notes.append(
                f"input channels of {counted(len(scaled), 'linear')} scaled at {span}, folded "
                f"into {into}"
            )
        notes += self._floored()
        said: dict[str, list[str]] = {}
        for row in self.layers:
            for note in row.notes:
                said.setdefault(note, []).append(row.path)
        return notes + [_of(paths, len(self.layers), note) for note, paths in said.items()]

    def _floored(self) -> list[str]:
        """How many columns got an importance that calibration did not give them, and where."""
        found = [(row.path, row.floored, row.shape[-1]) for row in self.layers if row.floored]
        if not found:
            return []
        most = sorted(found, key=lambda one: -one[1])[:3]
        named = ", ".join(f"{path} {count:,} of {width:,}" for path, count, width in most)
        total = counted(sum(count for _, count, _ in found), "column")
        return [
            f"the importance of {total} in {counted(len(found), 'linear')} was below 10⁻⁶ of the "
            f"mean and was raised to that: {named}{' …' if len(found) > 3 else ''}"
        ]


HEADER = (
    "linears",
    "spec",
    "count",
    "weights",
    "bits/w",
    "error",
    "max |Δw|",
    "clipped, %",
    "scales",
    "loss",
    "RTN's",
    "held out",
    "RTN's",
    "scaled at",
    "tokens",
    "dead",
    "floored",
    "damp",
    "rung",
)

# Columns that are said once where every row agrees.
CONSTANT = ("spec", "bits/w", "clipped, %", "tokens", "dead", "floored", "damp", "rung")


def _of(paths: list[str], layers: int, note: str) -> str:
    """One note of one or several layers."""
    if len(paths) <= 2:
        return f"{', '.join(paths)}: {note}"
    who = "all" if len(paths) == layers else f"{paths[0]} and {len(paths) - 1} more"
    return f"{who}: {note}"


def _some(warnings: Iterable[str]) -> list[str]:
    """The first of them, and how many there are beyond."""
    found = list(warnings)
    rest = len(found) - MANY
    if rest <= 1:
        return found
    return [*found[:MANY], f"… and {rest} more: see .warnings"]


def _summary(layers: Iterable[LayerReport]) -> list[tuple[str, ...]]:
    """One row for every kind of linear (q_proj, …) under every spec, in forward order."""
    groups: dict[tuple[str, str], list[LayerReport]] = {}
    for row in layers:
        groups.setdefault((row.path.rpartition(".")[2], row.spec), []).append(row)
    return [_cells(kind, rows, spec) for (kind, spec), rows in groups.items()]


def _cells(name: str, rows: list[LayerReport], spec: str) -> tuple[str, ...]:
    losses = ("loss", "rtn_loss", "held_out_loss", "held_out_rtn_loss")
    scales = [row.scale for row in rows if row.scale is not None]
    floored = [row.floored for row in rows if row.floored is not None]
    damp = [row.damp for row in rows if row.damp is not None]
    scaled = [row.scaled[0] for row in rows if row.scaled is not None]
    calibrated = any(row.loss is not None for row in rows)
    return (
        name,
        spec,
        str(len(rows)),
        f"{sum(row.weights for row in rows):,}",
        f"{_mean(rows, 'bits_per_weight'):.4g}",
        f"{_mean(rows, 'error'):.4f}",
        f"{max(row.max_error for row in rows):.3g}",
        f"{100 * _mean(rows, 'clipped'):.2g}",
        f"{min(s[0] for s in scales):.2g} … {max(s[1] for s in scales):.2g}" if scales else "–",
        *(_mean_loss(rows, field) for field in losses),
        f"{np.mean(scaled):.2g}" if scaled else "–",
        f"{min(row.tokens for row in rows):,}" if calibrated else "–",
        f"{sum(row.dead for row in rows)}" if calibrated else "–",
        f"{sum(floored):,}" if floored else "–",
        f"{max(damp):.3g}" if damp else "–",
        str(max(row.rung for row in rows)) if damp else "–",
    )


def _mean_loss(rows: list[LayerReport], field: str) -> str:
    known = all(getattr(row, field) is not None for row in rows)
    return f"{_mean(rows, field):.4f}" if known else "–"


def _mean(rows: Iterable[LayerReport], field: str) -> float:
    rows = list(rows)
    total = sum(row.weights for row in rows)
    return sum(getattr(row, field) * row.weights for row in rows) / total if total else 0.0


def _shown(rows: list[tuple[str, ...]]) -> tuple[list[tuple[str, ...]], str]:
    """The table without the columns that nobody fills and those that say the same in every row,
    which one line says instead. The first row is the header.
    """
    header, *body = rows
    kept, same = [], []
    for i, name in enumerate(header):
        values = {row[i] for row in body}
        if len(body) > 1 and len(values) == 1 and name in CONSTANT:
            same += [] if values == {"–"} else [f"{name} {body[0][i]}"]
        elif values != {"–"}:
            kept.append(i)
    line = f"the same in all: {', '.join(same)}" if same else ""
    return [tuple(row[i] for i in kept) for row in rows], line


def _table(rows: list[tuple[str, ...]], marked: Collection[int] = ()) -> str:
    """Rows under a header; the marked ones, counted without it, stand out."""
    shown, same = _shown(rows)
    header, *body = shown
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in header)
    lines = []
    for i, row in enumerate(body):
        style = ' style="background:#fde68a;color:#000"' if i in marked else ""
        first, *rest = (html.escape(cell) for cell in row)
        cells = f'<td style="text-align:left">{first}</td>' + "".join(f"<td>{c}</td>" for c in rest)
        lines.append(f"<tr{style}>{cells}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return table + (f"<p>{html.escape(same)}</p>" if same else "")


def _list(lines: Iterable[str]) -> str:
    found = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
    return f"<ul>{found}</ul>" if found else ""
