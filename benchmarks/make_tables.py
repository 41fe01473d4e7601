"""`make tables`: what each method costs, on real models and four texts, with error bars.

Resumable: every finished row (`table_rows.py` lists them) is a JSON file under results/tables/,
skipped when its key (weights, text, protocol, versions) is the same. Then results/tables.md is
written from those files alone.

    python benchmarks/make_tables.py                      everything
    python benchmarks/make_tables.py --model tiny         one model
    python benchmarks/make_tables.py --table GPTQ         one table
    python benchmarks/make_tables.py --render             only tables.md, from what is there
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from table_rows import CALIBRATION, FEWER, FLOOR, MODELS, ROWS, SEED, TABLES, TEXTS, Row, Table

import qlab
from qlab.cli import keep_compiled_programs
from qlab.evaluation import Comparison, Evaluation
from qlab.evaluation.reference import arithmetic
from qlab.evaluation.scoring import versions
from qlab.io.safetensors import spec_to_json
from qlab.models.provenance import weights_hash
from qlab.specs import name_of

RESULTS = Path(__file__).resolve().parent / "results"
CONTEXT = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", action="append", choices=list(MODELS), help="default: all")
    parser.add_argument("--windows", type=int, help="of every text; default: 8 or 64")
    parser.add_argument("--table", action="append", choices=list(TABLES), help="default: all")
    parser.add_argument("--render", action="store_true", help="only write tables.md")
    given = parser.parse_args()
    keep_compiled_programs()
    if not given.render:
        for name in given.model or MODELS:
            tables = [TABLES[t] for t in given.table or TABLES if name in TABLES[t].models]
            rows = dict.fromkeys(row for table in tables for row in table.rows)
            measure(name, given.windows or MODELS[name].windows, list(rows))
    render()


def key_of(weights: str, model: str, name: str, tokens: int) -> str:
    """What determines a row, hashed: if it is unchanged the row need not be measured again."""
    texts = [qlab.texts(text, "evaluation") for text in TEXTS]
    row = ROWS[name]
    made: Any = None if row is None else _told(row)
    if row is not None and row.calibrated:
        calibration = {text: qlab.texts(text, "calibration") for text in TEXTS}
        made = [made, CALIBRATION | FEWER.get(model, {}), calibration]
    what = [weights, name, made, tokens, CONTEXT, SEED, arithmetic(), versions(), texts]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _told(row: Row) -> Any:
    """A row's recipe as JSON values; a named Spec by its name."""
    named = name_of(row.spec)
    if row.method == "rtn" and named in qlab.SPECS and row.act is None:
        return named
    told = [row.method, spec_to_json(row.spec), row.hyper]
    return told if row.act is None else [*told, row.act]


def measure(name: str, windows: int, rows: list[str]) -> None:
    """The rows of one model that are not there yet."""
    model = MODELS[name].load()
    weights, tokens = weights_hash(model), windows * CONTEXT
    todo = {}
    for row in rows:
        file = folder(name) / f"{row.replace(', ', '_').replace(' ', '_')}.json"
        key = key_of(weights, name, row, tokens)
        if file.exists() and json.loads(file.read_text())["key"] == key:
            print(f"{name}: {row} is there already")
        else:
            todo[row] = (file, key)
    if not todo:
        return
    rate = speed(model)
    calibrated = [row for row in todo if (found := ROWS[row]) and found.calibrated]
    total = tokens * len(TEXTS) * (len(todo) + 1) + 4 * CALIBRATION["tokens"] * len(calibrated)
    print(f"{name}: {len(todo)} rows, about {total / rate / 60:.1f} min at {rate:.0f} tokens/s")
    began = time.perf_counter()
    for i, (row, (file, key)) in enumerate(todo.items(), 1):
        result = run(model, name, row, tokens)
        write(file, {"key": key, "row": result.to_dict()})
        spent = time.perf_counter() - began
        left = spent / i * (len(todo) - i)
        print(f"{name}: {row} done, {spent / 60:.1f} min, {left / 60:.1f} min to go", flush=True)


def folder(name: str) -> Path:
    """Where the rows of a model are."""
    return RESULTS / "tables" / name.replace(" ", "_")


def speed(model: Any) -> float:
    """Tokens a second of one batch, forward and head twice: what one row costs."""
    tokens = np.zeros((4, CONTEXT), np.int32)
    both = jax.jit(lambda m, h: m.logits(h).sum())
    for _ in range(2):  # the first compiles
        began = time.perf_counter()
        hidden = model.hidden(tokens)
        for window in hidden:
            jax.block_until_ready((both(model, window), both(model, window)))
        seconds = time.perf_counter() - began
    return tokens.size / seconds


def run(model: Any, name: str, row: str, tokens: int) -> Evaluation:
    """One row: the model quantized, on four texts."""
    quiet = not sys.stderr.isatty()
    candidate, made = model, ROWS[row]
    if made is not None:
        batches = None
        if made.calibrated:
            batches = qlab.calibration_batches(model, **CALIBRATION | FEWER.get(name, {}))
        candidate = qlab.quantize_model(
            model,
            made.method,
            made.spec,
            batches,
            act=made.act,
            held_out=0.0,
            progress=not quiet,
            **made.hyper,
        )
    return qlab.evaluate(
        candidate,
        reference=model,
        texts=TEXTS,
        tokens=tokens,
        context=CONTEXT,
        batch=1 if row == FLOOR else 4,
        seed=SEED,
        name=row,
        progress=not quiet,
    )


def write(file: Path, content: dict[str, Any] | str) -> None:
    """Writes JSON or text under another name first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(file.name + ".part")
    text = content if isinstance(content, str) else json.dumps(content, indent=1) + "\n"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def render() -> None:
    """results/tables.md from the rows that are there."""
    parts = [
        "# What quantization costs",
        "",
        "Written by `make tables` (`python benchmarks/make_tables.py`); not edited by hand.",
        "",
    ]
    for title, table in TABLES.items():
        parts += [f"## {title}", "", *(f"* {note}" for note in table.notes), ""]
        for name in table.models:
            rows = stored(name, table.rows)
            if len(rows) < 2:
                continue
            written = Comparison(tuple(rows)).to_markdown().rstrip()
            said = remarks(rows) if not table.pairs else differences(rows, name, table)
            parts += [f"### {name}", "", said, written, told(rows[0]), ""]
    write(RESULTS / "tables.md", "\n".join(parts).rstrip() + "\n")
    print(f"wrote {RESULTS / 'tables.md'}")


def stored(name: str, wanted: Iterable[str]) -> list[Evaluation]:
    """The rows of one model in the order of `wanted`; unlike rows are refused by name."""
    found = {}
    for file in folder(name).glob("*.json"):
        row = Evaluation.from_dict(json.loads(file.read_text())["row"])
        found[row.name] = row
    rows = [found[row] for row in wanted if row in found]
    if rows:
        qlab.compare(rows, show=False)  # refuses, by name, what does not belong together
    return rows


def differences(rows: list[Evaluation], model: str, table: Table) -> str:
    """How the rows were calibrated, and Δ ln ppl and Δ KL in pairs on the same windows."""
    c = CALIBRATION | FEWER.get(model, {})
    by = {row.name: row for row in rows}
    lines = [
        f"* Calibration, where a method reads text: {c['tokens']:,} tokens, evenly of the "
        f"calibration halves of {', '.join(c['texts'])}, windows of {c['context']}, seed "
        f"{c['seed']}; AWQ and SmoothQuant on the float model's inputs, GPTQ (and AWQ+GPTQ) block "
        "by block on what the quantized blocks before put out.",
        "",
        "| difference in ln ppl, same windows | " + " | ".join(TEXTS) + " |",
        "|---|" + "---:|" * len(TEXTS),
    ]
    pairs = [(by[a], by[b]) for a, b in table.pairs if a in by and b in by]
    for row, other in pairs:
        cells = [_cell(qlab.evaluation.paired_difference(other, row, text)) for text in TEXTS]
        lines.append(f"| {row.name} less {other.name} | {' | '.join(cells)} |")
    claimed = [pair for pair in pairs if not pair[0].name.startswith("RTN")]  # of no paper
    worse = [line for row, other in claimed for line in _worse(row, other)]
    return "\n".join([*lines, "", *worse]) + "\n"


def _worse(row: Evaluation, other: Evaluation) -> list[str]:
    """Where a row has the higher perplexity, beyond two bars: is it farther from float too?"""
    lines = []
    for text in TEXTS:
        d = qlab.evaluation.paired_difference(other, row, text)
        if not d.bar or d.value <= 2 * d.bar:
            continue
        mine, theirs = row[text].kl.value, other[text].kl.value
        why = "it is farther from it too."
        if mine < theirs:
            why = (
                "it is the closer one. Perplexity asks only for the tokens that came, and there a "
                "larger change can do less harm, or even good."
            )
        lines.append(
            f"* Not as in the paper: {row.name} on {text} has a higher perplexity than "
            f"{other.name}. Its KL from the float model is {mine:.3g}, the other's {theirs:.3g}: "
            f"{why}"
        )
    return lines


def _cell(difference: Any) -> str:
    """A difference with its bar; bold where it is more than twice the bar."""
    bar = difference.bar or float("nan")
    text = f"{difference.value:+.3f} ± {bar:.3f}"
    return f"**{text}**" if abs(difference.value) > 2 * bar else text


def remarks(rows: list[Evaluation]) -> str:
    """What happens at two bits and on Korean, in numbers."""
    by = {row.name: row for row in rows}
    lines = []
    if "INT2 g64" in by and "float" in by:
        two = [
            f"{t.name} {by['float'][t.name].ppl.value:.3g} → {t.ppl.value:.3g}, "
            f"top-1 kept {100 * t.same_top1.value:.1f} %"
            for t in by["INT2 g64"].texts
        ]
        lines.append(f"* At INT2 g64 perplexity goes: {'; '.join(two)}.")
    pairs = [
        f"{row.name} {row['korean'].kl.value / row['english'].kl.value:.2f}"
        for row in rows
        if row["english"].kl.value > 0
    ]
    lines.append(f"* KL on Korean over KL on English: {', '.join(pairs)}.")
    return "\n".join(lines) + "\n"


def told(row: Evaluation) -> str:
    """What identifies the measurement."""
    p = row.protocol
    texts = "; ".join(f"{t.name} sha256 {t.text_hash[:16]}, {t.bytes:,} bytes" for t in row.texts)
    libraries = ", ".join(f"{name} {version}" for name, version in p.versions.items())
    return (
        f"* reference weights sha256 {p.reference_hash[:16]}; {texts}.\n"
        f"* bootstrap seed {p.seed}; {libraries}.\n"
    )


if __name__ == "__main__":
    main()
