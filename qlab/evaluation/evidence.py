"""What advice rests on: published losses of files, measured speeds, and what tasks ask for.

Every entry names its source. "secondary" marks what was not read at its origin, "not compared"
what could not be read a second time.
"""

from __future__ import annotations

import dataclasses

README = "llama.cpp, tools/perplexity/README, Llama-3-8B on WikiText-2"
TORCHAO = "pytorch/ao, docs/source/workflows/inference.md, Llama-3.1-8B on WikiText"
# file -> (perplexity, mean KL divergence from float16, source). Perplexities compare within a
# source only. Q4_K_M, Q2_K and the IQ types were made with an importance matrix.
LOSSES: dict[str, tuple[float, float | None, str]] = {
    "BF16": (6.2332, 0.00055, README + " (float16)"),
    "Q8_0": (6.2343, 0.00136, README),
    "Q6_K": (6.2534, 0.00545, README),
    "Q5_K_M": (6.2886, 0.01076, README),
    "Q4_K_M": (6.3829, 0.02815, README),
    "IQ4_XS": (6.4597, 0.03633, README),
    "Q3_K_M": (6.8885, 0.1019, README),
    "Q2_K": (8.6478, 0.3322, README),
    "IQ2_XS": (10.7614, 0.5463, README),
    "IQ2_XXS": (14.0918, 0.8120, README),
    "FP8": (7.4197, None, TORCHAO + " (bfloat16: 7.3315)"),
    "INT8": (7.4535, None, TORCHAO + " (bfloat16: 7.3315)"),
    "NVFP4": (8.4459, None, TORCHAO + " (bfloat16: 7.3315)"),
}


@dataclasses.dataclass(frozen=True)
class Anchor:
    """A measured speed beside its roofline: bytes read for a token, tokens/s, bytes/s."""

    what: str
    read: float
    speed: float
    bandwidth: float
    source: str

    @property
    def efficiency(self) -> float:
        """The share of the bandwidth that was reached."""
        return self.read * self.speed / self.bandwidth


_MAC = "llama.cpp discussion 4167, secondary, not compared"
# Bytes: of the linears and the head at their bits; the embedding is looked up, not read.
ANCHORS = (
    Anchor("Mistral-7B, AWQ 4-bit, RTX 4090", 6.98e9 * 4.25 / 8 + 0.13e9 * 2, 156, 1008e9,
           "AutoAWQ README, version 0.1.6"),
    Anchor("Llama-3-8B, AWQ 4-bit, RTX 4090", 6.98e9 * 4.25 / 8 + 0.525e9 * 2, 1 / 6.39e-3, 1008e9,
           "llm-awq README, TinyChat (an earlier one: 6.66 ms)"),
    Anchor("Llama-2-70B at 2.5 bits, RTX 4090", 68.7e9 * 2.5 / 8, 38, 1008e9,
           "exllamav2 README (earlier ones: 35, 37)"),
    Anchor("Llama-2-7B, Q4_0, M1 Max", 3.83e9, 61.19, 400e9, _MAC),
    Anchor("Llama-2-7B, Q8_0, M1 Max", 7.16e9, 40.2, 400e9, _MAC),
)  # fmt: skip
EFFICIENCY = (0.50, 0.85)  # of the bandwidth: encloses ANCHORS
# Of the FLOP/s for prompts. 4 × 512 tokens in 659.9 ms of 312 TFLOP/s; 599.5 tokens/s of 10.4.
PREFILL = (0.40, 0.80)
PREFILL_WORDS = (
    "40–80 % of the FLOP/s are reached with prompts: OPT-30B in float16 on an A100 60 %, "
    "Llama-2-7B in float16 on an M1 Max 78 %",
    f"arXiv 2211.10438, table 10; {_MAC}",
)


@dataclasses.dataclass(frozen=True)
class Task:
    """What a task asks of the bits: at least `floor`, as a rule (`hard`) or as a warning."""

    floor: int
    hard: bool
    words: str
    source: str


TASKS = {
    "general": Task(0, False, "", ""),
    "high stakes": Task(
        8, True,
        "law, medicine, money: 8 or 16 bits. 8-bit weights and inputs keep 99.75 % of the scores, "
        "4-bit weights 99.36 %",
        "arXiv 2411.02355",
    ),
    "benchmark": Task(
        16, True,
        "a benchmark needs the float model as its reference; measure the quantized file beside it, "
        "on the same text, with paired error bars (qlab.evaluate(q, reference=model))",
        "llama.cpp, tools/perplexity/README",
    ),
    "math": Task(
        5, False,
        "chains of reasoning suffer first: 4-bit AWQ and GPTQ cost Llama-3 up to 32.39 % on MATH, "
        "11.31 % in the mean; 8 bits are nearly lossless",
        "arXiv 2501.03035, 2504.04823",
    ),
    "multilingual": Task(
        5, False,
        "languages in other scripts than Latin suffer more than scores say: Japanese lost 1.7 % "
        "by metrics, 16.0 % by human judges",
        "arXiv 2407.03211",
    ),
}  # fmt: skip
WORN = 3.5  # bits of a file below which a smaller model at 4 bits or more is the better choice
WORN_WORDS = (
    "a smaller model at 4 bits or more is usually better than a larger one below",
    "arXiv 2212.09720: 4 bits are almost universally optimal for a given number of bits",
)
SMALL = 4e9  # parameters below which the same bits cost more
SMALL_WORDS = (
    "small models are more fragile: Llama-3.2-1B has a perplexity of 14.0 in BF16, 11550 in Q2_K",
    "secondary: a note on ParetoQ by ubergarm",
)
SLOWER_WORDS = (
    "fewer bits are not always faster: int8 weights alone decode at 0.652 times the speed of "
    "bfloat16 on an H100, FP8 at 1.214 times",
    "pytorch/ao, docs/source/workflows/inference.md, Llama-3.1-8B in vLLM",
)
NEWER_WORDS = (
    "newer, longer trained models are more fragile: Q4_K_M has a KL of 0.0127 on Llama-2-7B, "
    "0.0313 on Llama-3-8B",
    README,
)
