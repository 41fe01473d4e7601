"""`make tables`: what rounding and GPTQ cost, on both models and four texts, with error bars.

Resumable: every finished row is a JSON file under results/tables/, skipped when its key (weights,
text, protocol, versions) is the same. Then results/tables.md is written from those files alone.

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
from typing import Any, NamedTuple

import jax
import numpy as np

import qlab
from qlab.cli import keep_compiled_programs
from qlab.evaluation import Comparison, Evaluation
from qlab.evaluation.reference import arithmetic
from qlab.evaluation.scoring import versions
from qlab.io.safetensors import spec_to_json
from qlab.models.provenance import weights_hash
from qlab.specs import name_of

RESULTS = Path(__file__).resolve().parent / "results"
TEXTS = ("english", "code", "math", "korean")
CONTEXT = 256
WINDOWS = {"smollm2-135m": 8, "tiny": 64}  # of every text
SEED = 0
FLOOR = "float, other batch"


class Row(NamedTuple):
    """How a row's model is made: a method of METHODS, a Spec, settings of the method."""

    method: str
    spec: qlab.Spec
    hyper: dict[str, Any] = {}


def _rtn(name: str) -> Row:
    return Row("rtn", qlab.SPECS[name])


def _gptq_rows() -> dict[str, Row]:
    """The paper's comparison on its own grid: integers with a zero point, float32 scales."""
    found = {}
    for bits in (4, 3, 2):
        for place, group in (("g64", 64), ("channel", None)):
            spec = qlab.specs.gptq(bits, group, sym=False)
            found[f"RTN {bits} bit {place}"] = Row("rtn", spec)
            found[f"GPTQ {bits} bit {place}"] = Row("gptq", spec)
            found[f"GPTQ {bits} bit {place} act-order"] = Row("gptq", spec, {"act_order": True})
    return found


# table -> its rows; the first of each table is the float model
TABLES: dict[str, dict[str, Row | None]] = {
    "Round to nearest": {
        "float": None,
        FLOOR: None,
        "INT8 channel": _rtn("int8_channel"),
        "INT4 channel": _rtn("int4_channel"),
        "INT4 g64": _rtn("int4_g64"),
        "INT4 g32": _rtn("int4_g32"),
        "INT3 g64": _rtn("int3_g64"),
        "INT2 g64": _rtn("int2_g64"),
    },
    "GPTQ": {"float": None, **_gptq_rows()},
}
ROWS: dict[str, Row | None] = {name: row for rows in TABLES.values() for name, row in rows.items()}
CALIBRATION: dict[str, Any] = {"texts": TEXTS, "tokens": 16_384, "context": 256, "seed": SEED}
FEWER = {"smollm2-135m": {"tokens": 8192}}  # twelve rows in half an hour of two cores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", action="append", choices=list(WINDOWS), help="default: both")
    parser.add_argument("--windows", type=int, help="of every text; default: 8 or 64")
    parser.add_argument("--table", action="append", choices=list(TABLES), help="default: all")
    parser.add_argument("--render", action="store_true", help="only write tables.md")
    given = parser.parse_args()
    keep_compiled_programs()
    if not given.render:
        for name in given.model or ("tiny", "smollm2-135m"):
            rows = {row: TABLES[t][row] for t in given.table or TABLES for row in TABLES[t]}
            measure(name, given.windows or WINDOWS[name], list(rows))
    render()


def key_of(weights: str, model: str, name: str, tokens: int) -> str:
    """What determines a row, hashed: if it is unchanged the row need not be measured again."""
    texts = [qlab.texts(text, "evaluation") for text in TEXTS]
    row = ROWS[name]
    made: Any = None if row is None else _told(row)
    if row is not None and row.method != "rtn":
        calibration = {text: qlab.texts(text, "calibration") for text in TEXTS}
        made = [made, CALIBRATION | FEWER.get(model, {}), calibration]
    what = [weights, name, made, tokens, CONTEXT, SEED, arithmetic(), versions(), texts]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _told(row: Row) -> Any:
    """A row's recipe as JSON values; a named Spec by its name."""
    named = name_of(row.spec)
    if row.method == "rtn" and named in qlab.SPECS:
        return named
    return [row.method, spec_to_json(row.spec), row.hyper]


def measure(name: str, windows: int, rows: list[str]) -> None:
    """The rows of one model that are not there yet."""
    model = qlab.load(name)
    weights, tokens = weights_hash(model), windows * CONTEXT
    todo = {}
    for row in rows:
        file = RESULTS / "tables" / name / f"{row.replace(', ', '_').replace(' ', '_')}.json"
        key = key_of(weights, name, row, tokens)
        if file.exists() and json.loads(file.read_text())["key"] == key:
            print(f"{name}: {row} is there already")
        else:
            todo[row] = (file, key)
    if not todo:
        return
    rate = speed(model)
    calibrated = [row for row in todo if (found := ROWS[row]) and found.method != "rtn"]
    total = tokens * len(TEXTS) * (len(todo) + 1) + 4 * CALIBRATION["tokens"] * len(calibrated)
    print(f"{name}: {len(todo)} rows, about {total / rate / 60:.1f} min at {rate:.0f} tokens/s")
    began = time.perf_counter()
    for i, (row, (file, key)) in enumerate(todo.items(), 1):
        result = run(model, row, tokens)
        write(file, {"key": key, "row": result.to_dict()})
        spent = time.perf_counter() - began
        left = spent / i * (len(todo) - i)
        print(f"{name}: {row} done, {spent / 60:.1f} min, {left / 60:.1f} min to go", flush=True)


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


def run(model: Any, row: str, tokens: int) -> Evaluation:
    """One row: the model quantized, on four texts."""
    quiet = not sys.stderr.isatty()
    candidate, made = model, ROWS[row]
    if made is not None:
        batches = None
        if made.method != "rtn":
            batches = qlab.calibration_batches(model, **CALIBRATION | FEWER.get(model.name, {}))
        candidate = qlab.quantize_model(
            model,
            made.method,
            made.spec,
            batches,
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
    for table, wanted in TABLES.items():
        parts += [f"## {table}", ""]
        for name in WINDOWS:
            rows = stored(name, wanted)
            if len(rows) < 2:
                continue
            written = Comparison(tuple(rows)).to_markdown().rstrip()
            said = remarks(rows) if table == "Round to nearest" else gptq_remarks(rows, name)
            parts += [f"### {name}", "", said, written, told(rows[0]), ""]
    write(RESULTS / "tables.md", "\n".join(parts).rstrip() + "\n")
    print(f"wrote {RESULTS / 'tables.md'}")


def stored(name: str, wanted: Iterable[str]) -> list[Evaluation]:
    """The rows of one model in the order of `wanted`; unlike rows are refused by name."""
    found = {}
    for file in (RESULTS / "tables" / name).glob("*.json"):
        row = Evaluation.from_dict(json.loads(file.read_text())["row"])
        found[row.name] = row
    rows = [found[row] for row in wanted if row in found]
    if rows:
        qlab.compare(rows, show=False)  # refuses, by name, what does not belong together
    return rows


def gptq_remarks(rows: list[Evaluation], model: str) -> str:
    """How the rows were calibrated, and Δ ln ppl in pairs: GPTQ less RTN, act-order less GPTQ."""
    c = CALIBRATION | FEWER.get(model, {})
    by = {row.name: row for row in rows}
    lines = [
        "* Integers with zero points, float32 scales: `qlab.specs.gptq(bits, group, sym=False)`.",
        f"* Calibration: {c['tokens']:,} tokens, evenly of the calibration halves of "
        f"{', '.join(c['texts'])}, windows of {c['context']}, seed {c['seed']}, block by block on "
        "what the quantized blocks before put out.",
        "",
        "| difference in ln ppl, same windows | " + " | ".join(TEXTS) + " |",
        "|---|" + "---:|" * len(TEXTS),
    ]
    for name, row in by.items():
        plain = name.removesuffix(" act-order")
        other = by.get(plain.replace("GPTQ", "RTN") if name == plain else plain)
        if name.startswith("GPTQ") and other is not None:
            cells = [_cell(qlab.evaluation.paired_difference(other, row, text)) for text in TEXTS]
            lines.append(f"| {name} less {other.name} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *_worse(by)]) + "\n"


def _worse(by: dict[str, Evaluation]) -> list[str]:
    """Where GPTQ has the higher perplexity, beyond two bars: is it farther from the float model?"""
    lines = []
    for name, row in by.items():
        other = by.get(name.replace("GPTQ", "RTN"))
        for text in TEXTS if name.startswith("GPTQ") and other is not None else ():
            d = qlab.evaluation.paired_difference(other, row, text)
            if not d.bar or d.value <= 2 * d.bar:
                continue
            mine, rounded = row[text].kl.value, other[text].kl.value
            why = "GPTQ is farther from it too."
            if mine < rounded:
                why = (
                    "GPTQ is the closer one. Perplexity asks only for the tokens that came, and "
                    "there a larger change can do less harm, or even good."
                )
            lines.append(
                f"* Not as in the paper: {name} on {text} has the higher perplexity. Its KL from "
                f"the float model is {mine:.3g}, rounding's {rounded:.3g}: {why}"
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
