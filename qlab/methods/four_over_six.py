"""Four over Six: each block of NVFP4 ends at 6 or at 4, whichever rounds it better.

FP4's largest values are 4 and 6, with nothing between: what falls near 5 is off by up to a sixth of
the block's maximum. Under a scale that puts the maximum at 4 that gap is not used.

    α = max|W| / (6 · 256)                                       the tensor's scale
    Δ_m = E4M3(max|w| / (m · α)),  m = 6, 4                      the block's two scales
    Δ = argmin_{Δ_6, Δ_4} Σ (α Δ · FP4(w / (α Δ)) − w)²          6 where they are equal

Cook et al. 2025, arXiv 2512.02010; mit-han-lab/fouroversix, its rule "mse". α has 256 where NVFP4
has 448, so that E4M3 still holds 3/2 of the largest block's Δ_6: 384.

symbol · name here · shape:  W · w · (out, in),  Δ · scale.codes · one a block,  α · scale.scale ·
(1,).
Departs from the paper: weights only, where it takes inputs and gradients too; scales and codes by
exact quotients, where its program multiplies first and divides last.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from qlab.arithmetic import divide, ordered_sum
from qlab.formats import FP4, FP8
from qlab.methods.method import Facts, method_with_facts
from qlab.qtensor import (
    QTensor,
    Spec,
    block_sizes,
    from_codes,
    quantize,
    spread_ranges,
    to_blocks,
    to_codes,
)
from qlab.specs import name_of
from qlab.stats import Stats

ENDS = (6.0, 4.0)
LARGEST = 256.0  # of E4M3, for the largest block at 6


def _nvfp4(spec: Spec) -> bool:
    how = spec.scale
    return (
        isinstance(how, Spec)
        and (spec.format, how.format, how.block, how.scale) == (FP4, FP8, "tensor", "float32")
        and all(part.zero is None and part.offset is None for part in (spec, how))
    )


@method_with_facts(supports=_nvfp4)
def four_over_six(w: jax.Array, stats: Stats | None, spec: Spec) -> tuple[QTensor, Facts]:
    """Round to nearest with the better of two scales for each block.

    Args:
        w: (out, in) floating point.
        stats: unused; every method takes it.
        spec: NVFP4, of any block: FP4 under FP8 scales under one float32.

    Returns:
        QTensor of `spec`. Its facts hold "four", the share of the blocks that end at 4.

    Raises:
        ValueError: another Spec, or as `qlab.quantize`.

    Example:
        >>> from qlab.specs import SPECS
        >>> from qlab.qtensor import dequantize
        >>> w = jnp.full((1, 16), 5.0).at[0, 0].set(6.0)        # from 6 down: 1 · 4 instead of 5
        >>> dequantize(four_over_six(w, None, SPECS["nvfp4"]))[0, :2].tolist()     # 1.5 · 3
        [6.0, 4.5]
    """
    if not four_over_six.supports(spec):
        raise ValueError(
            f"four_over_six fills NVFP4, not a Spec of {spec.format} ({name_of(spec)}): "
            "qlab.SPECS['nvfp4'] is one"
        )
    fine, four = _ranges(jnp.asarray(w).astype(jnp.float32), spec)
    return quantize(w, fine), {"four": four}


@partial(jax.jit, static_argnames="spec")
def _ranges(w: jax.Array, spec: Spec) -> tuple[QTensor, jax.Array]:
    """The ranges of every block, and the share of blocks that end at 4."""
    sizes = block_sizes(spec.block, w.shape)
    amax = jnp.abs(to_blocks(w, sizes)).max(axis=-1)  # (row blocks, column blocks)
    alpha = divide(amax.max(), ENDS[0] * LARGEST)
    safe = jnp.where(alpha == 0, 1.0, alpha)

    def ranges(codes: jax.Array) -> QTensor:
        assert isinstance(spec.scale, Spec)
        return QTensor(None, QTensor(codes, alpha[None], None, None, spec=spec.scale), None, None,
                       spec=spec)  # fmt: skip

    def candidate(end: float) -> tuple[jax.Array, jax.Array]:
        codes = FP8.encode(divide(divide(amax, end), safe)).reshape(-1)
        spread = spread_ranges(ranges(codes), w.shape)
        error = from_codes(to_codes(w, spec, *spread), spec, *spread) - w
        # in units of α, so that no square is too large or too small
        return ordered_sum(jnp.square(to_blocks(divide(error, safe), sizes))), codes

    (error6, six), (error4, four) = map(candidate, ENDS)
    chosen = (error4 < error6).reshape(-1)
    return ranges(jnp.where(chosen, four, six)), chosen.mean()
