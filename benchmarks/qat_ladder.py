"""What training with the quantizer in the loop gains over rounding, at 2 and 3 bits, ternary and
4-bit weights with 4-bit inputs.

Every row is `tiny` quantized in one way and scored on four texts, kept as JSON under
results/qat_ladder/ and skipped when nothing it depends on has changed. A trained row read the
calibration halves of the four texts; so did a model of 8 bits, which loses nothing that is seen
here, as a control of what more training alone does. A killed training goes on from its checkpoint.

    python benchmarks/qat_ladder.py                    all of it
    python benchmarks/qat_ladder.py --row "2 bits"     rows whose names hold this
    python benchmarks/qat_ladder.py --render           only the page
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

from make_tables import RESULTS, write

import qlab
from qlab.cache import cache_dir
from qlab.cli import keep_compiled_programs
from qlab.evaluation import Evaluation, paired_difference
from qlab.evaluation.reference import arithmetic
from qlab.evaluation.scoring import versions
from qlab.io.safetensors import spec_to_json
from qlab.models.provenance import code_hash, weights_hash
from qlab.rules import absmean

JUDGED = ("english", "code", "math", "korean")
CONTEXT, WINDOWS, SEED = 256, 32, 0
TRAINING: dict[str, Any] = {"steps": 100, "batch": 8, "context": CONTEXT, "seed": SEED}
FOLDER = RESULTS / "qat_ladder"
PAGE = RESULTS / "qat_ladder.md"


class Kind(NamedTuple):
    """What is made of the model: a Spec for every linear, and how their inputs are quantized."""

    spec: qlab.Spec
    act: str | qlab.Spec | None = None


KINDS = {
    "2 bits": Kind(qlab.SPECS["uint2_g64"]),
    "3 bits": Kind(qlab.SPECS["uint3_g64"]),
    "ternary": Kind(qlab.SPECS["tq2_0"].replace(rule=absmean)),
    "W4A4": Kind(qlab.SPECS["int4_g64"], "int4_token"),
}
# LSQ's own comparison (arXiv 1902.08153, table 1): weights and inputs of equal bits, here with a
# scale a row of weights and one a sequence of inputs; PACT and LSQ learn one a layer.
EQUAL_BITS = {
    f"W{b}A{b}, a scale a row": Kind(
        qlab.Spec(qlab.FORMATS[f"INT{b}"]), qlab.Spec(qlab.FORMATS[f"INT{b}"], "tensor")
    )
    for b in (2, 3, 4)
}
# How: a method of METHODS, or settings of `qlab.qat`.
WAYS: dict[str, dict[str, Any] | str] = {
    "RTN": "rtn",
    "GPTQ": "gptq",
    "QAT, STE": {"method": "ste"},
    "QAT, STE, distilled": {"method": "ste", "teacher": True},
    "QAT, LSQ": {"method": "lsq"},
}
EQUAL_WAYS: dict[str, dict[str, Any] | str] = {
    "RTN": "rtn",
    "QAT, STE": {"method": "ste"},
    "QAT, PACT": {"method": "pact"},
    "QAT, LSQ": {"method": "lsq", "static": True},  # a learned step of the inputs too
}
FLOAT, CONTROL = "float", "8 bits, trained as long"
ROWS = {
    f"{name}, {way}": (kind, how)
    for kinds, ways in ((KINDS, WAYS), (EQUAL_BITS, EQUAL_WAYS))
    for name, kind in kinds.items()
    for way, how in ways.items()
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--row", default="", help="only rows whose names hold this")
    parser.add_argument("--render", action="store_true", help="only the page")
    given = parser.parse_args()
    keep_compiled_programs()
    if not given.render:
        measure(given.row)
    render()


# ---- one row -------------------------------------------------------------------------------------


def file_of(row: str) -> Path:
    """Where a row is kept."""
    return FOLDER / f"{row.replace(', ', '_').replace(' ', '_')}.json"


def key_of(weights: str, row: str) -> str:
    """What determines a row, hashed: if it is unchanged the row need not be measured again."""
    made: Any = TRAINING if row == CONTROL else None
    if row in ROWS:
        (spec, act), how = ROWS[row]
        made = [spec_to_json(spec), spec_to_json(act) if isinstance(act, qlab.Spec) else act, how]
        made += [TRAINING] if isinstance(how, dict) else []
    texts = [qlab.texts(text, half) for text in JUDGED for half in ("calibration", "evaluation")]
    what = [weights, row, made, WINDOWS, SEED, arithmetic(), versions(), texts]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def measure(part: str) -> None:
    """The rows that are not there yet."""
    model, began = qlab.load("tiny"), time.perf_counter()
    keys = {row: key_of(weights_hash(model), row) for row in (FLOAT, CONTROL, *ROWS) if part in row}
    there = {r: json.loads(f.read_text())["key"] for r in keys if (f := file_of(r)).exists()}
    todo = [row for row in keys if there.get(row) != keys[row]]
    # The quick ways first, of every kind; then 2 bits.
    todo.sort(key=lambda row: isinstance(ROWS[row][1], dict) if row in ROWS else row == CONTROL)
    print(f"{len(todo)} rows to measure", flush=True)
    for i, row in enumerate(todo, 1):
        place = cache_dir() / "qat_ladder" / f"{keys[row]}-{code_hash(qlab.rtn)[:8]}"
        whole, start = not place.exists(), time.perf_counter()
        candidate, cost = made(model, row, place)
        if whole:  # of a run that went on from a checkpoint only the end was timed
            cost["seconds"] = round(time.perf_counter() - start, 1)
        found = scored(candidate, model, row)
        write(file_of(row), json.dumps({"key": keys[row], "cost": cost, "row": found.to_dict()}))
        shutil.rmtree(place, ignore_errors=True)
        spent = (time.perf_counter() - began) / 60
        left = spent / i * (len(todo) - i)
        print(f"{i}/{len(todo)}: {row} done, {spent:.1f} min, {left:.1f} min to go", flush=True)


def made(model: Any, row: str, place: Path) -> tuple[Any, dict[str, Any]]:
    """The model of a row, and what it cost."""
    if row == FLOAT:
        return model, {}
    if row == CONTROL:
        q = qlab.qat(model, "int8_channel", JUDGED, checkpoint=place, **TRAINING)
        return q, trained(q)
    (spec, act), how = ROWS[row]
    if isinstance(how, dict):
        how = {**how, "teacher": model if how.get("teacher") else None}
        if how.pop("static", False):
            act = qlab.Act(act, static=True)
        q = qlab.qat(model, spec, JUDGED, act=act, checkpoint=place, **how, **TRAINING)
        return q, trained(q)
    batches = None
    if how == "gptq":
        batches = qlab.calibration_batches(model, JUDGED, 16_384, CONTEXT, SEED)
    q = qlab.quantize_model(model, how, spec, batches, act=act, held_out=0.0)
    return q, {} if batches is None else {"tokens": int(batches.count)}


def trained(q: Any) -> dict[str, Any]:
    """Tokens and losses of a training run."""
    facts = q.label.provenance
    return {"tokens": facts["tokens"], "loss": facts["loss"]}


def scored(candidate: Any, model: Any, row: str) -> Evaluation:
    """A model on the evaluation halves of the four texts."""
    return qlab.evaluate(
        candidate,
        reference=model,
        texts=JUDGED,
        tokens=WINDOWS * CONTEXT,
        context=CONTEXT,
        seed=SEED,
        name=row,
        progress=False,
    )


# ---- the page ------------------------------------------------------------------------------------

Found = dict[str, tuple[Evaluation, dict[str, Any]]]  # row -> (its scores, what it cost)


def rows_there() -> Found:
    """The rows there are."""
    found: Found = {}
    for row in (FLOAT, CONTROL, *ROWS):
        if (file := file_of(row)).exists():
            kept = json.loads(file.read_text())
            found[row] = Evaluation.from_dict(kept["row"]), kept["cost"]
    if found:
        qlab.compare([one for one, _ in found.values()], show=False)  # refuses unlike rows
    return found


def render() -> None:
    """results/qat_ladder.md from the rows alone."""
    found = rows_there()
    write(PAGE, page(found))
    print(f"wrote {PAGE.name}, {len(found)} rows")


def page(found: Found) -> str:
    """The whole page."""
    t = TRAINING
    said = ", ".join(f"{name} {version}" for name, version in versions().items())
    specs = "; ".join(f"{name}: {_named(kind)}" for name, kind in KINDS.items())
    own = {row: kept for row, kept in found.items() if not row.startswith(tuple(EQUAL_BITS))}
    parts = [
        "# Training with the quantizer in the loop",
        "",
        "Written by `python benchmarks/qat_ladder.py`; not edited by hand. The model is `tiny`, "
        f"its linears only. {specs}. Training: {t['steps']} steps of {t['batch']} sequences of "
        f"{t['context']} tokens from the calibration halves of {', '.join(JUDGED)}, float32, "
        "AdamW, cosine, the library's rates; it moves embedding and norms too. "
        f"Row `{CONTROL}` (`int8_channel`) shows what more training does "
        f"without any loss of bits. Judged on {WINDOWS} windows of {CONTEXT} tokens of each "
        f"evaluation half, protocol gptq, seed {SEED}. ± is one standard error by bootstrap over "
        "windows; of differences, over differences window by window; bold: beyond two of them. "
        "One run a row: the bars do not count how another seed would train. KL is from the float "
        "model as it was before any training: a model that was trained on and became better moves "
        f"away from it too. Seconds are of a shared two-core machine. {said}.",
        "",
    ]
    for title, key in (("Bits per byte", "bits_per_byte"), ("KL from the float model", "kl")):
        parts += [f"## {title}", "", *_scores(own, key), ""]
    lacking = [row for row in (FLOAT, CONTROL, *ROWS) if row not in found]
    lacking = [row for row in lacking if not row.startswith(tuple(EQUAL_BITS))]
    if lacking:
        parts += ["Not measured yet: " + "; ".join(lacking) + ".", ""]
    parts += [
        "## In pairs: nats per token, less the other row's; below 0 is better",
        "",
        *_pairs(found),
        "",
        *_equal(found),
    ]
    return "\n".join(parts)


def _named(kind: Kind) -> str:
    spec = qlab.specs.name_of(kind.spec)
    if kind.spec.rule is absmean:
        spec = "`tq2_0` with the rule absmean"
    return f"`{spec}`".replace("``", "`") + (f", inputs `{kind.act}`" if kind.act else "")


def _scores(found: Found, key: str) -> list[str]:
    head = "| row | bits/w | " + " | ".join(JUDGED) + " | tokens | seconds |"
    lines = [head, "|---|---:|" + "---:|" * (len(JUDGED) + 2)]
    for row, (one, cost) in found.items():
        values = [getattr(one[text], key) for text in JUDGED]
        cells = ["" if v is None else str(v) for v in values]
        tokens = f"{cost['tokens']:,}" if "tokens" in cost else ""
        seconds = f"{cost['seconds']:.0f}" if "seconds" in cost else ""
        bits = f"{one.size.linears.bits_per_weight:.2f}"
        lines.append(f"| {row} | {bits} | {' | '.join(cells)} | {tokens} | {seconds} |")
    return lines


def _equal(found: Found) -> list[str]:
    """The table in the shape of LSQ's, or which rows it lacks."""
    lines = [
        "## Weights and inputs of equal bits, in the shape of LSQ's table 1",
        "",
        "Bits per byte on English text, `tiny`, the training above: a language model trained for a "
        "minute and no ResNet-18 on ImageNet. A scale a row of weights; of inputs one a sequence "
        "(RTN, and STE, which stands in DoReFa's place), a learned clip (PACT) or a learned step "
        "(LSQ) a layer. A learned clip begins at the largest input of 16 sequences, a learned step "
        "at 2·mean|x|/√Q_P, and both move by at most 0.3 % a training step: from the largest input "
        "of a language model, an outlier, that is far to go in 100 steps.",
        "",
        "| | W2A2 | W3A3 | W4A4 |",
        "|---|---:|---:|---:|",
    ]
    lacking = []
    for way in EQUAL_WAYS:
        cells = []
        for name in EQUAL_BITS:
            row = f"{name}, {way}"
            lacking += [] if row in found else [row]
            cells.append(str(found[row][0]["english"].bits_per_byte) if row in found else "")
        lines.append(f"| {way} | {' | '.join(cells)} |")
    if lacking:
        lines += ["", "Not measured yet: " + "; ".join(lacking) + "."]
    return [*lines, ""]


def _pairs(found: Found) -> list[str]:
    """The control against float, which is what the training alone does; then of every kind each
    trained row against GPTQ, and against plain STE.
    """
    lines = ["| | " + " | ".join(JUDGED) + " |", "|---|" + "---:|" * len(JUDGED)]
    wanted = [(CONTROL, FLOAT)]
    wanted += [(f"{k}, {way}", f"{k}, GPTQ") for k in KINDS for way in WAYS if "QAT" in way]
    wanted += [(f"{k}, {way}", f"{k}, QAT, STE") for k in KINDS for way in list(WAYS)[3:]]
    for row, other in wanted:
        if row in found and other in found:
            cells = []
            for text in JUDGED:
                less = paired_difference(found[other][0], found[row][0], text)
                clear = less.bar is not None and abs(less.value) > 2 * less.bar
                cells.append(f"**{less}**" if clear else str(less))
            lines.append(f"| {row}, less {other.split(', ', 1)[-1]} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
