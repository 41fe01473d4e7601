"""How large a tile is: data, one row a device kind and a shape class.

On a TPU a tile is (tokens, out, in): the kernel multiplies x (tokens, in) by w (in, out) and adds
the tiles along `in` up. Decode has at most 16 tokens and reads weights as fast as memory gives
them: wide tiles, few of them. Prefill has many tokens, and each weight that was unpacked should
meet as many of them as fit. `fit` cuts a row to a matrix. On a GPU many thread blocks run at once,
each with its own tile of outputs, and the row says too how many loads are under way. Rows that
`python -m benchmarks.kernels --tune` measured on a device stand in `tilings.json` and come first.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax

DECODE = 16  # at most so many tokens are decode


class Tile(NamedTuple):
    """Sizes of the tile of one grid step."""

    tokens: int
    out: int
    inner: int


class GpuTile(NamedTuple):
    """Sizes of the tile of one thread block of a GPU, and how it reads."""

    tokens: int
    out: int
    inner: int  # read in one step
    steps: int  # loads under way at once
    blocks: int = (
        1  # inputs (products of bytes: outputs) are split until so many thread blocks work
    )


# Hopper: 132 multiprocessors, of 227 KB of shared memory each; the rows ending in 8 are for
# weights of 8 bits.
HOPPER = {
    "decode": GpuTile(16, 128, 256, 4, 264),
    "prefill": GpuTile(128, 128, 128, 2, 132),
    "decode 8": GpuTile(16, 128, 128, 4, 264),
    "prefill 8": GpuTile(128, 128, 128, 3),
}
HOPPER_SAFE = {name: tile._replace(out=64, steps=2) for name, tile in HOPPER.items()}

# device kind (its beginning, as `jax.Device.device_kind` spells it) -> class -> Tile. Sizes come
# from `python -m benchmarks.kernels --aot`: bundles of a step, and what fits VMEM without spills.
TILINGS: dict[str, dict[str, Any]] = {
    "TPU v5 lite": {"decode": Tile(16, 512, 1024), "prefill": Tile(256, 512, 1024)},  # v5e
    "TPU v6": {"decode": Tile(16, 512, 1024), "prefill": Tile(256, 512, 1024)},  # v6e
    "TPU7x": {"decode": Tile(16, 512, 1024), "prefill": Tile(256, 512, 1024)},
    "": {"decode": Tile(16, 256, 512), "prefill": Tile(128, 256, 512)},  # any: small and safe
    "NVIDIA H100": HOPPER,
    "NVIDIA H200": HOPPER,
    "NVIDIA": HOPPER_SAFE,  # any other of compute capability 9.0
}

MEASURED = Path(__file__).with_name("tilings.json")  # device kind -> class -> sizes


def measured(path: Path = MEASURED) -> dict[str, dict[str, Any]]:
    """The rows that were measured on a device, none where no device was.

    Args:
        path: of the file: {device kind: {class: [sizes of a Tile or a GpuTile]}}.
    """
    if not path.exists():
        return {}
    kinds = {3: Tile, 5: GpuTile}
    table = json.loads(path.read_text())
    return {
        kind: {name: kinds[len(sizes)](*sizes) for name, sizes in row.items()}
        for kind, row in table.items()
    }


def merge(table: dict[str, dict[str, Any]], rows: dict[str, dict[str, Any]]) -> None:
    """Puts measured rows into a table; a class that was not measured stays as for like devices."""
    for kind, row in rows.items():
        like = max((name for name in table if kind.startswith(name)), key=len)
        table[kind] = {**table[like], **row}


merge(TILINGS, measured())

_said: set[str] = set()


def find(tokens: int, kind: str | None = None) -> Tile:
    """The row for a number of tokens.

    Args:
        tokens: of the call; at most 16 are decode.
        kind: a device kind; None: the first device of this process, where it is a TPU.

    A TPU that the table does not know takes the safe row and says so, once.

    Example:
        >>> find(1, "TPU v6 lite").out, find(1, "TPU v99").out
        (512, 256)
    """
    if kind is None:
        kind = _kind("tpu")
    return _row(kind, "")["decode" if tokens <= DECODE else "prefill"]


def find_gpu(tokens: int, kind: str | None = None, bits: int = 4) -> GpuTile:
    """The row of a GPU for a number of tokens.

    Args:
        tokens: of the call; at most 16 are decode.
        kind: a device kind; None: the first device of this process, where it is a GPU.
        bits: of a weight, 4 or 8.

    A GPU that the table does not know takes the safe row and says so, once.

    Example:
        >>> find_gpu(1, "NVIDIA H100 80GB HBM3").out, find_gpu(1, "NVIDIA GH200 480GB").out
        (128, 64)
    """
    if kind is None:
        kind = _kind("gpu")
    phase = "decode" if tokens <= DECODE else "prefill"
    return _row(kind, "NVIDIA")[phase if bits <= 4 else phase + " 8"]


def _kind(platform: str) -> str:
    """What this process' first device calls itself, where it is of that platform."""
    device = jax.devices()[0]
    return device.device_kind if device.platform == platform else ""


def _row(kind: str, safe: str) -> dict[str, Any]:
    """The row of a device kind; the safe one, said once, where none is known."""
    known = (name for name in TILINGS if name.startswith(safe) and kind.startswith(name))
    row = max(known, key=len, default=safe)
    if kind and row == safe:
        say_once(f"no tiling is known for {kind!r}: the kernels take the small, safe one")
    return TILINGS[row]


def fit(tile: Tile, tokens: int, out: int, inner: int, group: int) -> Tile | None:
    """A tile cut to a matrix: it divides `in`, and its edge along `in` meets the groups'.

    Tokens and outputs may be ragged: the last tile is cut off by the hardware. A size below the
    tile's is taken whole, which a TPU allows for every number.

    Args:
        tile: the wish.
        tokens: of the inputs.
        out: of the weights.
        inner: of both.
        group: inputs that share a range.

    Returns:
        the tile; None where `inner` has no divisor that is a multiple of 128 and meets the groups,
        and is too long to be taken whole.

    Example:
        >>> fit(Tile(16, 512, 1024), 1, 1536, 576, 64)
        Tile(tokens=1, out=512, inner=576)
    """

    def meets(size: int) -> bool:
        return size % group == 0 or group % size == 0

    fitting = [n for n in range(128, tile.inner + 1, 128) if inner % n == 0 and meets(n)]
    if inner <= tile.inner or not fitting and inner <= 4 * tile.inner:
        cut = inner
    elif fitting:
        cut = fitting[-1]
    else:
        return None
    return Tile(min(tile.tokens, tokens), min(tile.out, out), cut)


def say_once(sentence: str) -> None:
    """A warning that this process gives once."""
    if sentence not in _said:
        _said.add(sentence)
        warnings.warn(sentence, stacklevel=3)
