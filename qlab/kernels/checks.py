"""What every op asks of its inputs at the door, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from qlab.formats import INT8
from qlab.kernels.packed import Packed, described, integers
from qlab.qtensor import Spec


def check_packed(op: str, p: Packed) -> None:
    """Raises unless the weights are packed."""
    if not isinstance(p, Packed):
        raise ValueError(f"{op} reads what prepack made of a QTensor, not {described(p)}")


def check_inputs(op: str, x: jax.Array, p: Packed, dtypes: Sequence[str]) -> None:
    """Raises unless x is (tokens, in) of one of the dtypes and at least one token."""
    check_packed(op, p)
    if x.ndim != 2 or x.shape[1] != p.shape[1]:
        raise ValueError(f"{op}: inputs {x.shape} are not (tokens, in) for weights {p.shape}")
    if not len(x):
        raise ValueError(f"{op}: inputs {x.shape} are no tokens")
    if x.dtype.name not in dtypes:
        raise ValueError(f"{op} multiplies {' or '.join(dtypes)}, not {x.dtype.name}")


def check_affine(op: str, p: Packed) -> None:
    """Raises for super-blocks, which `q4_k` reads."""
    if p.layout != "affine":
        raise ValueError(f"{op} reads no super-blocks: {p!r} is for the op q4_k")


def integer_reason(p: Packed) -> str | None:
    """Why `w8a8` does not multiply these weights, or None."""
    if p.symmetric and p.group == p.shape[1] and p.codes.dtype.name in ("int8", "uint8"):
        if integers(p.format):
            return None
    return f"w8a8 needs integers with one scale an output, no zero and no offset, not {p!r}"


def fp8_reason(p: Packed, group: int | None = None) -> str | None:
    """Why `fp8` does not multiply these weights, their blocks `group` inputs, or None."""
    groups = (128, p.shape[1]) if group is None else (group,)
    if p.codes.dtype.name.startswith("float8") and p.group in groups and p.symmetric:
        return None
    blocks = " or ".join(map(str, dict.fromkeys(groups)))
    return f"fp8 multiplies FP8 weights with a scale for each {blocks} inputs, not {p!r}"


def reason_against(spec: Spec, p: Packed) -> str | None:
    """Why inputs of this Spec cannot meet these weights, or None."""
    if spec.format == INT8:
        return integer_reason(p)
    return fp8_reason(p, spec.block if isinstance(spec.block, int) else p.shape[1])


def refuse(reason: str | None) -> None:
    """Raises a reason, if there is one."""
    if reason:
        raise ValueError(reason)


def check_scales(op: str, scale: jax.Array, shape: tuple[int, int]) -> None:
    """Raises unless the inputs' scales are float32 of (tokens, the weights' blocks)."""
    if scale.shape != shape or scale.dtype.name != "float32":
        raise ValueError(
            f"{op}: scales {scale.shape} {scale.dtype} are not (tokens, blocks) = {shape} float32"
        )
