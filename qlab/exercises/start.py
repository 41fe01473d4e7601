"""The exercises of notebook 00: what numbers cost."""

from __future__ import annotations

from qlab.exercises import solutions
from qlab.exercises.judge import Case, Exercise, Mistake

_LLAMA_70B = (80, 8, 128)  # layers, key-value heads, head width: arXiv 2407.21783, table 3

START = (
    Exercise(
        name="memory",
        task="memory(parameters, bits): the gigabytes (10⁹ bytes) of a model's weights.",
        difficulty=1,
        minutes=3,
        section='00, "How large is a model?"',
        returns=("memory",),
        solution=solutions.memory,
        cases=(
            Case("70 billion parameters at 16 bits", (70e9, 16)),
            Case("7 billion parameters at 4.5 bits", (7e9, 4.5)),
            Case("a model without parameters", (0, 16)),
        ),
        mistakes=(
            Mistake(
                "8 times too large: that is gigabits; a byte has 8 bits",
                lambda parameters, bits: parameters * bits / 1e9,
            ),
            Mistake(
                "that is in bytes: a gigabyte has 10⁹ of them",
                lambda parameters, bits: parameters * bits / 8,
            ),
            Mistake(
                "that is in bits: divide by 8 for bytes and by 10⁹ for gigabytes",
                lambda parameters, bits: parameters * bits,
            ),
            Mistake(
                "that is in megabytes: a gigabyte is 10⁹ bytes",
                lambda parameters, bits: parameters * bits / 8 / 1e6,
            ),
            Mistake(
                "that is in kilobytes: a gigabyte is 10⁹ bytes",
                lambda parameters, bits: parameters * bits / 8 / 1e3,
            ),
            Mistake(
                "you divide by 1024³: that is GiB, 7 % less; here GB means 10⁹ bytes",
                lambda parameters, bits: parameters * bits / 8 / 1024**3,
            ),
            Mistake(
                "fractions are lost: 4.5 bits are not 4; divide with / instead of //",
                lambda parameters, bits: parameters * int(bits) / 8 / 1e9,
            ),
            Mistake(
                "fractions are lost: bits // 8 throws half bytes away; divide with /",
                lambda parameters, bits: parameters * (bits // 8) / 1e9,
            ),
        ),
        hints=(
            "bits, then bytes, then gigabytes: two divisions",
            "parameters * bits is the number of bits",
        ),
        lesson="Half the bits, half the memory: nothing else about a model is so easy to predict.",
    ),
    Exercise(
        name="bits",
        task="bits(code_bits, group, scale_bits): bits per weight, the shared scale counted.",
        difficulty=1,
        minutes=4,
        section='00, "Four bits are not four bits"',
        returns=("bits per weight",),
        solution=solutions.bits,
        cases=(
            Case("4-bit codes, a 16-bit scale for every 128", (4, 128, 16)),
            Case("4-bit codes, a 32-bit scale for every 64", (4, 64, 32)),
            Case("groups of a single weight", (8, 1, 16)),
        ),
        mistakes=(
            Mistake(
                "a scale is shared: its bits are divided by the weights of the group",
                lambda code_bits, group, scale_bits: code_bits + scale_bits,
            ),
            Mistake(
                "these are the bits of a whole group: divide by its weights",
                lambda code_bits, group, scale_bits: code_bits * group + scale_bits,
            ),
            Mistake(
                "the division is upside down: one scale for `group` weights, not the other way",
                lambda code_bits, group, scale_bits: code_bits + group / scale_bits,
            ),
            Mistake(
                "every weight has its own code: only the scale is divided by the group",
                lambda code_bits, group, scale_bits: (code_bits + scale_bits) / group,
            ),
            Mistake(
                "multiplied by the group it gets more: 128 weights share one scale, so divide",
                lambda code_bits, group, scale_bits: code_bits + scale_bits * group,
            ),
            Mistake(
                "// rounds down to a whole number, here to 0: bits per weight are fractions, use /",
                lambda code_bits, group, scale_bits: code_bits + scale_bits // group,
            ),
            Mistake(
                "the scale is missing: somebody has to store it",
                lambda code_bits, group, scale_bits: code_bits,
            ),
        ),
        hints=(
            "how many weights pay for one scale?",
            "the code's bits, plus a 1/group share of the scale's",
        ),
        lesson="qlab.explain(spec) writes this sum for any format.",
    ),
    Exercise(
        name="kv_cache",
        task="kv_cache(layers, kv_heads, head_dim, tokens, bits): bytes of all keys and values.",
        difficulty=2,
        minutes=6,
        section='00, "The memory nobody mentions"',
        returns=("cache",),
        solution=solutions.kv_cache,
        cases=(
            Case("one token of a 70 B model at 16 bits", (*_LLAMA_70B, 1, 16)),
            Case("8,192 tokens at 4 bits", (*_LLAMA_70B, 8192, 4)),
            Case("no tokens", (*_LLAMA_70B, 0, 16)),
        ),
        mistakes=(
            Mistake(
                "half of it: every token leaves a key and a value",
                lambda n, h, d, tokens, bits: n * h * d * tokens * bits / 8,
            ),
            Mistake(
                "8 times too large: that is bits, and bytes were asked for",
                lambda n, h, d, tokens, bits: 2 * n * h * d * tokens * bits,
            ),
            Mistake(
                "4 times too large: bits, not bytes, and every token leaves a key and a value",
                lambda n, h, d, tokens, bits: n * h * d * tokens * bits,
            ),
            Mistake(
                "heads and width are multiplied: every head has head_dim numbers",
                lambda n, h, d, tokens, bits: 2 * n * (h + d) * tokens * bits / 8,
            ),
            Mistake(
                "the layers are missing: each keeps keys and values of its own",
                lambda n, h, d, tokens, bits: 2 * h * d * tokens * bits / 8,
            ),
            Mistake(
                "that is in gigabytes: bytes were asked for",
                lambda n, h, d, tokens, bits: 2 * n * h * d * tokens * bits / 8e9,
            ),
            Mistake(
                "the bits are missing: you count numbers, not their bytes",
                lambda n, h, d, tokens, bits: 2 * n * h * d * tokens,
            ),
            Mistake(
                "you take two bytes a number whatever `bits` says",
                lambda n, h, d, tokens, bits: 2 * n * h * d * tokens * 2,
            ),
        ),
        hints=(
            "what does one token leave behind in one head of one layer?",
            "a key and a value of head_dim numbers each, in every head of every layer",
        ),
        lesson="It grows with every token, and quantizing the weights does not shrink it.",
    ),
)
