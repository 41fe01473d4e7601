"""The TPU kernels compiled for TPUs that are not here: what the compiler says of each.

libtpu compiles for a topology without a device, and its dumps count the bundles (instruction words)
of a kernel's schedule, the slots they fill and the registers they spill. That is deterministic and
needs no TPU; it is not a time. libtpu's licence is Google Cloud's terms, so qlab does not depend on
it: `pip install "jax[tpu]==0.10.2"` in an environment of its own brings it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

TOPOLOGIES = {"v5e": "v5e:2x2", "v6e": "v6e:2x2", "v7x": "tpu7x:2x2x1"}
MISSING = 'libtpu is not installed: `pip install "jax[tpu]"` in an environment of its own brings it'


def available() -> bool:
    """Whether libtpu's wheel is here."""
    return importlib.util.find_spec("libtpu") is not None


def prepare() -> Path:
    """Settings that libtpu reads when it is loaded, before jax is imported; the folder of dumps."""
    folder = Path(tempfile.mkdtemp(prefix="qlab_llo_"))
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "false",  # a cached program dumps nothing
        "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true",
    }
    return folder


def device(topology: str) -> Any:
    """A device of a topology, to compile for."""
    from jax.experimental import topologies

    return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]


def compile_for(where: Any, run: Any, operands: tuple) -> Any:
    """A function compiled for a device, of shapes."""
    import jax

    sharding = jax.sharding.SingleDeviceSharding(where)
    shapes = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), operands
    )
    return jax.jit(run, out_shardings=sharding).lower(*shapes).compile()


def cases(kind: str, out: int = 1024, inner: int = 2048) -> Iterator[tuple[str, Any, Any, tuple]]:
    """(name, tile, function, shapes) of every op at decode and prefill, tiles from the table."""
    import jax
    import jax.numpy as jnp

    from qlab import kernels
    from qlab.kernels import tilings
    from qlab.qtensor import quantize
    from qlab.specs import SPECS

    def packed(name: str) -> Any:
        return kernels.prepack(quantize(jnp.ones((out, inner)), SPECS[name]))

    def shape(*sizes: int, dtype: str) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    for phase, tokens in (("decode", 16), ("prefill", 256)):
        tile = tilings.find(tokens, kind)
        cut = tilings.fit(tile, tokens, out, inner, 256)
        x = shape(tokens, inner, dtype="bfloat16")
        for name in ("int4_g128", "awq_g128", "nf4", "int8_g128", "q4_k"):
            op = kernels.q4_k if name == "q4_k" else kernels.w4a16
            run = partial(op, tiling=tile)
            yield f"{op.__name__} {name}, {phase}", cut, run, (x, packed(name))
        run = partial(kernels.w8a8, tiling=tile)
        operands = (shape(tokens, inner, dtype="int8"), shape(tokens, 1, dtype="float32"))
        yield f"w8a8 int8_channel, {phase}", cut, run, (*operands, packed("int8_channel"))
        for name, blocks in (("fp8_channel", 1), ("fp8_block", inner // 128)):
            run = partial(kernels.fp8, tiling=tile)
            x8 = shape(tokens, inner, dtype="float8_e4m3fn")
            operands = (x8, shape(tokens, blocks, dtype="float32"), packed(name))
            yield f"fp8 {name}, {phase}", cut, run, operands
        for act in ("int8_token", "fp8_token"):
            run = partial(kernels.quantize_activations, act=act)
            yield f"quantize_activations {act}, {phase}", None, run, (x,)
    tile = tilings.find(16, kind)
    for name in ("int4_g128", "q4_k"):
        run = partial(kernels.dequantize, dtype="bfloat16", tiling=tile)
        yield f"dequantize {name}", tilings.fit(tile, 16, out, inner, 256), run, (packed(name),)


def reference_case(kind: str) -> tuple[str, Any, Any, tuple]:
    """Block (128, 256, 1024) alone in its grid: what other ways of unpacking were measured at."""
    import jax
    import jax.numpy as jnp

    from qlab import kernels
    from qlab.kernels.tilings import Tile
    from qlab.qtensor import quantize
    from qlab.specs import SPECS

    tile = Tile(128, 256, 1024)
    p = kernels.prepack(quantize(jnp.ones((512, 2048)), SPECS["int4_g128"]))
    x = jax.ShapeDtypeStruct((256, 2048), "bfloat16")
    run = partial(kernels.w4a16, tiling=tile)
    return "w4a16 int4_g128, block (128, 256, 1024)", tile, run, (x, p)


KERNELS = "affine_matmul|q4_k_matmul|w8a8|fp8|dequantize|quantize_activations"


def read_dumps(folder: Path, before: set[Path]) -> dict[str, Any]:
    """What the dumps since `before` say of a kernel: bundles, spills, slots filled, VMEM."""
    files = [path for path in folder.rglob("*.txt") if path not in before]

    def one(ending: str) -> str:
        mine = re.compile(rf"-({KERNELS})[.\d]*-\d+-{ending}$")
        (path,) = [path for path in files if mine.search(path.name)]
        return path.read_text(errors="ignore")

    (bundles,) = re.findall(
        r"total scheduled bundles:\s*(\d+)", one("schedule-analysis_final_bundles.txt")
    )
    head, rows = one("final_hlo-static-per-bundle-utilization.txt").split("UTILIZATION:")
    names = [name.strip() for name in head.splitlines()[1].split(",")]
    slots = [int(n) for n in head.splitlines()[2].split()]
    used = [sum(column) for column in zip(*(map(int, r.split()) for r in rows.split("\n") if r))]
    filled = dict(zip(names, (u / s / int(bundles) for u, s in zip(used, slots))))
    sizes = re.findall(r"space=vmem, size = (0x[0-9a-f]+)", one("original.txt"))
    return {
        "bundles": int(bundles),
        "spills": dict(zip(names, used))["VSTORE:SPILL"],
        "mxu": filled["MXU"],
        "valu": filled["VALU"],
        "vmem_bytes": sum(int(size, 16) for size in sizes),
    }


def measure(name: str) -> list[dict[str, Any]]:
    """Every kernel compiled for one of TOPOLOGIES, in a process that has called `prepare`."""
    folder = Path(os.environ["LIBTPU_INIT_ARGS"].split("dump_to=")[1].split()[0])
    where, rows = device(TOPOLOGIES[name]), []
    kind = where.device_kind
    for case, tile, run, operands in [reference_case(kind), *cases(kind)]:
        before = set(folder.rglob("*.txt"))
        compile_for(where, run, operands)
        row = {"kernel": case, "device": name, "tile": tile and tuple(tile)}
        rows.append({**row, **read_dumps(folder, before)})
    return rows


def table(rows: list[dict[str, Any]], versions: dict[str, str]) -> str:
    """Markdown, one line a kernel and tile, devices side by side."""
    devices = list(dict.fromkeys(row["device"] for row in rows))
    lines = [
        "# TPU kernels, compiled without a TPU",
        "",
        f"jax {versions['jax']}, libtpu {versions['libtpu']}. `python -m benchmarks.kernels --aot`",
        "",
        "Bundles are the instruction words of the whole program with its pipeline, each executed "
        "once a grid step or less: a static count, not a time. Inputs are bfloat16, w is "
        "(1024, 2048); tiles are (tokens, out, in). VMEM counts both buffers of every block.",
        "",
        "| kernel | tile | " + " | ".join(f"{d}: bundles | MXU, VALU" for d in devices)
        + " | VMEM MB | spills |",
        "|---|---|" + "---:|---:|" * len(devices) + "---:|---:|",
    ]  # fmt: skip
    by_case: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_case.setdefault(row["kernel"], []).append(row)
    for case, found in by_case.items():
        each = [f"{r['bundles']} | {r['mxu']:.0%}, {r['valu']:.0%}" for r in found]
        tile = "whole rows" if found[0]["tile"] is None else str(tuple(found[0]["tile"]))
        vmem = max(r["vmem_bytes"] for r in found) / 2**20
        spills = " / ".join(str(r["spills"]) for r in found)
        lines.append(f"| {case} | {tile} | " + " | ".join(each) + f" | {vmem:.2f} | {spills} |")
    lines += [
        "",
        "For the block (128, 256, 1024) with groups of 128, four ways of unpacking were compiled "
        "before these kernels were written, the inner step alone, on v5e / v6e / v7x: int4 → "
        "float32 · scale → bfloat16 → dot 722 / 660 / 427 (the way taken here); int4 → bfloat16 · "
        "scale → dot 734 / 553 / 319; int4 → bfloat16 dot, then · scale 686 / 560 / 507; mixed "
        "bfloat16 × int4 dot, then · scale 667 / 560 / 446.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the rows of the topologies named, as JSON."""
    prepare()
    rows = [row for name in sys.argv[1:] or TOPOLOGIES for row in measure(name)]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}
    print(json.dumps({"rows": rows, "versions": versions}))


if __name__ == "__main__":
    main()
