"""Spec says what a quantized tensor looks like; a QTensor is one.

    w = (scale ⊙ (grid[codes] − zero) + offset), columns put back by perm, then / channel_scale

`fit` finds the ranges (scale, zero, offset) of every block, `quantize` the nearest code of every
weight, `dequantize` goes back. A scale may be stored by a Spec of its own, so double quantization
and k-quants are literals, not code.
Not here: words and pictures (`describe`), named Specs (`specs`), how ranges are chosen (`rules`),
bytes on disk (`packing`, `io`).
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from qlab import describe
from qlab.arithmetic import cast, divide, multiply, ordered_mean
from qlab.formats import FORMATS, Format
from qlab.rules import Rule, absmax

Block = int | tuple[int, int] | str
DTYPES = ("float32", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a quantized tensor looks like. Frozen, hashable, static under jit; recursive in `scale`
    and `offset`.

    Attributes:
        format: the Format of the codes.
        block: which weights share a scale: an int along the last axis, which it must divide; (rows,
            cols), short at the edges; "row"; or "tensor".
        scale: how scales are stored: a dtype name; a Format, whose values are the scales; or a
            Spec, which quantizes them again, flattened row-major (its last block may be short).
            None: the codes are the numbers.
        zero: subtracted in codes. A Format makes it an integer, codes = round(w / s) + z (GPTQ,
            AWQ); a dtype name a real number, codes = round(w / s + z) (HQQ).
        offset: added in weights: a dtype name, Format or Spec; or "mean", one float32 a tensor,
            taken out before the rule looks. `zero` and `offset` exclude each other.
        rule: the function of `qlab.rules` that finds the ranges.

    Raises:
        ValueError: for a dtype, block or combination that means nothing, naming it.

    Example:
        >>> from qlab.formats import INT4
        >>> bits_per_weight(Spec(INT4, 128, "float16"))
        4.125
    """

    format: Format
    block: Block = "row"
    scale: str | Format | Spec | None = "float32"
    zero: str | Format | None = None
    offset: str | Format | Spec | None = None
    rule: Rule = absmax

    def __post_init__(self) -> None:
        if not isinstance(self.format, Format):
            near = difflib.get_close_matches(str(self.format).upper(), FORMATS, 1, 0)[0]
            raise ValueError(f"format {self.format!r} is not a Format; FORMATS[{near!r}] is one")
        for field in ("scale", "zero", "offset"):
            how = getattr(self, field)
            if how is None or isinstance(how, (Format, Spec)) or (field, how) == ("offset", "mean"):
                continue
            name = how if isinstance(how, str) else jnp.dtype(how).name
            if name not in DTYPES:
                raise ValueError(f"{field} {name!r} is not one of {', '.join(DTYPES)}")
            object.__setattr__(self, field, name)
        _check_block(self.block)
        if isinstance(self.zero, Spec):
            raise ValueError("zero is stored as a Format or a dtype, not as a Spec")
        if self.zero is not None and self.offset is not None:
            raise ValueError("zero and offset exclude each other: both shift the grid")
        if self.zero is not None and not self.format.is_integer:
            raise ValueError(f"zero needs an integer format: {self.format} has no codes to add to")

    def replace(self, **changes: Any) -> Spec:
        """A copy with some fields changed: `SPECS["int4_g128"].replace(block=64)`."""
        return dataclasses.replace(self, **changes)

    def _repr_html_(self) -> str:
        return describe.spec_html(self)


def _check_block(block: Block) -> None:
    sizes = (block,) if isinstance(block, int) else block
    if isinstance(sizes, str):
        if sizes not in ("row", "tensor"):
            raise ValueError(f'block {sizes!r} is not an int, (rows, cols), "row" or "tensor"')
    elif len(sizes) > 2 or min(sizes) < 1:
        raise ValueError(f"block {block} is not one or two positive sizes")


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scale", "zero", "offset", "perm", "channel_scale"],
    meta_fields=["spec"],
)
@dataclasses.dataclass(frozen=True, repr=False)
class QTensor:
    """A quantized tensor: a pytree of codes and ranges with its Spec as static metadata.

    No shapes are stored: a stack of QTensors is one with a leading axis on every leaf (use it under
    `vmap` or `scan`).

    Attributes:
        codes: uint8, one code a weight, in the order of the columns as stored; None before
            `quantize`.
        scale, zero, offset: one number a block: an array of the blocks' shape, a flat (1-D)
            QTensor, or None.
        perm: (in,) int32, codes[:, j] is column perm[j]; or None.
        channel_scale: (in,) float32 in original column order, divided out at the end; or None.
        spec: the Spec.
    """

    codes: jax.Array | None
    scale: jax.Array | QTensor | None
    zero: jax.Array | QTensor | None
    offset: jax.Array | QTensor | None
    perm: jax.Array | None = None
    channel_scale: jax.Array | None = None
    spec: Spec = dataclasses.field(kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weights, (out, in)."""
        return () if self.codes is None else self.codes.shape

    def replace(self, **changes: Any) -> QTensor:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def __repr__(self) -> str:
        return f"QTensor{self.shape}({self.spec.format}, block={self.spec.block})"

    def _repr_html_(self) -> str:
        return describe.qtensor_html(self, bits_per_weight(self))


# ---- blocks --------------------------------------------------------------------------------------


def block_sizes(block: Block, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The size of a block along every axis: "tensor" → shape, "row" → (1, n), 32 → (1, 32)."""
    if block == "tensor":
        return tuple(max(n, 1) for n in shape)
    if isinstance(block, str):  # "row"
        block = max(shape[-1], 1)
    last = (block,) if isinstance(block, int) else block
    return (1,) * (len(shape) - len(last)) + last


def block_counts(sizes: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """How many blocks there are along every axis; the last may be short."""
    return tuple(-(-n // size) for n, size in zip(shape, sizes, strict=True))


def to_blocks(w: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """Cut into blocks: (rows, cols) -> (row blocks, col blocks, numbers of a block), short edges
    filled with edge values.
    """
    counts = block_counts(sizes, w.shape)
    short = [(0, c * s - n) for c, s, n in zip(counts, sizes, w.shape, strict=True)]
    if any(after for _, after in short):
        w = jnp.pad(w, short, mode="edge")
    w = w.reshape([n for pair in zip(counts, sizes, strict=True) for n in pair])
    w = w.transpose(*range(0, w.ndim, 2), *range(1, w.ndim, 2))
    return w.reshape(*counts, -1)


def spread(values: jax.Array, sizes: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    """The reverse for one number a block: (row blocks, col blocks) -> (rows, cols)."""
    counts = values.shape
    values = values.reshape([n for c in counts for n in (c, 1)])
    full = jnp.broadcast_to(values, [n for p in zip(counts, sizes, strict=True) for n in p])
    full = full.reshape([c * s for c, s in zip(counts, sizes, strict=True)])
    return full[tuple(slice(n) for n in shape)]


# ---- ranges --------------------------------------------------------------------------------------


def _store(values: jax.Array | None, how: str | Format | Spec | None, name: str, rule: Rule):
    """One number a block, stored as the Spec asks."""
    if how is None:
        return None
    if values is None:
        raise ValueError(f"the Spec stores a {name}, but rule {rule.__name__!r} finds none")
    if isinstance(how, str):
        return cast(values, how)
    if isinstance(how, Format):
        how = Spec(how, scale=None)
    flat = values.reshape(-1)
    return _encode(flat, _fit(flat, how))


def _load(stored: jax.Array | QTensor, counts: tuple[int, ...]) -> jax.Array:
    """The stored numbers as float32 in the shape of the blocks."""
    if isinstance(stored, QTensor):
        return _decode(stored).reshape(counts)
    return stored.astype(jnp.float32)


def _fit(w: jax.Array, spec: Spec) -> QTensor:
    offset = None
    if spec.scale is None:
        return QTensor(None, None, None, None, spec=spec)
    if spec.offset == "mean":
        offset = ordered_mean(w.reshape(-1))
        w = w - offset
    scale, zero, shift = spec.rule(to_blocks(w, block_sizes(spec.block, w.shape)), spec.format)
    return store_ranges(spec, scale, zero, shift if offset is None else offset)


def store_ranges(
    spec: Spec, scale: jax.Array, zero: jax.Array | None, offset: jax.Array | None
) -> QTensor:
    """Ranges as a Spec stores them, a QTensor without codes, from float32 numbers: one of each per
    block (a mean, the offset "mean", is one number).
    """
    rule = spec.rule
    shift = offset if spec.offset == "mean" else _store(offset, spec.offset, "offset", rule)
    scales = _store(scale, spec.scale, "scale", rule)
    return QTensor(None, scales, _store(zero, spec.zero, "zero", rule), shift, spec=spec)


def load_ranges(q: QTensor, shape: tuple[int, ...]):
    """scale, zero and offset of every block of weights of a shape, float32, or None: the reverse of
    `store_ranges`.
    """
    counts = block_counts(block_sizes(q.spec.block, shape), shape)

    def each(stored: jax.Array | QTensor | None, counts=counts) -> jax.Array | None:
        return None if stored is None else _load(stored, counts)

    return each(q.scale), each(q.zero), each(q.offset, () if q.spec.offset == "mean" else counts)


def spread_ranges(q: QTensor, shape: tuple[int, ...]):
    """scale, zero and offset of every weight, or None."""
    sizes = block_sizes(q.spec.block, shape)

    def each(values: jax.Array | None) -> jax.Array | None:
        return values if values is None or not values.ndim else spread(values, sizes, shape)

    return tuple(map(each, load_ranges(q, shape)))


# ---- codes ---------------------------------------------------------------------------------------


def to_codes(
    w: jax.Array,
    spec: Spec,
    scale: jax.Array | None,
    zero: jax.Array | None,
    offset: jax.Array | None,
) -> jax.Array:
    """The nearest codes, uint8, of weights that each have their own scale, zero and offset."""
    if offset is not None:
        w = w - offset
    if scale is not None:
        w = divide(w, jnp.where(scale == 0, 1.0, scale))
    if zero is not None:
        w = (jnp.round(w) if isinstance(spec.zero, Format) else w) + zero
    return spec.format.encode(w)


def from_codes(
    codes: jax.Array,
    spec: Spec,
    scale: jax.Array | None,
    zero: jax.Array | None,
    offset: jax.Array | None,
) -> jax.Array:
    """The weights that codes stand for, float32; the reverse of `to_codes`."""
    w = spec.format.decode(codes)
    if zero is not None:
        w = w - zero
    if scale is not None:
        w = multiply(w, scale)
    return w if offset is None else w + offset


def _encode(w: jax.Array, ranges: QTensor) -> QTensor:
    spec = ranges.spec
    if ranges.channel_scale is not None:
        w = multiply(w, ranges.channel_scale)
    if ranges.perm is not None:
        w = w[..., ranges.perm]
    return ranges.replace(codes=to_codes(w, spec, *spread_ranges(ranges, w.shape)))


def _decode(q: QTensor) -> jax.Array:
    assert q.codes is not None
    w = from_codes(q.codes, q.spec, *spread_ranges(q, q.codes.shape))
    if q.perm is not None:
        w = w[..., jnp.argsort(q.perm)]
    return w if q.channel_scale is None else divide(w, q.channel_scale)


# ---- the public verb -----------------------------------------------------------------------------


@partial(jax.jit, static_argnames="spec")
def _fit_jit(w: jax.Array, spec: Spec) -> tuple[QTensor, jax.Array]:
    return _fit(w, spec), jnp.isfinite(w).all()


@jax.jit
def _encode_jit(w: jax.Array, ranges: QTensor) -> tuple[QTensor, jax.Array]:
    return _encode(w, ranges), jnp.isfinite(w).all()


@partial(jax.jit, static_argnames="spec")
def _quantize_jit(w: jax.Array, spec: Spec) -> tuple[QTensor, jax.Array]:
    return _encode(w, _fit(w, spec)), jnp.isfinite(w).all()


def fit(w: jax.Array, spec: Spec) -> QTensor:
    """The ranges of every block of `w`: a QTensor without codes.

    Args:
        w: (out, in), or any shape; float32, float16 or bfloat16.
        spec: what the tensor shall look like.

    Returns:
        QTensor with `codes=None`; `quantize(w, it)` adds them.

    Raises:
        ValueError: a dtype that is not floating point; a last axis that the block does not divide
            (both named); NaN or Inf among the weights (counted), where `w` is concrete.

    Example:
        >>> from qlab.formats import INT4
        >>> fit(jnp.array([[1.0, -7.0]]), Spec(INT4)).scale.tolist()
        [[1.0]]
    """
    w = _weights(w, spec.block)
    return _finite(w, *_fit_jit(w, spec))


def quantize(w: jax.Array, how: Any) -> Any:
    """The nearest codes for `w`: by a Spec (fit, then encode), by a QTensor's ranges, or a
    saturating cast.

    Args:
        w: (out, in), or any shape; float32, float16 or bfloat16.
        how: a Spec; a QTensor, whose ranges, perm and channel_scale are used; a Format or a dtype.

    Returns:
        A QTensor; for a dtype an array of it (integers rounded half to even, everything clipped to
        the ends).

    Raises:
        ValueError: as `fit`.

    Example:
        >>> from qlab.formats import INT4
        >>> quantize(jnp.array([[1.0, -7.0, 2.4]]), Spec(INT4)).codes.tolist()
        [[9, 1, 10]]
    """
    if isinstance(how, Format):
        how = Spec(how, "tensor", scale=None)
    if isinstance(how, Spec):
        w = _weights(w, how.block)
        return _finite(w, *_quantize_jit(w, how))
    if isinstance(how, QTensor):
        w = _weights(w, how.spec.block)
        return _finite(w, *_encode_jit(w, how))
    try:
        dtype = jnp.dtype(how)
    except TypeError:
        raise ValueError(
            f"{how!r} is no Spec, QTensor, Format or dtype; a named Spec is SPECS[{how!r}]"
        ) from None
    return _saturating_cast(_weights(w, "tensor"), dtype)


def dequantize(q: QTensor) -> jax.Array:
    """The weights a QTensor stands for: (scale ⊙ (grid[codes] − zero) + offset) / channel_scale.

    Args:
        q: a QTensor with codes.

    Returns:
        float32, shape as `q.codes`.

    Example:
        >>> from qlab.formats import INT4
        >>> dequantize(quantize(jnp.array([[1.0, -7.0, 2.4]]), Spec(INT4))).tolist()
        [[1.0, -7.0, 2.0]]
    """
    if not isinstance(q, QTensor):
        raise ValueError(f"dequantize takes a QTensor, not {type(q).__name__}")
    if q.codes is None:
        raise ValueError("this QTensor has ranges but no codes: quantize(w, it) adds them")
    return _decode_jit(q)


_decode_jit = jax.jit(lambda q: _decode(q))


def fake_quantize(w: jax.Array, how: Spec | QTensor) -> jax.Array:
    """`dequantize(quantize(w, how))` forward; backward the gradient passes unchanged
    (straight-through estimator).

    The forward value is the quantized one itself, so a model trained this way equals its converted
    form bit for bit. Bengio et al. 2013, arXiv 1308.3432.

    Args:
        w: (out, in) floating point.
        how: a Spec, or a QTensor whose ranges are kept.

    Returns:
        float32, shape as `w`.

    Raises:
        ValueError: as `quantize`.

    Example:
        >>> from qlab.formats import INT4
        >>> jax.grad(lambda w: fake_quantize(w, Spec(INT4)).sum())(jnp.ones((1, 2))).tolist()
        [[1.0, 1.0]]
    """
    return _straight_through(w, jax.lax.stop_gradient(dequantize(quantize(w, how))))


@jax.custom_vjp
def _straight_through(w: jax.Array, quantized: jax.Array) -> jax.Array:
    """`quantized` forward, the gradient of `w` = the gradient of the output backward."""
    return quantized


_straight_through.defvjp(
    lambda w, quantized: (quantized, jnp.zeros((), w.dtype)),
    lambda like, g: (g.astype(like.dtype), jnp.zeros_like(g)),
)


def bits_per_weight(x: Spec | QTensor) -> float:
    """The true cost in bits per weight: codes, scales, zeros and offsets.

    Args:
        x: a QTensor, counted exactly for its shape (columns orders and channel scales too); or a
            Spec, for a tensor so large that what is paid once a row or a tensor vanishes.

    Example:
        >>> from qlab.formats import UINT4, UINT6
        >>> scales = Spec(UINT6, 8, "float16")
        >>> bits_per_weight(Spec(UINT4, 32, scales, offset=scales))
        4.5
    """
    if isinstance(x, QTensor):
        return _bits(x) / math.prod(x.shape)
    if not isinstance(x, Spec):
        raise ValueError(f"bits_per_weight takes a Spec or a QTensor, not {type(x).__name__}")
    return sum(part.bits for part in describe.parts(x))


def _bits(q: QTensor | jax.Array | None) -> float:
    """All bits of a QTensor or array."""
    if q is None:
        return 0.0
    if not isinstance(q, QTensor):
        return 8.0 * q.size * q.dtype.itemsize
    codes = math.prod(q.shape) * q.spec.format.bits
    return codes + sum(map(_bits, (q.scale, q.zero, q.offset, q.perm, q.channel_scale)))


# ---- checks at the door --------------------------------------------------------------------------


def _weights(w: jax.Array, block: Block) -> jax.Array:
    """`w` as float32, or one clear sentence."""
    w = jnp.asarray(w)
    if not jnp.issubdtype(w.dtype, jnp.floating):
        raise ValueError(f"weights must be float32, float16 or bfloat16, not {w.dtype}")
    if w.ndim == 0 or (w.ndim == 1 and isinstance(block, tuple)):
        raise ValueError(f"a tensor of {w.ndim} axes has no blocks of shape {block}")
    if w.size == 0:
        raise ValueError(f"a tensor of shape {w.shape} holds no weights")
    if isinstance(block, int) and w.shape[-1] % block:
        raise ValueError(f"last axis {w.shape[-1]} is not a multiple of block {block}")
    return w.astype(jnp.float32)


def _finite(w: jax.Array, q: QTensor, finite: jax.Array) -> QTensor:
    """`q`, unless the weights can be seen to hold NaN or Inf."""
    if not isinstance(finite, Tracer) and not bool(finite):
        nan, inf = int(jnp.isnan(w).sum()), int(jnp.isinf(w).sum())
        raise ValueError(f"weights of shape {w.shape} hold {nan} NaN and {inf} Inf")
    return q


def _saturating_cast(w: jax.Array, dtype: jnp.dtype) -> jax.Array:
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        return jnp.clip(jnp.round(w), int(info.min), int(info.max)).astype(dtype)
    if dtype.name in DTYPES:
        return cast(w, dtype.name)
    end = float(jnp.finfo(dtype).max)
    return jnp.clip(w, -end, end).astype(dtype)
