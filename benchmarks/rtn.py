"""How fast RTN reads its weights, as a ratio to `jnp.copy` of the same matrix in the same run.

Run: python -m benchmarks.rtn [--size 4096]. Writes benchmarks/results/rtn.json. A copy reads and
writes every byte once; rounding reads the float32 matrix, finds ranges, and writes a byte a weight.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import qlab

NAMES = ("int8_channel", "int4_channel", "int4_g128", "uint4_g64", "nf4", "nf4_double", "fp8_block")
NAMES += ("mxfp4", "nvfp4", "q8_0", "q4_k")
ROUNDS = 15


def seconds(run: Callable[[], object]) -> float:
    """Median wall time of a call, after one that compiles."""
    jax.block_until_ready(run())
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    size = parser.parse_args().size
    w = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
    bytes_read = w.size * 4
    copy = bytes_read / seconds(lambda: jnp.copy(w)) / 1e9
    print(f"jnp.copy of {size} × {size} float32: {copy:.2f} GB/s of input")
    rows = {}
    for name in NAMES:
        spec = qlab.SPECS[name]
        q = qlab.quantize(w, spec)
        there = bytes_read / seconds(lambda spec=spec: qlab.quantize(w, spec)) / 1e9
        back = bytes_read / seconds(lambda q=q: qlab.dequantize(q)) / 1e9
        rows[name] = {"quantize": there / copy, "dequantize": back / copy}
        print(f"{name:14} quantize {there:5.2f} GB/s = {there / copy:.2f} × copy"
              f"   dequantize {back:5.2f} GB/s of output = {back / copy:.2f} × copy")  # fmt: skip
    device = jax.devices()[0]
    facts = {
        "command": f"python -m benchmarks.rtn --size {size}",
        "device": f"{device.platform} ({device.device_kind}), {os.cpu_count()} cores, "
        f"{platform.machine()}",
        "versions": {"jax": jax.__version__, "numpy": np.__version__, "qlab": qlab.__version__},
        "rounds": ROUNDS,
        "statistic": "median",
        "copy_GB_per_s": copy,
        "ratio_to_copy": rows,
    }
    path = Path(__file__).parent / "results" / "rtn.json"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    main()
