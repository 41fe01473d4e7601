"""What quantization did to every layer: one row a linear, kept with the model and saved beside it.

    error = ‖W − Ŵ‖ / ‖W‖ on the weights
    loss  = √(E‖(W − Ŵ)x‖² / E‖W x‖²) on calibration inputs, where a method had them

The rows say what happened, clipped weights and dead channels included, so that no fallback goes
unseen.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterable
from typing import Any

import numpy as np


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
        tokens: input vectors that calibration counted.
        dead: input channels that were zero in all of them.
        damp: damping added to the diagonal, relative to its mean; None where there is none.
        rung: how many steps of the Cholesky ladder were climbed, 0 for none.
        scale: smallest and largest magnitude of the scales as stored, zeros left out; None without.
        seconds: spent on this layer by the method itself.
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
    tokens: int = 0
    dead: int = 0
    damp: float | None = None
    rung: int = 0
    scale: tuple[float, float] | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def weights(self) -> int:
        return int(np.prod(self.shape))

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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(found: dict[str, Any]) -> Report:
        """The report again."""
        layers = tuple(LayerReport.from_dict(row) for row in found["layers"])
        rest = {"float_layers": tuple(found["float_layers"]), "notes": tuple(found["notes"])}
        return Report(**{**found, "layers": layers, **rest})

    def __str__(self) -> str:
        rows = [HEADER, *_summary(self.layers), *self._worst()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
        lines = [self._title()]
        for row in rows:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines + [f"· {note}" for note in self._notes()])

    def _repr_html_(self) -> str:
        short = _table(_summary(self.layers))
        full = _table([_cells(row.path, [row], row.spec) for row in self.layers])
        notes = "".join(f"<li>{html.escape(note)}</li>" for note in self._notes())
        return (
            f"<p>{html.escape(self._title())}</p>{short}<ul>{notes}</ul>"
            f"<details><summary>all {len(self.layers)} layers</summary>{full}</details>"
        )

    def _title(self) -> str:
        return (
            f"{self.model}: {self.method}, {self.spec}, {len(self.layers)} linears at "
            f"{self.bits_per_weight:.4g} bits per weight"
        )

    def _worst(self) -> list[tuple[str, ...]]:
        worst = sorted(self.layers, key=lambda row: -row.error)[:3]
        return [_cells(f"worst: {row.path}", [row], row.spec) for row in worst]

    def _notes(self) -> list[str]:
        notes = list(self.notes)
        if self.float_layers:
            some = ", ".join(self.float_layers[:3]) + (" …" if len(self.float_layers) > 3 else "")
            notes.append(f"{len(self.float_layers)} linears stay float: {some}")
        return notes + [f"{row.path}: {note}" for row in self.layers for note in row.notes]


HEADER = (
    "linears",
    "spec",
    "count",
    "weights",
    "bits/w",
    "error",
    "max |Δw|",
    "clipped, %",
    "loss",
)


def _summary(layers: Iterable[LayerReport]) -> list[tuple[str, ...]]:
    """One row for every kind of linear (q_proj, …) under every spec, in forward order."""
    groups: dict[tuple[str, str], list[LayerReport]] = {}
    for row in layers:
        groups.setdefault((row.path.rpartition(".")[2], row.spec), []).append(row)
    return [_cells(kind, rows, spec) for (kind, spec), rows in groups.items()]


def _cells(name: str, rows: list[LayerReport], spec: str) -> tuple[str, ...]:
    has_loss = all(row.loss is not None for row in rows)
    return (
        name,
        spec,
        str(len(rows)),
        f"{sum(row.weights for row in rows):,}",
        f"{_mean(rows, 'bits_per_weight'):.4g}",
        f"{_mean(rows, 'error'):.4f}",
        f"{max(row.max_error for row in rows):.3g}",
        f"{100 * _mean(rows, 'clipped'):.2g}",
        f"{_mean(rows, 'loss'):.4f}" if has_loss else "–",
    )


def _mean(rows: Iterable[LayerReport], field: str) -> float:
    rows = list(rows)
    total = sum(row.weights for row in rows)
    return sum(getattr(row, field) * row.weights for row in rows) / total if total else 0.0


def _table(rows: list[tuple[str, ...]]) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in HEADER)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
