"""Floats of 8, 6 and 4 bits: what rounding to them costs tensors of three kinds, and a model.

    python -m benchmarks.floats            both tables, into benchmarks/results/floats.{json,md}
    python -m benchmarks.floats --render   only floats.md, from floats.json

The first table is the relative error ‖w − ŵ‖ / ‖w‖ of 256 × 4096 numbers drawn from N(0, 1), from
Student's t with 4 degrees and from Laplace's distribution: an FP8 value is as exact at every size,
an INT8 value is not, so tails decide between them. The second is the bundled model with its linears
rounded to nearest, and with their inputs too, judged on the four bundled texts. A row that is in
floats.json under the same key (weights, recipe, text, protocol, versions) is not measured again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import qlab
from qlab.activations import Act, find, product
from qlab.cli import keep_compiled_programs
from qlab.evaluation import Evaluation, paired_difference
from qlab.evaluation.bars import with_bar
from qlab.evaluation.reference import arithmetic
from qlab.evaluation.scoring import versions
from qlab.formats import INT4
from qlab.io.atomic import atomic_file
from qlab.models.provenance import weights_hash

RESULTS = Path(__file__).resolve().parent / "results"
DRAWS = ("N(0, 1)", "Student t4", "Laplace")
SHAPE, SEED = (256, 4096), 0
TEXTS = ("english", "code", "math", "korean")
WINDOWS, CONTEXT = 16, 256


class Row(NamedTuple):
    """How numbers are rounded: a Spec, by which method, and the inputs of a linear."""

    spec: str
    method: str = "rtn"
    act: Any = None
    hyper: dict[str, Any] = {}


def _clip(spec: str) -> Row:
    return Row(spec, hyper={"mse": True})


ERRORS = {
    "INT8, a scale for a row of 4096": Row("int8_channel"),
    "INT8, groups of 128": Row("int8_g128"),
    "FP8 E4M3, one scale": Row("fp8_tensor"),
    "FP8 E4M3, a scale for a row": Row("fp8_channel"),
    "FP8 E4M3, 128 × 128": Row("fp8_block"),
    "FP8 E5M2, one scale": Row("fp8_e5m2_tensor"),
    "MXFP8 E4M3": Row("mxfp8"),
    "MXFP8 E5M2": Row("mxfp8_e5m2"),
    "INT6, groups of 64": Row("int6_g64"),
    "MXFP6 E2M3": Row("mxfp6_e2m3"),
    "MXFP6 E3M2": Row("mxfp6_e3m2"),
    "INT4, groups of 128": Row("int4_g128"),
    "INT4, groups of 128, zero point": Row("uint4_g128"),
    "INT4, groups of 32": Row("int4_g32"),
    "MXFP4 floor": Row("mxfp4"),
    "MXFP4 rceil": Row("mxfp4_rceil"),
    "MXFP4 ceil": Row("mxfp4_ceil"),
    "MXFP4 even": Row("mxfp4_even"),
    "NVFP4": Row("nvfp4"),
    "NVFP4, Four over Six": Row("nvfp4", "four_over_six"),
    "NF4": Row("nf4"),
    "NF4, double quantization": Row("nf4_double"),
    "FP4 of bitsandbytes": Row("fp4_bnb"),
    "INT3, groups of 128": Row("int3_g128"),
    "Q2_K, searched": Row("q2_k", "kquants"),
    "INT2, groups of 128": Row("int2_g128"),
    "INT2, groups of 128, clipped": _clip("int2_g128"),
    "INT2, groups of 128, zero point": Row("uint2_g128"),
    "INT2, groups of 128, zero point, clipped": _clip("uint2_g128"),
    "ternary, blocks of 256": Row("tq2_0"),
    "ternary, BitNet's mean": Row("bitnet"),
}
MODEL = {
    "float": None,
    "INT8 channel": Row("int8_channel"),
    "INT8 g128": Row("int8_g128"),
    "FP8 tensor": Row("fp8_tensor"),
    "FP8 channel": Row("fp8_channel"),
    "FP8 128 × 128": Row("fp8_block"),
    "FP8 E5M2 tensor": Row("fp8_e5m2_tensor"),
    "MXFP8": Row("mxfp8"),
    "MXFP8 E5M2": Row("mxfp8_e5m2"),
    "INT6 g64": Row("int6_g64"),
    "MXFP6 E2M3": Row("mxfp6_e2m3"),
    "MXFP6 E3M2": Row("mxfp6_e3m2"),
    "INT4 g32": Row("int4_g32"),
    "INT4 g64": Row("int4_g64"),
    "MXFP4 floor": Row("mxfp4"),
    "MXFP4 rceil": Row("mxfp4_rceil"),
    "MXFP4 ceil": Row("mxfp4_ceil"),
    "MXFP4 even": Row("mxfp4_even"),
    "NVFP4": Row("nvfp4"),
    "NVFP4 4/6": Row("nvfp4", "four_over_six"),
    "NF4": Row("nf4"),
    "NF4 double": Row("nf4_double"),
    "FP4 bitsandbytes": Row("fp4_bnb"),
    "INT2 g64": Row("int2_g64"),
    "INT2 g64 clipped": _clip("int2_g64"),
    "INT2 g64 zero point": Row("uint2_g64"),
    "INT2 g64 zero point clipped": _clip("uint2_g64"),
    "ternary 256": Row("tq2_0"),
    "W8A8 INT8 channel, token": Row("int8_channel", act="int8_token"),
    "W8A8 INT8 static": Row("int8_tensor", act="int8_static"),
    "W8A8 FP8 channel, token": Row("fp8_channel", act="fp8_token"),
    "W8A8 FP8 block, tile": Row("fp8_block", act="fp8_tile"),
    "W8A8 FP8 static": Row("fp8_tensor", act="fp8_static"),
    "W8A8 MXFP8": Row("mxfp8", act="mxfp8"),
    "W4A4 INT4 channel, token": Row("int4_channel", act="int4_token"),
    "W4A4 INT4 g32": Row("int4_g32", act=Act(qlab.Spec(INT4, 32))),
    "W4A4 MXFP4 floor": Row("mxfp4", act="mxfp4"),
    "W4A4 MXFP4 rceil": Row("mxfp4_rceil", act="mxfp4_rceil"),
    "W4A4 NVFP4": Row("nvfp4", act="nvfp4"),
    "W4A4 NVFP4 4/6": Row("nvfp4", "four_over_six", act="nvfp4"),
}
PAIRS = (  # a row, less another at as many bits
    ("FP8 channel", "INT8 channel"),
    ("MXFP8", "INT8 g128"),
    ("MXFP6 E2M3", "INT6 g64"),
    ("MXFP6 E3M2", "MXFP6 E2M3"),
    ("MXFP4 floor", "INT4 g64"),
    ("MXFP4 rceil", "MXFP4 floor"),
    ("MXFP4 ceil", "MXFP4 floor"),
    ("MXFP4 even", "MXFP4 floor"),
    ("NVFP4", "INT4 g32"),
    ("NVFP4 4/6", "NVFP4"),
    ("NF4", "NVFP4"),
    ("INT2 g64 clipped", "INT2 g64"),
    ("INT2 g64 zero point clipped", "INT2 g64 zero point"),
    ("W8A8 FP8 channel, token", "W8A8 INT8 channel, token"),
    ("W8A8 FP8 block, tile", "W8A8 FP8 channel, token"),
    ("W8A8 FP8 static", "W8A8 INT8 static"),
    ("W4A4 MXFP4 rceil", "W4A4 MXFP4 floor"),
    ("W4A4 NVFP4", "W4A4 INT4 g32"),
    ("W4A4 NVFP4 4/6", "W4A4 NVFP4"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--render", action="store_true", help="only write floats.md")
    given = parser.parse_args()
    keep_compiled_programs()
    path = RESULTS / "floats.json"
    found = json.loads(path.read_text()) if path.exists() else {"errors": {}, "model": {}}
    if not given.render:
        if found.get("versions") != versions():
            found = {"versions": versions(), "errors": errors(), "model": found["model"]}
            keep(path, found)
        measure(found, path)
    with atomic_file(RESULTS / "floats.md", overwrite=True) as sink:
        sink.write(page(found).encode())
    print(f"wrote {RESULTS / 'floats.md'}")


def keep(path: Path, found: dict[str, Any]) -> None:
    with atomic_file(path, overwrite=True) as sink:
        sink.write((json.dumps(found, indent=1, ensure_ascii=False) + "\n").encode())


# ---- tensors -------------------------------------------------------------------------------------


def draws() -> list[Any]:
    """Three tensors of SHAPE, numpy's default_rng(SEED), drawn one after the other."""
    rng = np.random.default_rng(SEED)
    drawn = rng.standard_normal(SHAPE), rng.standard_t(4, SHAPE), rng.laplace(size=SHAPE)
    return [jnp.asarray(x, jnp.float32) for x in drawn]


def relative_error(w: Any, row: Row) -> float:
    """‖w − ŵ‖ / ‖w‖ after rounding as the row says."""
    q = qlab.METHODS[row.method](w, None, qlab.SPECS[row.spec], **row.hyper)
    return float(jnp.linalg.norm(qlab.dequantize(q) - w) / jnp.linalg.norm(w))


def errors() -> dict[str, list[float]]:
    """Every row of ERRORS on every draw."""
    drawn = draws()
    return {name: [relative_error(w, row) for w in drawn] for name, row in ERRORS.items()}


# ---- the model -----------------------------------------------------------------------------------


def measure(found: dict[str, Any], path: Path) -> None:
    """The rows of MODEL that are not there yet, kept one by one."""
    model = qlab.load("tiny")
    texts = [qlab.texts(text, split) for text in TEXTS for split in ("evaluation", "calibration")]
    same = [weights_hash(model), WINDOWS, CONTEXT, SEED, arithmetic(), versions(), texts]
    for name, row in MODEL.items():
        key = hashlib.sha256(json.dumps([repr(row), same]).encode()).hexdigest()[:32]
        if found["model"].get(name, {}).get("key") == key:
            continue
        result = evaluate(model, name, row)
        found["model"][name] = {"key": key, "row": result.to_dict()}
        keep(path, found)
        print(f"{name}: KL {mean(result, 'kl')}", flush=True)


def evaluate(model: Any, name: str, row: Row | None) -> Evaluation:
    candidate = model
    if row is not None:
        static = row.act is not None and find(row.act).static
        candidate = qlab.quantize_model(
            model, row.method, row.spec, "english" if static else None, act=row.act,
            progress=False, **row.hyper,
        )  # fmt: skip
    return qlab.evaluate(
        candidate, reference=model, texts=TEXTS, tokens=WINDOWS * CONTEXT, context=CONTEXT,
        seed=SEED, name=name, progress=False,
    )  # fmt: skip


def mean(row: Evaluation, what: str) -> str:
    """The mean over the texts, whose windows are drawn apart."""
    found = [getattr(row[text], what) for text in TEXTS]
    bar = np.sqrt(sum((one.bar or 0) ** 2 for one in found)) / len(found)
    return with_bar(float(np.mean([one.value for one in found])), float(bar))


# ---- saying it -----------------------------------------------------------------------------------


def page(found: dict[str, Any]) -> str:
    """floats.md."""
    said = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [
        "# Floats of 8, 6 and 4 bits",
        "",
        "Written by `python -m benchmarks.floats`; not edited by hand. "
        f"{said}.",
        "",
        "## Tensors",
        "",
        f"‖w − ŵ‖ / ‖w‖ of {SHAPE[0]} × {SHAPE[1]} numbers, `numpy.random.default_rng({SEED})`; "
        "bits per weight without what is paid once a row or tensor. *clipped*: `rtn(…, mse=True)`.",
        "",
        "| | bits/w | " + " | ".join(DRAWS) + " |",
        "|---|--:|" + "--:|" * len(DRAWS),
    ]  # fmt: skip
    for name, values in found["errors"].items():
        bits = qlab.specs.TABLE[ERRORS[name].spec].bits
        lines.append(f"| {name} | {bits:.4g} | {' | '.join(f'{v:.4f}' for v in values)} |")
    rows = {n: Evaluation.from_dict(found["model"][n]["row"]) for n in MODEL if n in found["model"]}
    return "\n".join([*lines, "", *_model(rows), "", *_pairs(rows)]) + "\n"


def _model(rows: dict[str, Evaluation]) -> list[str]:
    """KL and bits per byte of every row."""
    lines = [
        "## The bundled model",
        "",
        f"`tiny`, all linears of the blocks; {WINDOWS} windows of {CONTEXT} tokens of the "
        f"evaluation halves of {', '.join(TEXTS)}, protocol gptq, bootstrap seed {SEED}; static "
        "ranges of inputs from the calibration half of English. ± is one standard error over "
        "windows, rows share windows. W8A8, W4A4: inputs are quantized too, and multiplied as "
        "the last column says.",
        "",
        "| | bits/w | KL, nats, mean of texts | " + " | ".join(f"KL {t}" for t in TEXTS)
        + " | bits/byte, mean | products |",
        "|---|--:|" + "--:|" * (len(TEXTS) + 2) + "---|",
    ]  # fmt: skip
    for name, one in rows.items():
        made = MODEL[name]
        bits = 32 if made is None else qlab.specs.TABLE[made.spec].bits
        how = "" if made is None or made.act is None else _product(made)
        kl = " | ".join(str(one[text].kl) for text in TEXTS)
        lines.append(
            f"| {name} | {bits:.4g} | {mean(one, 'kl')} | {kl} | {mean(one, 'bits_per_byte')} "
            f"| {how} |"
        )
    return lines


def _product(row: Row) -> str:
    return product(qlab.SPECS[row.spec], find(row.act))


def _pairs(rows: dict[str, Evaluation]) -> list[str]:
    """Differences between rows on the same windows, each text; bold beyond two bars."""
    lines = [
        "### In pairs, on the same windows",
        "",
        "Difference of the KL from the float model, nats; bold beyond two bars.",
        "",
        "| | " + " | ".join(TEXTS) + " |",
        "|---|" + "--:|" * len(TEXTS),
    ]
    for name, other in PAIRS:
        if name in rows and other in rows:
            cells = [_cell(paired_difference(rows[other], rows[name], t, of="kl")) for t in TEXTS]
            lines.append(f"| {name} less {other} | {' | '.join(cells)} |")
    return lines


def _cell(difference: Any) -> str:
    text = str(difference)
    sure = difference.bar and abs(difference.value) > 2 * difference.bar
    return f"**{text}**" if sure else text


if __name__ == "__main__":
    main()
