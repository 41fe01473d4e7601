"""AWQ's observation: keep 1 % of the input channels in float, or scale them up before rounding.

Lin et al. 2023, arXiv 2306.00978, Table 1 (which channels: those with the largest inputs, the
largest columns, or any) and Table 2 (the same channels times s: what becomes of the steps, and of
the perplexity). Weights INT3 in groups of 128 with a zero point, inputs float. A kept channel's
weights still take part in finding its groups' steps: only their rounding is spared.

    python experiments/awq_salient.py                              the bundled model
    python experiments/awq_salient.py --model outliers             the same with outliers made in it
    python experiments/awq_salient.py --model smollm2-135m --tokens 2048 --out smol.json
    python experiments/awq_salient.py --model facebook/opt-6.7b    from the hub, or a folder
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import qlab
from qlab.arithmetic import multiply
from qlab.cli import keep_compiled_programs
from qlab.evaluation import Evaluation, paired_difference
from qlab.evaluation.reference import arithmetic
from qlab.evaluation.scoring import DOMAINS, versions
from qlab.models import with_outliers
from qlab.models.provenance import weights_hash
from qlab.models.surgery import linears, map_linears
from qlab.models.transformer import Linear, as_array
from qlab.qtensor import QTensor, dequantize, fit, quantize
from qlab.suggest import counted

# The paper's numbers, as it prints them: perplexity on WikiText-2 of OPT-1.3B, 6.7B and 13B. None
# of them is measured here.
PAPER = {
    "float": ("14.62", "10.86", "10.13"),
    "RTN": ("119.00", "23.54", "46.04"),
    "activation 0.1 %": ("25.03", "11.58", "10.51"),
    "activation 1 %": ("16.91", "11.39", "10.43"),
    "activation 3 %": ("16.68", "11.36", "10.42"),
    "weight norm 0.1 %": ("108.71", "23.41", "46.07"),
    "weight norm 1 %": ("98.55", "22.37", "48.96"),
    "weight norm 3 %": ("98.08", "22.45", "54.49"),
    "random 0.1 %": ("119.76", "23.54", "44.87"),
    "random 1 %": ("109.38", "24.23", "42.00"),
    "random 3 %": ("61.49", "24.22", "39.71"),
}
# Table 2, OPT-6.7B: share of Δ' ≠ Δ in percent, mean Δ'/Δ, mean Δ'/Δ · 1/s, perplexity.
PAPER_SCALES = {
    1.0: ("0", "1", "1", "23.54"),
    1.25: ("2.8", "1.005", "0.804", "12.87"),
    1.5: ("4.4", "1.013", "0.676", "12.48"),
    2.0: ("8.2", "1.038", "0.519", "11.92"),
    4.0: ("21.2", "1.213", "0.303", "12.36"),
}
BITS, GROUPS = 3, (128, 64)  # the first group that divides a layer's width
SALIENT = 1.0  # percent of the channels that Table 2 scales
BY_INPUT, BY_NORM, RANDOM = "activation", "weight norm", "random"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--model", default="tiny",
        help='"outliers" (the bundled model with constructed ones), a bundled name, a hub id or a '
        "folder (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--text", nargs="+", default=list(DOMAINS), help="to calibrate on (default: all four)"
    )
    parser.add_argument("--calibration", type=int, default=8192, help="tokens (default: 8192)")
    parser.add_argument(
        "--tokens", type=int, default=4096, help="scored of each of four texts (default: 4096)"
    )
    parser.add_argument("--context", type=int, default=256, help="in a window (default: 256)")
    parser.add_argument("--shares", nargs="*", type=float, default=[0.1, 1, 3], help="in percent")
    parser.add_argument("--seeds", type=int, default=3, help="random choices (default: 3)")
    parser.add_argument("--scales", nargs="*", type=float, default=[1.25, 1.5, 2, 4])
    parser.add_argument(
        "--out", type=Path, help="keep what was measured in this JSON file; rows that are there "
        "already are not measured again",
    )  # fmt: skip
    given = parser.parse_args(arguments)
    keep_compiled_programs()
    try:
        check(given)
        model = the_model(given.model)
        found, steps = measure(model, given)
    except ConnectionError as error:
        said = f"nothing was measured: {given.model} cannot be had ({error})"
        print(f"{parser.prog}: {said}", file=sys.stderr)
        return 2
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    print("\n".join([*first_table(found), "", *second_table(found, steps), *tail(model, given)]))
    return 0


def check(given: argparse.Namespace) -> None:
    """Raises ValueError for a share, scale or number of seeds that means nothing."""
    for share in given.shares:
        if not 0 < share <= 100:
            raise ValueError(f"a share of {share:g} % is not between 0 and 100")
    for s in given.scales:
        if not (np.isfinite(s) and s > 0):
            raise ValueError(f"a scale of {s:g} is not a positive number")
    if given.seeds < 0:
        raise ValueError(f"--seeds {given.seeds} is below 0")


def the_model(name: str) -> Any:
    """A model by name; "outliers": the bundled one with a few channels made 50 times larger."""
    return with_outliers(qlab.load("tiny")) if name == "outliers" else qlab.load(name)


# ---- the models of the rows ----------------------------------------------------------------------


def spec_of(width: int) -> qlab.Spec:
    """INT3 with a zero point, in groups of 128; of 64 where 128 does not divide the width."""
    return qlab.specs.awq(BITS, next((g for g in GROUPS if width % g == 0), GROUPS[-1]))


def count_of(share: float, width: int) -> int:
    """How many channels a share in percent is: rounded, but at least one."""
    return max(1, round(share / 100 * width))


def chosen(how: str, w: Any, stats: qlab.Stats, share: float, seed: Sequence[int]) -> np.ndarray:
    """(in,) bool: the channels that are treated apart."""
    width = w.shape[1]
    if how == RANDOM:
        order = np.random.default_rng(seed).permutation(width)
    else:
        size = stats.mean_abs if how == BY_INPUT else np.linalg.norm(np.asarray(w), axis=0)
        order = np.argsort(-np.asarray(size), kind="stable")
    return np.isin(np.arange(width), order[: count_of(share, width)])


def rounded(model: Any) -> Any:
    """Every linear rounded to nearest."""
    return map_linears(
        model,
        lambda _, layer: Linear(
            quantize(as_array(layer.weight), spec_of(layer.weight.shape[1])), layer.bias
        ),
    )


def kept_in_float(
    model: Any, stats: dict[str, qlab.Stats], how: str, share: float, seed: int = 0
) -> Any:
    """Every linear rounded, but for a share of its input channels."""
    place = {path: i for i, path in enumerate(linears(model))}

    def change(path: str, layer: Linear) -> Linear:
        w = as_array(layer.weight)
        kept = chosen(how, w, stats[path], share, (seed, place[path]))
        return Linear(jnp.where(kept, w, dequantize(quantize(w, spec_of(w.shape[1])))), layer.bias)

    return map_linears(model, change)


def scaled_ranges(w: Any, stats: qlab.Stats, s: float) -> tuple[QTensor, np.ndarray]:
    """The ranges of W · diag(s on the salient channels, else 1), and which channels these are."""
    salient = chosen(BY_INPUT, w, stats, SALIENT, ())
    c = jnp.where(salient, jnp.float32(s), jnp.float32(1))
    return fit(multiply(w, c), spec_of(w.shape[1])).replace(channel_scale=c), salient


def scaled(model: Any, stats: dict[str, qlab.Stats], s: float) -> Any:
    """Every linear rounded with its salient channels times s, and divided by s afterwards."""

    def change(path: str, layer: Linear) -> Linear:
        w = as_array(layer.weight)
        return Linear(quantize(w, scaled_ranges(w, stats[path], s)[0]), layer.bias)

    return map_linears(model, change)


def changed_steps(model: Any, stats: dict[str, qlab.Stats], s: float) -> dict[str, Any]:
    """What scaling does to the groups' steps Δ, of all groups and of those with a salient channel.

    Returns:
        {"all" or "salient": {"groups", "changed": share of Δ' ≠ Δ, "step": mean Δ'/Δ, "error":
        mean Δ'/Δ / s, what an average rounding error of a salient weight is multiplied by}}.
    """
    ratios, with_salient = [], []
    for path, layer in linears(model).items():
        w = as_array(layer.weight)
        ranges, salient = scaled_ranges(w, stats[path], s)
        step = np.asarray(fit(w, ranges.spec).scale, np.float64)  # (out, groups)
        ratios.append((np.asarray(ranges.scale, np.float64) / step).ravel())
        of_group = salient.reshape(step.shape[1], -1).any(1)
        with_salient.append(np.broadcast_to(of_group, step.shape).ravel())
    ratio, mask = np.concatenate(ratios), np.concatenate(with_salient)
    return {
        name: {
            "groups": int(r.size), "changed": float((r != 1).mean()), "step": float(r.mean()),
            "error": float(r.mean() / s),
        }
        for name, r in (("all", ratio), ("salient", ratio[mask]))
    }  # fmt: skip


def rows(
    model: Any, stats: dict[str, qlab.Stats], given: argparse.Namespace
) -> dict[str, Callable[[], Any]]:
    """Row -> what makes its model. s = 1 is RTN."""
    found: dict[str, Callable[[], Any]] = {"float": lambda: model, "RTN": lambda: rounded(model)}
    for how in (BY_INPUT, BY_NORM, RANDOM):
        for share in given.shares:
            for seed in range(given.seeds) if how == RANDOM else [0]:
                name = f"{how} {share:g} %" + (f", seed {seed}" if how == RANDOM else "")
                found[name] = lambda how=how, share=share, seed=seed: kept_in_float(
                    model, stats, how, share, seed
                )
    for s in given.scales:
        if s != 1:
            found[f"s = {s:g}"] = lambda s=s: scaled(model, stats, s)
    return found


# ---- measuring -----------------------------------------------------------------------------------


def measure(
    model: Any, given: argparse.Namespace
) -> tuple[dict[str, Evaluation], dict[str, dict[str, Any]]]:
    """{row: Evaluation} and {s: what became of the steps}; written to --out after each row."""
    batches = qlab.calibration_batches(
        model, given.text, tokens=given.calibration, context=given.context
    )
    facts = protocol(model, given, batches)
    kept = before(given.out, facts)
    stats = qlab.calibrate(model, batches)
    steps = {f"s = {s:g}": changed_steps(model, stats, s) for s in sorted({1, *given.scales})}
    made = rows(model, stats, given)
    todo = [name for name in made if name not in kept]
    began = time.perf_counter()
    for i, name in enumerate(todo, 1):
        kept[name] = qlab.evaluate(
            made[name](), reference=model, texts=DOMAINS, tokens=given.tokens,
            context=given.context, name=name, progress=False,
        )  # fmt: skip
        spent = (time.perf_counter() - began) / 60
        left = spent / i * (len(todo) - i)
        print(
            f"{i}/{len(todo)} {name}: {'; '.join(f'{t.name} {t.ppl}' for t in kept[name].texts)}; "
            f"{spent:.1f} min, about {left:.1f} to go",
            file=sys.stderr,
            flush=True,
        )
        if given.out:
            keep(given.out, facts, model, kept, steps)
    return {name: kept[name] for name in made}, steps


def protocol(model: Any, given: argparse.Namespace, batches: Any) -> dict[str, Any]:
    """What must be the same for two runs' rows to stand in one file."""
    texts = {name: qlab.texts(name, "evaluation") for name in DOMAINS}
    widths = sorted({layer.weight.shape[1] for layer in linears(model).values()})
    return {
        "model": given.model, "weights_sha256": weights_hash(model),
        "calibrated_on": given.text, "calibration_tokens": batches.count,
        "calibration_sha256": batches.hash,
        "judged_on": {n: hashlib.sha256(t.encode()).hexdigest() for n, t in texts.items()},
        "tokens": given.tokens, "context": given.context, "bits": BITS,
        "groups": {str(width): spec_of(width).block for width in widths},
        "salient_percent": SALIENT,
        "sizes": "where channels are kept in float, those of a float32 copy",
        "arithmetic": arithmetic(), "versions": versions(),
    }  # fmt: skip


def before(path: Path | None, facts: dict[str, Any]) -> dict[str, Evaluation]:
    """The rows that an earlier run kept.

    Raises:
        ValueError: they were measured otherwise; the sentence names what differs.
    """
    if path is None or not path.exists():
        return {}
    said = json.loads(path.read_text())
    if not (isinstance(said, dict) and {"protocol", "measured"} <= said.keys()):
        raise ValueError(f"{path} holds no rows of this experiment: give another --out")
    for name, value in facts.items():
        if (old := said["protocol"].get(name)) != value:
            raise ValueError(
                f"{path} holds rows with {name} {old!r}, now it is {value!r}: give another --out "
                "or remove the file"
            )
    return {name: Evaluation.from_dict(row) for name, row in said["measured"].items()}


def keep(
    path: Path, facts: dict[str, Any], model: Any, found: dict[str, Evaluation],
    steps: dict[str, Any],
) -> None:  # fmt: skip
    """Writes what was measured so far, and nothing else: the paper's numbers stay out of it."""
    measured = {name: row.to_dict() for name, row in found.items()}
    said = {
        "protocol": facts, "model": model.label.provenance, "steps": steps, "measured": measured
    }  # fmt: skip
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n")
    os.replace(part, path)


# ---- saying it -----------------------------------------------------------------------------------


def line(*cells: str) -> str:
    return f"{cells[0]:<24}" + "".join(f"{cell:>17}" for cell in cells[1:])


def scores(found: dict[str, Evaluation], names: Sequence[str]) -> list[str]:
    """Perplexities, and how far ln ppl is from RTN's in pairs of the same windows."""
    lines = [line("here, perplexity", *DOMAINS)]
    lines += [line(name, *(str(found[name][text].ppl) for text in DOMAINS)) for name in names]
    lines += ["", line("here, ln ppl − RTN's", *DOMAINS)]
    for name in names:
        if name != "RTN":
            pairs = [paired_difference(found["RTN"], found[name], text) for text in DOMAINS]
            lines.append(line(name, *map(str, pairs)))
    return lines


def first_table(found: dict[str, Evaluation]) -> list[str]:
    """Which channels are kept in float: what the paper prints, and what was measured here."""
    names = [name for name in found if not name.startswith("s = ")]
    lines = [
        "Table 1: a share of the input channels in float, the rest INT3",
        "",
        line("paper, perplexity", "OPT-1.3B", "OPT-6.7B", "OPT-13B"),
        *(line(name, *PAPER[name]) for name in unseeded(names) if name in PAPER),
        "",
        *scores(found, names),
    ]
    random = Counter(name.split(",")[0] for name in names if name.startswith(RANDOM))
    for name, count in random.items():
        cells = []
        for text in DOMAINS:
            values = [found[f"{name}, seed {i}"][text].ppl.value for i in range(count)]
            cells.append(f"{min(values):.4g} … {max(values):.4g}")
        lines.append(line(f"{name}: least, most ppl", *cells))
    return lines


def unseeded(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(name.split(",")[0] for name in names))


def second_table(found: dict[str, Evaluation], steps: dict[str, dict[str, Any]]) -> list[str]:
    """Scaling up the salient channels: steps, perplexity, and which s is best."""
    columns = ("Δ' ≠ Δ, %", "Δ'/Δ", "Δ'/Δ · 1/s", "perplexity")
    lines = [
        f"Table 2: the {SALIENT:g} % of the channels with the largest inputs times s",
        "",
        line("paper, OPT-6.7B", *columns),
        *(line(f"s = {s:g}", *PAPER_SCALES[s]) for s in PAPER_SCALES if f"s = {s:g}" in steps),
    ]
    for which, said in (("all", "all groups"), ("salient", "with a salient one")):
        lines += ["", line(f"here, {said}", *columns[:3], "groups")]
        for name, of in steps.items():
            r = of[which]
            cells = (f"{100 * r['changed']:.1f}", f"{r['step']:.4f}", f"{r['error']:.4f}")
            lines.append(line(name, *cells, f"{r['groups']:,}"))
    names = ["RTN", *(name for name in steps if name in found)]
    lines += ["", *scores(found, names), ""]
    for said, measured in (("perplexity", "ppl"), ("divergence from the float model", "kl")):
        lines.append(f"Least {said} here: {least(found, names, measured)}.")
    return [*lines, "Least perplexity in the paper: s = 2."]


def least(found: dict[str, Evaluation], names: Sequence[str], measured: str) -> str:
    """On every text the row that is lowest: "s = 2 on english, …"."""
    best = {}
    for text in DOMAINS:
        values = {name: getattr(found[name][text], measured).value for name in names}
        best[text] = min(values, key=values.__getitem__).replace("RTN", "s = 1")
    return ", ".join(f"{name} on {text}" for text, name in best.items())


def tail(model: Any, given: argparse.Namespace) -> list[str]:
    """What was done, and what otherwise than in the paper, whose numbers are then no goal."""
    widths = Counter(layer.weight.shape[1] for layer in linears(model).values())
    counts = {
        width: ", ".join(f"{count_of(share, width)}" for share in given.shares) for width in widths
    }
    short = [
        f"{counted(number, 'linear')} of width {width}"
        for width, number in widths.items()
        if spec_of(width).block != GROUPS[0]
    ]
    differ = [
        f"the model is {model.name or given.model!r}, the paper's are OPT-1.3B to OPT-13B",
        "scored on four bundled texts, the paper's on WikiText-2",
        f"calibrated on {counted(given.calibration, 'token')} of {', '.join(given.text)}, "
        "the paper on the Pile",
        "computed in float32, the paper's in float16",
    ]
    if short:
        differ.append(
            f"groups of {GROUPS[1]} where {GROUPS[0]} does not divide: {'; '.join(short)}"
        )
    if given.model == "outliers":
        differ.append(
            "the outliers are constructed: a norm's gain times 50, its consumers' columns divided "
            "by 50: beside its neighbours such a column is less than a step"
        )
    windows = counted(given.tokens // given.context, "window")
    of_width = "; ".join(f"{c} of {w}" for w, c in counts.items())
    shares = ", ".join(f"{share:g}" for share in given.shares)
    return [
        "",
        "paper: printed in Lin et al. 2023, arXiv 2306.00978, Tables 1 and 2; not measured here.",
        f"channels for shares of {shares} %: {of_width}.",
        f"here: {windows} of {given.context} tokens of each text; ± "
        "is one standard error, in differences of the same windows in pairs; s = 1 is RTN.",
        "Not as in the paper:",
        *(f"  · {said}" for said in differ),
    ]


if __name__ == "__main__":
    sys.exit(main())
