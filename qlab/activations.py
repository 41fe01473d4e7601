"""Quantized activations: what a linear layer reads is rounded too, so that it can multiply
integers, or FP8 values.

    x ≈ s_x (q_x − z_x),  w ≈ s_w q_w:   x Wᵀ ≈ s_x s_w [q_x q_wᵀ − z_x Σ q_w],  all of […] in int32
    FP8:   x Wᵀ ≈ Σ_k s_x,k s_w,k [q_x q_wᵀ]_k,  k the blocks along the inputs, […] in float32

An `Act` says how inputs (tokens, in) of one sequence are quantized: a Spec whose block "row" is one
scale a token, "tensor" one a sequence and (1, 128) one for 128 channels of a token, or ranges found
beforehand (static). Not here: how static ranges are chosen (`observers`), outliers moved into the
weights (`methods.smoothquant`), FP8 in training (`fp8`).
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from qlab import specs
from qlab.arithmetic import divide, multiply
from qlab.formats import FP8, FP8_E5M2, INT4, INT8, UINT8, Format
from qlab.qtensor import QTensor, Spec, dequantize, quantize, spread_ranges
from qlab.rules import absmax_floored, gptq_asym
from qlab.stats import PRECISION
from qlab.suggest import near


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["ranges"],
    meta_fields=["spec", "threshold", "static"],
)
@dataclasses.dataclass(frozen=True)
class Act:
    """How a linear layer's inputs are quantized; a pytree whose only data are static ranges.

    Attributes:
        spec: of the (tokens, in) inputs of one sequence: block "row" is one scale a token,
            "tensor" one scale a sequence.
        ranges: QTensor without codes, the ranges that every input uses; None: each input's own
            (dynamic).
        threshold: channels with any |x| ≥ it in the sequence stay float (LLM.int8(): 6.0); None:
            no channel does.
        static: that ranges are needed: without them nothing is multiplied.

    Raises:
        ValueError: for a `spec` that is no Spec, or a threshold that is not positive.

    Example:
        >>> Act(Spec(INT8, "row")) == ACTS["int8_token"]
        True
    """

    spec: Spec
    ranges: QTensor | None = None
    threshold: float | None = None
    static: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.spec, Spec):
            raise ValueError(f"an Act needs a Spec, not {self.spec!r}; named Acts are in ACTS")
        if self.threshold is not None and not self.threshold > 0:
            raise ValueError(f"threshold {self.threshold} is not positive")

    def with_ranges(self, ranges: QTensor) -> Act:
        """The same Act with static ranges, as `qlab.observers.static` finds them."""
        return dataclasses.replace(self, ranges=ranges)


_TOKEN, _TENSOR = Spec(INT8, "row"), Spec(INT8, "tensor")
_UTOKEN = Spec(UINT8, "row", zero=UINT8, rule=gptq_asym)  # asymmetric: both ends are used
_UTENSOR = _UTOKEN.replace(block="tensor")
_FTENSOR = Spec(FP8, "tensor")

# "token", "tensor": the scale of each input is its own (dynamic); "static": found once, on text.
ACTS: dict[str, Act] = {
    "int8_token": Act(_TOKEN),
    "int8_tensor": Act(_TENSOR),
    "int8_static": Act(_TENSOR, static=True),
    "uint8_token": Act(_UTOKEN),
    "uint8_tensor": Act(_UTENSOR),
    "uint8_static": Act(_UTENSOR, static=True),
    "llm_int8": Act(_TOKEN, threshold=6.0),  # Dettmers et al. 2022, arXiv 2208.07339
    "fp8_token": Act(Spec(FP8, "row")),
    "fp8_tensor": Act(_FTENSOR),
    "fp8_static": Act(_FTENSOR, static=True),
    "fp8_tile": Act(Spec(FP8, (1, 128), rule=absmax_floored)),  # DeepSeek-V3, arXiv 2412.19437
    "int4_token": Act(Spec(INT4, "row")),
    # Blocks along the channels, as the weights of the same name have them; the second scale of
    # nvfp4 is one a sequence.
    **{
        name: Act(specs.SPECS[name])
        for name in ("mxfp8", "mxfp6_e2m3", "mxfp4", "mxfp4_rceil", "nvfp4")
    },
}


def find(act: str | Spec | Act) -> Act:
    """An Act by its name in ACTS, from a Spec (dynamic), or itself.

    Raises:
        ValueError: for an unknown name, suggesting the nearest.

    Example:
        >>> find("llm_int8").threshold
        6.0
    """
    if isinstance(act, Act):
        return act
    if isinstance(act, Spec):
        return Act(act)
    if act in ACTS:
        return ACTS[act]
    raise ValueError(f"no Act is called {act!r}: {near(act, ACTS)}")


def name_of(act: Act) -> str:
    """The name of an Act in ACTS, whatever ranges it has found; or the name of its Spec.

    Example:
        >>> name_of(Act(ACTS["int8_static"].spec, static=True)), name_of(Act(Spec(INT8, 64)))
        ('int8_static', 'INT8, block 64')
    """
    bare = dataclasses.replace(act, ranges=None)
    return next((name for name, known in ACTS.items() if known == bare), specs.name_of(act.spec))


def integer(w: jax.Array | QTensor | Spec, act: Act) -> bool:
    """Whether `act_matmul` multiplies integers: both sides of at most 8 bits, weights symmetric
    and in their own order, scales of both per row or per tensor.

    Args:
        w: the weights, or their Spec.
        act: how the inputs are quantized.

    Example:
        >>> from qlab.specs import SPECS
        >>> [integer(SPECS[name], ACTS["int8_token"]) for name in ("int8_channel", "int8_g128")]
        [True, False]
    """
    if isinstance(w, QTensor) and w.perm is not None:
        return False
    spec = w.spec if isinstance(w, QTensor) else w
    if not isinstance(spec, Spec):
        return False
    plain = all(
        s.format.is_integer
        and s.format.bits <= 8
        and s.block in ("row", "tensor")
        and s.scale is not None
        and s.offset is None
        for s in (spec, act.spec)
    )
    symmetric = spec.zero is None and spec.format.min < 0
    return plain and symmetric and (act.spec.zero is None or isinstance(act.spec.zero, Format))


def product(w: jax.Array | QTensor | Spec, act: Act) -> str:
    """What `act_matmul` multiplies: "int" (see `integer`), "fp8", or "float".

    "fp8": both sides are E4M3 or E5M2 under scales alone, weights in their own order, no channels
    apart, and the blocks of both along the inputs are equally long, or whole on one side.

    Args:
        w: the weights, or their Spec.
        act: how the inputs are quantized.

    Example:
        >>> from qlab.specs import SPECS
        >>> [product(SPECS[n], ACTS["fp8_tile"]) for n in ("fp8_block", "fp8_channel", "mxfp8")]
        ['fp8', 'fp8', 'float']
    """
    if integer(w, act):
        return "int"
    spec = w.spec if isinstance(w, QTensor) else w
    ordered = not isinstance(w, QTensor) or w.perm is None
    if not isinstance(spec, Spec) or act.threshold is not None or not ordered:
        return "float"
    both = (spec, act.spec)
    plain = all(s.format in (FP8, FP8_E5M2) and s.scale is not None for s in both)
    plain = plain and all(s.zero is None and s.offset is None for s in both)
    widths = {_width(s) for s in both} - {None}
    return "fp8" if plain and len(widths) <= 1 else "float"


def _width(spec: Spec) -> int | None:
    """How many inputs share a scale; None: all."""
    if isinstance(spec.block, str):
        return None
    return spec.block if isinstance(spec.block, int) else spec.block[-1]


def act_matmul(x: jax.Array, w: jax.Array | QTensor, act: Act) -> jax.Array:
    """x Wᵀ with quantized inputs: int8 × int8 summed in int32, or fp8 × fp8 summed in float32,
    where `product(w, act)` says so; else the float32 product of the quantized values.

    Integers: all sums are exact, and one multiplication by s_x s_w ends them; inputs with a zero
    point (Jacob et al. 2017, arXiv 1712.05877, eq. 7) take z_x times the row sums of the weights'
    codes off. With a threshold, LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339, eq. 8):
    channels O with any |x| ≥ it in the sequence are multiplied in float,

        x Wᵀ ≈ Σ_{h ∈ O} x_h w_hᵀ + s_x s_w Σ_{h ∉ O} q_h q_hᵀ,

    w_h being the stored weights dequantized, as bitsandbytes 0.50 does. Departs from bitsandbytes:
    its outlier channels are those of the whole batch, its token scales leave out the outlying
    numbers and not their whole channels, and it computes in float16. Masks choose the channels, so
    this shows the arithmetic and not the speed: the float product costs a full one.

    FP8: arrays of float8 go into each product. Of blocks along the inputs every partial product is
    multiplied by its s_x s_w and added in float32, as DeepSeek-V3's kernel does (DeepSeek-AI 2024,
    arXiv 2412.19437, §3.3). A CPU converts the operands and sums in float32 throughout, where an
    H100 keeps fewer bits inside a product: tensor cores are not imitated.

    Args:
        x: (..., time, in) floating point; every leading index is a sequence of its own, so the
            result does not depend on how sequences are batched. It does depend on how one is cut:
            a dynamic scale per tensor, and the outlier channels, are those of the tokens given.
        w: (out, in), an array or a QTensor, whose channel_scale divides x before it is quantized.
        act: how x is quantized.

    Returns:
        (..., time, out) float32. No gradient passes through the rounding.

    Raises:
        ValueError: an Act that is static and has no ranges; x or w of other shapes, naming both.

    Example:
        >>> from qlab.specs import SPECS
        >>> w = quantize(jnp.array([[127.0, -127.0], [1.0, 0.0]]), SPECS["int8_channel"])
        >>> act_matmul(jnp.array([[2.0, 127.0]]), w, ACTS["int8_token"]).tolist()
        [[-15875.0, 2.0]]
    """
    if act.static and act.ranges is None:
        raise ValueError(
            "this Act is static but has no ranges: act.with_ranges(qlab.observers.static(stats, "
            "act.spec)) adds them"
        )
    if x.ndim < 2 or len(w.shape) != 2 or x.shape[-1] != w.shape[1]:
        raise ValueError(f"inputs {x.shape} are not (..., time, in) for weights {w.shape}")
    x = x.astype(jnp.float32)
    if isinstance(w, QTensor) and w.channel_scale is not None:
        x, w = divide(x, w.channel_scale), w.replace(channel_scale=None)
    sequences = x.reshape(-1, *x.shape[-2:])
    y = jax.vmap(lambda one: _product(one, w, act))(sequences)
    return y.reshape(*x.shape[:-1], w.shape[0])


def quantized_inputs(x: jax.Array, act: Act) -> jax.Array:
    """The numbers that stand for x (time, in) of one sequence, float32: outlier channels as they
    are.

    Example:
        >>> quantized_inputs(jnp.array([[127.0, 2.4]]), ACTS["int8_token"]).tolist()
        [[127.0, 2.0]]
    """
    inside, outlying = split_outliers(x.astype(jnp.float32), act)
    return dequantize(encode_inputs(inside, act)) + outlying


def split_outliers(x: jax.Array, act: Act) -> tuple[jax.Array, jax.Array]:
    """x without and with only its outlier channels, zeros in their place."""
    if act.threshold is None:
        return x, jnp.zeros_like(x)
    outlying = (jnp.abs(x) >= act.threshold).any(axis=0)  # (in,)
    return jnp.where(outlying, 0.0, x), jnp.where(outlying, x, 0.0)


def encode_inputs(x: jax.Array, act: Act) -> QTensor:
    """x (time, in) of one sequence, without outliers, as a QTensor."""
    return quantize(x, act.spec if act.ranges is None else act.ranges)


def _product(x: jax.Array, w: jax.Array | QTensor, act: Act) -> jax.Array:
    """One sequence: (time, in) -> (time, out) float32."""
    how = product(w, act)
    if not isinstance(w, QTensor) or how == "float":
        w = dequantize(w) if isinstance(w, QTensor) else w.astype(jnp.float32)
        return jnp.matmul(quantized_inputs(x, act), w.T, precision=PRECISION)
    if how == "fp8":
        return _fp8_product(encode_inputs(x, act), w)
    inside, outlying = split_outliers(x, act)
    y = _integer_product(encode_inputs(inside, act), w)
    if act.threshold is None:
        return y
    return y + jnp.matmul(outlying, dequantize(w).T, precision=PRECISION)


def _integer_product(x: QTensor, w: QTensor) -> jax.Array:
    """s_x s_w Σ (q_x − z_x) q_w, the sum in int32: (time, in), (out, in) -> (time, out) float32."""
    (qx, shift), (qw, zero) = _int8(x), _int8(w)
    assert zero == 0
    along_in = (((1,), (1,)), ((), ()))
    total = jax.lax.dot_general(qx, qw, along_in, preferred_element_type=jnp.int32)
    x_scale, x_zero, _ = spread_ranges(x, (len(qx), 1))  # (time, 1) each
    w_scale, _, _ = spread_ranges(w, (len(qw), 1))  # (out, 1)
    assert x_scale is not None and w_scale is not None
    if x_zero is not None or shift:
        moved = shift - (jnp.int32(0) if x_zero is None else x_zero.astype(jnp.int32))
        total = total + moved * qw.astype(jnp.int32).sum(axis=1)
    return multiply(total.astype(jnp.float32), x_scale * w_scale.T)


def _fp8_product(x: QTensor, w: QTensor) -> jax.Array:
    """Σ_k s_x s_w Σ_{j in block k} q_x q_w: (time, in), (out, in) -> (time, out) float32."""
    inner = x.shape[1]
    width = _width(x.spec) or _width(w.spec) or inner
    (qx, x_scale), (qw, w_scale) = (_fp8_blocks(q, width) for q in (x, w))
    along_in = (((1,), (1,)), ((), ()))

    def add(total: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        a, b, a_scale, b_scale = block
        part = jax.lax.dot_general(
            a, b, along_in, precision=PRECISION, preferred_element_type=jnp.float32
        )
        return total + multiply(part, a_scale * b_scale.T), None

    start = jnp.zeros((qx.shape[1], qw.shape[1]), jnp.float32)
    return jax.lax.scan(add, start, (qx, qw, x_scale, w_scale))[0]


def _fp8_blocks(q: QTensor, width: int) -> tuple[jax.Array, jax.Array]:
    """Codes (blocks, rows, width) as an fp8 dtype, zeros after the end, and their scales (blocks,
    rows, 1).
    """
    assert q.codes is not None
    rows, inner = q.codes.shape
    scale, _, _ = spread_ranges(q, (rows, inner))
    assert scale is not None
    values = jax.lax.bitcast_convert_type(q.codes, jnp.dtype(q.spec.format.dtype))
    values = jnp.pad(values, ((0, 0), (0, -inner % width)))
    return values.reshape(rows, -1, width).swapaxes(0, 1), scale[:, ::width].T[:, :, None]


def _int8(q: QTensor) -> tuple[jax.Array, int]:
    """Codes as int8 and the integer to add to them: 0 for INT8, 128 for UINT8."""
    assert q.codes is not None
    middle = 1 << (int(q.spec.format.bits) - 1)
    signed = (q.codes.astype(jnp.int16) - middle).astype(jnp.int8)
    return signed, middle + int(q.spec.format.min)
