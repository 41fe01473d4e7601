"""Which tiles are fastest on this device: every candidate of every row of `tilings`, timed.

A row serves several ops. Kept is the tile whose times, each over its op's best, have the smallest
geometric mean, so that no op pays much for another. A candidate that does not compile, or that the
kernel does not take, loses. What is found goes into `qlab/kernels/tilings.json`, a device kind a
key, which `tilings` reads; a device that is not there keeps the table's own row.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.kernels_gpu import BLOCKS, Sizes, each_of, numbers, packed
from qlab import kernels
from qlab.io.atomic import atomic_file
from qlab.kernels import tilings
from qlab.kernels.tilings import GpuTile, Tile


class Case(NamedTuple):
    """One product that a row serves."""

    name: str
    op: Callable[..., Any]  # takes inputs, weights and `tiling`
    inputs: tuple
    weights: Any


class Choice(NamedTuple):
    """What was found for a row."""

    tile: Any
    seconds: dict[str, float]  # of each case with that tile
    lost: dict[str, str]  # candidate -> why it could not run


def refusal() -> str | None:
    """Why nothing is tuned here, or None."""
    device = jax.devices()[0]
    if device.platform in ("gpu", "tpu"):
        return None
    return (
        f"no accelerator here, only {device.device_kind}: tiles are measured on the GPU or TPU "
        "that is to use them"
    )


def candidates(platform: str) -> dict[str, list[Any]]:
    """The tiles that are tried for each row of the table."""
    grid = itertools.product
    if platform == "tpu":
        return {
            "decode": [Tile(16, *rest) for rest in grid((256, 512, 1024), (512, 1024, 2048))],
            "prefill": [Tile(*sizes) for sizes in grid((128, 256, 512), (256, 512), (512, 1024))],
        }
    few, steps, blocks = (64, 128), (3, 4, 6), (132, 264, 528)
    many = [GpuTile(*sizes) for sizes in grid(few, few, (64, 128), (2, 3, 4))]
    return {
        "decode": [GpuTile(16, *rest) for rest in grid(few, (128, 256, 512), steps, blocks)],
        "prefill": many,
        "decode 8": [GpuTile(16, 128, *rest) for rest in grid((128, 256), steps, blocks)],
        "prefill 8": many + [tile._replace(inner=256) for tile in many if tile.inner == 128],
    }


def cases(platform: str, row: str, out: int = 14336, inner: int = 4096) -> list[Case]:
    """The products that a row is chosen by."""
    phase, bits = (row.split() + ["4"])[:2]
    tokens = 16 if phase == "decode" else 4096
    x = numbers(2, tokens, inner).astype(jnp.bfloat16)
    found = []
    if bits == "4":
        for name in ("int4_g128", "awq_g128", "nf4", "int8_g128", "q4_k"):
            op = kernels.q4_k if name == "q4_k" else kernels.w4a16
            found.append(Case(f"{op.__name__} {name}", op, (x,), packed(name, out, inner)))
        if phase == "decode":
            unpack = partial(kernels.dequantize, dtype="bfloat16")
            found.append(Case("dequantize", unpack, (), packed("int4_g128", out, inner)))
    if bits == "8" or platform == "tpu":
        for op, act, name in ((kernels.w8a8, "int8_token", "int8_channel"),
                              (kernels.fp8, "fp8_token", "fp8_channel"),
                              (kernels.fp8, BLOCKS, "fp8_block")):  # fmt: skip
            inputs = kernels.quantize_activations(x, act)
            found.append(Case(f"{op.__name__} {name}", op, inputs, packed(name, out, inner)))
    return found


def best(
    tiles: Sequence[Any], served: Sequence[Case], seconds: Callable[[Case, Any], float]
) -> Choice:
    """The tile that serves all cases best.

    Args:
        tiles: the candidates.
        served: what each is tried on.
        seconds: of a case with a tile; raises where that does not run.

    Raises:
        ValueError: no candidate runs every case; the reason of the last.
    """
    taken: dict[Any, dict[str, float]] = {}
    lost: dict[str, str] = {}
    for tile in dict.fromkeys(tiles):
        try:
            taken[tile] = {case.name: seconds(case, tile) for case in served}
        except Exception as error:  # compilers raise what they like
            lost[str(tuple(tile))] = str(error).splitlines()[0][:200] if str(error) else repr(error)
    if not taken:
        raise ValueError(f"none of {len(lost)} tiles runs: {list(lost.values())[-1]}")
    least = {case.name: min(t[case.name] for t in taken.values()) for case in served}

    def slower(tile: Any) -> float:
        return math.prod(taken[tile][name] / least[name] for name in least)

    tile = min(taken, key=slower)
    return Choice(tile, taken[tile], lost)


def timed(sizes: Sizes, case: Case, tile: Any) -> float:
    """Seconds of a case with a tile, on this process' device."""
    return each_of(partial(case.op, tiling=tile), sizes, case.inputs, case.weights)


def measure(
    platform: str, seconds: Callable[[Case, Any], float] | None = None, **sizes: int
) -> dict[str, Choice]:
    """The best tile of each row, on this process' device.

    Args:
        platform: "gpu" or "tpu".
        seconds: of a case with a tile; None: measured.
        **sizes: of the matrix, `out` and `inner`.
    """
    seconds = seconds or partial(timed, Sizes(rounds=3))
    return {
        row: best(tiles, cases(platform, row, **sizes), seconds)
        for row, tiles in candidates(platform).items()
    }


def write(found: dict[str, Choice], kind: str, path: Path = tilings.MEASURED) -> None:
    """Puts the rows of a device kind into the table's file; the other kinds there stay."""
    known = json.loads(path.read_text()) if path.exists() else {}
    known[kind] = {row: list(choice.tile) for row, choice in found.items()}
    with atomic_file(path, overwrite=True) as sink:
        sink.write((json.dumps(known, indent=1, sort_keys=True) + "\n").encode())


def told(found: dict[str, Choice], kind: str) -> str:
    """What was chosen, in lines."""
    lines = [f"{kind}:"]
    for row, choice in found.items():
        times = ", ".join(f"{name} {1e6 * s:.1f} µs" for name, s in choice.seconds.items())
        lines.append(f"  {row}: {choice.tile}; {times}; {len(choice.lost)} tiles did not run")
    return "\n".join(lines)
