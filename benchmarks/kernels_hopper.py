"""The GPU kernels compiled for an H100 that is not here: what ptxas says of each.

XLA's CUDA plugin compiles for a described GPU without a device, and Mosaic GPU dumps what ptxas
reports: registers of a thread, bytes that it spills, shared memory of a thread block. That is
deterministic and needs no GPU; it is not a time. Three wheels bring it, none of their libraries:
see `missing`. They may be in another interpreter's environment: `--python`.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WHEELS = ("jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc")
SHARED, REGISTERS, THREADS = 232448, 65536, 2048  # of a multiprocessor, for one block and for all
KIND = "NVIDIA H100"

# XLA's GpuTargetConfigProto of an H100 SXM: the numbers of its data sheet and of CUDA's
# programming guide for compute capability 9.0.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352000000000 l2_cache_size: 52428800 device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 12 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def missing(python: str = sys.executable) -> str | None:
    """What an interpreter lacks to compile for GPUs and how to get it, or None."""
    seek = "import importlib.metadata as m, sys; [m.version(name) for name in sys.argv[1:]]"
    done = subprocess.run([python, "-c", seek, *WHEELS], capture_output=True, check=False)
    if not done.returncode:
        return None
    jax = importlib.metadata.version("jax")
    pinned = " ".join(f"{name}=={jax}" if name.startswith("jax") else name for name in WHEELS)
    return (
        f"{python} has no CUDA plugin of jax {jax}: `pip install --no-deps {pinned}` in an "
        "environment of its own brings it; name its interpreter by --python"
    )


def prepare() -> Path:
    """Settings that are read when jax and its plugin are loaded; the folder of dumps."""
    folder = Path(tempfile.mkdtemp(prefix="qlab_ptxas_"))
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_gpu_autotune_level=0",  # nothing can be timed here
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a cached program dumps nothing
        "MOSAIC_GPU_DUMP_PTX": "1",
        "MOSAIC_GPU_DUMP_PTXAS": "1",
        "MOSAIC_GPU_DUMP_TO": str(folder),
    }
    return folder


def device() -> Any:
    """An H100 to compile for."""
    from jax.experimental import topologies

    found = topologies.get_topology_desc(
        platform="cuda", topology="1x1x1", target_config=H100.strip()
    )
    return found.devices[0]


def cases(out: int = 14336, inner: int = 4096) -> Iterator[tuple[str, Any, Any, tuple]]:
    """(name, tile, function, shapes) of every op at decode and prefill, tiles from the table."""
    import jax

    from qlab import kernels
    from qlab.formats import FP8
    from qlab.kernels import tilings
    from qlab.qtensor import Spec, quantize
    from qlab.specs import SPECS

    @cache
    def packed(name: str, target: str = "any") -> Any:
        w = jax.ShapeDtypeStruct((out, inner), "float32")
        return jax.eval_shape(lambda w: kernels.prepack(quantize(w, SPECS[name]), None, target), w)

    def shape(*sizes: int, dtype: str) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    for phase, tokens in (("decode", 16), ("one token", 1), ("prefill", 4096)):
        tile, tile8 = (tilings.find_gpu(tokens, KIND, bits) for bits in (4, 8))
        x = shape(tokens, inner, dtype="bfloat16")
        for name in ("int4_g128", "awq_g128", "nf4", "int8_g128", "q4_k"):
            op = kernels.q4_k if name == "q4_k" else kernels.w4a16
            run = partial(op, tiling=tile)
            yield f"{op.__name__} {name}, {phase}", tile, run, (x, packed(name))
        if phase == "one token":  # elsewhere one token is compiled as 16 are
            continue
        dtype = "bfloat16" if phase == "decode" else "float32"
        x = shape(tokens, inner, dtype=dtype)
        for act in ("int8_token", "fp8_token", Spec(FP8, 128)):
            run = partial(kernels.quantize_activations, act=act)
            named = act if isinstance(act, str) else "fp8 of 128"
            yield f"quantize_activations {named} of {dtype}, {phase}", None, run, (x,)
        for name, dtype, blocks in (
            ("int8_channel", "int8", 1),
            ("fp8_channel", "float8_e4m3fn", 1),
            ("fp8_block", "float8_e4m3fn", inner // 128),
        ):
            op = kernels.w8a8 if dtype == "int8" else kernels.fp8
            x = shape(tokens, inner, dtype=dtype)
            operands = (x, shape(tokens, blocks, dtype="float32"), packed(name, "cuda"))
            run = partial(op, tiling=tile8)
            yield f"{op.__name__} {name}, {phase}", tile8, run, operands
    tile = tilings.find_gpu(1, KIND)
    for name in ("int4_g128", "q4_k"):
        run = partial(kernels.dequantize, dtype="bfloat16", tiling=tile)
        yield f"dequantize {name}", tile, run, (packed(name),)


def compile_for(where: Any, run: Any, operands: tuple) -> None:
    """Compiles a function for a device, of shapes."""
    import jax

    sharding = jax.sharding.SingleDeviceSharding(where)
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), operands
    )
    jax.jit(run, out_shardings=sharding).lower(*shapes).compile()


LAUNCH = re.compile(
    r"gpu\.launch .*blocks\(.*?\) in \((.*?)\) threads\(.*?\) in \((.*?)\) "
    r"dynamic_shared_memory_size %c(\d+)"
)


def read_dumps(folder: Path) -> dict[str, Any]:
    """What the dumps of one compilation say of its kernel; they are removed."""
    reports = [path.read_text() for path in folder.rglob("*.ptxas")]
    launches = [LAUNCH.search(path.read_text()) for path in folder.rglob("*.mlir-passes.log")]
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    if len(reports) != 1 or len(launches) != 1 or launches[0] is None:
        raise ValueError(f"one kernel leaves one report of ptxas, not {len(reports)}")
    report, launch = reports[0], launches[0]
    blocks, threads = (re.findall(r"= %c(\d+)", launch[i]) for i in (1, 2))
    spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    (registers,) = re.findall(r"Used (\d+) registers", report)
    assert spilled is not None
    row = {
        "registers": int(registers),
        "spilled_bytes": int(spilled[1]) + int(spilled[2]),
        "shared_bytes": int(launch[3]),
        "threads": _product(threads),
        "blocks": _product(blocks),
        "serialized": "wgmma.mma_async instructions are serialized" in report,
    }
    return {**row, "resident": resident(row)}


def _product(sizes: list[str]) -> int:
    total = 1
    for size in sizes:
        total *= int(size)
    return total


def resident(row: dict[str, Any]) -> int:
    """How many thread blocks a multiprocessor holds at once.

    Registers are given out to a warp of 32 threads in portions of 256, shared memory with 1 KB a
    block that CUDA keeps to itself.
    """
    warps = row["threads"] // 32
    registers = -(-row["registers"] * 32 // 256) * 256 * warps
    shared = row["shared_bytes"] + 1024
    return min(REGISTERS // registers, (SHARED + 1024) // shared, THREADS // row["threads"], 32)


def measure(folder: Path) -> list[dict[str, Any]]:
    """Every kernel compiled, in a process that has called `prepare`."""
    where, rows = device(), []
    for case, tile, run, operands in cases():
        compile_for(where, run, operands)
        row = {"kernel": case, "tile": tile and tuple(tile)}
        rows.append({**row, **read_dumps(folder)})
    return rows


def run(python: str = sys.executable) -> dict[str, Any]:
    """`measure` in a process of its own, of an interpreter that has the wheels."""
    command = [python, "-m", "benchmarks.kernels_hopper"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, text=True, capture_output=True, timeout=1200, check=False, cwd=ROOT, env=env
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def table(rows: list[dict[str, Any]], versions: dict[str, str]) -> str:
    """Markdown, one line a kernel."""
    lines = [
        "# GPU kernels, compiled for an H100 without one",
        "",
        f"jax {versions['jax']}, ptxas of nvidia-cuda-nvcc {versions['nvidia-cuda-nvcc']}, sm_90a. "
        "`python -m benchmarks.kernels --aot-gpu`",
        "",
        "Registers of a thread (255 at most), bytes spilled to memory, shared memory of a thread "
        "block, blocks of the launch, and how many of them a multiprocessor holds at once: static "
        "facts, not a time. w is (14336, 4096); decode has 16 tokens, prefill 4,096. Tiles are "
        "those of the table `tilings`, (tokens, out, in, loads under way, least blocks), which the "
        "kernel cuts to its matrix.",
        "",
        "| kernel | tile | registers | spilled | shared KB | threads | blocks | held at once |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in rows:
        tile = "its own" if r["tile"] is None else str(tuple(r["tile"]))
        mark = " (serialized)" if r["serialized"] else ""
        lines.append(
            f"| {r['kernel']}{mark} | {tile} | {r['registers']} | {r['spilled_bytes']} | "
            f"{r['shared_bytes'] / 1024:.1f} | {r['threads']} | {r['blocks']:,} | {r['resident']} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the rows as JSON."""
    folder = prepare()
    rows = measure(folder)
    versions = {name: importlib.metadata.version(name) for name in ("jax", *WHEELS)}
    print(json.dumps({"rows": rows, "versions": versions}))


if __name__ == "__main__":
    main()
