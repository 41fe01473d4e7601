"""Which program an op runs: the TPU's kernel, the GPU's, or plain XLA, by where it is compiled for.

`jax.lax.platform_dependent` decides at lowering, so a program exported or compiled ahead of time
for another machine gets that machine's kernel. `support` says what an op has. A kernel for GPUs is
one more argument: `choose(…, cuda=pallas_gpu.op)`, and its name in KERNELS.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from qlab.kernels import tilings
from qlab.kernels.packed import SUPER, Packed
from qlab.kernels.tilings import Tile

# op -> the platforms that have a kernel of ours; all others run the reference, compiled by XLA.
KERNELS: dict[str, tuple[str, ...]] = {
    "w4a16": ("tpu",),
    "w8a8": ("tpu",),
    "fp8": ("tpu",),
    "q4_k": ("tpu",),
    "dequantize": ("tpu",),
    "quantize_activations": ("tpu",),
}


def support(platform: str | None = None) -> dict[str, str]:
    """What every op runs on a platform, in words.

    Args:
        platform: "tpu", "cuda" or "cpu"; None: the one that this process computes on.

    Example:
        >>> support("tpu")["w4a16"], support("cuda")["w4a16"]
        ('Pallas kernel', 'reference, compiled by XLA')
    """
    if platform is None:
        platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    words = {True: "Pallas kernel", False: "reference, compiled by XLA"}
    return {op: words[platform in platforms] for op, platforms in KERNELS.items()}


def choose(
    *operands: Any,
    default: Callable[..., Any],
    tpu: Callable[..., Any],
    cuda: Callable[..., Any] | None = None,
    cpu: Callable[..., Any] | None = None,
    tile: Tile | None = None,
    interpret: Any = None,
    **static: Any,
) -> Any:
    """The op on its operands, by the platform it is compiled for.

    Args:
        *operands: arrays and Packed.
        default: the reference; takes `static`.
        tpu: the TPU's kernel; takes `static` and, if it has one, `tile`.
        cuda: the GPU's kernel; takes `static` and brings its own tiles. None: the reference.
        cpu: what a CPU runs instead of the reference; takes `static`.
        tile: of the TPU's kernel.
        interpret: not None: the TPU's kernel, interpreted so.
        **static: what else the op needs, hashable.
    """
    branches = {"default": default, "tpu": tpu, "cuda": cuda, "cpu": cpu}
    named = tuple((platform, f) for platform, f in branches.items() if f is not None)
    return _run(
        *operands, named=named, tile=tile, interpret=interpret, static=tuple(static.items())
    )


@partial(jax.jit, static_argnames=("named", "tile", "interpret", "static"))
def _run(*operands: Any, named: tuple, tile: Tile | None, interpret: Any, static: tuple) -> Any:
    """Compiled once a shape, so that a call from outside of `jit` does not trace anew."""
    branches, how = dict(named), dict(static)
    tiled = how if tile is None else {**how, "tile": tile}
    kernel = partial(branches.pop("tpu"), **tiled)
    if interpret is not None:
        return kernel(*operands, interpret=interpret)
    ready = {platform: partial(f, **how) for platform, f in branches.items()}
    return jax.lax.platform_dependent(*operands, tpu=kernel, **ready)


def tile_of(
    op: str, p: Packed, tokens: int, tiling: Tile | None, interpret: Any = None
) -> Tile | None:
    """The tile of a call, from the table unless given; None, said once, where no tile fits.

    Raises:
        ValueError: no tile fits, and one was given or the kernel is to be interpreted.
    """
    (out, inner), group = p.shape, max(p.group, SUPER if p.layout == "q4_k" else 1)
    tile = tilings.fit(tiling or tilings.find(tokens), tokens, out, inner, group)
    if tile is not None:
        return tile
    sentence = f"{op}: no multiple of 128 that meets groups of {group} divides {inner} inputs"
    if tiling is not None or interpret is not None:
        raise ValueError(sentence)
    tilings.say_once(sentence + "; the reference runs")
    return None
