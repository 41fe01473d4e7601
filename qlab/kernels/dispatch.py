"""Which program an op runs: the TPU's kernel, the GPU's, or plain XLA, by where it is compiled for.

`jax.lax.platform_dependent` decides at lowering, so a program exported or compiled ahead of time
for another machine gets that machine's kernel. `support` says what an op has. A kernel for GPUs is
one more argument: `choose(…, cuda=pallas_gpu.op)`.
"""

from __future__ import annotations

from collections.abc import Callable
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
    tpu: Callable[..., Any] | None = None,
    cuda: Callable[..., Any] | None = None,
    cpu: Callable[..., Any] | None = None,
) -> Any:
    """The op on its operands, by the platform it is compiled for; None: the default."""
    branches = {"tpu": tpu, "cuda": cuda, "cpu": cpu}
    named = {platform: branch for platform, branch in branches.items() if branch is not None}
    return jax.lax.platform_dependent(*operands, default=default, **named)


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
