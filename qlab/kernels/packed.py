"""Packed: a QTensor in the layout that the kernels read, still as small as its codes.

    w = (code − zero) ⊙ scale + offset,   y = x Wᵀ

Weights are (out, in) everywhere else; here they lie (in, out), because a kernel's tile then holds
a group of inputs along its rows and one scale row serves it. `prepack` turns once, `matmul` reads.
The exception is `turned`: a GPU multiplies bytes only along rows of inputs.
Not here: what a tile is (`tilings`), the arithmetic (`reference` of each op), bytes on disk
(`packing`, `io`).
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlab.formats import FP8, FP8_E5M2, UINT6, Format
from qlab.qtensor import QTensor, Spec, block_counts, block_sizes, dequantize
from qlab.suggest import near

# ---- the layout ----------------------------------------------------------------------------------
# Nibbles (formats of at most 4 bits): byte [r, n] holds inputs 2r and 2r + 1 of output n,
#
#     byte             [0, n]      [1, n]    …   [in/2 − 1, n]
#     high nibble      w[n, 1]     w[n, 3]   …    w[n, in − 1]
#     low nibble       w[n, 0]     w[n, 2]   …    w[n, in − 2]
#
# which a TPU reads as it is: `pltpu.bitcast(uint8 → int4)` makes row r of bytes rows 2r (low
# nibble) and 2r + 1 (high nibble). A nibble is the integer in two's complement less `shift`
# (UINT4: 8, so that 0 … 15 is −8 … 7), or the code of a table (NF4, FP4).
# Bytes (5 to 8 bits): int8 [k, n], the integer less `shift` (UINT8: 128), or the float8 itself;
# [n, k] where they are turned for the tensor cores of a GPU, which take 8-bit numbers only so.
# Ranges: row [k // group, n] of scale, zero and offset, in the dtype the Spec stores; ranges that
# are codes themselves become bfloat16 where that is exact (E8M0, FP8), else float32.
#
# q4_k keeps ggml's super-blocks of 256 inputs packed too:
#
#     scale   uint8   [in/256, 12, n]   eight scales and eight minima of six bits
#         byte        0 … 3                4 … 7                8 … 11
#         bits 7 6    scale 4 … 7: high    min 4 … 7: high      min 4 … 7: low four in bits 7 – 4
#         bits 5 – 0  scale 0 … 3          min 0 … 3            scale 4 … 7: low four in bits 3 – 0
#     offset  float16 [in/256, 2, n]    d and −dmin

SUPER, SUB = 256, 32  # weights of a super-block and of a sub-block of q4_k


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scale", "zero", "offset", "perm", "channel_scale"],
    meta_fields=["format", "group", "layout", "dtype", "turned"],
)
@dataclasses.dataclass(frozen=True, repr=False)
class Packed:
    """Quantized weights as the kernels read them; a pytree. The drawing is at the top of the file.

    Attributes:
        codes: (in/2, out) uint8, two nibbles a byte; or (in, out) int8 or float8, (out, in) if
            turned.
        scale: (groups, out) float; q4_k: (in/256, 12, out) uint8.
        zero: (groups, out) float, subtracted in codes; or None.
        offset: (groups, out) float, added in weights; or None. q4_k: (in/256, 2, out) float16.
        perm: (in,) int32, row k belongs to input perm[k]; or None.
        channel_scale: (in,) float32 in the order of the inputs, which they are divided by; or None.
        format: the Format of the codes.
        group: inputs that share a range.
        layout: "affine" or "q4_k".
        dtype: what `matmul` multiplies in, "float32" or "bfloat16"; None: that of its inputs.
        turned: whether the codes are (out, in), as `w8a8` and `fp8` read them on a GPU.
    """

    codes: jax.Array
    scale: jax.Array
    zero: jax.Array | None
    offset: jax.Array | None
    perm: jax.Array | None
    channel_scale: jax.Array | None
    format: Format = dataclasses.field(kw_only=True)
    group: int = dataclasses.field(kw_only=True)
    layout: str = dataclasses.field(kw_only=True)
    dtype: str | None = dataclasses.field(kw_only=True)
    turned: bool = dataclasses.field(kw_only=True, default=False)

    @property
    def nibbles(self) -> bool:
        """Whether two codes share a byte."""
        return self.codes.dtype == jnp.uint8

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weights, (out, in)."""
        rows, out = self.codes.shape[-2:]
        if self.turned:
            return rows, out
        return out, rows * 2 if self.nibbles else rows

    @property
    def ndim(self) -> int:
        return 2

    @property
    def shift(self) -> int:
        """What was taken off an integer so that it fits the signed nibble or byte."""
        return shift_of(self.format)

    @property
    def symmetric(self) -> bool:
        """Whether a code times its scale is the weight."""
        plain = self.zero is None and self.offset is None and self.layout == "affine"
        return plain and self.shift == 0

    @property
    def bits_per_weight(self) -> float:
        """What lies in memory, bits for each weight: codes, ranges and the rest.

        Example:
            >>> from qlab.qtensor import quantize
            >>> from qlab.specs import SPECS
            >>> prepack(quantize(jnp.ones((8, 256)), SPECS["q4_k"])).bits_per_weight
            4.5
        """
        return 8 * sum(leaf.nbytes for leaf in jax.tree.leaves(self)) / math.prod(self.shape)

    def replace(self, **changes: object) -> Packed:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def turn(self, turned: bool) -> Packed:
        """The same weights with codes (out, in), or (in, out): copied, unless they lie so."""
        if turned == self.turned:
            return self
        return self.replace(codes=jnp.swapaxes(self.codes, -1, -2), turned=turned)

    def __repr__(self) -> str:
        return f"Packed{self.shape}({self.format}, group={self.group}, {self.layout})"


def integers(format: Format) -> bool:
    """Whether the codes 0, 1, 2, … stand for consecutive integers (ternary too)."""
    steps = format.grid == format.grid[0] + np.arange(len(format.grid))
    return bool(steps.all()) and float(format.grid[0]).is_integer()


def shift_of(format: Format) -> int:
    """What is taken off an integer of the format to make it a signed nibble or byte.

    Example:
        >>> from qlab.formats import INT4, UINT3, UINT4
        >>> [shift_of(f) for f in (INT4, UINT4, UINT3)]
        [0, 8, 0]
    """
    if not integers(format):
        return 0
    top = 7 if format.bits <= 4 else 127
    return top + 1 if format.max > top else 0


# ---- packing -------------------------------------------------------------------------------------


TARGETS = ("any", "cuda")  # what weights may be packed for


def prepack(q: QTensor, dtype: str | None = None, target: str = "any") -> Packed:
    """Packs a QTensor once into the layout that the kernels read.

    Args:
        q: (out, in) with codes: integers of at most 8 bits, a table of 16 values (NF4, FP4,
            IQ4_NL), FP8; blocks along the rows, "row", "tensor" or (rows, columns).
        dtype: what `matmul` multiplies in, "float32" or "bfloat16"; None: the dtype of its inputs.
        target: "cuda" turns codes of 8 bits that `w8a8` or `fp8` may multiply to (out, in), which
            is how a GPU multiplies them; from (in, out), "any", they are turned at each call there.
            Other platforms multiply both, and differ by the order of sums at most.

    Returns:
        Packed; `dequantize(it, float32)` is `qlab.dequantize(q)` up to channel_scale's division.

    Raises:
        ValueError: what no kernel reads, named: a format, an odd number of inputs, ragged blocks,
            a mean taken off the whole tensor; an unknown dtype or target.

    Example:
        >>> from qlab.qtensor import quantize
        >>> from qlab.specs import SPECS
        >>> prepack(quantize(jnp.ones((8, 256)), SPECS["int4_g128"])).codes.shape
        (128, 8)
    """
    reason = unsupported(q)
    if reason:
        raise ValueError(reason)
    if dtype not in (None, "float32", "bfloat16"):
        nearest = near(dtype, ("float32", "bfloat16"))
        raise ValueError(f"kernels multiply float32 or bfloat16, not {dtype!r}: {nearest}")
    if target not in TARGETS:
        raise ValueError(f"weights are packed for {' or '.join(TARGETS)}: {near(target, TARGETS)}")
    p = _pack(q, dtype)
    return p.turn(target == "cuda" and _by_bytes(p))


def described(x: Any) -> str:
    """What was given in place of weights, in a few words.

    Example:
        >>> described(jnp.ones((2, 3))), described(3)
        ('an array of shape (2, 3)', '3')
    """
    if isinstance(x, QTensor | Packed):
        return repr(x)
    if hasattr(x, "shape"):
        return f"an array of shape {tuple(x.shape)}"
    return f"{x!r:.60}"


def unsupported(q: QTensor) -> str | None:
    """Why no kernel reads this QTensor, in one sentence; None where one does.

    Example:
        >>> from qlab.qtensor import quantize
        >>> from qlab.specs import SPECS
        >>> unsupported(quantize(jnp.ones((8, 256)), SPECS["mxfp6_e2m3"]))
        'no kernel reads FP6_E2M3: integers of at most 8 bits, tables of 16 values and FP8 are read'
    """
    if not isinstance(q, QTensor) or q.codes is None or q.codes.ndim != 2:
        return f"prepack takes a QTensor of shape (out, in) with codes, not {described(q)}"
    spec, (_, inner) = q.spec, q.codes.shape
    table = spec.format.bits == 4 and len(spec.format.grid) == 16
    if not (integers(spec.format) or table or spec.format in (FP8, FP8_E5M2)):
        return (
            f"no kernel reads {spec.format}: integers of at most 8 bits, tables of 16 values and "
            "FP8 are read"
        )
    if spec.format.bits <= 4 and inner % 2:
        return f"two codes of {spec.format} share a byte, and {inner} inputs are odd"
    group = block_sizes(spec.block, q.codes.shape)[1]
    if inner % group:
        return f"the last of the blocks of {group} is short: no kernel reads {inner} inputs so"
    if spec.offset == "mean":
        return "no kernel adds the mean that was taken off a whole tensor"
    return None


def _is_q4_k(q: QTensor) -> bool:
    """Four bits in ggml's super-blocks, which no row may share with the next."""
    ranges = Spec(UINT6, SUPER // SUB, "float16")
    parts = (q.spec.scale, q.spec.offset)
    same = all(
        isinstance(p, Spec) and (p.format, p.block, p.scale, p.zero, p.offset)
        == (UINT6, ranges.block, ranges.scale, None, None)
        for p in parts
    )  # fmt: skip
    return same and q.spec.format.name == "UINT4" and q.spec.block == SUB and not q.shape[1] % SUPER


def _by_bytes(p: Packed) -> bool:
    """Whether `w8a8` or `fp8` may multiply these weights: 8-bit codes, a scale a row or a block."""
    block = 128 if p.codes.dtype.name.startswith("float8") else p.shape[1]
    return p.symmetric and not p.nibbles and p.group in (block, p.shape[1])


@partial(jax.jit, static_argnames="dtype")
def _pack(q: QTensor, dtype: str | None) -> Packed:
    assert q.codes is not None
    spec, group = q.spec, block_sizes(q.spec.block, q.codes.shape)[1]
    if _is_q4_k(q):
        scale, zero, offset, layout = _six_bits(q), None, _super(q), "q4_k"
    else:
        parts = (_ranges(part, spec, q.codes.shape) for part in (q.scale, q.zero, q.offset))
        (scale, zero, offset), layout = parts, "affine"
        if scale is None:  # the codes are the numbers
            scale, group = jnp.ones((1, q.codes.shape[0]), jnp.float32), q.codes.shape[1]
    codes = _codes(q.codes.T, spec.format)
    static = {"format": spec.format, "group": group, "layout": layout, "dtype": dtype}
    return Packed(codes, scale, zero, offset, q.perm, q.channel_scale, **static)


def _codes(codes: jax.Array, format: Format) -> jax.Array:
    """(in, out) codes as nibbles, int8 or float8."""
    if format in (FP8, FP8_E5M2):
        assert format.dtype is not None
        return jax.lax.bitcast_convert_type(codes, format.dtype)
    if integers(format):
        signed = codes.astype(jnp.int16) + (int(format.grid[0]) - shift_of(format))
        codes = jax.lax.bitcast_convert_type(signed.astype(jnp.int8), jnp.uint8)
    if format.bits > 4:
        return jax.lax.bitcast_convert_type(codes, jnp.int8)
    return (codes[0::2] & 15) | (codes[1::2] << 4)


def _ranges(stored: jax.Array | QTensor | None, spec: Spec, shape: tuple[int, ...]):
    """One number a block as (groups, out), as small as it can be without a change."""
    if stored is None:
        return None
    sizes = block_sizes(spec.block, shape)
    counts = block_counts(sizes, shape)
    if isinstance(stored, QTensor):
        grid, exact = stored.spec.format.grid, False
        if stored.spec.scale is None:
            finite = grid[np.isfinite(grid)]
            exact = bool((finite.astype(jnp.bfloat16).astype(np.float32) == finite).all())
        stored = dequantize(stored).astype(jnp.bfloat16 if exact else jnp.float32)
    values = jnp.repeat(stored.reshape(counts), sizes[0], axis=0)[: shape[0]]
    return values.T


def _super(q: QTensor) -> jax.Array:
    """d and −dmin of every super-block, (in/256, 2, out) float16."""
    assert isinstance(q.scale, QTensor) and isinstance(q.offset, QTensor)
    parts = [jnp.asarray(p.scale).reshape(q.shape[0], -1).T for p in (q.scale, q.offset)]
    return jnp.stack(parts, axis=1)


def _six_bits(q: QTensor) -> jax.Array:
    """Scales and minima of every super-block, (in/256, 12, out) uint8."""
    assert isinstance(q.scale, QTensor) and isinstance(q.offset, QTensor)
    eight = (q.shape[0], -1, SUPER // SUB)
    parts = (jnp.asarray(p.codes).reshape(eight) for p in (q.scale, q.offset))
    scales, minima = (part.transpose(1, 2, 0) for part in parts)
    first = scales[:, :4] | (scales[:, 4:] >> 4 << 6)
    second = minima[:, :4] | (minima[:, 4:] >> 4 << 6)
    third = (scales[:, 4:] & 15) | ((minima[:, 4:] & 15) << 4)
    return jnp.concatenate([first, second, third], axis=1)
