"""Must a grid contain 0? Integer and real zero points where loud inputs meet small weights.

HQQ stores its zero point as a real number, so the levels of a group lie anywhere; an integer zero
point puts one of them on 0. On SmolLM2-135M HQQ at 3 bits is farther from the float model than
rounding with an integer zero, on all four texts (benchmarks/results/tables.md, "Weights alone"),
although its weights are closer. This script shows where that comes from: some input channels are
many times louder than the rest and their weights many times smaller. A weight near 0 that falls on
the level 0 is off by its own size at most; where no level is at 0 it is off by up to half a step,
and a loud input multiplies that.

    python experiments/zero_on_the_grid.py                                        the bundled model
    python experiments/zero_on_the_grid.py --model smollm2-135m --out smol.json

No paper prints this table; HQQ is mobiusml/hqq, Badri & Shaji 2023.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

import qlab
from qlab.cli import keep_compiled_programs
from qlab.evaluation.scoring import versions
from qlab.io.atomic import atomic_file

BITS = (4, 3, 2)
LOUD = 3  # channels counted as loud, of every linear
CONTEXT, SEED = 256, 0
COLUMNS = ("RTN, integer zero", "RTN, real zero", "HQQ, real zero")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="tiny", help="a name, hub id or folder (default: tiny)")
    parser.add_argument("--text", default="english", help="bundled domain (default: english)")
    parser.add_argument("--tokens", type=int, default=2048, help="read by Stats (default: 2048)")
    parser.add_argument("--out", type=Path, help="keep what was measured in this JSON file")
    given = parser.parse_args(arguments)
    keep_compiled_programs()
    try:
        found = measure(given.model, given.text, given.tokens)
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    if given.out:
        with atomic_file(given.out, overwrite=True) as sink:
            sink.write((json.dumps(found, indent=1) + "\n").encode())
    print(table(found))
    return 0


def measure(name: str, text: str, tokens: int) -> dict[str, Any]:
    """Every linear rounded in three ways at every width, judged by its output on the text."""
    model = qlab.load(name)
    batches = qlab.calibration_batches(model, text, tokens=tokens, context=CONTEXT, seed=SEED)
    stats = qlab.calibrate(model, batches)
    linears = qlab.models.linears(model)
    rows = []
    for path in tqdm(linears, unit="linear", disable=None):
        for bits in BITS:
            rows.append(
                {"path": path, "bits": bits, **one(linears[path].weight, stats[path], bits)}
            )
    return {
        "what": "relative output error (qlab.output_error) of every linear, groups of 64",
        "model": name, "text": text, "tokens": tokens, "context": CONTEXT, "seed": SEED,
        "loud": LOUD, "versions": versions(), "rows": rows,
    }  # fmt: skip


def one(w: Any, stats: qlab.Stats, bits: int) -> dict[str, Any]:
    """One linear: how loud and how small its loud channels are, and the errors of the grids.

    Args:
        w: (out, in) float32.
        stats: of its input.
        bits: of a code.

    Returns:
        loudness (rms of the loudest inputs over the median one), smallness (mean |w| there over all
        |w|), and in the order of COLUMNS the output's relative error, the weights' relative
        error, and the share of the diagonal error Σ h_j Σ e_ij² at the loud channels.
    """
    real, loudness = qlab.specs.hqq(bits), np.sqrt(np.diag(stats.hessian))
    loud = np.argsort(-loudness)[:LOUD]
    made = (
        qlab.rtn(w, None, qlab.specs.gptq(bits, 64, sym=False)),
        qlab.rtn(w, None, real),
        qlab.hqq(w, None, real),
    )
    output, weights, share = [], [], []
    for q in made:
        back = qlab.dequantize(q)
        squares = np.square(np.asarray(w - back, np.float64))
        each = squares.sum(0) * loudness**2  # (in,)
        output.append(float(qlab.output_error(w, back, stats)))
        weights.append(float(np.sqrt(squares.sum() / np.square(np.asarray(w)).sum())))
        share.append(float(each[loud].sum() / each.sum()))
    size = np.abs(np.asarray(w))
    return {
        "loudness": float(loudness[loud].mean() / np.median(loudness)),
        "smallness": float(size[:, loud].mean() / size.mean()),
        "output": output, "weights": weights, "share": share,
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Means over layers for each kind of linear, as Markdown."""
    kinds = dict.fromkeys(row["path"].rsplit(".", 1)[1] for row in found["rows"])
    lines = [
        f"{found['model']}, {found['text']}, {found['tokens']:,} tokens; error of the output, in "
        f"brackets the share that the {found['loud']} loudest of its inputs make of it (without "
        "cross terms); means over layers.",
        "",
        f"| linear | loud inputs / median | weights there / all | bits | {' | '.join(COLUMNS)} |",
        "|---|--:|--:|--:|" + "--:|" * len(COLUMNS),
    ]
    for kind in kinds:
        for bits in BITS:
            rows = [
                r for r in found["rows"] if r["path"].endswith(f".{kind}") and r["bits"] == bits
            ]
            mean = {k: np.mean([r[k] for r in rows], axis=0) for k in ("output", "share")}
            about = [np.mean([r[k] for r in rows]) for k in ("loudness", "smallness")]
            cells = [
                f"{e:.1%} ({s:.0%})" for e, s in zip(mean["output"], mean["share"], strict=True)
            ]
            lines.append(
                f"| {kind} | {about[0]:.1f} | {about[1]:.2f} | {bits} | {' | '.join(cells)} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
