"""Scoring speed: tokens a second of SmolLM2 in float32, ours and transformers' in turn.

Both read the same windows and return the same mean NLL (checked to four digits); rounds alternate,
so that whatever else the machine does meets both. On a busy machine take one thread each: its
processor time does not count the waiting. Needs the extra `peers`.

    python benchmarks/scoring.py --rounds 7         writes benchmarks/results/scoring.json
    python benchmarks/scoring.py --one-thread       … scoring.one-thread.json, processor time
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import qlab
from qlab.evaluation.divergence import log_sum_exp
from qlab.models.load import smollm2_file
from qlab.models.transformer import PRECISION

RESULT = Path(__file__).resolve().parent / "results" / "scoring.json"
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
CHUNK = 128  # tokens whose logits exist at one time


def windows(model: Any, batch: int, length: int) -> np.ndarray:
    """The first tokens of the English evaluation text, (batch, length)."""
    ids = model.tokenizer.encode(qlab.texts("english"))[: batch * length]
    return np.array(ids, np.int32).reshape(batch, length)


def ours(model: Any, tokens: np.ndarray) -> Callable[[], float]:
    """Mean NLL of every token but each window's first."""

    @jax.jit
    def nll(model: Any, hidden: jax.Array, tokens: jax.Array) -> jax.Array:
        chunks = hidden.reshape(-1, CHUNK, hidden.shape[-1])
        right = jnp.roll(tokens, -1, axis=1).reshape(-1, CHUNK)

        def one(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
            logits = model.logits(pair[0])
            return log_sum_exp(logits) - jnp.take_along_axis(logits, pair[1][:, None], 1)[:, 0]

        return jax.lax.map(one, (chunks, right)).reshape(tokens.shape)[:, :-1].mean()

    ids = jnp.asarray(tokens)
    return lambda: float(nll(model, model.hidden(ids), ids))


def theirs(tokens: np.ndarray) -> Callable[[], float]:
    """The same through transformers: hidden states of the batch, then logits window by window."""
    import torch
    import transformers

    path = smollm2_file()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    ids = torch.tensor(tokens, dtype=torch.int64)

    def run() -> float:
        with torch.inference_mode():
            hidden = model.model(ids, use_cache=False).last_hidden_state
            losses = [
                torch.nn.functional.cross_entropy(model.lm_head(h[:-1]), right[1:])
                for h, right in zip(hidden, ids, strict=True)
            ]
            return float(torch.stack(losses).mean())

    return run


def measure(rounds: int, batch: int, length: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Seconds of every round by `clock`, and what they mean."""
    import torch
    import transformers

    model = qlab.load("smollm2-135m")
    tokens = windows(model, batch, length)
    sides = {"qlab": ours(model, tokens), "transformers": theirs(tokens)}
    nll = {name: run() for name, run in sides.items()}  # compiles and warms up
    if abs(nll["qlab"] - nll["transformers"]) > 5e-4 * nll["transformers"]:
        raise ValueError(f"the two do not compute the same: NLL {nll}")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for i in range(rounds):
        for name in list(sides)[:: 1 if i % 2 else -1]:
            start = clock()
            sides[name]()
            seconds[name].append(clock() - start)
    pairs = zip(seconds["qlab"], seconds["transformers"], strict=True)
    return {
        "what": f"scoring {batch} windows of {length} tokens, SmolLM2-135M, float32",
        "clock": clock.__name__,
        "tokens_per_second": {k: tokens.size / statistics.median(s) for k, s in seconds.items()},
        "best_tokens_per_second": {k: tokens.size / min(s) for k, s in seconds.items()},
        "ratio": statistics.median(b / a for a, b in pairs),
        "ratio_of_best": min(seconds["transformers"]) / min(seconds["qlab"]),
        "nll": nll,
        "seconds": seconds,
        "precision": {
            "qlab": f"float32, {PRECISION}",
            "transformers": f"float32, {torch.get_float32_matmul_precision()}, attention sdpa",
        },
        "threads": {"cores": len(os.sched_getaffinity(0)), "torch": torch.get_num_threads()},
        "load_average": os.getloadavg()[0],
        "device": platform.processor() or platform.machine(),
        "versions": {m.__name__: m.__version__ for m in (jax, np, torch, transformers, qlab)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Scoring speed beside transformers.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=4, help="windows at a time")
    parser.add_argument("--length", type=int, default=512, help="tokens of a window")
    parser.add_argument("--one-thread", action="store_true", help="processor time of one thread")
    given = parser.parse_args()
    clock, result = time.perf_counter, RESULT
    if given.one_thread:
        import torch

        # XLA reads this when its first array is made, which has not happened yet.
        os.environ["XLA_FLAGS"] = ONE_THREAD
        torch.set_num_threads(1)
        clock, result = time.process_time, RESULT.with_suffix(".one-thread.json")
    found = measure(given.rounds, given.batch, given.length, clock)
    result.parent.mkdir(parents=True, exist_ok=True)
    part = result.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(part, result)
    speed = found["tokens_per_second"]
    print(
        f"{found['what']}: qlab {speed['qlab']:.0f}, transformers {speed['transformers']:.0f} "
        f"tokens/s; ratio {found['ratio']:.2f} (of the best rounds {found['ratio_of_best']:.2f}); "
        f"{found['precision']['qlab']}; {found['threads']}; load {found['load_average']:.1f}"
    )


if __name__ == "__main__":
    main()
