"""What composes with what: every method before every quantizer on every kind of Spec, and which
products quantized inputs take.

    python benchmarks/composition.py        writes benchmarks/results/composition.md

One real layer is quantized by each combination, and the number is its relative output error
(`qlab.output_error`) on the calibration text. Where a combination is refused, the table says so,
and the sentence of the refusal stands below it. tests/test_composition.py holds the table to what
the library does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import qlab
from qlab.activations import ACTS, product
from qlab.evaluation.scoring import versions
from qlab.io.atomic import atomic_file

OUT = Path(__file__).resolve().parent / "results" / "composition.md"
FIRST = ("", "awq", "smoothquant")  # what scales the input channels, if anything
THEN = ("rtn", "gptq", "hqq", "kquants", "four_over_six")  # what rounds them
# One Spec of every kind: what it is of, its name.
KINDS = {
    "integers": "int4_g64",
    "with a zero point": "uint4_g64",
    "a row": "int8_channel",
    "a tensor": "int4_tensor",
    "real zero": "hqq4_g64",
    "a table": "nf4",
    "floats": "mxfp4",
    "two scales": "nvfp4",
    "nested": "q4_k",
    "ternary": "tq2_0",
}
COLUMNS = (*KINDS.values(), "fp8_channel", "fp8_block", "mxfp8")  # Specs that inputs meet
PATH = "layers.3.self_attn.q_proj"
TOKENS, SEED = 4096, 0


def layer() -> tuple[Any, qlab.Stats]:
    """A real layer, (out, in), and the Stats of what it reads."""
    model = qlab.load("tiny")
    batches = qlab.calibration_batches(model, "english", tokens=TOKENS, seed=SEED)
    return qlab.models.linears(model)[PATH].weight, qlab.calibrate(model, batches)[PATH]


def combine(w: Any, stats: qlab.Stats, first: str, then: str, name: str) -> float | str:
    """The output's relative error under one combination, or the sentence that refuses it."""
    methods, spec = qlab.METHODS, qlab.SPECS[name]
    try:
        if first:
            q = methods[first](w, stats, spec, quantizer=methods[then])
        else:
            q = methods[then](w, stats, spec)
    except ValueError as error:
        return str(error)
    return float(qlab.output_error(w, qlab.dequantize(q), stats))


def measured() -> dict[tuple[str, str, str], float | str]:
    """(first, then, Spec) -> error or refusal."""
    w, stats = layer()
    return {
        (first, then, name): combine(w, stats, first, then, name)
        for first in FIRST
        for then in THEN
        for name in KINDS.values()
    }


def table(found: dict[tuple[str, str, str], float | str]) -> str:
    """The whole page."""
    said = ", ".join(f"{name} {version}" for name, version in versions().items())
    refused: dict[str, int] = {}
    lines = [
        "# What composes with what",
        "",
        "Written by `python benchmarks/composition.py`; not edited by hand. One layer of `tiny` "
        f"(`{PATH}`), the methods' own settings; relative output error on its {TOKENS:,} English "
        f"calibration tokens, seed {SEED}; {said}. A number shows that the combination runs, not "
        "which one is best: one layer, judged on the text it was calibrated on.",
        "",
        "## Methods and formats",
        "",
        "| scales | rounds | " + " | ".join(f"{k}: `{n}`" for k, n in KINDS.items()) + " |",
        "|---|---|" + "--:|" * len(KINDS),
    ]
    for first in FIRST:
        for then in THEN:
            cells = []
            for name in KINDS.values():
                cell = found[first, then, name]
                if isinstance(cell, str):
                    cells.append(f"no [{refused.setdefault(cell, len(refused) + 1)}]")
                else:
                    cells.append(f"{cell:.2%}")
            lines.append(f"| {first or '–'} | {then} | {' | '.join(cells)} |")
    lines += ["", *(f"[{number}] {sentence}  " for sentence, number in refused.items())]
    return "\n".join([*lines, "", *_products()]) + "\n"


def _products() -> list[str]:
    """Which arithmetic a quantized input and a Spec meet in."""
    lines = [
        "## Quantized inputs",
        "",
        "`int` is a product of integers summed in int32, `fp8` one of FP8 values summed in "
        "float32, block by block; `float` multiplies the quantized values as float32 (the layer "
        "report says so). With `llm_int8` channels that hold an outlier "
        "are multiplied apart, in float32.",
        "",
        "| inputs | " + " | ".join(f"`{name}`" for name in COLUMNS) + " |",
        "|---|" + "---|" * len(COLUMNS),
    ]
    for act, how in ACTS.items():
        cells = [product(qlab.SPECS[n], how) for n in COLUMNS]
        lines.append(f"| `{act}` | {' | '.join(cells)} |")
    return lines


def main() -> None:
    page = table(measured())
    with atomic_file(OUT, overwrite=True) as sink:
        sink.write(page.encode())
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
