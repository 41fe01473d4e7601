"""Training in FP8: E4M3 forward and E5M2 gradients beside bfloat16 beside float32.

Micikevicius et al. 2022, arXiv 2209.05433, and DeepSeek-AI 2024, arXiv 2412.19437, train language
models whose linears multiply FP8 values and find the loss of bfloat16. Here the architecture of the
bundled model is trained from nothing on the calibration halves of the bundled texts, for some
hundred steps, in four arithmetics that differ in the linears of the blocks alone:

    float32       float32 products
    bfloat16      operands rounded to bfloat16, sums in float32
    FP8 current   qlab.fp8.linear, every tensor scaled by its own maximum
    FP8 delayed   the same, scaled by the maxima of earlier steps, with TransformerEngine's defaults

Embedding, head, norms, attention scores, master weights and AdamW stay float32. Seeds choose the
first weights and the order of the text; they are the same for every arithmetic, so differences from
float32 are taken in pairs.

    python experiments/fp8_training.py --out benchmarks/results/fp8_training.json
    python experiments/fp8_training.py --steps 20 --seeds 0 --out short.json

A run that was stopped goes on with the next arithmetic and seed. No paper's numbers are printed:
their models and texts are others.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import qlab
from qlab import fp8
from qlab.cli import keep_compiled_programs
from qlab.evaluation.scoring import versions
from qlab.io.atomic import atomic_file
from qlab.models.surgery import linears, map_linears
from qlab.models.transformer import Transformer

ARMS = ("float32", "bfloat16", "FP8 current", "FP8 delayed")
TEXTS = ("english", "code", "math", "korean")
BATCH, WINDOW = 4, 128
RATE, WARM_UP = 3e-3, 20
HELD = 16  # windows of each text that are not trained on
EVERY = 25  # steps between two looks at them
HISTORY = 1024  # of delayed scaling, as TransformerEngine has it

Scales = dict[str, jax.Array]  # path of a linear -> (3,): what x, w and g are divided by


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=300, help="of each run (default: 300)")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--out", type=Path, help="keep what was measured in this JSON file")
    given = parser.parse_args(arguments)
    keep_compiled_programs()
    tiny = qlab.load("tiny")
    found = begun(given, tiny)
    for seed in given.seeds:
        for arm in given.arms:
            if any((run["arm"], run["seed"]) == (arm, seed) for run in found["runs"]):
                continue
            found["runs"].append(train(tiny, arm, seed, given.steps))
            if given.out:
                with atomic_file(given.out, overwrite=True) as sink:
                    sink.write((json.dumps(found, indent=1) + "\n").encode())
    print(table(found))
    return 0


def begun(given: argparse.Namespace, tiny: Transformer) -> dict[str, Any]:
    """What is measured, and the runs that --out already has of it.

    Raises:
        SystemExit: the file holds other settings.
    """
    about = {
        "what": "training loss and held-out loss, nats a token", "architecture": "tiny",
        "steps": given.steps, "batch": BATCH, "window": WINDOW, "rate": RATE, "warm_up": WARM_UP,
        "history": HISTORY, "held_out_windows": HELD, "texts": list(TEXTS),
        "tokenizer": tiny.tokenizer.fingerprint[:16], "versions": versions(),
    }  # fmt: skip
    if given.out is None or not given.out.exists():
        return {**about, "runs": []}
    found = json.loads(given.out.read_text())
    for key, value in about.items():
        if found[key] != value:
            raise SystemExit(f"{given.out} was measured with {key} {found[key]}, not {value}")
    return found


# ---- the linears ---------------------------------------------------------------------------------


def float32(x: jax.Array, w: jax.Array, scales: jax.Array) -> jax.Array:
    return jnp.matmul(x, w.T, precision=jax.lax.Precision.HIGHEST)


@jax.custom_vjp
def bfloat16(x: jax.Array, w: jax.Array, scales: jax.Array) -> jax.Array:
    """x wᵀ; the operands of all three products are bfloat16, their sums float32."""
    return _bfloat16_forward(x, w, scales)[0]


def _bfloat16_forward(x: jax.Array, w: jax.Array, scales: jax.Array):
    x, w = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    return _product(x, w.T), (x, w)


def _bfloat16_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array):
    (x, w), g = saved, g.astype(jnp.bfloat16)
    return _product(g, w), _product(g.T, x), jnp.zeros(3)


bfloat16.defvjp(_bfloat16_forward, _bfloat16_backward)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


LINEAR: dict[str, Callable[..., jax.Array]] = {
    "float32": float32,
    "bfloat16": bfloat16,
    "FP8 current": lambda x, w, scales: fp8.linear(x, w, None),
    "FP8 delayed": fp8.linear,
}


class TrainedLinear(nnx.Module):
    """A linear over the master weights in one of the arithmetics."""

    def __init__(self, weight: jax.Array, scales: jax.Array, arm: str):
        self.weight, self.scales, self.arm = nnx.data(weight), nnx.data(scales), arm

    def __call__(self, x: jax.Array) -> jax.Array:
        y = LINEAR[self.arm](x.reshape(-1, x.shape[-1]), self.weight, self.scales)
        return y.reshape(*x.shape[:-1], -1)


def loss(model: Transformer, scales: Scales, rows: jax.Array, arm: str) -> jax.Array:
    """Mean −log p of the next token of rows (batch, window + 1), nats."""
    model = map_linears(
        model,
        lambda path, layer: TrainedLinear(layer.weight, scales[path], arm),  # type: ignore
    )
    logits = model(rows[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, rows[:, 1:]).mean()


# ---- the run -------------------------------------------------------------------------------------


def make_step(arm: str, optimizer: optax.GradientTransformation) -> Callable[..., Any]:
    """The compiled step: weights, optimizer, scaling states, rows -> the same after it, loss, and
    the share of tensors that were clipped.
    """

    @jax.jit
    def step(model: Transformer, state: Any, delayed: dict[str, fp8.Delayed], rows: jax.Array):
        scales = {path: one.scale for path, one in delayed.items()}
        (value, (g, amax)) = jax.value_and_grad(loss, (0, 1))(model, scales, rows, arm)
        updates, state = optimizer.update(g, state, model)
        clipped = jnp.stack([(amax[p] > s * HIGHEST).mean() for p, s in scales.items()]).mean()
        delayed = {path: advance(one, amax[path]) for path, one in delayed.items()}
        return optax.apply_updates(model, updates), state, delayed, value, clipped

    return step


HIGHEST = jnp.array([role.max for role in fp8.ROLES]) * (1 + 2**-20)  # of x, w, g; and a rounding


def begin() -> fp8.Delayed:
    """Delayed scaling of the three tensors of a linear, stacked."""
    one = fp8.Delayed.begin(HISTORY)
    return jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), one)


def advance(three: fp8.Delayed, amax: jax.Array) -> fp8.Delayed:
    """x, w and g each in its own format."""
    each = [jax.tree.map(lambda leaf, i=i: leaf[i], three) for i in range(3)]
    new = [s.advance(a, role) for s, a, role in zip(each, amax, fp8.ROLES, strict=True)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *new)


def train(tiny: Transformer, arm: str, seed: int, steps: int) -> dict[str, Any]:
    """One run: the loss of every step, and of the held-out windows now and then."""
    began = time.perf_counter()
    model = Transformer.init(tiny.config, jax.random.key(seed))
    warm = min(WARM_UP, steps // 2)
    schedule = optax.warmup_cosine_decay_schedule(0.0, RATE, warm, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95))
    state, delayed = optimizer.init(model), {path: begin() for path in linears(model)}
    step = make_step(arm, optimizer)
    held = jnp.asarray(windows(tiny, "evaluation")[:, :HELD].reshape(-1, WINDOW + 1))
    judge = jax.jit(lambda model, scales, rows: loss(model, scales, rows, arm))
    losses, clips, held_out = [], [], []
    for i, rows in enumerate(batches(tiny, seed, steps), 1):
        model, state, delayed, value, clipped = step(model, state, delayed, jnp.asarray(rows))
        losses.append(round(float(value), 5))
        clips.append(float(clipped))
        if i % EVERY == 0 or i == steps:
            scales = {path: one.scale for path, one in delayed.items()}
            value = np.mean(
                [float(judge(model, scales, part)) for part in held.reshape(4, HELD, -1)]
            )
            held_out.append([i, round(float(value), 5)])
    seconds = time.perf_counter() - began
    print(
        f"{arm}, seed {seed}: {held_out[-1][1]:.4f}, {seconds:.0f} s", file=sys.stderr, flush=True
    )
    return {
        "arm": arm, "seed": seed, "loss": losses, "held_out": held_out,
        "clipped": round(float(np.mean(clips)), 6) if arm == "FP8 delayed" else None,
        "seconds": round(seconds, 1),
    }  # fmt: skip


def windows(tiny: Transformer, split: str) -> np.ndarray:
    """The bundled texts cut side by side, (texts, windows, WINDOW + 1), as many of each."""
    ids = [np.asarray(tiny.tokenizer.encode(qlab.texts(text, split))) for text in TEXTS]
    count = min(len(one) - 1 for one in ids) // WINDOW
    at = np.arange(count)[:, None] * WINDOW + np.arange(WINDOW + 1)
    return np.stack([one[at] for one in ids]).astype(np.int32)


def batches(tiny: Transformer, seed: int, steps: int) -> Iterator[np.ndarray]:
    """(BATCH, WINDOW + 1) of one step after another: a window of each text, in a seeded order."""
    text = windows(tiny, "calibration")
    rng = np.random.default_rng(seed)
    orders = np.stack([rng.permutation(text.shape[1]) for _ in TEXTS])
    for i in range(steps):
        yield text[np.arange(BATCH), orders[:, i % text.shape[1]]]


# ---- saying it -----------------------------------------------------------------------------------


def table(found: dict[str, Any]) -> str:
    """Held-out loss at the end, and the difference from float32 in pairs of seeds, as Markdown."""
    lines = [
        f"Architecture of tiny, {found['steps']} steps of {found['batch']} windows of "
        f"{found['window']} tokens; ± is one standard error over seeds.",
        "",
        "| linears | held-out loss, nats | less float32 | training loss | clipped | seconds |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    by = {(run["arm"], run["seed"]): run for run in found["runs"]}
    seeds = sorted({seed for _, seed in by})
    for arm in dict.fromkeys(arm for arm, _ in by):
        runs = [by[arm, s] for s in seeds if (arm, s) in by]
        paired = [(by[arm, s], by["float32", s]) for s in seeds if ("float32", s) in by]
        less = [a["held_out"][-1][1] - b["held_out"][-1][1] for a, b in paired]
        last = [np.mean(run["loss"][-EVERY:]) for run in runs]
        clipped = (
            "" if runs[0]["clipped"] is None else f"{np.mean([r['clipped'] for r in runs]):.2%}"
        )
        lines.append(
            f"| {arm} | {bar([r['held_out'][-1][1] for r in runs])} | "
            f"{'' if arm == 'float32' else bar(less)} | {bar(last)} | {clipped} | "
            f"{np.mean([r['seconds'] for r in runs]):.0f} |"
        )
    return "\n".join(lines)


def bar(values: Sequence[float]) -> str:
    """The mean over seeds and its standard error."""
    if len(values) < 2:
        return f"{np.mean(values):.4f}"
    return f"{np.mean(values):.4f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.4f}"


if __name__ == "__main__":
    sys.exit(main())
