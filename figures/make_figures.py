"""`make figures`: every figure of the documentation, one call of `qlab.plots` each.

    python figures/make_figures.py                 all
    python figures/make_figures.py weights grid    some

Figures that show measurements read what was measured (benchmarks/results/tables,
qlab/data/tiny/training.json).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import qlab
from qlab import demo
from qlab.evaluation import Evaluation
from qlab.models.surgery import linears

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))  # what a benchmark knows of its own numbers


def weights() -> Any:
    """A real layer's weights under three per-tensor grids."""
    model = qlab.load("tiny")
    path = "layers.2.self_attn.o_proj"
    w = np.asarray(linears(model)[path].weight, np.float32)
    levels = {}
    for bits in (8, 4, 2):
        q = qlab.quantize(w, qlab.Spec(qlab.FORMATS[f"INT{bits}"], "tensor"))
        used = np.unique(np.asarray(qlab.dequantize(q)))
        step = float(np.asarray(q.scale).reshape(()))
        top = round(float(np.abs(used).max()) / step)
        levels[f"INT{bits}"] = step * np.arange(-top, top + 1)
    return qlab.plots.weights_on_grid(w, levels, layer=f"{path} of “tiny”, one scale")


def grid() -> Any:
    """SmolLM2's published grid, found again by 4-bit blocks of 32."""
    from qlab.models import grid_study

    name = "smollm2-135m"
    rows = grid_study(qlab.load(name, as_stored=True), qlab.load(name))
    names = {"as stored": "as stored", "dithered": "dithered", "gaussian": "Gaussian"}
    curves = {shown: [row[key] for row in rows] for key, shown in names.items()}
    return qlab.plots.grid_study([int(row["bits"]) for row in rows], curves, model=name)


def training() -> Any:
    """How the bundled model came to be."""
    told = json.loads((ROOT / "qlab/data/tiny/training.json").read_text())
    loss, held = told["loss"], told["held_out"]
    names = [key for key in held[0] if key not in ("step", "tokens")] if held else []
    curves = {n: ([r["tokens"] for r in held], [r[n] for r in held]) for n in names}
    return qlab.plots.training_curve([r["tokens"] for r in loss], [r["loss"] for r in loss], curves)


def fp8_training() -> Any:
    """FP8 beside bfloat16 beside float32."""
    told = json.loads((ROOT / "benchmarks/results/fp8_training.json").read_text())
    runs: dict[str, list] = {}
    for run in sorted(told["runs"], key=lambda run: run["seed"]):
        runs.setdefault(run["arm"], []).append(run)
    return qlab.plots.training_arms(runs, title="The linears of tiny in four arithmetics")


def _rows(name: str) -> list[Evaluation]:
    """The rows of benchmarks/results/tables in the order of the table."""
    order = ["float", demo.FLOOR, *demo.ROWS]
    files = (ROOT / "benchmarks/results/tables" / name).glob("*.json")
    found = [Evaluation.from_dict(json.loads(file.read_text())["row"]) for file in files]
    if not found:
        raise ValueError(f"no measurements of {name}: run make tables first")
    return sorted(found, key=lambda row: order.index(row.name))


def _quality(name: str) -> Any:
    rows = _rows(name)
    series = {t.name: demo.quality_points(rows, t.name) for t in rows[0].texts}
    floor = {t.name: t.kl.value for row in rows if row.name == demo.FLOOR for t in row.texts}
    return qlab.plots.size_quality(series, floor=floor, model=name)


def quality_smollm2() -> Any:
    """Loss against bits on the real model, four texts."""
    return _quality("smollm2-135m")


def quality_tiny() -> Any:
    """Loss against bits on the bundled model, four texts."""
    return _quality("tiny")


def pairs() -> Any:
    """The same differences with and without pairing."""
    return qlab.plots.paired_bars(
        demo.paired_rows(_rows("smollm2-135m"), "english"), text="english"
    )


def layers() -> Any:
    """Every layer of the bundled model after GPTQ, beside rounding to nearest."""
    q = qlab.quantize_model(qlab.load("tiny"), "gptq", "int3_g64", batches="english")
    return qlab.plots.layer_losses(q.report)


def _kv() -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks/results/kv_cache.json").read_text())


def kv_losses() -> Any:
    """Loss against the bits of a quantized cache, keys by channel and by token."""
    from benchmarks import kv_cache

    name, text, found = "smollm2-135m", "english", _kv()
    study = kv_cache.STUDIES[name]
    series: dict[str, list[dict[str, Any]]] = {}
    for recipe in kv_cache.recipes(name):
        if recipe.window != 128:
            continue
        kl = kv_cache.in_bins(study, found[name][text][kv_cache.name_of(recipe)]["kl"])[-1]
        value, bar = kv_cache.ratio(kl, kv_cache.counts(study)[-1])
        point = {"bits": recipe.key_side.code_bits, "loss": value, "bar": bar}
        series.setdefault(f"keys by {recipe.keys_by}", []).append(point)
    said = f"{name}, positions {study['bins'][-2]:,}–{study['bins'][-1] - 1:,}, {text}"
    return qlab.plots.kv_losses(series, model=said)


def kv_channels() -> Any:
    """Keys and values of one layer of SmolLM2, token by channel."""
    name, found = "smollm2-135m", _kv()["why smollm2-135m"]
    return qlab.plots.kv_channels(
        found["keys"], found["values"], model=f"{name}, layer {found['layer']}", heads=3
    )


FIGURES = {
    "kv_losses": kv_losses,
    "kv_channels": kv_channels,
    "layers": layers,
    "weights": weights,
    "grid": grid,
    "training": training,
    "fp8_training": fp8_training,
    "quality_smollm2": quality_smollm2,
    "quality_tiny": quality_tiny,
    "pairs": pairs,
}


def main(names: list[str]) -> int:
    """Draws the named figures, or all; what cannot be drawn is said, and counts as a failure."""
    failed = 0
    for name in names or FIGURES:
        if name not in FIGURES:
            print(f"no figure is called {name!r}; there are {', '.join(FIGURES)}", file=sys.stderr)
            return 2
        try:
            written = qlab.plots.save(FIGURES[name](), HERE / name)
        except (OSError, ValueError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed = 1
        else:
            print(f"wrote {written[1].relative_to(ROOT)} (and .svg, .txt)", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
