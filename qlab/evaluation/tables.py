"""`compare`: rows side by side, if and only if they measured the same thing in the same way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from qlab.evaluation.bars import FEWEST_WINDOWS, Estimate, bootstrap
from qlab.evaluation.result import Evaluation, records
from qlab.evaluation.shown import as_text, html_row, html_table, print_table
from qlab.suggest import counted, near

COLUMNS = (
    "model",
    "bits/w",
    "perplexity",
    "Δ ln ppl",
    "bits/byte",
    "KL, nats",
    "KL 99.9 %",
    "top-1, %",
)


def compare(rows: Sequence[Evaluation], *, show: bool = True) -> Comparison:
    """One table of several evaluations, or a refusal.

    Args:
        rows: what `evaluate` returned, in the order to be shown.
        show: print it, unless a notebook will show it anyway.

    Raises:
        ValueError: two rows differ in text, protocol, context, number of tokens, tokenizer or
            reference; the sentence names the field and both values.

    Example:
        >>> qlab.compare([float_row, int4_row])   # doctest: +SKIP
    """
    rows = tuple(rows)
    if not rows:
        raise ValueError("no rows to compare")
    for row in rows[1:]:
        check_comparable(rows[0], row)
    table = Comparison(rows)
    if show and not _in_notebook():
        table.print()
    return table


def identity(row: Evaluation) -> dict[str, Any]:
    """What must be equal before two rows may be compared, field by field, in words."""
    p = row.protocol
    same = {
        "protocol": p.name,
        "context": p.context,
        "tokenizer": p.tokenizer[:12],
        "reference": f"{p.reference} ({p.reference_hash[:12]})" if p.reference_hash else "none",
        "texts": ", ".join(t.name for t in row.texts),
    }
    for t in row.texts:
        same[f"text {t.name!r}"] = f"sha256 {t.text_hash[:12]}"
        same[f"scored tokens of {t.name!r}"] = t.tokens
    return same


def check_comparable(a: Evaluation, b: Evaluation) -> None:
    """Raises ValueError for the first field in which two rows differ."""
    first, second = identity(a), identity(b)
    first["reference"], second["reference"] = a.protocol.reference_hash, b.protocol.reference_hash
    for field, value in first.items():
        if second.get(field) != value:
            x, y = identity(a)[field], identity(b).get(field)
            raise ValueError(
                f"{a.name!r} and {b.name!r} cannot be compared: {field} differs, {x} and {y}"
            )


def paired_difference(a: Evaluation, b: Evaluation, text: str, of: str = "nll") -> Estimate:
    """Δ ln ppl of b against a, both scored on the same windows: the bar of what they do not share.

    Args:
        a: the row that is compared with.
        b: the other.
        text: one that both were scored on.
        of: "nll", or "kl" for the difference of their divergences from the reference, which is
            known far better.

    Raises:
        ValueError: rows that are not comparable, or without what is asked for.

    Example:
        >>> paired_difference(rtn_row, gptq_row, "english")   # doctest: +SKIP
    """
    check_comparable(a, b)
    if of not in ("nll", "kl"):
        raise ValueError(f"no difference of {of!r}: {near(of, ('nll', 'kl'))}")
    x, y = (getattr(row[text], f"window_{of}") for row in (a, b))
    if x is None or y is None:
        without = (a if x is None else b).name
        raise ValueError(f"{without!r} has no {of} of single windows on {text!r}: evaluate it anew")
    difference = np.array(y) - np.array(x)
    bar = bootstrap(lambda m: m, difference, seed=a.protocol.seed)
    return Estimate(float(difference.mean()), bar)


def unpaired_difference(a: Evaluation, b: Evaluation, text: str) -> Estimate:
    """The same difference, had the two been scored on different text: √(σ_a² + σ_b²)."""
    check_comparable(a, b)
    x, y = np.array(a[text].window_nll), np.array(b[text].window_nll)
    found = [bootstrap(lambda m: m, z, seed=a.protocol.seed) for z in (x, y)]
    bars = [bar for bar in found if bar is not None]
    bar = float(np.hypot(bars[0], bars[1])) if len(bars) == 2 else None
    return Estimate(float(y.mean() - x.mean()), bar)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Comparable rows: shows itself in a notebook, `print` it elsewhere; `to_pandas`, `to_dict`."""

    rows: tuple[Evaluation, ...]

    def lines(self, text: str) -> list[tuple[str, ...]]:
        """The cells of one text's section, as COLUMNS."""
        return [_cells(row, text) for row in self.rows]

    def notes(self) -> list[str]:
        """What a reader must know: the protocol, the bars, and every model's own notes once."""
        return _notes(self.rows)

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [row.to_dict() for row in self.rows], "notes": self.notes()}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)

    def to_pandas(self) -> Any:
        import pandas as pd

        return pd.DataFrame([line for row in self.rows for line in records(row)])

    def to_markdown(self) -> str:
        """A Markdown table for each text, the notes below."""
        parts = []
        for score in self.rows[0].texts:
            parts.append(f"### {_heading(score)}\n")
            parts.append("| " + " | ".join(COLUMNS) + " |")
            parts.append("|---" + "|--:" * (len(COLUMNS) - 1) + "|")
            parts += ["| " + " | ".join(cells) + " |" for cells in self.lines(score.name)]
            parts.append("")
        return "\n".join(parts + [f"* {note}" for note in self.notes()]) + "\n"

    def print(self, console: Any = None) -> None:
        """Prints to a rich console: the table is never squeezed, notes are wrapped."""
        print_table(self._table(), self.notes(), console)

    def _table(self) -> Any:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        for i, column in enumerate(COLUMNS):
            table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
        for score in self.rows[0].texts:
            table.add_row(Text(score.name, style="bold"))
            for cells in self.lines(score.name):
                table.add_row("  " + cells[0], *cells[1:])
            table.add_section()
        return table

    def __str__(self) -> str:
        return as_text(self.print)

    def __repr__(self) -> str:
        return (
            f"<Comparison of {counted(len(self.rows), 'row')} on {identity(self.rows[0])['texts']}>"
        )

    def _repr_html_(self) -> str:
        body = []
        for score in self.rows[0].texts:
            span = f'colspan="{len(COLUMNS)}" style="text-align:left"'
            body.append(f"<tr><th {span}>{escape(_heading(score))}</th></tr>")
            body += map(html_row, self.lines(score.name))
        return html_table(COLUMNS, body, self.notes())


def _heading(score: Any) -> str:
    few = "" if score.windows >= FEWEST_WINDOWS else ", no bars: too little text"
    windows, tokens = counted(score.windows, "window"), counted(score.tokens, "token")
    return f"{score.name}: {windows}, {tokens} scored{few}"


def _cells(row: Evaluation, text: str) -> tuple[str, ...]:
    t = row[text]
    top = t.same_top1
    if top is not None:
        top = Estimate(100 * top.value, None if top.bar is None else 100 * top.bar)
    return (
        row.name,
        f"{row.size.linears.bits_per_weight:.3f}",
        str(t.ppl),
        "—" if t.dlnppl is None else str(t.dlnppl),
        str(t.bits_per_byte),
        "—" if t.kl is None else str(t.kl),
        "—" if t.kl_999 is None else f"{t.kl_999:.2g}",
        "—" if top is None else str(top),
    )


def _notes(rows: Sequence[Evaluation]) -> list[str]:
    p = rows[0].protocol
    scored = "all positions" if p.name == "gptq" else "second halves only"
    notes = [
        "; ".join(_heading(score) for score in rows[0].texts) + ".",
        f"protocol {p.name}: windows of {p.context} tokens, {scored}; "
        f"reference: {p.reference or 'none'}; tokenizer {p.tokenizer[:12]}; {p.precision}.",
        "± is one standard error by bootstrap over windows; KL, Δ ln ppl and top-1 (how "
        "often both rank the same token first) are paired with "
        "the reference, perplexity and bits/byte are not.",
    ]
    size = rows[0].size
    notes.append(
        f"bits/w counts codes, scales and offsets of the {size.linears.weights:,} weights in "
        f"linears; the embedding ({size.embedding.weights:,} weights) is apart: "
        f"{size.embedding.bits_per_weight:.3f} bits/w in {rows[0].name!r}."
    )
    whole = {row.name: row.size.whole for row in rows}
    some = [f"{name} {cost.bits_per_weight:.3f}" for name, cost in whole.items() if cost]
    if some:
        notes.append(f"bits/w of the whole model, tables and norms too: {', '.join(some)}.")
    for row in rows:
        notes += [note for note in row.notes if note not in notes]
    return notes


def _in_notebook() -> bool:
    import sys

    shell = sys.modules.get("IPython")
    here = shell.get_ipython() if shell else None
    return (
        here is not None
        and "kernel" in here.config.get("IPKernelApp", {}).get("name", "")
        or (here is not None and type(here).__name__ == "ZMQInteractiveShell")
    )
