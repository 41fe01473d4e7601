"""How fast blocks of ggml are filled and read on one core, beside ggml's own C in the same run.

Run: python -m benchmarks.ggml [--ggml …/libggml-base.so] [--rows 512]. Writes
benchmarks/results/ggml.json. Without --ggml the library of an installed llama_cpp is taken. Both
sides get one core; what each reads and writes is in memory already.
"""

from __future__ import annotations

import os

CORE = min(os.sched_getaffinity(0))
os.sched_setaffinity(0, {CORE})  # before jax counts the cores

import argparse  # noqa: E402
import importlib.util  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

import qlab  # noqa: E402
from qlab.io import ggml, gguf  # noqa: E402

HERE = Path(__file__).resolve().parent
COLUMNS = 2048
WEIGHED = [n for n in ggml.TYPE_SPECS if n not in ("Q8_0", "MXFP4", "NVFP4", "TQ1_0", "TQ2_0")]
ROUNDS = 5


def peer(path: str | None) -> Any:
    """ggml through ctypes, or one sentence."""
    spec = importlib.util.spec_from_file_location(
        "libggml", HERE.parent / "tests" / "golden" / "libggml.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.find(path)
    if found is None:
        raise SystemExit("no libggml-base.so: give --ggml, or install llama-cpp-python")
    return module.GGML(found)


def seconds(*runs: Callable[[], object]) -> list[float]:
    """Median processor time of each, taken in turns, after a round that compiles: another process
    may hold the core, and a wall clock would time it too.
    """
    for run in runs:
        jax.block_until_ready(run())
    times = np.empty((ROUNDS, len(runs)))
    for i in range(ROUNDS):
        for j, run in enumerate(runs):
            began = time.process_time()
            jax.block_until_ready(run())
            times[i, j] = time.process_time() - began
    return np.median(times, axis=0).tolist()


def measure(library: Any, w: np.ndarray, name: str, importance: np.ndarray | None) -> dict:
    """Encoding and decoding of one type, ours and ggml's."""
    raw = library.quantize(w, name, importance)
    size, block = ggml.BLOCKS[name]
    blocks, given = raw.reshape(-1, block.itemsize), jnp.asarray(w)  # as a model holds it
    ours, copy, theirs, back, theirs_back = seconds(
        lambda: gguf.encode(given, name, importance),
        lambda: jnp.copy(given),
        lambda: library.quantize(w, name, importance),
        lambda: gguf.decode(raw, name),
        lambda: library.dequantize(blocks, name, size),
    )
    return {
        "encode_Mweights_per_s": w.size / ours / 1e6,
        "ggml_encode_Mweights_per_s": w.size / theirs / 1e6,
        "encode_ratio": theirs / ours,
        "encode_of_copy": copy / ours,
        "copy_GB_per_s": w.nbytes / copy / 1e9,
        "decode_GB_per_s": w.nbytes / back / 1e9,
        "ggml_decode_GB_per_s": w.nbytes / theirs_back / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ggml", help="path of libggml-base.so")
    parser.add_argument("--rows", type=int, default=512)
    options = parser.parse_args()
    library, rng = peer(options.ggml), np.random.default_rng(0)
    w = rng.standard_normal((options.rows, COLUMNS)).astype(np.float32)
    importance = np.exp(rng.standard_normal(COLUMNS)).astype(np.float32)
    rows: dict[str, dict] = {}
    for name in ggml.TYPE_SPECS:
        for kind, given in (("", None), (" with importance", importance))[: 1 + (name in WEIGHED)]:
            found = measure(library, w, name, given)
            rows[name + kind] = found
            print(f"{name + kind:22} encode {found['encode_Mweights_per_s']:6.1f} Mweights/s, ggml "
                  f"{found['ggml_encode_Mweights_per_s']:6.1f}: ratio {found['encode_ratio']:5.2f},"
                  f" of jnp.copy {found['encode_of_copy']:5.3f}"
                  f"   decode {found['decode_GB_per_s']:4.2f} GB/s, ggml "
                  f"{found['ggml_decode_GB_per_s']:4.2f}", flush=True)  # fmt: skip
    write(options.rows, rows)


def write(rows: int, found: dict) -> None:
    device = jax.devices()[0]
    facts = {
        "command": f"python -m benchmarks.ggml --rows {rows}",
        "device": f"{device.platform} ({device.device_kind}), 1 core, {platform.machine()}",
        "versions": {"jax": jax.__version__, "numpy": np.__version__, "qlab": qlab.__version__},
        "peer": "libggml-base.so of llama-cpp-python, x86-64 without -mfma",
        "matrix": [rows, COLUMNS],
        "rounds": ROUNDS,
        "statistic": "median of processor time",
        "types": found,
    }
    path = HERE / "results" / "ggml.json"
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
