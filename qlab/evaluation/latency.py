"""What a bench found: seconds of every round, the bytes and operations behind them, the machine's
own speeds in the same rounds, and the table of it.

A number of the table is a median over rounds, its spread their least and largest; the roof is the
best round, because it is what can be reached. Two models are compared round by round, so that what
else the machine did meets both. Not here: measuring (`bench`).
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qlab.evaluation.roofline import Load, Roof
from qlab.evaluation.shapes import Shape
from qlab.evaluation.shown import as_text, html_row, html_table, print_table
from qlab.io.atomic import atomic_file
from qlab.suggest import counted, near

CHANCE = 0.05  # that any of equal models is told apart
GROUPS = (("", 2), ("prompt", 4), ("decode", 8))  # heads over the table's columns
COLUMNS = (
    "model",
    "batch",
    "first token, ms",
    "tokens/s",
    "GFLOP/s",
    "of roof",
    "tokens/s",
    "least–most",
    "× first",
    "MB a step",
    "GB/s",
    "GFLOP/s",
    "of roof",
    "bound by",
)


@dataclasses.dataclass(frozen=True)
class Speeds:
    """The machine itself, measured in the same rounds as the models.

    Attributes:
        bandwidth: bytes a second of an array scaled in place, read and written, each round.
        peaks: dtype of a product -> operations a second of a large square one, each round.
    """

    bandwidth: tuple[float, ...]
    peaks: dict[str, tuple[float, ...]]

    def roof(self, dtype: str) -> Roof:
        """The roofline for products of a dtype: the best round of each.

        Raises:
            ValueError: no product of that dtype was measured.
        """
        if dtype not in self.peaks:
            raise ValueError(f"no products of {dtype!r} were timed: {near(dtype, self.peaks)}")
        return Roof(max(self.bandwidth), max(self.peaks[dtype]))


@dataclasses.dataclass(frozen=True)
class Speed:
    """One model at one batch.

    Attributes:
        model: its name. batch: sequences at once.
        context: tokens of each prompt.
        first: seconds from the prompt to its first new token, each round.
        step: seconds of a decode step, each round.
        prompt, decode: what the two read and multiply.
        products: dtype that most weights are multiplied in.
        shape: of the model. weight_bytes: what a step reads of its weights.
        cache_bytes: of the caches of all sequences, with their room.
        notes: what a reader of its numbers must know.
    """

    model: str
    batch: int
    context: int
    first: tuple[float, ...]
    step: tuple[float, ...]
    prompt: Load
    decode: Load
    products: str
    shape: Shape
    weight_bytes: int
    cache_bytes: int
    notes: tuple[str, ...] = ()

    @property
    def first_token(self) -> float:
        """Median seconds from the prompt to its first new token."""
        return statistics.median(self.first)

    @property
    def seconds(self) -> float:
        """Median seconds of a decode step."""
        return statistics.median(self.step)

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all sequences together."""
        return self.batch / self.seconds

    @property
    def prompt_tokens_per_second(self) -> float:
        """Prompt tokens of all sequences together."""
        return self.batch * self.context / self.first_token

    @property
    def bytes_per_second(self) -> float:
        """Weights and cache over the time of a decode step."""
        return self.decode.bytes / self.seconds

    @property
    def spread(self) -> tuple[float, float]:
        """Tokens/s of the slowest and of the fastest round."""
        return self.batch / max(self.step), self.batch / min(self.step)


@dataclasses.dataclass(frozen=True)
class Bench:
    """A table of speeds; shows itself in a notebook, `print` it elsewhere.

    Attributes:
        rows: every model at every batch.
        speeds: of the machine.
        context, new_tokens: of every sequence. rounds: how often everything was timed.
        device, cores, load: where, and how busy it was at the end. versions: of what computed.

    Example:
        >>> found = qlab.bench(qlab.load("tiny"), batch=[1, 4])   # doctest: +SKIP
        >>> print(found["tiny", 4].tokens_per_second)             # doctest: +SKIP
    """

    rows: tuple[Speed, ...]
    speeds: Speeds
    context: int
    new_tokens: int
    rounds: int
    device: str
    cores: int
    load: float
    versions: dict[str, str]

    def __getitem__(self, at: tuple[str, int]) -> Speed:
        for row in self.rows:
            if (row.model, row.batch) == at:
                return row
        known = ", ".join(f"({row.model!r}, {row.batch})" for row in self.rows)
        raise KeyError(f"no row {at!r} here: there are {known}")

    @property
    def models(self) -> tuple[str, ...]:
        """Names, in order."""
        return tuple(dict.fromkeys(row.model for row in self.rows))

    def roof(self, row: Speed) -> Roof:
        """The machine as that row uses it."""
        return self.speeds.roof(row.products)

    def ratios(self, row: Speed) -> tuple[float, ...]:
        """How many times faster than the first model at that batch a decode step was, by round."""
        first = self[self.models[0], row.batch]
        return tuple(a / b for a, b in zip(first.step, row.step, strict=True))

    def lines(self) -> list[tuple[str, ...]]:
        """The cells of every row, as COLUMNS."""
        return [self._cells(row) for row in self.rows]

    def _cells(self, row: Speed) -> tuple[str, ...]:
        roof, low_high = self.roof(row), row.spread
        return (
            row.model,
            f"{row.batch}",
            _figures(1e3 * row.first_token),
            _figures(row.prompt_tokens_per_second),
            _figures(row.prompt.operations / row.first_token / 1e9),
            f"{row.prompt.seconds(roof) / row.first_token:.0%}",
            _figures(row.tokens_per_second),
            "–".join(_figures(value) for value in low_high),
            f"{statistics.median(self.ratios(row)):.2f}",
            _figures(row.decode.bytes / 1e6),
            _figures(row.bytes_per_second / 1e9),
            _figures(row.decode.operations / row.seconds / 1e9),
            f"{row.decode.seconds(roof) / row.seconds:.0%}",
            row.decode.bound(roof),
        )

    def notes(self) -> list[str]:
        """What a reader must know: the machine, the rounds, who is ahead, every row's own notes."""
        peaks = ", ".join(
            f"{dtype} {_figures(self.speeds.roof(dtype).peak / 1e9)} G/s"
            for dtype in self.speeds.peaks
        )
        bandwidth = _figures(max(self.speeds.bandwidth) / 1e9)
        found = [
            f"measured beside the models, the best rounds: memory {bandwidth} GB/s (an array "
            f"scaled in place, read and written), products of {peaks}; “of roof” is the least time "
            "that these allow over the time taken.",
            f"{counted(self.context, 'token')} of prompt, then {counted(self.new_tokens, 'step')} "
            f"of decode; medians of {counted(self.rounds, 'round')} through all rows in turn; "
            f"{self.device}, {counted(self.cores, 'core')}, load {self.load:.1f}, "
            f"jax {self.versions['jax']}.",
            *self.verdicts(),
            *self._above(),
        ]
        for row in self.rows:
            found += [note for note in row.notes if note not in found]
        return found

    def verdicts(self) -> list[str]:
        """For every model but the first: at which batches it decoded faster in every round, and
        at which slower. What differs between rounds is left out. Rounds that are too few say so:
        equal models agree in all of n with a chance of 2 · 0.5ⁿ, at every batch again.
        """
        first, said = self.models[0], []
        compared = sum(row.model != first for row in self.rows)
        enough = next(n for n in itertools.count(1) if 2 * 0.5**n * compared < CHANCE)
        if compared and self.rounds < enough:
            return [
                f"{counted(self.rounds, 'round')} can tell no difference from chance in "
                f"{counted(compared, 'comparison')} with {first}; more rounds: {enough}."
            ]
        for name in self.models[1:]:
            words = []
            rows = [row for row in self.rows if row.model == name]
            for what, better in (("faster", True), ("slower", False)):
                some = [
                    r for r in rows if all((x > 1) is better and x != 1 for x in self.ratios(r))
                ]
                if some:
                    batches = ", ".join(str(row.batch) for row in some)
                    words.append(f"{what} at batch {batches}")
            told = ", ".join(words) or "neither faster nor slower at any batch"
            said.append(f"{name} against {first}, in all {self.rounds} rounds: {told}.")
        return said

    def _above(self) -> list[str]:
        """A note on what was faster than its roof, if anything."""
        found = []
        for row in self.rows:
            roof = self.roof(row)
            for what, load, taken in (("prompt", row.prompt, row.first_token),
                                      ("decode", row.decode, row.seconds)):  # fmt: skip
                if round(100 * load.seconds(roof) / taken) > 100:
                    found.append(f"{row.model} × {row.batch}, {what}")
        if not found:
            return []
        return [
            f"over 100 % of the roof: {'; '.join(found)}. What stays in a cache is read faster "
            "than memory, and a disturbed probe puts the roof too low."
        ]

    def figure(self, **settings: Any) -> Any:
        """Rooflines and tokens/s as a picture: `qlab.plots.latency`."""
        plots = importlib.import_module("qlab.plots")  # drawn above, and only when asked for
        return plots.latency(self, **settings)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings: what `json.dumps` takes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Bench:
        """The reverse of `to_dict`, also after JSON."""
        rows = tuple(_revived(row) for row in found["rows"])
        peaks = {dtype: tuple(each) for dtype, each in found["speeds"]["peaks"].items()}
        speeds = Speeds(tuple(found["speeds"]["bandwidth"]), peaks)
        return cls(**{**found, "rows": rows, "speeds": speeds})

    def to_json(self) -> str:
        """All of it as JSON."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)

    def save(self, path: str | os.PathLike) -> None:
        """Writes `to_json()` to a file, whole or not at all.

        Raises:
            ValueError: a name that ends in something other than `.json`.
        """
        if Path(path).suffix not in ("", ".json"):
            raise ValueError(
                f"{os.fspath(path)!r}: save writes .json; .figure().savefig draws a picture"
            )
        with atomic_file(path, overwrite=True) as sink:
            sink.write(self.to_json().encode())

    def to_pandas(self) -> Any:
        """One line a row; medians, and the least and largest round."""
        import pandas as pd

        return pd.DataFrame([_record(self, row) for row in self.rows])

    def print(self, console: Any = None) -> None:
        """Prints to a rich console: the table is never squeezed, notes are wrapped."""
        print_table(_table(self), self.notes(), console)

    def __str__(self) -> str:
        return as_text(self.print)

    def __repr__(self) -> str:
        said = "; ".join(
            f"{r.model} × {r.batch}: {_figures(r.tokens_per_second)} tokens/s" for r in self.rows
        )
        return f"<Bench on {self.device}: {said}>"

    def _repr_html_(self) -> str:
        spans = "".join(
            f'<th colspan="{count}" style="text-align:center">{name}</th>' for name, count in GROUPS
        )
        body = [html_row(cells) for cells in self.lines()]
        return html_table(COLUMNS, body, self.notes(), f"<tr>{spans}</tr>")


def _figures(value: float) -> str:
    """Three figures without a power of ten: `0.0412`, `12.3`, `4,120`."""
    if not value:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"


def _record(bench: Bench, row: Speed) -> dict[str, Any]:
    roof, (low, high) = bench.roof(row), row.spread
    return {
        "model": row.model,
        "batch": row.batch,
        "first_token_s": row.first_token,
        "prompt_tokens_per_s": row.prompt_tokens_per_second,
        "prompt_flop_per_s": row.prompt.operations / row.first_token,
        "prompt_of_roof": row.prompt.seconds(roof) / row.first_token,
        "tokens_per_s": row.tokens_per_second,
        "tokens_per_s_least": low,
        "tokens_per_s_most": high,
        "times_first": statistics.median(bench.ratios(row)),
        "bytes_a_step": row.decode.bytes,
        "bytes_per_s": row.bytes_per_second,
        "flop_per_s": row.decode.operations / row.seconds,
        "of_roof": row.decode.seconds(roof) / row.seconds,
        "bound_by": row.decode.bound(roof),
        "products": row.products,
    }


def _revived(row: dict[str, Any]) -> Speed:
    loads = {name: Load(**row[name]) for name in ("prompt", "decode")}
    rounds = {name: tuple(row[name]) for name in ("first", "step", "notes")}
    return Speed(**{**row, **loads, **rounds, "shape": Shape(**row["shape"])})


def _table(bench: Bench) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    groups: Sequence[str] = [name for name, count in GROUPS for _ in range(count)]
    for i, (group, column) in enumerate(zip(groups, COLUMNS, strict=True)):
        head = f"{group if group not in groups[:i] else ''}\n{column}"
        table.add_column(head, justify="left" if i == 0 else "right", no_wrap=True)
    for cells in bench.lines():
        table.add_row(*cells)
    return table
