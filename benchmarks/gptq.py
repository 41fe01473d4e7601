"""One 2048 × 2048 layer by GPTQ, 4 bits in groups of 128: here, in torch, and in qwix, in one run.

Each peer lives in an environment of its own, whose Python an option names, and is fed the same
weights and H through this file run there as a worker. Worker and qlab take turns, so that whatever
else the machine does meets both. `cold` is a first call in a fresh process, compilation and all.

    python benchmarks/gptq.py --gptqmodel PYTHON --llmcompressor PYTHON     writes results/gptq.json
    python benchmarks/gptq.py … --qwix PYTHON                               several minutes more
    python benchmarks/gptq.py … --one-thread    processor time; writes results/gptq.one-thread.json

Environments: torch==2.13.0 with gptqmodel==7.4.0 or with llmcompressor==0.14.0.1; jax==0.10.2 with
qwix==0.1.8.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np

RESULT = Path(__file__).resolve().parent / "results" / "gptq.json"
BITS, GROUP, DAMP = 4, 128, 0.01
# One thread: of XLA's too, and processor time, which does not count waiting for other programs.
ALONE = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
THREADS = int(os.environ.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0))))
now = time.process_time if THREADS == 1 else time.perf_counter
Run = Callable[[], tuple[float, np.ndarray]]  # quantizes once: seconds, decoded weights

# ---- the sides: each takes the weights (out, in) and H (in, in), both float32 --------------------


def qlab_side(w: np.ndarray, h: np.ndarray) -> Run:
    import jax
    import jax.numpy as jnp

    import qlab

    of = jnp.asarray(w)
    channels = jnp.zeros(w.shape[1])
    one = jnp.float32(1)
    h = jnp.asarray(h)
    seen = qlab.Stats(one, one, h, channels, channels, channels, histogram=jnp.zeros(512))
    spec = qlab.specs.gptq(BITS, GROUP)

    def run() -> tuple[float, np.ndarray]:
        began = now()
        q = jax.block_until_ready(qlab.gptq(of, seen, spec, damp=DAMP))
        seconds = now() - began
        return seconds, np.asarray(qlab.dequantize(q))

    return run


def gptqmodel_side(w: np.ndarray, h: np.ndarray) -> Run:
    import torch
    import transformers  # noqa: F401  (asks for torchvision before the next lines feign one)

    for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
        sys.modules[name] = MagicMock()
    from gptqmodel.quantization.config import QuantizeConfig
    from gptqmodel.quantization.gptq import GPTQ

    torch.set_num_threads(THREADS)
    config = QuantizeConfig(
        bits=BITS, group_size=GROUP, sym=True, desc_act=False, act_group_aware=False,
        damp_percent=DAMP, offload_to_disk=False,
    )  # fmt: skip

    @torch.no_grad()
    def run() -> tuple[float, np.ndarray]:
        linear = torch.nn.Linear(*w.shape[::-1], bias=False)
        linear.weight.data = torch.from_numpy(w.copy())
        task = GPTQ(linear, config)
        task.quantizer.configure(perchannel=True)
        task.H, task.nsamples = torch.from_numpy(h.copy()), 1
        began = now()
        out = task.quantize()[0]
        return now() - began, out.numpy()

    return run


def llmcompressor_side(w: np.ndarray, h: np.ndarray) -> Run:
    """It fits its scales beforehand, max|w| / 7.5 of the original weights: not part of the time."""
    import torch
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.modifiers.gptq.gptq_quantize import quantize_weight

    torch.set_num_threads(THREADS)
    args = QuantizationArgs(num_bits=BITS, symmetric=True, strategy="group", group_size=GROUP)
    blocks = torch.from_numpy(w).reshape(len(w), -1, GROUP)
    scale = blocks.abs().amax(-1)[None] / 7.5
    zero = torch.zeros_like(scale)

    @torch.no_grad()
    def run() -> tuple[float, np.ndarray]:
        weight, of = torch.from_numpy(w.copy())[None], torch.from_numpy(h.copy())[None]
        began = now()
        out, _, failed = quantize_weight(weight, of, scale, zero, None, args, percdamp=DAMP)
        seconds = now() - began
        assert not failed.any()
        return seconds, out[0].numpy()

    return run


def qwix_side(w: np.ndarray, h: np.ndarray) -> Run:
    """Its scales are max|w| / 7.5 of the weights as corrected so far."""
    import jax
    import jax.numpy as jnp
    from qwix._src.core import qarray
    from qwix.contrib import gptq_core

    how = qarray.HowToQuantize(
        qtype=jnp.int4, channelwise_axes=[0], tiled_axes={1: GROUP}, calibration_method="absmax"
    )
    of, seen = jnp.asarray(w), jnp.asarray(h)

    def run() -> tuple[float, np.ndarray]:
        began = now()
        q, _ = jax.block_until_ready(gptq_core.quantize_weight(of, seen, how, percdamp=DAMP))
        return now() - began, np.asarray(qarray.dequantize(q))

    return run


SIDES = {
    "qlab": (qlab_side, ("qlab", "jax", "jaxlib", "numpy")),
    "gptqmodel": (gptqmodel_side, ("gptqmodel", "torch", "transformers")),
    "llmcompressor": (llmcompressor_side, ("llmcompressor", "compressed-tensors", "torch")),
    "qwix": (qwix_side, ("qwix", "jax", "jaxlib")),
}

# ---- a worker: this file, run by the Python of a side; a line in, a line out ---------------------


def serve(name: str, folder: Path) -> None:
    """Quantizes once for every line on standard input, and answers with seconds and loss."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a peer's own words must not stand among the answers
    w, h = np.load(folder / "w.npy"), np.load(folder / "h.npy")
    side, packages = SIDES[name]
    run = side(w, h)
    facts = {p: version(p) for p in packages} | {"python": platform.python_version()}
    print(json.dumps(facts), file=answers, flush=True)
    for _ in sys.stdin:
        seconds, decoded = run()
        error = (w - decoded).astype(np.float64)
        found = {"seconds": seconds, "loss": float(((error @ h) * error).sum())}
        print(json.dumps(found), file=answers, flush=True)


@contextmanager
def worker(
    name: str, python: str, folder: Path, threads: int
) -> Iterator[Callable[[], dict[str, Any]]]:
    """A function that asks the worker for its next answer; the first one holds its versions."""
    command = [python, __file__, "--worker", name, "--folder", str(folder)]
    # A cache of compiled programs would make the first call warm.
    settings = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    settings |= {"OMP_NUM_THREADS": str(threads)} | ({"XLA_FLAGS": ALONE} if threads == 1 else {})
    with open(folder / f"{name}.log", "w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env=settings,
        )  # fmt: skip
    assert process.stdin and process.stdout
    to, answers = process.stdin, process.stdout

    def ask(line: str = "again\n") -> dict[str, Any]:
        to.write(line)
        to.flush()
        answer = answers.readline()
        if not answer:
            raise RuntimeError(f"{name} stopped: {(folder / f'{name}.log').read_text()[-2000:]}")
        return json.loads(answer)

    try:
        yield ask
    finally:
        to.close()
        process.wait()


# ---- the measurement -----------------------------------------------------------------------------


def layer(size: int, folder: Path) -> float:
    """Writes the weights (normal) and H of 4 · size correlated inputs; returns RTN's loss."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((size, size), np.float32) * np.float32(0.02)
    shared = rng.standard_normal((4 * size, size // 8), np.float32)
    mix = rng.standard_normal((size // 8, size), np.float32) / np.float32(np.sqrt(size // 8))
    x = (shared @ mix + rng.standard_normal((4 * size, size), np.float32)) * np.float32(0.7)
    x *= np.exp(rng.normal(0, 0.5, size)).astype(np.float32)
    h = x.T @ x / np.float32(len(x))
    np.save(folder / "w.npy", w)
    np.save(folder / "h.npy", (h + h.T) / 2)
    blocks = w.reshape(size, -1, GROUP)
    scale = np.abs(blocks).max(-1, keepdims=True) / 7.5
    error = (blocks - scale * np.clip(np.round(blocks / scale), -8, 7)).reshape(w.shape)
    return float(((error.astype(np.float64) @ h) * error).sum())


def measure(
    folder: Path, sides: dict[str, str], rounds: int, threads: int
) -> dict[str, dict[str, Any]]:
    """What every side is and finds, and the seconds of its first call and of `rounds` in turn."""
    found: dict[str, dict[str, Any]] = {}
    seconds: dict[str, list[float]] = {}
    with ExitStack() as stack:
        asks = {}
        for name, python in sides.items():
            asks[name] = stack.enter_context(worker(name, python, folder, threads))
            found[name] = {"versions": asks[name]("")}
        for name, ask in asks.items():
            answer = ask()
            seconds[name] = [answer["seconds"]]
            found[name]["loss"] = answer["loss"]
        for i in range(rounds):
            for name in list(asks)[:: 1 if i % 2 else -1]:
                seconds[name].append(asks[name]()["seconds"])
    for name, (cold, *warm) in seconds.items():
        best, median = min(warm), statistics.median(warm)
        found[name] |= {"cold": cold, "median": median, "best": best, "all": [cold, *warm]}
    return found


def ratios(found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """How many times as fast qlab is as every peer."""
    ours, times = found["qlab"], {}
    for name in found.keys() - {"qlab"}:
        if name == "qwix":
            times["qwix eager, first calls"] = found[name]["cold"] / ours["cold"]
            times["qwix eager, second calls"] = found[name]["best"] / ours["best"]
            continue
        pairs = zip(ours["all"][1:], found[name]["all"][1:], strict=True)
        times[f"{name}, warm, median of rounds"] = statistics.median(b / a for a, b in pairs)
        times[f"{name}, warm, best rounds"] = found[name]["best"] / ours["best"]
    return dict(sorted(times.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description="GPTQ of one layer beside its peers.")
    for name in ("gptqmodel", "llmcompressor", "qwix"):
        parser.add_argument(f"--{name}", metavar="PYTHON", help=f"the Python that has {name}")
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--one-thread", action="store_true", help="processor time of one thread")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        serve(given.worker, given.folder)
        return
    names = ("gptqmodel", "llmcompressor")
    sides = {"qlab": sys.executable} | {n: p for n in names if (p := getattr(given, n))}
    threads = 1 if given.one_thread else THREADS
    with tempfile.TemporaryDirectory() as folder:
        rtn = layer(given.size, Path(folder))
        found = measure(Path(folder), sides, given.rounds, threads)
        if given.qwix:  # one round: it takes minutes
            found |= measure(Path(folder), {"qwix": given.qwix}, 1, threads)
    write(given.size, given.rounds, threads, rtn, found)


def write(size: int, rounds: int, threads: int, rtn: float, found: dict[str, Any]) -> None:
    """Prints the result and keeps it in results/gptq.json, or gptq.one-thread.json."""
    for name, side in found.items():
        print(
            f"{name:14} first call {side['cold']:7.2f} s, then {side['median']:6.2f} s (best"
            f" {side['best']:.2f}); loss {side['loss'] / rtn:.4f} of RTN's"
        )
    times = ratios(found)
    for name, ratio in times.items():
        print(f"qlab is {ratio:.2f} times as fast as {name}")
    facts = {
        "what": f"GPTQ, {size} x {size}, {BITS} bits, groups of {GROUP}, float32, symmetric",
        "clock": "process_time" if threads == 1 else "perf_counter",
        "rounds": rounds,
        "sides": found,
        "times_as_fast": times,  # qlab and torch in turn, qwix afterwards
        "rtn_loss": rtn,
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
    }
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    result = RESULT.with_suffix(".one-thread.json") if threads == 1 else RESULT
    part = result.with_suffix(".part")
    part.write_text(json.dumps(facts, indent=1) + "\n")
    os.replace(part, result)


if __name__ == "__main__":
    main()
