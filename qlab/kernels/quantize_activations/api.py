"""`quantize_activations`: what a linear layer reads, rounded to 8 bits in one pass."""

from __future__ import annotations

from typing import Any

import jax

from qlab.activations import ACTS, Act, find, name_of
from qlab.formats import FP8, INT8
from qlab.kernels.dispatch import choose, gpu_tile_of
from qlab.kernels.quantize_activations import pallas_gpu, pallas_tpu, reference
from qlab.qtensor import Spec
from qlab.rules import absmax_floored

BLOCK = Spec(FP8, 128)
TILE = BLOCK.replace(rule=absmax_floored)  # "fp8_tile", of rows that 128 divides
KNOWN = (Spec(INT8, "row"), Spec(FP8, "row"), BLOCK, TILE)


def spec_of(act: str | Spec | Act) -> Spec:
    """The Spec of an Act as the kernels know it: one scale a token, or FP8 and one for 128 inputs,
    floored (DeepSeek-V3's tiles) or not.

    Raises:
        ValueError: for another, naming it.

    Example:
        >>> spec_of("int8_token").format
        INT8
    """
    act = find(act)
    spec = TILE if act.spec == ACTS["fp8_tile"].spec else act.spec
    if spec not in KNOWN or act.static or act.ranges is not None or act.threshold is not None:
        raise ValueError(
            f"no kernel quantizes activations as {name_of(act)!r}: int8_token, fp8_token, fp8_tile "
            "and Spec(FP8, 128), each with its own scales, are known"
        )
    return spec


def quantize_activations(
    x: jax.Array, act: str | Spec | Act, *, interpret: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Codes and scales of every token.

    Args:
        x: (tokens, in) float32 or bfloat16.
        act: "int8_token", "fp8_token", "fp8_tile" or Spec(FP8, 128): a scale for 128 inputs of a
            token.
        interpret: True or `pltpu.InterpretParams(…)` runs the TPU's kernel step by step on any
            machine, `compat.gpu_interpret(…)` the GPU's; None: the program of the platform that it
            is compiled for.

    Returns:
        codes (tokens, in) int8 or float8, scale (tokens, blocks) float32.

    Raises:
        ValueError: another Act; inputs that 128 does not divide; x of other axes.

    Example:
        >>> import jax.numpy as jnp
        >>> codes, scale = quantize_activations(jnp.array([[127.0, 2.4]]), "int8_token")
        >>> codes.tolist(), scale.tolist()
        ([[127, 2]], [[1.0]])
    """
    spec = spec_of(act)
    if x.ndim != 2 or not x.size or x.dtype.name not in ("float32", "bfloat16"):
        raise ValueError(
            f"activations are (tokens, in) float32 or bfloat16, not {x.shape} {x.dtype}"
        )
    if isinstance(spec.block, int) and x.shape[1] % spec.block:
        raise ValueError(f"{x.shape[1]} inputs are not a multiple of block {spec.block}")
    reason = pallas_gpu.unsupported(x.shape[1], spec)
    runs = gpu_tile_of("quantize_activations", lambda tile: reason or tile, len(x), None, interpret)
    return choose(
        x,
        default=reference.quantize_activations,
        tpu=pallas_tpu.quantize_activations,
        cuda=pallas_gpu.quantize_activations if runs else None,
        interpret=interpret,
        spec=spec,
    )
