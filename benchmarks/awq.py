"""AWQ beside GPTQ on one model, 4 bits in groups of 64 with a zero point: seconds and memory.

Each method runs in a process of its own, this file as a worker, so that peak memory is its own;
they take turns, so that whatever else the machine does meets both. `first` is a first call in a
fresh process, compilation and all. Seconds of calibration are those of the same call with rounding
to nearest in the method's place: reading the text the way the method has it read (AWQ once, on the
float model; GPTQ stage by stage, on what the quantized layers put out).

    python benchmarks/awq.py                     SmolLM2-135M, 2048 tokens; writes results/awq.json
    python benchmarks/awq.py --model tiny --tokens 2048 --out tiny.json
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Not qlab: a process begins with the peak memory of its parent, so the parent stays small.

RESULT = Path(__file__).resolve().parent / "results" / "awq.json"
BITS, GROUP = 4, 64
TEXTS = ("english", "code", "math", "korean")
METHODS = {"awq": "float", "gptq": "quantized"}  # what each is calibrated on
SCORED, WINDOW = 2048, 256  # tokens of English on which both results are judged
PACKAGES = ("qlab", "jax", "jaxlib", "numpy")


def peak() -> float:
    """The most memory this process has held, MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


# ---- a worker: this file; a line in, a line out --------------------------------------------------


def serve(method: str, given: argparse.Namespace) -> None:
    """Quantizes for every line "quantize", calibrates only for "calibrate", scores for "score"."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    start = peak()
    import jax

    import qlab
    import qlab.evaluation  # now, so that later nothing is loaded but programs

    model = qlab.load(given.model)
    jax.block_until_ready(jax.tree.leaves(model))
    batches = qlab.calibration_batches(
        model, TEXTS, tokens=given.tokens, context=given.context, seed=0
    )
    spec = qlab.specs.gptq(BITS, GROUP, sym=False)
    latest: list[Any] = []

    def say(found: dict[str, Any]) -> None:
        print(json.dumps(found), file=answers, flush=True)

    def quantize(name: str) -> dict[str, float]:
        began, used = time.perf_counter(), time.process_time()
        latest[:] = [
            qlab.quantize_model(
                model, name, spec, batches, propagate=METHODS[method], held_out=0.0, progress=False
            )
        ]
        jax.block_until_ready(jax.tree.leaves(latest[0]))
        used = time.process_time() - used  # of all threads: other programs do not add to it
        return {"seconds": time.perf_counter() - began, "cpu_seconds": used}

    versions = {p: version(p) for p in PACKAGES} | {"python": platform.python_version()}
    loaded = {"start_mib": start, "loaded_mib": peak(), "tokens": batches.count}
    say({"versions": versions, "sha256": batches.hash} | loaded)
    for order in sys.stdin:
        if order == "score\n":
            row = qlab.evaluate(
                latest[0], reference=model, texts="english", tokens=SCORED, context=WINDOW,
                progress=False,
            )  # fmt: skip
            kl = row["english"].kl
            assert kl is not None
            say({"kl": kl.value, "kl_bar": kl.bar})
        else:
            spent = quantize(method if order == "quantize\n" else "rtn")
            say(spent | {"peak_mib": peak()})


@contextmanager
def worker(method: str, given: argparse.Namespace, folder: Path) -> Iterator[Callable[[str], Any]]:
    """A function that gives the worker an order and returns its answer; "" only listens."""
    command = [sys.executable, __file__, "--worker", method, "--model", given.model]
    command += ["--tokens", str(given.tokens), "--context", str(given.context)]
    # A cache of compiled programs would make the first call warm.
    settings = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    with open(folder / f"{method}.log", "w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            env=settings,
        )  # fmt: skip
    assert process.stdin and process.stdout
    to, answers = process.stdin, process.stdout

    def ask(order: str) -> Any:
        if order:
            to.write(f"{order}\n")
            to.flush()
        answer = answers.readline()
        if not answer:
            said = (folder / f"{method}.log").read_text()[-2000:]
            raise RuntimeError(f"{method} stopped: {said}")
        return json.loads(answer)

    try:
        yield ask
    finally:
        to.close()
        process.wait()


# ---- the measurement -----------------------------------------------------------------------------


def measure(given: argparse.Namespace, folder: Path) -> dict[str, dict[str, Any]]:
    """What each method takes: first call, later calls, calibration alone, memory, and its KL."""
    found: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        asks = {}
        for method in METHODS:
            asks[method] = stack.enter_context(worker(method, given, folder))
            found[method] = {"calibrated_on": METHODS[method]} | asks[method]("")
        began = time.perf_counter()
        for i in range(1 + given.rounds):
            for method in list(asks)[:: -1 if i % 2 else 1]:
                answer = asks[method]("quantize")
                for key in ("seconds", "cpu_seconds"):
                    found[method].setdefault(key, []).append(answer[key])
                found[method]["peak_mib"] = answer["peak_mib"]
                said = f"{method} call {i + 1}: {answer['seconds']:.1f} s"
                print(f"{said}; {time.perf_counter() - began:.0f} s so far", file=sys.stderr)
        for method, ask in asks.items():  # last: neither may add to the method's peak
            found[method] |= ask("score")
            ask("calibrate")  # compiles what only rounding needs
            answer = ask("calibrate")
            found[method]["calibration"] = answer["seconds"]
            found[method]["calibration_cpu"] = answer["cpu_seconds"]
    for side in found.values():
        for name, key in (("", "seconds"), ("_cpu", "cpu_seconds")):
            first, *later = side[key]
            side |= {f"first{name}": first, f"later{name}": min(later)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="AWQ and GPTQ of one model: seconds and memory.")
    parser.add_argument("--model", default="smollm2-135m", help="(default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=2048, help="to calibrate on")
    parser.add_argument("--context", type=int, default=256, help="tokens in a sequence")
    parser.add_argument("--rounds", type=int, default=1, help="calls after the first")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rounds < 1:
        parser.error(f"--rounds {given.rounds} is below 1")
    if given.worker:
        serve(given.worker, given)
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given, Path(folder))
    write(given, found)


def processor() -> str:
    """The CPU's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write(given: argparse.Namespace, found: dict[str, dict[str, Any]]) -> None:
    """Prints the result and keeps it, in results/awq.json unless told otherwise."""
    for method, side in found.items():
        print(
            f"{method:5} first call {side['first']:6.1f} s, then {side['later']:6.1f} s, of it"
            f" {side['calibration']:.1f} s calibration; peak {side['peak_mib']:.0f} MiB, the model"
            f" loaded {side['loaded_mib']:.0f}; KL {side['kl']:.4f} ± {side['kl_bar'] or 0:.4f}"
        )
    awq, gptq = found["awq"], found["gptq"]
    keys = [k + cpu for cpu in ("", "_cpu") for k in ("first", "later", "calibration")]
    ratios = {key: awq[key] / gptq[key] for key in [*keys, "peak_mib"]}
    for key, ratio in ratios.items():
        print(f"awq takes {ratio:.2f} of gptq's {key}")
    facts = {
        "what": f"{given.model}, {BITS} bits, groups of {GROUP}, a zero point; quantize_model with "
        "the methods' own settings",
        "calibration": {
            "texts": TEXTS, "tokens": awq["tokens"], "context": given.context, "seed": 0,
        },
        "scored": {"text": "english", "tokens": SCORED, "context": WINDOW},
        "clock": "perf_counter; cpu: process_time, of all threads",
        "memory": "ru_maxrss of the method's own process before anything but the method ran",
        "rounds": given.rounds,
        "methods": found,
        "awq_over_gptq": ratios,
        "load_average": os.getloadavg()[0],
        "device": f"{processor()}, {os.cpu_count()} cores",
    }  # fmt: skip
    given.out.parent.mkdir(parents=True, exist_ok=True)
    part = given.out.with_suffix(".part")
    part.write_text(json.dumps(facts, indent=1) + "\n")
    os.replace(part, given.out)


if __name__ == "__main__":
    main()
