"""The calibration lab: one method and budget, five calibration texts, four sizes; what differs?

Every row is a model quantized after reading one text and judged on all four, kept as a JSON file
under results/calibration_lab/ and skipped when nothing it depends on has changed. RTN reads no
text: its rows must be equal to the bit, or something else moves the numbers.

    python benchmarks/calibration_lab.py                         tiny, all of it
    python benchmarks/calibration_lab.py --model smollm2-135m    16 windows, 3 bits
    python benchmarks/calibration_lab.py --render                only the summaries
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from make_tables import RESULTS, write

import qlab
from qlab.cli import keep_compiled_programs
from qlab.evaluation import Evaluation, paired_difference
from qlab.evaluation.reference import arithmetic
from qlab.evaluation.scoring import versions
from qlab.models.provenance import weights_hash

JUDGED = ("english", "code", "math", "korean")
READ = {  # calibration text -> bundled domains; none: uniformly random token ids
    "english": ("english",),
    "korean": ("korean",),
    "code": ("code",),
    "mixed": JUDGED,
    "random": (),
}
WINDOWS = (4, 16, 64, 256)
CONTEXT = 128  # tokens of a calibration window: 256 of them fit every text without repetition
METHODS = ("rtn", "gptq", "awq")
BITS = (4, 3, 2)
SCORED = {"tiny": 16, "smollm2-135m": 8}  # evaluation windows of SCORED_CONTEXT tokens
SCORED_CONTEXT = 256  # tokens of an evaluation window
SEED = 0
SPEC = "qlab.specs.gptq(bits, 64, sym=False)"
SUMMARY = Path(qlab.__file__).parent / "data" / "calibration_lab.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=list(SCORED), default="tiny")
    parser.add_argument("--render", action="store_true", help="only the summaries")
    given = parser.parse_args()
    keep_compiled_programs()
    if not given.render:
        measure(given.model)
    render()


def plan(model: str) -> list[tuple[str, int, str, int]]:
    """(method, bits, text, windows) of every row; the larger model gets a cut of it."""
    sizes, bits = (WINDOWS, BITS) if model == "tiny" else ((16,), (3,))
    return [(m, b, text, n) for m in METHODS for b in bits for n in sizes for text in READ]


def batches_of(model: Any, text: str, windows: int) -> Any:
    """Calibration windows of one kind of text."""
    if READ[text]:
        return qlab.calibration_batches(model, READ[text], windows * CONTEXT, CONTEXT, SEED)
    rng = np.random.default_rng(SEED)
    return rng.integers(0, model.config.vocab_size, (windows, CONTEXT), dtype=np.int32)


def measure(name: str) -> None:
    """The rows that are not there yet."""
    model, todo, began = qlab.load(name), plan(name), time.perf_counter()
    weights = weights_hash(model)
    texts = [qlab.texts(text, split) for text in JUDGED for split in ("calibration", "evaluation")]
    for i, (method, bits, text, windows) in enumerate(todo, 1):
        row = f"{method} {bits} bit, {text}, {windows} windows"
        file = (
            RESULTS / "calibration_lab" / name / f"{row.replace(', ', '_').replace(' ', '_')}.json"
        )
        what = [weights, row, CONTEXT, SCORED[name], SEED, arithmetic(), versions(), texts]
        key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]
        if file.exists() and json.loads(file.read_text())["key"] == key:
            continue
        q = qlab.quantize_model(
            model,
            method,
            qlab.specs.gptq(bits, 64, sym=False),
            batches_of(model, text, windows),
            held_out=0.0,
            progress=False,
        )
        found = qlab.evaluate(
            q,
            reference=model,
            texts=JUDGED,
            tokens=SCORED_CONTEXT * SCORED[name],
            context=SCORED_CONTEXT,
            seed=SEED,
            name=row,
            progress=False,
        )
        write(file, {"key": key, "row": found.to_dict()})
        minutes = (time.perf_counter() - began) / 60
        print(f"{i}/{len(todo)} {row}: {minutes:.1f} min", flush=True)


# ---- what it says --------------------------------------------------------------------------------


def rows_of(name: str) -> dict[tuple[str, int, str, int], Evaluation]:
    """The rows there are, by (method, bits, text, windows)."""
    found = {}
    for method, bits, text, windows in plan(name):
        row = f"{method}_{bits}_bit_{text}_{windows}_windows.json"
        file = RESULTS / "calibration_lab" / name / row
        if file.exists():
            found[method, bits, text, windows] = Evaluation.from_dict(
                json.loads(file.read_text())["row"]
            )
    return found


def render() -> None:
    """results/calibration_lab.md and the widget's copy of the numbers, from the rows alone."""
    parts = [
        "# The calibration lab",
        "",
        "Written by `python benchmarks/calibration_lab.py`; not edited by hand. The same method, "
        f"Spec (`{SPEC}`) and number of tokens; only the text that "
        f"calibration reads differs: one domain, all four mixed evenly, or random token ids. "
        f"Windows of {CONTEXT} tokens, seed {SEED}. Judged on the evaluation halves, windows of "
        "256; ± is one standard error by bootstrap over the same windows, in pairs.",
        "",
    ]
    summary: dict[str, Any] = {}
    for name in SCORED:
        found = rows_of(name)
        if found:
            parts += [f"## {name}, {SCORED[name]} windows of every text", "", *told(found), ""]
            summary[name] = compact(found)
    write(RESULTS / "calibration_lab.md", "\n".join(parts).rstrip() + "\n")
    facts = {"written_by": "benchmarks/calibration_lab.py", "spec": SPEC, "context": CONTEXT}
    facts |= {"seed": SEED, "judged": JUDGED, "scored": SCORED, "scored_context": SCORED_CONTEXT}
    text = json.dumps(facts | {"models": summary}, separators=(",", ":"), ensure_ascii=False)
    write(SUMMARY, text.replace("},{", "},\n{") + "\n")
    print(f"wrote {RESULTS / 'calibration_lab.md'} and {SUMMARY.name}")


def compact(found: dict[tuple[str, int, str, int], Evaluation]) -> dict[str, Any]:
    """One entry a row: Δ ln ppl from the float model, KL, and Δ ln ppl from mixed text of the same
    size, each with its bar, for every judged text; RTN's rows are equal, so one for every width.
    """
    entries, rounded = [], set()
    for (method, bits, text, windows), row in found.items():
        if method == "rtn" and bits in rounded:
            continue
        entry: dict[str, Any] = {"method": method, "bits": bits}
        if method == "rtn":
            rounded.add(bits)
        else:
            entry |= {"text": text, "windows": windows}
        mixed = None if method == "rtn" else found.get((method, bits, "mixed", windows))
        for judged in JUDGED:
            score = row[judged]
            entry[judged] = {"dlnppl": _rounded(score.dlnppl), "kl": _rounded(score.kl)}
            if mixed:
                entry[judged]["mixed"] = _rounded(paired_difference(mixed, row, judged))
        entries.append(entry)
    runs, differ = moved(found)
    return {"control": {"runs": runs, "differ": differ}, "rows": entries}


def _rounded(estimate: Any) -> list[float] | None:
    if not estimate:
        return None
    return [float(f"{estimate.value:.4g}"), float(f"{estimate.bar or 0.0:.2g}")]


def told(found: dict[tuple[str, int, str, int], Evaluation]) -> list[str]:
    """The control, then for every method and bits what another domain costs, and what more text
    gains.
    """
    lines = [control(found), ""]
    for method, bits in dict.fromkeys((m, b) for m, b, _, _ in found if m != "rtn"):
        sizes = sorted({n for m, b, _, n in found if (m, b) == (method, bits)})
        lines += [
            f"### {method}, {bits} bits",
            "",
            f"Δ ln ppl from calibration on mixed text of the same size ({sizes[-1]} windows):",
            "",
            "| calibrated on | " + " | ".join(f"judged on {t}" for t in JUDGED) + " |",
            "|---|" + "---:|" * len(JUDGED),
        ]
        for text in READ:
            cells = [_against(found, (method, bits, text, sizes[-1]), t, "mixed") for t in JUDGED]
            lines.append(f"| {text} | {' | '.join(cells)} |")
        if len(sizes) > 1:
            lines += ["", *_by_size(found, method, bits, sizes)]
        lines.append("")
    return lines


def _by_size(found: dict, method: str, bits: int, sizes: list[int]) -> list[str]:
    """Mean KL over the judged texts, by size and calibration text."""
    lines = [
        "KL from the float model, mean over the four judged texts:",
        "",
        "| calibrated on | " + " | ".join(f"{n} windows" for n in sizes) + " |",
        "|---|" + "---:|" * len(sizes),
    ]
    for text in READ:
        cells = []
        for n in sizes:
            row = found.get((method, bits, text, n))
            kl = [row[t].kl.value for t in JUDGED] if row else []
            cells.append(f"{np.mean(kl):.4g}" if kl else "–")
        lines.append(f"| {text} | {' | '.join(cells)} |")
    rtn = next((row for (m, b, _, _), row in found.items() if (m, b) == ("rtn", bits)), None)
    if rtn is not None:
        kl = np.mean([rtn[t].kl.value for t in JUDGED])
        lines += ["", f"Rounding to nearest, which reads nothing: {kl:.4g}."]
    return lines


def _against(found: dict, at: tuple[str, int, str, int], judged: str, other: str) -> str:
    method, bits, _, windows = at
    row, base = found.get(at), found.get((method, bits, other, windows))
    if row is None or base is None:
        return "–"
    if row is base:
        return "0"
    d = paired_difference(base, row, judged)
    text = f"{d.value:+.3f} ± {d.bar or 0.0:.3f}"
    return f"**{text}**" if abs(d.value) > 2 * (d.bar or 0.0) else text


def moved(found: dict[tuple[str, int, str, int], Evaluation]) -> tuple[int, int]:
    """How many runs RTN had, and how many differ in a bit from the first of the same width."""
    differ, count = 0, 0
    first: dict[int, Any] = {}
    for (method, bits, _, _), row in found.items():
        if method == "rtn":
            count += 1
            scores = [text.window_nll for text in row.texts]
            differ += first.setdefault(bits, scores) != scores
    return count, differ


def control(found: dict[tuple[str, int, str, int], Evaluation]) -> str:
    """Whether RTN moved."""
    count, differ = moved(found)
    return (
        f"Control: of {count} runs of rounding to nearest, which reads no text, {differ} differ in "
        "any bit of any window's loss from the first of the same width."
    )


if __name__ == "__main__":
    main()
