"""Calibration's cost: a whole model through GPTQ beside one float forward over the same tokens, and
peak memory for a short and a long text.

Time: forward passes run before and after each run in the same process, so that whatever else the
machine does meets both; the first run also compiles. Memory: one process for each length, the
largest resident set that the kernel saw; it is reached within a few blocks, so `--blocks` may cut
the model short.

    python benchmarks/calibration.py                    writes benchmarks/results/calibration.json
    python benchmarks/calibration.py --tokens 4096 --model tiny --rounds 1
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import qlab

RESULT = Path(__file__).resolve().parent / "results" / "calibration.json"
TEXTS = ["english", "code"]


def forward(model: Any, batches: Any) -> np.ndarray:
    """Seconds of one float forward, logits included, four sequences at a time."""
    start = clocks()
    for tokens, _ in batches.pieces(4):
        jax.block_until_ready(model(jnp.asarray(tokens)))
    return clocks() - start


def clocks() -> np.ndarray:
    """(wall, processor) seconds; the second does not count waiting for other processes."""
    return np.array([time.perf_counter(), time.process_time()])


def speed(name: str, method: str, spec: str, tokens: int, rounds: int) -> dict[str, Any]:
    """Seconds of `quantize_model` over those of a forward, the first run and warm ones."""
    model = qlab.load(name)
    batches = qlab.calibration_batches(model, TEXTS, tokens)
    forward(model, batches)  # compiles
    runs, passes, own = [], [forward(model, batches)], []
    for _ in range(rounds + 1):
        start = clocks()
        q = qlab.quantize_model(model, method, spec, batches, progress=False)
        runs.append(clocks() - start)
        passes.append(forward(model, batches))
        own.append(sum(row.seconds for row in q.report.layers))
    ratios = [run / ((a + b) / 2) for run, a, b in zip(runs, passes, passes[1:])]
    return {
        "tokens": batches.count,
        "first_ratio": ratios[0][0],
        "warm_ratio": statistics.median(r[0] for r in ratios[1:]) if rounds else None,
        "processor_ratios": [float(r[1]) for r in ratios],
        "forward_seconds": [float(p[0]) for p in passes],
        "quantize_seconds": [float(r[0]) for r in runs],
        "method_seconds": own,
    }


def memory_of_one(name: str, method: str, spec: str, tokens: int, blocks: int) -> float:
    """Peak resident MB of this process after one run over the first blocks."""
    model = qlab.load(name)
    batches = qlab.calibration_batches(model, TEXTS, tokens)

    def rule(path: str) -> str | None:
        return spec if int(path.split(".")[1]) < blocks else None

    qlab.quantize_model(model, method, rule, batches, progress=False)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(given: argparse.Namespace) -> dict[str, float]:
    """Peak resident MB of one process for each length."""
    found = {}
    for tokens in (given.tokens, 4 * given.tokens):
        command = [sys.executable, __file__, "--memory-of", str(tokens), "--model", given.model]
        command += ["--method", given.method, "--spec", given.spec, "--blocks", str(given.blocks)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[str(tokens)] = float(done.stdout.split()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="What calibrating a whole model costs.")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--spec", default="int4_g64")
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=1, help="warm runs after the first")
    parser.add_argument("--blocks", type=int, default=4, help="of the model, for peak memory")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--only", choices=["speed", "memory"], help="keep the other's old numbers")
    given = parser.parse_args()
    setting = (given.model, given.method, given.spec)
    if given.memory_of:
        print(memory_of_one(*setting, given.memory_of, given.blocks))
        return
    found = json.loads(RESULT.read_text()) if given.only and RESULT.exists() else {}
    found |= {
        "what": f"quantize_model({', '.join(setting)}) on {', '.join(TEXTS)}",
        "threads": len(os.sched_getaffinity(0)),
        "device": platform.processor() or platform.machine(),
        "versions": {m.__name__: m.__version__ for m in (jax, np, qlab)},
    }
    if given.only != "memory":
        found["speed"] = speed(*setting, given.tokens, given.rounds)
        found["speed"]["load_average"] = os.getloadavg()[0]
    if given.only != "speed":
        peak = memory(given)
        short, long = peak.values()
        growth = long / short - 1
        found["memory"] = {"peak_mb": peak, "growth": growth, "blocks": given.blocks}
    write(found)


def write(found: dict[str, Any]) -> None:
    """Prints what was found and keeps it."""
    if s := found.get("speed"):
        line = (
            f"{found['what']}, {s['tokens']:,} tokens: {s['quantize_seconds'][0]:.1f} s with "
            f"compiling, {s['first_ratio']:.2f} × one forward of "
            f"{statistics.median(s['forward_seconds']):.1f} s"
        )
        if s["warm_ratio"] is not None:
            line += f"; warm {s['quantize_seconds'][-1]:.1f} s, {s['warm_ratio']:.2f} ×"
        of_processor = ", ".join(f"{r:.2f}" for r in s.get("processor_ratios", []))
        print(f"{line}; of processor time {of_processor} ×; load {s['load_average']:.1f}")
    if m := found.get("memory"):
        said = ", ".join(f"{int(t):,} tokens {mb:,.0f} MB" for t, mb in m["peak_mb"].items())
        print(f"peak memory: {said} ({100 * m['growth']:+.1f} %), {m['blocks']} blocks")
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    part = RESULT.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(part, RESULT)


if __name__ == "__main__":
    main()
