"""Which program an op runs: the TPU's kernel, the GPU's, or plain XLA, by where it is compiled for.

`jax.lax.platform_dependent` decides at lowering, so a program exported or compiled ahead of time
for another machine gets that machine's kernel. `support` says what an op has. A kernel for GPUs is
two more arguments: `choose(…, cuda=pallas_gpu.op, gpu_tile=…)`, and its name in KERNELS.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from qlab.kernels import compat, tilings
from qlab.kernels.packed import SUPER, Packed
from qlab.kernels.tilings import GpuTile, Tile
from qlab.suggest import near

PLATFORMS = ("tpu", "cuda", "cpu")
# op -> the platforms that have a kernel of ours; all others run the reference, compiled by XLA.
KERNELS: dict[str, tuple[str, ...]] = {
    "w4a16": ("tpu", "cuda"),
    "w8a8": ("tpu", "cuda"),
    "fp8": ("tpu", "cuda"),
    "q4_k": ("tpu", "cuda"),
    "dequantize": ("tpu", "cuda"),
    "quantize_activations": ("tpu", "cuda"),
}

# op -> what the GPU's kernel asks for; what it does not take runs the reference.
_BYTES = "Hopper; bytes of one kind; 32 divides outputs and inputs"
_PACKED = "Hopper; bfloat16; 64 divides the outputs"
ONLY: dict[str, str] = {
    "w4a16": f"{_PACKED}, 32 the groups",
    "q4_k": _PACKED,
    "dequantize": f"{_PACKED}, 32 the groups",
    "w8a8": _BYTES,
    "fp8": _BYTES,
    "quantize_activations": "Hopper; 16 divides the inputs, at most 32,768",
}


def support(platform: str | None = None) -> dict[str, str]:
    """What every op runs on a platform, in words.

    Args:
        platform: "tpu", "cuda" (or "gpu") or "cpu"; None: the one that this process computes on.

    Raises:
        ValueError: for another.

    Example:
        >>> support("tpu")["w4a16"], support("cpu")["w4a16"]
        ('Pallas kernel', 'reference, compiled by XLA')
        >>> support("cuda")["q4_k"]
        'Pallas kernel (Hopper; bfloat16; 64 divides the outputs), else the reference'
    """
    platform = jax.default_backend() if platform is None else platform
    platform = {"gpu": "cuda"}.get(platform, platform)
    if platform not in PLATFORMS:
        raise ValueError(f"no platform is called {platform!r}: {near(platform, PLATFORMS)}")
    reference = "reference, compiled by XLA"
    kernel = "Pallas kernel"
    found = {op: kernel if platform in on else reference for op, on in KERNELS.items()}
    if platform != "cuda":
        return found
    return {op: f"{kernel} ({ONLY[op]}), else the reference" if word == kernel else word
            for op, word in found.items()}  # fmt: skip


def choose(
    *operands: Any,
    default: Callable[..., Any],
    tpu: Callable[..., Any],
    cuda: Callable[..., Any] | None = None,
    cpu: Callable[..., Any] | None = None,
    tile: Tile | None = None,
    gpu_tile: GpuTile | None = None,
    interpret: Any = None,
    **static: Any,
) -> Any:
    """The op on its operands, by the platform it is compiled for.

    Args:
        *operands: arrays and Packed.
        default: the reference; takes `static`.
        tpu: the TPU's kernel; takes `static` and, if it has one, `tile`.
        cuda: the GPU's kernel; takes `static` and, if it has one, `tile`. None: the reference.
        cpu: what a CPU runs instead of the reference; takes `static`.
        tile: of the TPU's kernel.
        gpu_tile: of the GPU's kernel.
        interpret: not None: a kernel, interpreted so: the GPU's where these are the parameters of
            the GPU's interpreter (`compat.gpu_interpret`), else the TPU's.
        **static: what else the op needs, hashable.

    Raises:
        ValueError: the GPU's kernel is to be interpreted, and there is none.
    """
    interpret = None if interpret is False else interpret
    if compat.for_gpu(interpret) and cuda is None:
        raise ValueError("this op has no GPU kernel to interpret: see qlab.kernels.support('cuda')")
    branches = {"default": default, "tpu": tpu, "cuda": cuda, "cpu": cpu}
    named = tuple((platform, f) for platform, f in branches.items() if f is not None)
    tiles = (("tpu", tile), ("cuda", gpu_tile))
    return _run(
        *operands, named=named, tiles=tiles, interpret=interpret, static=tuple(static.items())
    )


@partial(jax.jit, static_argnames=("named", "tiles", "interpret", "static"))
def _run(*operands: Any, named: tuple, tiles: tuple, interpret: Any, static: tuple) -> Any:
    """Compiled once a shape, so that a call from outside of `jit` does not trace anew."""
    how = {platform: {"tile": tile} for platform, tile in tiles if tile is not None}
    ready = {platform: partial(f, **dict(static), **how.get(platform, {})) for platform, f in named}
    if interpret is not None:
        kernel = ready["cuda" if compat.for_gpu(interpret) else "tpu"]
        return kernel(*operands, interpret=interpret)
    return jax.lax.platform_dependent(*operands, **ready)


def tile_of(
    op: str, p: Packed, tokens: int, tiling: Tile | GpuTile | None, interpret: Any = None
) -> Tile | None:
    """The TPU's tile of a call, from the table unless given; None, said once, where no tile fits.

    Raises:
        ValueError: no tile fits, and one was given or the kernel is to be interpreted; a tiling
            that is none.
    """
    if tiling is not None and not isinstance(tiling, Tile | GpuTile):
        raise ValueError(f"{op}: tiling={tiling!r:.60} is no Tile and no GpuTile")
    tiling = tiling if isinstance(tiling, Tile) else None
    interpret = None if interpret is False or compat.for_gpu(interpret) else interpret
    (out, inner), group = p.shape, max(p.group, SUPER if p.layout == "q4_k" else 1)
    tile = tilings.fit(tiling or tilings.find(tokens), tokens, out, inner, group)
    if tile is not None:
        return tile
    sentence = f"{op}: no multiple of 128 that meets groups of {group} divides {inner} inputs"
    if tiling is not None or interpret is not None:
        raise ValueError(sentence)
    tilings.say_once(sentence + "; the reference runs")
    return None


def gpu_tile_of(
    op: str,
    fit: Callable[[GpuTile], GpuTile | str],
    tokens: int,
    tiling: Tile | GpuTile | None,
    interpret: Any = None,
    bits: int = 4,
) -> GpuTile | None:
    """The GPU's tile of a call, from the table unless given; None where the kernel cannot run,
    which is said once where this process computes on a GPU.

    Args:
        op: its name.
        fit: cuts a tile to the matrix, or says in a clause why the kernel does not take the call.
        tokens: of the inputs.
        tiling: a GpuTile is taken instead of the table's.
        interpret: as `choose` takes it.
        bits: of a weight, 4 or 8: which rows of the table.

    Raises:
        ValueError: the kernel cannot run, and a GpuTile was given or it is to be interpreted.
    """
    if isinstance(tiling, Tile) and compat.for_gpu(interpret):
        raise ValueError(f"{op}: {tiling} is a TPU's; the GPU's kernel takes a GpuTile")
    given = tiling if isinstance(tiling, GpuTile) else None
    asked = given is not None or compat.for_gpu(interpret)
    found = fit(given or tilings.find_gpu(tokens, bits=bits))
    if isinstance(found, GpuTile) and not asked and jax.default_backend() == "gpu":
        found = _not_hopper() or found
    if isinstance(found, GpuTile):
        return found
    if asked:
        raise ValueError(f"{op}: {found}")
    if jax.default_backend() == "gpu":
        tilings.say_once(f"{op}: {found}; the reference runs")
    return None


def _not_hopper() -> str | None:
    """Why this process' GPU does not run the kernels: they multiply with Hopper's instructions."""
    device = jax.devices("gpu")[0]
    capability = str(getattr(device, "compute_capability", ""))
    if capability.startswith("9."):
        return None
    return f"kernels are for compute capability 9.0, {device.device_kind} has {capability}"
