"""Kernels, measured where they run and compiled for where they do not.

    python -m benchmarks.kernels --cpu     SmolLM2's decoding from packed weights on this CPU,
                                           beside bfloat16 and float32: results/kernels_cpu.*
    python -m benchmarks.kernels --aot     bundles and VMEM of every TPU kernel, compiled without
                                           a TPU (needs libtpu's wheel): results/kernels_tpu.*
    python -m benchmarks.kernels --aot-gpu registers, spills and shared memory of every GPU kernel,
                                           compiled without a GPU (needs CUDA's wheels, here or in
                                           the environment of --python): results/kernels_hopper.*
    python -m benchmarks.kernels --gpu     correctness and speed on the GPU that is here:
                                           results/kernels_gpu.*
    python -m benchmarks.kernels --tune    the fastest tiles on the accelerator that is here:
                                           qlab/kernels/tilings.json

On a CPU the packed weights are unpacked by XLA before each product, so what they save in memory
they pay in work; the table says what that comes to, whatever it is. Rounds go through all rows in
turn, so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import qlab
from benchmarks import kernels_aot, kernels_gpu, kernels_hopper, kernels_tune
from qlab.evaluation.steps import matrices
from qlab.io.atomic import atomic_file
from qlab.kernels import cpu
from qlab.models.generate import generate_tokens
from qlab.models.surgery import dense, linears, put
from qlab.models.transformer import Linear, as_array

RESULTS = Path(__file__).resolve().parent / "results"
PROMPT = "The United States"
BUSY = (
    " At this load the rows differ between rounds by as much as packed and float32 differ: what is "
    "sure is the memory. The rounds are in the .json."
)


class HalfLinear(nnx.Module):
    """y = x Wᵀ with both rounded to bfloat16 and summed in float32: what 16 bits cost."""

    def __init__(self, layer: Linear):
        self.weight = nnx.data(as_array(layer.weight).astype(jnp.bfloat16))
        self.bias = nnx.data(layer.bias)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.bfloat16)
        y = jnp.matmul(x, self.weight.T, preferred_element_type=jnp.float32)
        return y if self.bias is None else y + self.bias


def in_bfloat16(model: Any) -> Any:
    """The model with bfloat16 matrices, and its tied table as a head of that dtype."""
    model = dense(model)
    for path, layer in linears(model).items():
        index, inside = path.split(".", 2)[1:]
        put(model.layers[int(index)], inside, HalfLinear(layer))
    model.lm_head = HalfLinear(model.lm_head or Linear(model.embed_tokens.weight))
    return model


def models(name: str) -> dict[str, Any]:
    """What is compared, by the name of its row."""
    model = qlab.load(name)
    found = {"float32": model, "bfloat16": in_bfloat16(model)}
    recipes = {"int4_g64": "int4_g64", "q4_0": "q4_0", "int8_channel": "int8_channel"}
    for row, spec in recipes.items():
        q = qlab.quantize_model(model, "rtn", spec, progress=False)
        q.embed_tokens.weight = qlab.quantize(model.embed_tokens.weight, qlab.SPECS["q8_0"])
        for dtype in ("float32", "bfloat16"):
            found[f"{row}, products in {dtype}"] = qlab.with_kernels(q, dtype)
    q = qlab.quantize_model(model, "rtn", "int8_channel", act="int8_token", progress=False)
    q.embed_tokens.weight = qlab.quantize(model.embed_tokens.weight, qlab.SPECS["int8_channel"])
    found["int8_channel × int8_token (w8a8)"] = qlab.with_kernels(q)
    # The table stays in float32 to look tokens up, one row a token.
    return {row: dense(one) for row, one in found.items()}


def read_bytes(model: Any) -> int:
    """Bytes of all matrices that a decoded token multiplies by, the head among them."""
    return sum(leaf.nbytes for m in matrices(model) for leaf in jax.tree.leaves(m.weight))


def seconds_a_token(model: Any, ids: list[int], count: int) -> float:
    """Wall seconds a token of greedy decoding, the prompt's pass not counted."""
    tokens = generate_tokens(model, ids, count)
    next(tokens)
    begin = time.perf_counter()
    got = sum(1 for _ in tokens)
    return (time.perf_counter() - begin) / got


def measure_cpu(name: str, rounds: int, count: int) -> dict[str, Any]:
    """Decoding speed of every row, in rounds."""
    rows = models(name)
    ids = rows["float32"].tokenizer.encode(PROMPT)
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    for model in rows.values():
        seconds_a_token(model, ids, 4)  # compiles, and measures the formulations
    for i in range(rounds):
        for row in list(rows)[:: 1 if i % 2 else -1]:
            seconds[row].append(seconds_a_token(rows[row], ids, count))
    base = seconds["float32"]
    return {
        "what": f"greedy decoding of {count} tokens, {name}, batch 1",
        "rows": {
            row: {
                "tokens_per_second": 1 / statistics.median(taken),
                "best_tokens_per_second": 1 / min(taken),
                "times_float32": statistics.median(b / a for a, b in zip(taken, base)),
                "megabytes_read_a_token": read_bytes(rows[row]) / 1e6,
            }
            for row, taken in seconds.items()
        },
        "formulations": {" ".join(map(str, key)): way for key, way in cpu.CHOICES.items()},
        "seconds_a_token": seconds,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "device": platform.processor() or platform.machine(),
        "versions": {m.__name__: m.__version__ for m in (jax, np, qlab)},
    }


def cpu_table(found: dict[str, Any]) -> str:
    lines = [
        "# Decoding on a CPU from packed weights",
        "",
        f"{found['what']}; {found['cores']} cores, load {found['load_average']:.1f}, jax "
        f"{found['versions']['jax']}. Median of {len(found['seconds_a_token']['float32'])} rounds, "
        "all rows in turn. `python -m benchmarks.kernels --cpu`",
        "",
        "| weights | tokens/s | best | × float32 | MB a token |",
        "|---|---:|---:|---:|---:|",
    ]
    for row, r in found["rows"].items():
        lines.append(
            f"| {row} | {r['tokens_per_second']:.1f} | {r['best_tokens_per_second']:.1f} | "
            f"{r['times_float32']:.2f} | {r['megabytes_read_a_token']:.0f} |"
        )
    lines += [
        "",
        "× float32 is the median of the ratios taken round by round, not the ratio of the two "
        "medians. Packed rows have their head in 8 bits, and every product unpacks its weights "
        "first." + (BUSY if found["load_average"] > found["cores"] else ""),
        "",
        "Formulations kept (`qlab.kernels.cpu`): "
        + "; ".join(f"{key}: {way}" for key, way in found["formulations"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def measure_aot() -> dict[str, Any]:
    """Every TPU kernel compiled, in a process of its own: libtpu reads its settings when loaded."""
    command = [sys.executable, "-m", "benchmarks.kernels_aot"]
    done = subprocess.run(command, text=True, capture_output=True, timeout=1200, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def write(path: Path, text: str) -> None:
    with atomic_file(path, overwrite=True) as sink:
        sink.write(text.encode())


def save(name: str, found: dict[str, Any], table: str) -> None:
    """The numbers as JSON, the table beside them and on the screen."""
    write(RESULTS / f"{name}.json", json.dumps(found, indent=1) + "\n")
    write(RESULTS / f"{name}.md", table)
    print(table)


def stop_if(reason: str | None) -> None:
    """Ends the program with one sentence, if there is one."""
    if reason:
        raise SystemExit(reason)


def on_this_gpu() -> None:
    """Correctness and speed of the GPU kernels; numbers are written even where one is wrong."""
    stop_if(kernels_gpu.refusal())
    found = kernels_gpu.measure()
    save("kernels_gpu", found, kernels_gpu.table(found))
    stop_if("; ".join(kernels_gpu.wrong(found)))


def tune() -> None:
    """The fastest tiles of this device, into the table's file."""
    stop_if(kernels_tune.refusal())
    device = jax.devices()[0]
    found = kernels_tune.measure(device.platform)
    kernels_tune.write(found, device.device_kind)
    print(kernels_tune.told(found, device.device_kind))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cpu", action="store_true", help="decode on this CPU")
    parser.add_argument("--aot", action="store_true", help="compile for TPUs that are not here")
    parser.add_argument("--aot-gpu", action="store_true", help="compile for an H100 not here")
    parser.add_argument("--python", default=sys.executable, help="interpreter with CUDA's wheels")
    parser.add_argument("--gpu", action="store_true", help="measure on the GPU that is here")
    parser.add_argument("--tune", action="store_true", help="find this device's fastest tiles")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=16)
    given = parser.parse_args()
    if given.cpu:
        found = measure_cpu(given.model, given.rounds, given.tokens)
        save("kernels_cpu", found, cpu_table(found))
    if given.aot:
        stop_if(None if kernels_aot.available() else kernels_aot.MISSING)
        found = measure_aot()
        save("kernels_tpu", found, kernels_aot.table(**found))
    if given.aot_gpu:
        stop_if(kernels_hopper.missing(given.python))
        found = kernels_hopper.run(given.python)
        save("kernels_hopper", found, kernels_hopper.table(**found))
    if given.gpu:
        on_this_gpu()
    if given.tune:
        tune()


if __name__ == "__main__":
    main()
