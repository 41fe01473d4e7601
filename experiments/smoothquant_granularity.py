"""SmoothQuant's first table and its α: what INT8 inputs cost by granularity, and after smoothing.

Xiao et al. 2022, arXiv 2211.10438, Table 1 (accuracy of OPT by the granularity of INT8 inputs) and
the sweep of α. Here weights are INT8 per tensor, inputs of all linears of the blocks INT8, and
perplexity and the divergence from the float model are measured, with int8 × int8 → int32 products
wherever the granularity admits them (per channel of the input it does not: that is the table's
point).

    python experiments/smoothquant_granularity.py                      OPT-1.3B from the hub
    python experiments/smoothquant_granularity.py --model outliers     the bundled model with them
    python experiments/smoothquant_granularity.py --model smollm2-135m --tokens 2048 --out smol.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qlab
from qlab.activations import Act, find, integer
from qlab.cli import keep_compiled_programs
from qlab.formats import INT8
from qlab.methods.smoothquant import LEVELS
from qlab.models import with_outliers
from qlab.suggest import counted

# The paper's numbers, as it prints them: average accuracy in percent, OPT-6.7B and OPT-13B. None of
# them is measured here, and they are no perplexities.
PAPER = {
    "float": ("64.9", "65.6"),
    "per tensor": ("39.9", "33.0"),
    "per token": ("42.5", "33.0"),
    "per channel": ("64.8", "65.6"),
}
MODEL = "facebook/opt-1.3b"
ALPHAS = tuple(round(0.1 * i, 1) for i in range(11))
WEIGHTS, STATIC = LEVELS["O3"]  # INT8 per tensor; one static scale for the inputs


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--model", default=MODEL,
        help='"outliers" (the bundled model with constructed ones), a bundled name, a hub id or a '
        "folder (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--text", default="english", help="bundled domain (default: %(default)s)")
    parser.add_argument("--calibration", type=int, default=8192, help="tokens (default: 8192)")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens scored (default: 8192)")
    parser.add_argument("--context", type=int, default=256, help="in a window (default: 256)")
    parser.add_argument("--alphas", nargs="*", type=float, default=ALPHAS)
    parser.add_argument(
        "--per-token", default="", metavar="GLOB",
        help='linears whose inputs get a scale for each token in the rows "static" and "α": those '
        "with outliers that no norm feeds, such as *.down_proj",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="keep what was measured in this JSON file")
    given = parser.parse_args(arguments)
    keep_compiled_programs()
    try:
        model = the_model(given.model)
        found = measure(model, given)
    except ConnectionError as error:
        said = f"nothing was measured: {given.model} cannot be had ({error})"
        print(f"{parser.prog}: {said}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print(table(found, given, differences(model, given)))
    return 0


def the_model(name: str) -> Any:
    """A model by name; "outliers": the bundled one with a few channels made 50 times larger."""
    return with_outliers(qlab.load("tiny")) if name == "outliers" else qlab.load(name)


# ---- measuring -----------------------------------------------------------------------------------


def measure(model: Any, given: argparse.Namespace) -> dict[str, Any]:
    """{row: Evaluation}, one after another; written to --out after each."""
    batches = qlab.calibration_batches(
        model, given.text, tokens=given.calibration, context=given.context
    )
    stats, found = qlab.calibrate(model, batches), {}
    print(loudness(stats), file=sys.stderr)
    for name, settings in rows(given).items():
        candidate = model
        if settings is not None:
            candidate = qlab.quantize_model(
                model, **settings, spec_or_rule=WEIGHTS, stats=stats, progress=False
            )
        found[name] = qlab.evaluate(
            candidate, reference=model, texts=given.text, tokens=given.tokens,
            context=given.context, name=name, progress=False,
        )  # fmt: skip
        print(f"{name}: {ppl(found[name])}", file=sys.stderr, flush=True)
        if given.out:
            keep(given, model, stats, found)
    return found


def rows(given: argparse.Namespace) -> dict[str, dict[str, Any] | None]:
    """Row -> method, quantization of inputs and settings; None: the float model."""
    of_channels = Act(qlab.Spec(INT8, (given.context, 1)))  # one scale a channel of every window
    found: dict[str, dict[str, Any] | None] = {"float": None}
    acts = {"per tensor": "int8_tensor", "per token": "int8_token", "per channel": of_channels}
    static = {given.per_token: "int8_token", "*": STATIC} if given.per_token else STATIC
    acts |= {"static": static, "LLM.int8()": "llm_int8"}
    found |= {name: {"method": "rtn", "act": act} for name, act in acts.items()}
    for alpha in given.alphas:
        found[f"α = {alpha:g}"] = {"method": "smoothquant", "act": static, "alpha": alpha}
    found["α searched"] = {"method": "smoothquant", "act": static, "alpha": "search"}
    return found


def loudness(stats: dict[str, qlab.Stats]) -> str:
    """How far outlying channels stand out of the inputs: max|x| of a channel over the median."""
    ratio = {path: float(np.max(s.amax) / np.median(s.amax)) for path, s in stats.items()}
    worst = max(ratio, key=ratio.__getitem__)
    return (
        f"largest channel over the median one: {ratio[worst]:.0f} times at {worst}, "
        f"{np.median(list(ratio.values())):.1f} times in the median layer"
    )


def ppl(evaluation: Any) -> str:
    return value(evaluation.texts[0].ppl, ".3f" if evaluation.texts[0].ppl.value < 1e4 else ".2e")


def value(estimate: Any, how: str) -> str:
    """A number and its bar; no bar with fewer than 8 windows."""
    return f"{estimate.value:{how}}" + ("" if estimate.bar is None else f" ± {estimate.bar:.1g}")


def keep(
    given: argparse.Namespace, model: Any, stats: dict[str, qlab.Stats], found: dict[str, Any]
) -> None:
    """Writes what was measured so far, and nothing else: the paper's numbers stay out of it."""
    measured = {name: evaluation.to_dict() for name, evaluation in found.items()}
    protocol = {
        "model": given.model, "text": given.text, "calibration_tokens": given.calibration,
        "tokens": given.tokens, "context": given.context, "weights": WEIGHTS,
        "loudness": loudness(stats), "static": STATIC, "per_token": given.per_token,
    }  # fmt: skip
    part = given.out.with_name(f".{given.out.name}.part")
    said = {"protocol": protocol, "model": model.label.provenance, "measured": measured}
    part.write_text(json.dumps(said, indent=1, ensure_ascii=False))
    os.replace(part, given.out)


# ---- saying it -----------------------------------------------------------------------------------


def differences(model: Any, given: argparse.Namespace) -> list[str]:
    """What was done otherwise than in the paper, whose numbers are then no goal."""
    found = [
        f"the model is {model.name or given.model!r}, the paper's are OPT-6.7B to OPT-175B",
        "measured are perplexity and divergence, in the paper's table average accuracy",
        f"calibrated on {counted(given.calibration, 'token')} of the bundled {given.text} text, "
        "the paper on 512 sentences of the Pile",
        "inputs of all linears are quantized, smoothed only those that come out of a norm",
        "computed in float32 outside the integer products, the paper's in float16",
    ]
    if given.per_token:
        found.append(f"static, α: the inputs of {given.per_token} have a scale for each token")
    if given.model == "outliers":
        found.append(
            "the outliers are constructed: a norm's gain times 50, its consumers' columns divided "
            "by 50. Smoothing undoes exactly that at every α, since max|X_j|^α / max|W_j|^(1−α) is "
            "50 times larger there: the sweep is that of the model without outliers"
        )
    return found


def table(found: dict[str, Any], given: argparse.Namespace, differ: list[str]) -> str:
    """What the paper prints and what was measured here, side by side but not in one unit."""
    head = ("INT8 inputs", "paper, accuracy %", "", "here, perplexity", "here, KL (nats)")
    lines = [head, ("", "OPT-6.7B", "OPT-13B", "", "")]
    for name, evaluation in found.items():
        score = evaluation.texts[0]
        kl = "0" if name == "float" else value(score.kl, ".2e")
        lines.append((name, *PAPER.get(name, ("", "")), ppl(evaluation), kl))
    body = [f"{a:<14}{b:>18}{c:>9}{d:>22}{e:>24}" for a, b, c, d, e in lines]
    score = next(iter(found.values())).texts[0]
    tail = [
        "",
        "paper: printed in Xiao et al. 2022, arXiv 2211.10438, Table 1; not measured here. Of α it "
        "says that 0.4 to 0.6 is best for OPT-175B.",
        "per tensor, per token, per channel: dynamic. static, α: one scale for all text, found on "
        "the calibration text; α: SmoothQuant at level O3.",
        f"products of integers: {integers(given)}.",
        f"here: {counted(score.windows, 'window')}, {counted(score.tokens, 'token')} scored, text "
        f"sha256 {score.text_hash[:16]}; ± is one standard error.",
        "Not as in the paper:",
        *(f"  · {line}" for line in differ),
    ]
    return "\n".join(body + tail)


def integers(given: argparse.Namespace) -> str:
    """Which rows multiply int8 by int8, and which cannot."""
    cannot = []
    for name, settings in rows(given).items():
        acts = settings["act"] if settings else {}
        for act in acts.values() if isinstance(acts, dict) else [acts]:
            cannot += [] if integer(qlab.SPECS[WEIGHTS], find(act)) else [name]
    return f"in all rows but {', '.join(cannot)}, whose quantized values are multiplied in float"


if __name__ == "__main__":
    sys.exit(main())
