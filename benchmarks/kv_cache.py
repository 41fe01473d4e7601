"""What a key-value cache of 8, 4 and 2 bits loses, by position in the context.

    python benchmarks/kv_cache.py                    tiny, four texts; smollm2-135m at 2,048 tokens
    python benchmarks/kv_cache.py tiny               one of them
    python benchmarks/kv_cache.py --page             only writes the page again

Every recipe runs on the same windows as the float cache and is compared with it token by token.
The numbers kept are means over pieces of a window, `PIECE` tokens each, and bars draw pieces of
the bin with replacement. Writes benchmarks/results/kv_cache.json and .md; each row is kept as soon
as it is measured, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import qlab
from qlab.evaluation import reference
from qlab.evaluation.bars import bootstrap, with_bar
from qlab.evaluation.divergence import score
from qlab.evaluation.scoring import versions
from qlab.evaluation.windows import cut, token_bytes
from qlab.io.atomic import atomic_file
from qlab.models import KV, kivi
from qlab.models.kv import Side, coded, name_of
from qlab.models.transformer import rotate

RESULTS = Path(__file__).resolve().parent / "results"
SEED, LN2 = 0, float(np.log(2))
# model -> texts, context, windows of a text, tokens in a piece, where the bins of position end
STUDIES: dict[str, dict[str, Any]] = {
    "tiny": {
        "texts": ("english", "code", "math", "korean"), "context": 256, "windows": 24,
        "piece": 64, "bins": (64, 128, 192, 256),
    },
    "smollm2-135m": {
        "texts": ("english",), "context": 2048, "windows": 1, "piece": 64,
        "bins": (256, 512, 1024, 2048),
    },
}  # fmt: skip
LAYERS = {"smollm2-135m": 8, "tiny": 2}  # whose keys are drawn
SHOWN = 128  # tokens drawn


def recipes(model: str) -> list[KV]:
    """8, 4 and 2 bits, keys by channel and by token, windows of 128 and 32; and no window."""
    if model == "tiny":
        pairs = [(b, w) for w in (128, 32) for b in (8, 4, 2)] + [(4, 0), (2, 0)]
    else:
        pairs = [(2, 128), (4, 128), (2, 32), (8, 128)]
    return [kivi(b, window=w, keys_by=by) for b, w in pairs for by in ("channel", "token")]


def measure(name: str, known: dict[str, Any], keep: Any) -> dict[str, Any]:
    """{text: {recipe: {"kl", "nll"}, "bytes", "float"}} of a model, each (windows, pieces)."""
    study, model = STUDIES[name], qlab.load(name)
    for text in study["texts"]:
        found = known.setdefault(text, {})
        context, count = study["context"], study["windows"]
        words = qlab.texts(text, "evaluation")
        windows = cut(words, model.tokenizer, context=context, tokens=context * count, name=text)
        ids = model.tokenizer.encode(words)[: context * count]
        spelt = token_bytes(model.tokenizer, ids).reshape(count, context)[:, 1:]
        found["bytes"] = pieces(spelt, study["piece"]).tolist()
        states = reference.states(
            model, reference.weights_hash(model), windows, min(4, count), lambda n: None
        )
        for recipe in recipes(name):
            if name_of(recipe) in found:
                continue
            began = time.perf_counter()
            found[name_of(recipe)] = one(model, recipe, windows, states, study["piece"])
            if "float" not in found:
                found["float"] = {"nll": found[name_of(recipe)].pop("nll_float")}
            found[name_of(recipe)].pop("nll_float", None)
            print(f"{name} {text} {name_of(recipe)}: {time.perf_counter() - began:.1f} s")
            keep()
    return known


def one(model: Any, recipe: KV, windows: Any, states: np.ndarray, piece: int) -> dict[str, Any]:
    """One recipe on one text: sums of KL and NLL over pieces, (windows, pieces) each."""
    model_kv = qlab.quantize_kv(model, recipe)
    parts = []
    for a, b, hidden in reference.batches(model_kv, windows, min(4, len(windows.tokens))):
        there = np.asarray(states[a:b]).reshape(-1, hidden.shape[-1])
        goal = windows.targets[a:b].reshape(-1)
        parts.append(score(model, hidden.reshape(there.shape), goal, model, there))
    shape, joined = windows.targets.shape, [np.concatenate(x) for x in zip(*parts, strict=True)]
    nll_float, nll, kl = (pieces(x.reshape(shape), piece).tolist() for x in joined[:3])
    return {"kl": kl, "nll": nll, "nll_float": nll_float}


def pieces(x: np.ndarray, size: int) -> np.ndarray:
    """Sums over pieces of `size` positions: (windows, context − 1) -> (windows, pieces). The last
    piece has a token less: the last position has no target.
    """
    x = np.pad(np.asarray(x, np.float64), ((0, 0), (0, -x.shape[1] % size)))
    return x.reshape(len(x), -1, size).sum(axis=2)


def short(x: Any) -> Any:
    """Floats to seven significant digits: what float32 has."""
    if isinstance(x, dict):
        return {key: short(value) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [short(value) for value in x]
    return float(f"{x:.7g}") if isinstance(x, float) else x


# ---- why keys go by channel ----------------------------------------------------------------------


def keys_and_values(model: Any, tokens: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Keys (turned by position) and values of every layer, (1, time, kv_heads, d) each."""
    x, found, d = model.embed(tokens), [], model.config.head_dim
    for block in model.layers:
        attention, y = block.self_attn, block.input_layernorm(x)
        k, v = (
            part(y).reshape(1, y.shape[1], -1, d) for part in (attention.k_proj, attention.v_proj)
        )
        found.append((rotate(k, jnp.arange(y.shape[1]), attention.theta), v))
        x, _ = block(x, jnp.int32(0))
    return found


def look(name: str, tokens: int = 256) -> dict[str, Any]:
    """Relative errors of 2-bit keys and values both ways in every layer; one layer's numbers."""
    model = qlab.load(name)
    ids = model.tokenizer.encode(qlab.texts("english", "evaluation"))[:tokens]
    found = keys_and_values(model, jnp.asarray([ids]))
    spec = kivi(2).keys
    errors: dict[str, list[float]] = {}
    for pair in found:
        for what, x in zip(("keys", "values"), pair, strict=True):
            for by in ("channel", "token"):
                off = coded(x, Side(spec, by, 0)) - x
                error = float(jnp.linalg.norm(off) / jnp.linalg.norm(x))
                errors.setdefault(f"{what} by {by}", []).append(error)
    layer = LAYERS[name]
    drawn = [np.abs(np.asarray(x))[0, :SHOWN].reshape(SHOWN, -1) for x in found[layer]]
    numbers = {k: np.round(x, 2).tolist() for k, x in zip(("keys", "values"), drawn, strict=True)}
    return {"layer": layer, "tokens": tokens, "errors": errors, **numbers}


# ---- the page ------------------------------------------------------------------------------------


def in_bins(study: dict[str, Any], x: Any) -> list[np.ndarray]:
    """The pieces of every bin, one after another: [(windows · pieces,), …]."""
    x, piece = np.asarray(x, np.float64), study["piece"]
    ends = [end // piece for end in study["bins"]]
    return [x[:, a:b].reshape(-1) for a, b in zip([0, *ends], ends)]


def counts(study: dict[str, Any]) -> list[np.ndarray]:
    ones = np.ones((study["windows"], study["context"] - 1))
    return in_bins(study, pieces(ones, study["piece"]))


def ratio(top: np.ndarray, bottom: np.ndarray) -> tuple[float, float | None]:
    """Σ top / Σ bottom and its bar over pieces."""
    bar = bootstrap(lambda a, b: a / b, top, bottom, seed=SEED)
    return float(top.sum() / bottom.sum()), bar


def cells(study: dict[str, Any], row: Any, base: Any, size: Any, less: Any = None) -> list[str]:
    """KL or bits a byte of every bin; less another row's, in pairs, where there is one."""
    out = []
    for i, bottom in enumerate(size):
        top = in_bins(study, row)[i] / base
        if less is not None:
            top = top - in_bins(study, less)[i] / base
        value, bar = ratio(top, bottom)
        if less is None:
            out.append(with_bar(value, bar))
            continue
        sure = bar is not None and abs(value) > 2 * bar
        said = ("−" if value < 0 else "+") + with_bar(abs(value), bar)
        out.append(f"**{said}**" if sure else said)
    return out


def tables(name: str, found: dict[str, Any]) -> list[str]:
    """All tables of one model."""
    study, lines = STUDIES[name], []
    starts = [0, *study["bins"]]
    bins = [f"{a}–{b - 1}" for a, b in zip(starts, study["bins"])]
    rule = "|---" + "|---:" * (len(bins) + 1) + "|"
    config = qlab.load(name).config
    sizes = (config.num_key_value_heads, config.head_dim)
    for text in study["texts"]:
        rows = found[text]
        head = f"## {name}, {text}: {study['windows']} × {study['context']} tokens"
        lines += [head, "", f"| KL from the float cache, nats | bytes | {' | '.join(bins)} |", rule]
        plain = KV(None, None).bytes(study["context"], *sizes)
        made = [(r, name_of(r)) for r in recipes(name) if name_of(r) in rows]
        for recipe, title in made:
            share = f"{recipe.bytes(study['context'], *sizes) / plain:.0%}"
            kl = cells(study, rows[title]["kl"], 1.0, counts(study))
            lines.append(f"| {title} | {share} | {' | '.join(kl)} |")
        size = in_bins(study, rows["bytes"])
        float_bits = cells(study, rows["float"]["nll"], LN2, size)
        lines += [
            "",
            f"| bits a byte more than the float cache | bytes | {' | '.join(bins)} |",
            rule,
        ]
        lines.append(f"| the float cache itself | 100% | {' | '.join(float_bits)} |")
        for recipe, title in made:
            share = f"{recipe.bytes(study['context'], *sizes) / plain:.0%}"
            more = cells(study, rows[title]["nll"], LN2, size, rows["float"]["nll"])
            lines.append(f"| {title} | {share} | {' | '.join(more)} |")
        lines += ["", *pairs(study, rows, made, bins), ""]
    return lines


def pairs(study: dict[str, Any], rows: Any, made: list[tuple[KV, str]], bins: list[str]):
    """KL less another recipe's: by token less by channel; window of 32 less of 128."""
    lines = [f"| KL less the other's, in pairs | {' | '.join(bins)} |"]
    lines.append("|---" + "|---:" * len(bins) + "|")
    for recipe, title in made:
        others = []
        if recipe.keys_by == "token":
            others.append(recipe.replace(keys_by="channel"))
        if recipe.window == 32:
            others.append(recipe.replace(window=128))
        for other in map(name_of, others):
            if other in rows:
                kl = cells(study, rows[title]["kl"], 1.0, counts(study), rows[other]["kl"])
                lines.append(f"| {title} less {other} | {' | '.join(kl)} |")
    return lines


def why(name: str, seen: dict[str, Any]) -> list[str]:
    """Relative errors of 2-bit codes both ways, over layers."""
    lines = [f"## Why keys go by channel: {name}", ""]
    lines += ["| 2-bit codes of | by channel | by token | layers where by channel is better |"]
    lines.append("|---|---:|---:|---:|")
    for what in ("keys", "values"):
        a, b = (np.array(seen["errors"][f"{what} by {by}"]) for by in ("channel", "token"))
        better = f"{int((a < b).sum())} of {len(a)}"
        lines.append(f"| {what} | {np.median(a):.1%} | {np.median(b):.1%} | {better} |")
    said = f"Median over layers of ‖x − x̂‖ / ‖x‖, the first {seen['tokens']} English tokens."
    return [*lines, "", said, ""]


def page(kept: dict[str, Any]) -> str:
    said = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    lines = [
        "# A key-value cache in few bits",
        "",
        "Written by `python benchmarks/kv_cache.py`; not edited by hand. `kivi2`: 2-bit codes, "
        "keys by channel, values by token, scale and minimum in float16 for 32 numbers, the last "
        "128 tokens float (Liu et al. 2024, arXiv 2402.02750); `token2`: keys by token too. "
        "Weights stay float. Every token reads the cache that it would have read in generation; "
        "columns are positions in the context. `bytes` is the cache's share of float16 at the full "
        "context, scales and the window counted. Protocol `gptq`: windows side by side. ± is one "
        "standard error over pieces of 64 tokens drawn with replacement; pieces of one window "
        "share its text, so a bar over one window is of that text alone. Differences are paired, "
        f"piece by piece; bold: beyond two bars. Seed {SEED}; {said}; {kept['arithmetic']}.",
        "",
    ]
    for name in STUDIES:
        if name in kept:
            lines += tables(name, kept[name])
        if f"why {name}" in kept:
            lines += why(name, kept[f"why {name}"])
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(STUDIES))
    parser.add_argument("--page", action="store_true")
    asked = parser.parse_args()
    file = RESULTS / "kv_cache.json"
    kept = json.loads(file.read_text()) if file.exists() else {}
    kept |= {"versions": versions(), "arithmetic": reference.arithmetic(), "studies": STUDIES}

    def keep() -> None:
        with atomic_file(file, overwrite=True) as sink:
            sink.write((json.dumps(short(kept), ensure_ascii=False) + "\n").encode())

    for name in [] if asked.page else asked.models:
        if f"why {name}" not in kept:
            kept[f"why {name}"] = look(name)
        measure(name, kept.setdefault(name, {}), keep)
    with atomic_file(RESULTS / "kv_cache.md", overwrite=True) as sink:
        sink.write(page(kept).encode())
    print(f"wrote {RESULTS / 'kv_cache.md'}")


if __name__ == "__main__":
    main()
