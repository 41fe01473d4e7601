"""SPECS: the quantized tensors of the field as literals, each with its published bits per weight
and its source.

A name reads format, then block: int4_g128 is INT4 in groups of 128. The bits count scales and
offsets; what is paid once a row or a tensor (a channel scale) is left out. `gptq`, `awq` and `hqq`
build the grids of the original implementations. ggml's names describe its *containers*: `quantize`
fills them by plain rounding, ggml's own searches are `kquants`.
"""

from __future__ import annotations

import dataclasses
import html
from typing import NamedTuple

from qlab import describe
from qlab.formats import (
    BNB_FP4,
    DYNAMIC8,
    E8M0,
    FORMATS,
    FP4,
    FP6_E2M3,
    FP6_E3M2,
    FP8,
    FP8_E5M2,
    INT2,
    INT3,
    INT4,
    INT5,
    INT6,
    INT8,
    IQ4NL,
    NF4,
    TERNARY,
    TERNARY2,
    UE4M3,
    UINT2,
    UINT3,
    UINT4,
    UINT5,
    UINT6,
    UINT8,
    Format,
)
from qlab.qtensor import Block, QTensor, Spec
from qlab.rules import (
    absmax_full,
    absmax_mid,
    absmean,
    awq_asym,
    awq_sym,
    gptq_asym,
    gptq_sym,
    hqq_minmax,
    minmax,
    minmax0,
    nvfp4,
    pow2_ceil,
    pow2_even,
    pow2_floor,
    pow2_rceil,
    signed_absmax,
)
from qlab.suggest import near


class Entry(NamedTuple):
    """A row of the table: the Spec, its published bits per weight, its source."""

    spec: Spec
    bits: float
    source: str


_JACOB = "Jacob et al. 2017, arXiv 1712.05877"
_GPTQ = "Frantar et al. 2022, arXiv 2210.17323; its quant.py"
_AWQ = "Lin et al. 2023, arXiv 2306.00978; its quantizer.py"
_HQQ = "Badri & Shaji 2023, Half-Quadratic Quantization; mobiusml/hqq"
_QLORA = "Dettmers et al. 2023, arXiv 2305.14314; bitsandbytes"
_FP8 = "Micikevicius et al. 2022, arXiv 2209.05433"
_MX = "OCP Microscaling Formats 1.0 (2023); Rouhani et al. 2023, arXiv 2310.10537"
_NVFP4 = "NVIDIA 2025, NVFP4; torchao's NVFP4Tensor"
_GGML = "ggml, ggml-common.h"
_BITNET = "Ma et al. 2024, arXiv 2402.17764"


def _k(format: Format, count: int) -> Spec:
    """Sub-block scales and minima of a k-quant: one 16-bit number for `count` of them."""
    return Spec(format, count, "float16")


def _signed(format: Format, count: int) -> Spec:
    """Signed sub-block scales of a k-quant; the one of largest magnitude lands on the format's
    lowest value.
    """
    return Spec(format, count, "float16", rule=signed_absmax)


TABLE: dict[str, Entry] = {
    # Integers around zero. "channel": one scale an output row. "mid", "full": the two other
    # conventions of symmetric.
    "int8_tensor": Entry(Spec(INT8, "tensor"), 8, _JACOB),
    "int8_channel": Entry(Spec(INT8), 8, _JACOB),
    "int8_g128": Entry(Spec(INT8, 128, "float16"), 8.125, _JACOB),
    "int6_g64": Entry(Spec(INT6, 64, "float16"), 6.25, _JACOB),
    "int5_g64": Entry(Spec(INT5, 64, "float16"), 5.25, _JACOB),
    "int4_tensor": Entry(Spec(INT4, "tensor"), 4, _JACOB),
    "int4_channel": Entry(Spec(INT4), 4, _JACOB),
    "int4_g128": Entry(Spec(INT4, 128, "float16"), 4.125, _GPTQ),
    "int4_g128_mid": Entry(Spec(INT4, 128, "float16", rule=absmax_mid), 4.125, "google/qwix"),
    "int4_g128_full": Entry(Spec(INT4, 128, "float16", rule=absmax_full), 4.125, _GGML),
    "int4_g64": Entry(Spec(INT4, 64, "float16"), 4.25, _GPTQ),
    "int4_g32": Entry(Spec(INT4, 32, "float16"), 4.5, _GPTQ),
    "int3_channel": Entry(Spec(INT3), 3, _GPTQ),
    "int3_g128": Entry(Spec(INT3, 128, "float16"), 3.125, _GPTQ),
    "int3_g64": Entry(Spec(INT3, 64, "float16"), 3.25, _GPTQ),
    "int2_channel": Entry(Spec(INT2), 2, _GPTQ),
    "int2_g128": Entry(Spec(INT2, 128, "float16"), 2.125, _GPTQ),
    "int2_g64": Entry(Spec(INT2, 64, "float16"), 2.25, _GPTQ),
    # Integers with an integer zero point.
    "uint8_channel": Entry(Spec(UINT8, zero=UINT8, rule=gptq_asym), 8, _JACOB),
    "uint4_channel": Entry(Spec(UINT4, zero=UINT4, rule=gptq_asym), 4, _JACOB),
    "uint4_g128": Entry(Spec(UINT4, 128, "float16", zero=UINT4, rule=gptq_asym), 4.15625, _GPTQ),
    "uint4_g64": Entry(Spec(UINT4, 64, "float16", zero=UINT4, rule=gptq_asym), 4.3125, _GPTQ),
    "uint4_g32": Entry(Spec(UINT4, 32, "float16", zero=UINT4, rule=gptq_asym), 4.625, _GPTQ),
    "uint3_g64": Entry(Spec(UINT3, 64, "float16", zero=UINT3, rule=gptq_asym), 3.296875, _GPTQ),
    "uint2_g128": Entry(Spec(UINT2, 128, "float16", zero=UINT2, rule=gptq_asym), 2.140625, _GPTQ),
    "uint2_g64": Entry(Spec(UINT2, 64, "float16", zero=UINT2, rule=gptq_asym), 2.28125, _GPTQ),
    # The originals' own grids: GPTQ's symmetric rule mirrors only where a row has a negative
    # weight.
    "gptq4_sym": Entry(Spec(INT4, 128, "float32", rule=gptq_sym), 4.25, _GPTQ),
    "gptq4_sym_channel": Entry(Spec(INT4, rule=gptq_sym), 4, _GPTQ),
    "awq_g128": Entry(Spec(UINT4, 128, "float16", zero=UINT4, rule=awq_asym), 4.15625, _AWQ),
    "hqq4_g64": Entry(Spec(UINT4, 64, "float16", zero="float16", rule=hqq_minmax), 4.5, _HQQ),
    # Floats of 8 and 6 bits.
    "fp8_tensor": Entry(Spec(FP8, "tensor"), 8, _FP8),
    "fp8_e5m2_tensor": Entry(Spec(FP8_E5M2, "tensor"), 8, _FP8),
    "fp8_channel": Entry(Spec(FP8), 8, _FP8),
    "fp8_block": Entry(
        Spec(FP8, (128, 128)), 8 + 32 / 16384, "DeepSeek-AI 2024, arXiv 2412.19437, §3.3"
    ),
    "mxfp8": Entry(Spec(FP8, 32, E8M0, rule=pow2_floor), 8.25, _MX),
    "mxfp8_e5m2": Entry(Spec(FP8_E5M2, 32, E8M0, rule=pow2_floor), 8.25, _MX),
    "mxfp6_e2m3": Entry(Spec(FP6_E2M3, 32, E8M0, rule=pow2_floor), 6.25, _MX),
    "mxfp6_e3m2": Entry(Spec(FP6_E3M2, 32, E8M0, rule=pow2_floor), 6.25, _MX),
    # Floats and tables of 4 bits.
    "mxfp4": Entry(Spec(FP4, 32, E8M0, rule=pow2_floor), 4.25, _MX),
    "mxfp4_rceil": Entry(Spec(FP4, 32, E8M0, rule=pow2_rceil), 4.25, _MX + "; NVIDIA's recipe"),
    "mxfp4_ceil": Entry(Spec(FP4, 32, E8M0, rule=pow2_ceil), 4.25, _MX + "; torchao"),
    "mxfp4_even": Entry(Spec(FP4, 32, E8M0, rule=pow2_even), 4.25, _MX + "; torchao"),
    "nvfp4": Entry(Spec(FP4, 16, Spec(FP8, "tensor"), rule=nvfp4), 4.5, _NVFP4),
    "nvfp4_ggml": Entry(Spec(FP4, 16, UE4M3), 4.5, _GGML),
    "nf4": Entry(Spec(NF4, 64), 4.5, _QLORA),
    "nf4_double": Entry(
        Spec(NF4, 64, Spec(DYNAMIC8, 256, offset="mean")), 4 + 8 / 64 + 32 / 64 / 256, _QLORA
    ),
    "fp4_bnb": Entry(Spec(BNB_FP4, 64), 4.5, "bitsandbytes"),
    # ggml's blocks of 32.
    "q8_0": Entry(Spec(INT8, 32, "float16"), 8.5, _GGML),
    "q5_1": Entry(Spec(UINT5, 32, "float16", offset="float16", rule=minmax), 6.0, _GGML),
    "q5_0": Entry(Spec(INT5, 32, "float16", rule=signed_absmax), 5.5, _GGML),
    "q4_1": Entry(Spec(UINT4, 32, "float16", offset="float16", rule=minmax), 5.0, _GGML),
    "q4_0": Entry(Spec(INT4, 32, "float16", rule=signed_absmax), 4.5, _GGML),
    "iq4_nl": Entry(Spec(IQ4NL, 32, "float16", rule=signed_absmax), 4.5, _GGML),
    # ggml's super-blocks of 256: the super-scale of the minima carries their sign.
    "q6_k": Entry(Spec(INT6, 16, _signed(INT8, 16), rule=signed_absmax), 6.5625, _GGML),
    "q5_k": Entry(Spec(UINT5, 32, _k(UINT6, 8), offset=_k(UINT6, 8), rule=minmax0), 5.5, _GGML),
    "q4_k": Entry(Spec(UINT4, 32, _k(UINT6, 8), offset=_k(UINT6, 8), rule=minmax0), 4.5, _GGML),
    "q3_k": Entry(Spec(INT3, 16, _signed(INT6, 16), rule=signed_absmax), 3.4375, _GGML),
    "q2_k": Entry(Spec(UINT2, 16, _k(UINT4, 16), offset=_k(UINT4, 16), rule=minmax0), 2.625, _GGML),
    "iq4_xs": Entry(Spec(IQ4NL, 32, _signed(INT6, 8), rule=signed_absmax), 4.25, _GGML),
    # Ternary: five trits in a byte, or one in two bits.
    "tq1_0": Entry(Spec(TERNARY, 256, "float16"), 1.6875, _GGML),
    "tq2_0": Entry(Spec(TERNARY2, 256, "float16"), 2.0625, _GGML),
    "bitnet": Entry(Spec(TERNARY, "tensor", rule=absmean), 1.625, _BITNET),
}

SPECS: dict[str, Spec] = {name: entry.spec for name, entry in TABLE.items()}


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """A Spec explained: prints as text, shows as a picture in a notebook."""

    spec: Spec
    name: str | None

    def __str__(self) -> str:
        lines = [describe.sentence(self.spec), "", describe.picture(self.spec)]
        lines.append(describe.sum_of_bits(self.spec))
        if self.name is not None:
            lines.append(f"{self.name}: {TABLE[self.name].source}")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        source = "" if self.name is None else html.escape(f"{self.name}: {TABLE[self.name].source}")
        return f"{describe.spec_html(self.spec)}<p><small>{source}</small></p>"


def explain(spec: Spec | QTensor | str) -> Explanation:
    """One English sentence, the bit picture, and the sum of the bits.

    Args:
        spec: a Spec, a QTensor, or a name in SPECS.

    Returns:
        An Explanation; `str()` of it is text, a notebook shows it drawn.

    Raises:
        ValueError: for a name that SPECS lacks, suggesting the nearest.

    Example:
        >>> print(explain("q4_k"))  # doctest: +ELLIPSIS
        Each weight is a 4-bit code of UINT4 (0 … 15); every 32 weights of a row share ...
    """
    if isinstance(spec, QTensor):
        spec = spec.spec
    if isinstance(spec, str):
        spec = find(spec)
    if not isinstance(spec, Spec):
        raise ValueError(f"a Spec, a QTensor or a name is explained, not {type(spec).__name__}")
    return Explanation(spec, next((name for name, known in SPECS.items() if known == spec), None))


def find(name: str) -> Spec:
    """SPECS[name], or one clear sentence.

    Raises:
        ValueError: for an unknown name, suggesting the nearest.

    Example:
        >>> find("nf4").block
        64
    """
    if name in SPECS:
        return SPECS[name]
    raise ValueError(f"no Spec is called {name!r}: {near(name, SPECS)}")


def name_of(spec: Spec) -> str:
    """The name of a Spec in SPECS, or in short the fields that make it.

    Example:
        >>> name_of(SPECS["nf4"]), name_of(SPECS["uint4_g64"].replace(block=96))
        ('nf4', 'UINT4, block 96, zero UINT4')
    """
    for name, known in SPECS.items():
        if known == spec:
            return name
    fields = [f"{f} {getattr(spec, f)}" for f in ("zero", "offset") if getattr(spec, f) is not None]
    return ", ".join([str(spec.format), f"block {spec.block}", *fields])


def _integer(kind: str, bits: int) -> Format:
    if f"{kind}{bits}" not in FORMATS:
        raise ValueError(f"bits must be 2 to 8, not {bits}")
    return FORMATS[f"{kind}{bits}"]


def _block(group: int | None) -> Block:
    return "row" if group is None else group


def gptq(bits: int, group: int | None = None, sym: bool = True) -> Spec:
    """The grid of the original GPTQ: float32 scales, one a row or one a group.

    Args:
        bits: 2 to 8.
        group: columns that share a scale; None for a whole row.
        sym: without a zero point, or with an integer one.

    Raises:
        ValueError: if there is no integer format of that many bits.

    Example:
        >>> gptq(4, 128) == SPECS["gptq4_sym"]
        True
    """
    if sym:
        return Spec(_integer("INT", bits), _block(group), rule=gptq_sym)
    unsigned = _integer("UINT", bits)
    return Spec(unsigned, _block(group), zero=unsigned, rule=gptq_asym)


def awq(bits: int, group: int | None = 128, sym: bool = False) -> Spec:
    """The grid of AWQ's pseudo-quantizer: float16 scales and, unless `sym`, an integer zero point.

    Raises:
        ValueError: if there is no integer format of that many bits.

    Example:
        >>> awq(4) == SPECS["awq_g128"]
        True
    """
    if sym:
        return Spec(_integer("INT", bits), _block(group), "float16", rule=awq_sym)
    unsigned = _integer("UINT", bits)
    return Spec(unsigned, _block(group), "float16", zero=unsigned, rule=awq_asym)


def hqq(bits: int, group: int | None = 64) -> Spec:
    """The grid of HQQ: float16 scales and real zero points.

    Raises:
        ValueError: if there is no integer format of that many bits.

    Example:
        >>> hqq(4) == SPECS["hqq4_g64"]
        True
    """
    unsigned = _integer("UINT", bits)
    return Spec(unsigned, _block(group), "float16", zero="float16", rule=hqq_minmax)
