"""What the rows of the ladder of GGUF mixtures say: the page, and the widget's copy of the numbers.

Pure functions of the rows (`gguf_ladder.Measured`), which come the largest file first. KL and Δ ln
ppl of two rows are compared in pairs, on the same windows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from qlab.evaluation import Estimate, paired_difference
from qlab.evaluation.bars import with_bar
from qlab.models.mixtures import layer_of, quantizable

MANY = 2  # bars: from here on a difference is taken for one
KINDS = {
    "token_embd": "embedding", "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_output": "o",
    "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down",
}  # fmt: skip
# Mean KL of Llama-3-8B from its float16 on WikiText-2: llama.cpp's README of `perplexity`.
PUBLISHED = {
    ("Q8_0", ""): 0.00136, ("Q6_K", ""): 0.00545, ("Q5_K_M", ""): 0.01076,
    ("Q4_K_M", ""): 0.03127, ("Q4_K_S", ""): 0.0431, ("Q4_0", ""): 0.0719,
    ("Q3_K_M", ""): 0.1019, ("Q2_K", ""): 0.4451,
    ("Q4_K_M", "english"): 0.02815, ("Q2_K", "english"): 0.3322,
}  # fmt: skip

Rows = Mapping[tuple[str, str], Any]  # (mixture, imatrix) -> Measured
MEASURES = {
    "KL from the float model, nats": "kl",
    "Δ ln ppl from the float model, in pairs": "dlnppl",
    "Bits per byte": "bits_per_byte",
    "How often the first token stays the same": "same_top1",
}


def page(found: Mapping[str, Rows], facts: Mapping[str, Any]) -> str:
    """gguf_ladder.md from all rows of all models."""
    judged, scored = facts["judged"], facts["scored"]
    parts = [
        "# The ladder of GGUF mixtures",
        "",
        "Written by `python benchmarks/gguf_ladder.py`; not edited by hand. Every row is a file "
        "that `to_gguf` wrote and `qlab.load` read again. Bits per weight are those of all "
        "tensors, embedding and norms too; a file has its vocabulary and metadata beyond them. An "
        "importance matrix is E[x²] of every column on one text's calibration half; judged on the "
        "evaluation halves. ± is one standard error by bootstrap over the windows, of a difference "
        "over the differences window by window; bold: beyond two of them.",
        "",
    ]
    for name, rows in found.items():
        parts += [
            f"## {name}, {scored[name]} windows of {facts['context']} tokens of every text",
            "",
        ]
        parts += [*controls(rows), "", *scores(rows, judged), *matrices(rows, judged)]
        parts += [*steps(rows, judged), *contents(rows), told(rows, name, facts), ""]
    parts += beside(found)
    return "\n".join(parts).rstrip() + "\n"


# ---- scores --------------------------------------------------------------------------------------


def controls(rows: Rows) -> list[str]:
    """What must be so: an exact file loses nothing, and some types do not look at a matrix."""
    lines = []
    if ("F32", "") in rows:
        most = max(text.kl.value for text in rows["F32", ""].row.texts)
        lines.append(f"* Control: the file in F32 is the model itself; its largest KL is {most:g}.")
    same = [at for at in rows if at[1] and _twin(rows, at)]
    if same:
        listed = ", ".join(dict.fromkeys(mixture for mixture, _ in same))
        lines.append(
            f"* Control: {listed} do not look at an importance matrix: all {len(same)} files with "
            "one hold the same weights, bit for bit, as without, and are not listed again."
        )
    if shares := [row.row.name for row in rows.values() if "fell back" in row.row.name]:
        lines.append(
            "* Widths that are no multiple of 256 do not fit super-blocks. Fell back (share of the "
            f"blocks' weights whose type is not what the mixture asks for): {'; '.join(shares)}."
        )
    return lines


def _twin(rows: Rows, at: tuple[str, str]) -> bool:
    """Whether a row's weights are those of its mixture without a matrix."""
    plain = rows.get((at[0], ""))
    return bool(at[1]) and plain is not None and plain.row.weights_hash == rows[at].row.weights_hash


def scores(rows: Rows, judged: tuple[str, ...]) -> list[str]:
    """One table a measure."""
    lines = []
    for title, field in MEASURES.items():
        lines += [f"### {title}", ""]
        lines += [
            f"| file | bits/w | bytes | {' | '.join(judged)} |",
            "|---" + "|---:" * (2 + len(judged)) + "|",
        ]
        for at, one in rows.items():
            if _twin(rows, at):
                continue
            cells = [str(getattr(one.row[text], field)) for text in judged]
            size = f"{one.bits:.3f} | {one.file_bytes:,}"
            lines.append(f"| {one.row.name} | {size} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def cell(difference: Estimate) -> str:
    """A difference in thousandths with its bar; bold where it is more than twice the bar.

    Example:
        >>> cell(Estimate(-0.01, 0.002)), cell(Estimate(0.001, 0.002))
        ('**−10.0 ± 2.0**', '+1.0 ± 2.0')
    """
    words = with_bar(1000 * abs(difference.value), 1000 * (difference.bar or 0.0))
    text = f"{'−' if difference.value < 0 else '+'}{words}"
    return f"**{text}**" if beyond(difference) else text


def beyond(difference: Estimate) -> bool:
    """Whether a difference is more than twice its bar."""
    return bool(difference.bar) and abs(difference.value) > MANY * difference.bar


# ---- differences ---------------------------------------------------------------------------------

PAIRS = (("english", ""), ("korean", ""), ("korean", "english"))  # imatrix, less which other


def matrices(rows: Rows, judged: tuple[str, ...]) -> list[str]:
    """What an importance matrix buys, in pairs."""
    pairs = [
        ((mixture, read), (mixture, other))
        for mixture in dict.fromkeys(mixture for mixture, _ in rows)
        for read, other in PAIRS
        if {(mixture, read), (mixture, other)} <= rows.keys() and not _twin(rows, (mixture, read))
    ]
    if not pairs:
        return []
    lines = ["### What an importance matrix changes, in pairs", ""]
    for of, title in (("kl", "10⁻³ nats of KL"), ("nll", "10⁻³ of ln ppl")):
        lines += [f"| {title} | {' | '.join(judged)} |", "|---" + "|---:" * len(judged) + "|"]
        bold = 0
        for at, other in pairs:
            found = [paired_difference(rows[other].row, rows[at].row, t, of) for t in judged]
            bold += sum(map(beyond, found))
            name = f"{at[0]}: {at[1]} less {other[1] or 'none'}"
            lines.append(f"| {name} | {' | '.join(map(cell, found))} |")
        count = len(pairs) * len(judged)
        said = f"{bold} of {count} are beyond two bars; chance would make about {count / 20:.0f}."
        lines += ["", said, ""]
    return lines


def next_larger(rows: Rows, at: tuple[str, str]) -> tuple[str, str] | None:
    """The smallest file with more bits and the same importance matrix; of equal ones the closest
    to the float model.

    Example:
        >>> next_larger(rows, ("Q4_K_S", ""))   # doctest: +SKIP
        ('Q4_K_M', '')
    """
    larger = [one for one in rows if one[1] == at[1] and rows[one].bits > rows[at].bits]
    mean = lambda one: sum(text.kl.value for text in rows[one].row.texts)  # noqa: E731
    return min(larger, key=lambda one: (rows[one].bits, mean(one)), default=None)


def steps(rows: Rows, judged: tuple[str, ...]) -> list[str]:
    """Every file against the next larger one, without a matrix."""
    lines = [
        "### Step by step, without a matrix: KL less the next larger file's, in pairs, 10⁻³ nats",
        "",
        f"| step | bits saved | {' | '.join(judged)} |",
        "|---" + "|---:" * (1 + len(judged)) + "|",
    ]
    for at in [at for at in rows if not at[1]]:
        larger = next_larger(rows, at)
        if larger is None:
            continue
        a, b = rows[larger], rows[at]
        cells = [cell(paired_difference(a.row, b.row, text, "kl")) for text in judged]
        saved = f"{a.bits - b.bits:.3f}"
        lines.append(f"| {larger[0]} → {at[0]} | {saved} | {' | '.join(cells)} |")
    return [*lines, "", *dominated(rows, judged), ""]


def dominated(rows: Rows, judged: tuple[str, ...]) -> list[str]:
    """Files that a smaller or equal one beats beyond two bars on some text."""
    plain, said = [at for at in rows if not at[1]], []
    for at in plain:
        better = []
        for other in plain:
            if other == at or rows[other].bits > rows[at].bits:
                continue
            found = [paired_difference(rows[at].row, rows[other].row, t, "kl") for t in judged]
            on = [t for t, d in zip(judged, found, strict=True) if d.value < 0 and beyond(d)]
            if on:
                better.append(f"{other[0]} ({', '.join(on)})")
        if better:
            said.append(
                f"* {at[0]} is no rung: not larger, and closer to float: {'; '.join(better)}."
            )
    return said or ["* Every rung holds: no smaller file is closer to float beyond two bars."]


# ---- plans ---------------------------------------------------------------------------------------


def kind_of(name: str) -> str:
    """A tensor's kind in a word.

    Example:
        >>> kind_of("blk.3.attn_v.weight"), kind_of("blk.3.attn_norm.weight")
        ('v', 'norms')
    """
    return KINDS.get(name.split(".")[-2], "norms")


def bits_by_kind(plan: Any) -> dict[str, float]:
    """Bits per weight of every kind of tensor."""
    sums: dict[str, tuple[int, int]] = {}
    for row in plan:
        size, weights = sums.get(kind_of(row.name), (0, 0))
        sums[kind_of(row.name)] = (size + row.bytes, weights + row.weights)
    return {kind: 8 * size / weights for kind, (size, weights) in sums.items()}


def contents(rows: Rows) -> list[str]:
    """Bits per weight of every kind, and every tensor's type."""
    kinds = [*KINDS.values()]
    lines = ["### What is in the files: bits per weight of every kind", ""]
    lines += [f"| file | {' | '.join(kinds)} | all |", "|---" + "|---:" * (1 + len(kinds)) + "|"]
    listed = []
    for at, one in rows.items():
        if at[1] and [row.type for row in one.plan] == [r.type for r in rows[at[0], ""].plan]:
            continue  # only where the matrix changes the plan
        found = bits_by_kind(one.plan)
        cells = [f"{found[kind]:.4g}" if kind in found else "–" for kind in kinds]
        lines.append(f"| {one.row.name} | {' | '.join(cells)} | {one.bits:.3f} |")
        listed += [f"* {one.row.name}: {spelt(one.plan)}."]
    lines += ["", "Tensor by tensor (layers of a kind in brackets; norms are F32):", ""]
    return [*lines, *listed, ""]


def spelt(plan: Any) -> str:
    """Every tensor's type and the bytes of each group, in a line.

    Example:
        >>> from qlab.models.mixtures import Row
        >>> spelt([Row("blk.0.ffn_up.weight", (2, 32), "Q8_0", "Q8_0", 68)])
        'up Q8_0 [0] 68 B'
    """
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for row in plan:
        if quantizable(row.name, row.shape):
            groups.setdefault((kind_of(row.name), row.type, row.wanted), []).append(row)
    parts = []
    for (kind, stored, wanted), members in groups.items():
        layers = [layer_of(row.name) for row in members if layer_of(row.name) >= 0]
        where = f" [{ranges(layers)}]" if layers else ""
        instead = f" instead of {wanted}" if wanted != stored else ""
        parts.append(f"{kind} {stored}{instead}{where} {sum(r.bytes for r in members):,} B")
    return ", ".join(parts)


def ranges(numbers: list[int]) -> str:
    """Ascending numbers with runs drawn together.

    Example:
        >>> ranges([0, 1, 2, 5, 7, 8])
        '0–2, 5, 7, 8'
    """
    runs: list[list[int]] = []
    for n in sorted(numbers):
        if runs and n == runs[-1][-1] + 1:
            runs[-1].append(n)
        else:
            runs.append([n])
    said = [f"{r[0]}–{r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs]
    return ", ".join(said)


def told(rows: Rows, name: str, facts: Mapping[str, Any]) -> str:
    """What identifies the measurement."""
    row = next(iter(rows.values())).row
    p = row.protocol
    texts = "; ".join(f"{t.name} sha256 {t.text_hash[:16]}, {t.bytes:,} bytes" for t in row.texts)
    libraries = ", ".join(f"{name} {version}" for name, version in p.versions.items())
    return (
        f"* reference weights sha256 {p.reference_hash[:16]}; {texts}.\n"
        f"* importance matrices: {facts['counted'][name]:,} tokens, windows of {facts['context']}, "
        f"seed {facts['seed']}; bootstrap seed {p.seed}; {p.precision}; {libraries}.\n"
    )


# ---- beside what is published --------------------------------------------------------------------


def beside(found: Mapping[str, Rows]) -> list[str]:
    """KL of English text beside llama.cpp's own table, and what a matrix gains there and here."""
    names = list(found)
    lines = [
        "## Beside llama.cpp's table",
        "",
        "Mean KL of Llama-3-8B on WikiText-2 (llama.cpp's README of `perplexity`; its matrix is of "
        "English text) beside English text here. Relative to Q4_K_M, since models differ.",
        "",
        f"| file | Llama-3-8B | {' | '.join(names)} |",
        "|---" + "|---:" * (1 + len(names)) + "|",
    ]
    for at, there in PUBLISHED.items():
        tables = [(PUBLISHED, there), *((rows, _english(rows, at)) for rows in found.values())]
        cells = [_relative(value, _english(table, ("Q4_K_M", ""))) for table, value in tables]
        name = at[0] + (", imatrix" if at[1] else "")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, "", *gains(found), *unlike(found)]


def unlike(found: Mapping[str, Rows]) -> list[str]:
    """Where a rung is not as far from Q4_K_M as there, by a quarter or more; and why."""
    lines = []
    for name, rows in found.items():
        said = []
        for at, there in PUBLISHED.items():
            here, base = _english(rows, at), _english(rows, ("Q4_K_M", ""))
            if here is None or base is None:
                continue
            ratio = (here / base) / (there / PUBLISHED["Q4_K_M", ""])
            if abs(math.log(ratio)) > math.log(1.25):
                called = at[0] + (", imatrix" if at[1] else "")
                said.append(f"{called} {ratio:.2f}×")
        if said:
            lines.append(f"* Not as there, relative to Q4_K_M, {name}: {'; '.join(said)}.")
    return [
        *lines,
        "* Why: tiny has four layers, so the first four of attn_v, which Q4_K_S lifts, are all of "
        "them, and an eighth of the layers is none; a quarter of its weights is the embedding, in "
        "Q6_K in every file smaller than Q8_0. SmolLM2's rows of 576 are no multiple of 256: Q6_K "
        "becomes Q8_0 there, Q5_K Q5_1, Q4_K Q5_0, IQ4_XS IQ4_NL, Q3_K and Q2_K Q4_0, and the "
        "embedding is Q8_0, so files are larger than their names say and a rung is another step.",
    ]


def _english(rows: Any, at: tuple[str, str]) -> float | None:
    one = rows.get(at)
    return one if one is None or isinstance(one, float) else one.row["english"].kl.value


def _relative(value: float | None, base: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4g} ({value / base:.3g}×)" if base else f"{value:.4g}"


def gains(found: Mapping[str, Rows]) -> list[str]:
    """How much of the KL an importance matrix takes away, there and here."""
    lines = []
    for mixture in ("Q4_K_M", "Q2_K"):
        there = 1 - PUBLISHED[mixture, "english"] / PUBLISHED[mixture, ""]
        said = []
        for name, rows in found.items():
            if not {(mixture, ""), (mixture, "english")} <= rows.keys():
                continue
            plain, helped = rows[mixture, ""].row, rows[mixture, "english"].row
            d = paired_difference(plain, helped, "english", "kl")
            kl = plain["english"].kl.value
            said.append(f"{name} {with_bar(-100 * d.value / kl, 100 * (d.bar or 0) / kl)} %")
        lines.append(
            f"* {mixture}: the matrix takes away {100 * there:.0f} % of the KL there; here, "
            f"English on English: {', '.join(said) or 'not measured'}."
        )
    return lines


# ---- the widget's copy ---------------------------------------------------------------------------


def summary(rows: Rows, judged: tuple[str, ...]) -> dict[str, Any]:
    """What the widget needs: the tensors once, then a row's types, sizes and scores; what it
    differs by from the next larger file and from its mixture without a matrix, in pairs.
    """
    first = next(iter(rows.values())).plan
    entries = [_entry(rows, at, judged) for at in rows]
    return {"tensors": [[row.name, list(row.shape)] for row in first], "rows": entries}


def _entry(rows: Rows, at: tuple[str, str], judged: tuple[str, ...]) -> dict[str, Any]:
    one = rows[at]
    entry: dict[str, Any] = {"mixture": at[0], "imatrix": at[1], "file_bytes": one.file_bytes}
    entry["types"] = " ".join(row.type for row in one.plan)
    if any(row.fell_back for row in one.plan):
        entry["wanted"] = " ".join(row.wanted for row in one.plan)
    others = {"larger": next_larger(rows, at), "plain": (at[0], "") if at[1] else None}
    for text in judged:
        s = one.row[text]
        entry[text] = {name: rounded(getattr(s, name)) for name in ("kl", "dlnppl", "same_top1")}
        for name, other in others.items():
            if other in rows:
                d = paired_difference(rows[other].row, one.row, text, "kl")
                entry[text][name] = rounded(d)
    if others["larger"]:
        entry["larger"] = others["larger"][0]
    return entry


def rounded(estimate: Any) -> list[float]:
    """A number and its bar to the figures that a page needs.

    Example:
        >>> rounded(Estimate(0.0123456, 0.000123))
        [0.01235, 0.00012]
    """
    return [float(f"{estimate.value:.4g}"), float(f"{estimate.bar or 0.0:.2g}")]
