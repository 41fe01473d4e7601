"""What every op asks of its inputs at the door, one sentence each."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from qlab.kernels.packed import Packed


def check_inputs(op: str, x: jax.Array, p: Packed, dtypes: Sequence[str]) -> None:
    """Raises unless x is (tokens, in) of one of the dtypes and at least one token."""
    if x.ndim != 2 or x.shape[1] != p.shape[1] or not len(x):
        raise ValueError(f"{op}: inputs {x.shape} are not (tokens, in) for weights {p.shape}")
    if x.dtype.name not in dtypes:
        raise ValueError(f"{op} multiplies {' or '.join(dtypes)}, not {x.dtype.name}")


def check_affine(op: str, p: Packed) -> None:
    """Raises for super-blocks, which `q4_k` reads."""
    if p.layout != "affine":
        raise ValueError(f"{op} reads no super-blocks: {p!r} is for the op q4_k")


def check_symmetric_rows(op: str, p: Packed, dtypes: Sequence[str]) -> None:
    """Raises unless w is code · (one scale an output), of one of the dtypes."""
    if not p.symmetric or p.group != p.shape[1]:
        raise ValueError(
            f"{op} needs weights with one scale an output, no zero and no offset, not {p!r}"
        )
    if p.codes.dtype.name not in dtypes:
        raise ValueError(f"{op} multiplies {' or '.join(dtypes)} weights, not {p!r}")
