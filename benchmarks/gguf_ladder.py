"""The ladder of GGUF mixtures: what every file of llama.cpp costs in bits and in quality, with an
importance matrix and without.

Every row is a file that was written, loaded again and scored on four texts, kept as JSON under
results/gguf_ladder/ and skipped when nothing it depends on has changed. What is said of the rows is
`ladder_told.py`.

    python benchmarks/gguf_ladder.py                         tiny, all of it
    python benchmarks/gguf_ladder.py --model smollm2-135m    seven files, one with a matrix too
    python benchmarks/gguf_ladder.py --render                only the summaries
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ladder_told import page, summary
from make_tables import RESULTS, write

import qlab
from qlab.cli import keep_compiled_programs
from qlab.evaluation import Evaluation
from qlab.evaluation.reference import arithmetic
from qlab.evaluation.scoring import versions
from qlab.models.export_gguf import plan_of, tensors_of, to_gguf
from qlab.models.mixtures import Row, quantizable
from qlab.models.provenance import weights_hash

JUDGED = ("english", "code", "math", "korean")
READ = ("", "english", "korean")  # what the importance matrix was made of; "": none
FILES = (
    "F32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "IQ4_NL", "IQ4_XS",
    "Q4_0", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
)  # fmt: skip
FEWER = ("Q8_0", "Q6_K", "Q4_K_M", "IQ4_XS", "Q3_K_M", "Q5_K_M", "Q2_K")  # of the larger model
CONTEXT, SEED = 256, 0
SCORED = {"tiny": 64, "smollm2-135m": 8}  # evaluation windows, of every text
COUNTED = {"tiny": 16_384, "smollm2-135m": 8_192}  # tokens of an importance matrix
FOLDER = RESULTS / "gguf_ladder"
SUMMARY = Path(qlab.__file__).parent / "data" / "gguf_ladder.json"

At = tuple[str, str]  # (mixture, text of the importance matrix)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=list(SCORED), default="tiny")
    parser.add_argument("--render", action="store_true", help="only the summaries")
    given = parser.parse_args()
    keep_compiled_programs()
    if not given.render:
        measure(given.model)
    render()


def rows_wanted(model: str) -> list[At]:
    """(mixture, imatrix) of every row; the larger model gets a cut of it."""
    if model == "tiny":
        return [(mixture, read) for mixture in FILES for read in READ]
    return [*((mixture, "") for mixture in FEWER), ("Q4_K_M", "english")]


# ---- one row -------------------------------------------------------------------------------------


def fell_back(rows: Iterable[Row]) -> float:
    """The share of the blocks' weights whose width did not allow the wanted type.

    Example:
        >>> one = Row("blk.0.attn_q.weight", (4, 576), "Q5_0", "Q4_K", 1584)
        >>> fell_back([one, Row("blk.0.ffn_down.weight", (3, 768), "Q4_K", "Q4_K", 1296)])
        0.5
    """
    blocks = [
        row for row in rows if row.name.startswith("blk.") and quantizable(row.name, row.shape)
    ]
    every = sum(row.weights for row in blocks)
    return sum(row.weights for row in blocks if row.fell_back) / every if every else 0.0


def called(at: At, rows: Iterable[Row]) -> str:
    """A row's name: the mixture, the share that is not of it, the importance matrix."""
    mixture, read = at
    share = fell_back(rows)
    parts = [mixture, f"{100 * share:.0f} % fell back" if share else ""]
    return ", ".join(filter(None, [*parts, f"imatrix {read}" if read else ""]))


def file_of(model: str, at: At) -> Path:
    """Where a row is kept."""
    return FOLDER / model / ("_".join(filter(None, at)) + ".json")


def key_of(weights: str, model: str, at: At, rows: list[Row]) -> str:
    """What determines a row, hashed: if it is unchanged the row need not be measured again."""
    texts = [qlab.texts(text, "evaluation") for text in JUDGED]
    read = [COUNTED[model], qlab.texts(at[1], "calibration")] if at[1] else None
    plan = [dataclasses.astuple(row) for row in rows]
    what = [weights, at, plan, read, SCORED[model], CONTEXT, SEED, arithmetic(), versions(), texts]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def measure(name: str) -> None:
    """The rows that are not there yet."""
    model, began = qlab.load(name), time.perf_counter()
    weights, (config, tensors) = weights_hash(model), tensors_of(model)
    todo = {}
    for at in rows_wanted(name):
        rows = plan_of(tensors, config, at[0], bool(at[1]))
        key, file = key_of(weights, name, at, rows), file_of(name, at)
        if not file.exists() or json.loads(file.read_text())["key"] != key:
            todo[at] = key
    print(f"{name}: {len(todo)} rows to measure", flush=True)
    matrix = functools.cache(lambda read: importance(model, name, read))
    for i, (at, key) in enumerate(todo.items(), 1):
        found = run(model, name, at, matrix(at[1]) if at[1] else None)
        write(file_of(name, at), json.dumps({"key": key, **found}) + "\n")
        spent = (time.perf_counter() - began) / 60
        left = spent / i * (len(todo) - i)
        said = f"{name} {i}/{len(todo)}: {found['row']['name']}"
        print(f"{said} done, {spent:.1f} min, {left:.1f} min to go", flush=True)


def importance(model: Any, name: str, read: str) -> Any:
    """The importance matrix of one text's calibration half."""
    batches = qlab.calibration_batches(model, (read,), COUNTED[name], CONTEXT, SEED)
    return qlab.imatrix(model, batches, progress=False)


def run(model: Any, name: str, at: At, matrix: Any) -> dict[str, Any]:
    """One row: the file written, loaded again and scored."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.gguf"
        rows = to_gguf(model, path, at[0], imatrix=matrix)
        size, loaded = path.stat().st_size, qlab.load(path)
    label = called(at, rows)
    found = _twin(name, at[0], weights_hash(loaded))
    found = dataclasses.replace(found, name=label) if found else scored(loaded, model, name, label)
    plan = [[row.name, list(row.shape), row.type, row.wanted, row.bytes] for row in rows]
    return {"row": found.to_dict(), "file_bytes": size, "plan": plan}


def scored(candidate: Any, model: Any, name: str, label: str) -> Evaluation:
    """A model on the four texts."""
    return qlab.evaluate(
        candidate,
        reference=model,
        texts=JUDGED,
        tokens=SCORED[name] * CONTEXT,
        context=CONTEXT,
        seed=SEED,
        name=label,
        progress=False,
    )


def _twin(name: str, mixture: str, weights: str) -> Evaluation | None:
    """The same mixture without a matrix, if the weights are the same to the bit (F16, Q8_0)."""
    file = file_of(name, (mixture, ""))
    found = read_row(file).row if file.exists() else None
    return found if found is not None and found.weights_hash == weights else None


# ---- all rows ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Measured:
    """A row as it was kept.

    Attributes:
        row: its scores. file_bytes: of the whole file. plan: every tensor.
    """

    row: Evaluation
    file_bytes: int
    plan: tuple[Row, ...]

    @property
    def bytes(self) -> int:
        """Of all tensors; what a file has beyond them is its vocabulary and metadata."""
        return sum(row.bytes for row in self.plan)

    @property
    def bits(self) -> float:
        """Bits per weight of all tensors."""
        return 8 * self.bytes / sum(row.weights for row in self.plan)


def read_row(file: Path) -> Measured:
    """A row from its file."""
    kept = json.loads(file.read_text())
    plan = tuple(
        Row(n, tuple(shape), t, wanted, size) for n, shape, t, wanted, size in kept["plan"]
    )
    return Measured(Evaluation.from_dict(kept["row"]), kept["file_bytes"], plan)


def rows_of(model: str) -> dict[At, Measured]:
    """The rows there are, by (mixture, imatrix), the largest file first."""
    files = {at: file_of(model, at) for at in rows_wanted(model)}
    found = {at: read_row(file) for at, file in files.items() if file.exists()}
    if found:
        qlab.compare([one.row for one in found.values()], show=False)  # refuses unlike rows
    return dict(sorted(found.items(), key=lambda item: -item[1].bits))


def render() -> None:
    """results/gguf_ladder.md and the widget's copy of the numbers, from the rows alone."""
    found = {name: rows for name in SCORED if (rows := rows_of(name))}
    facts = {"judged": JUDGED, "scored": SCORED, "context": CONTEXT, "seed": SEED}
    facts |= {"counted": COUNTED}
    write(RESULTS / "gguf_ladder.md", page(found, facts))
    head = {"written_by": "benchmarks/gguf_ladder.py", **facts}
    models = {name: summary(rows, JUDGED) for name, rows in found.items()}
    text = json.dumps(head | {"models": models}, separators=(",", ":"), ensure_ascii=False)
    write(SUMMARY, text.replace("},{", "},\n{") + "\n")
    print(f"wrote {RESULTS / 'gguf_ladder.md'} and {SUMMARY.name}")


if __name__ == "__main__":
    main()
