"""The exercises of notebook 07: what the bytes of a GGUF file say, who chose its scales, and why
"4 bits" are five.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qlab.exercises import solutions
from qlab.exercises.judge import Case, Exercise, Mistake

_KEYS = jax.random.split(jax.random.key(11), 4)
NIBBLES = jax.random.randint(_KEYS[0], (16,), 0, 256).astype(jnp.uint8)
COUNTED = jnp.arange(16, dtype=jnp.uint8) * 16 + jnp.arange(15, -1, -1, dtype=jnp.uint8)
WEIGHTS = jax.random.normal(_KEYS[1], (3, 32)) * jnp.array([[1.0], [0.1], [5.0]])
ROW, CODES = WEIGHTS[0], jnp.clip(jnp.round(WEIGHTS[0] / 0.35), -8, 7)
LARGE, COARSE = WEIGHTS[2], jnp.clip(jnp.round(WEIGHTS[2] / 1.9), -8, 7)
IMPORTANCE = jnp.exp(jax.random.normal(_KEYS[2], (32,)))
TWELVE = jax.random.randint(_KEYS[3], (12,), 0, 256).astype(jnp.uint8)
SMALL = jnp.array([1, 2, 3, 4, 11, 12, 13, 14, 0x65, 0x76, 0x87, 0x98], jnp.uint8)
HIGH = jnp.array([0x41, 0x82, 0xC3, 0x04, 0xC5, 0x86, 0x47, 0x08, 0, 0, 0, 0], jnp.uint8)
SIX = jnp.array([40.0, 63.0, 21.0]), jnp.array([63.0, 20.0, 45.0])
FLAT = jnp.array([40.0, 0.0, 21.0]), jnp.array([63.0, 0.0, 45.0])
SUB = jax.random.normal(jax.random.key(12), (3, 32)) * 0.1
TINY = jnp.array([1_048_576.0, 2_654_208.0, 524_288.0]), jnp.array([6.5625, 4.5, 6.5625])

UNPACK_NIBBLES = Exercise(
    name="unpack_nibbles",
    task="unpack_nibbles(raw): the 32 codes 0 … 15 of the 16 bytes of a Q4_0 block, in order.",
    difficulty=1,
    minutes=5,
    section='07, "Eighteen bytes"',
    returns=("codes",),
    solution=solutions.unpack_nibbles,
    cases=(
        Case("bytes whose low nibbles count down and high ones up", (COUNTED,)),
        Case("16 random bytes", (NIBBLES,)),
        Case("16 bytes of 0xF0", (jnp.full(16, 0xF0, jnp.uint8),)),
        Case("16 bytes of 0x8A", (jnp.full(16, 0x8A, jnp.uint8),)),
    ),
    mistakes=(
        Mistake(
            "low and high nibble side by side: here the 16 low ones come first, then the high ones",
            lambda raw: jnp.stack([raw & 15, raw >> 4], axis=1).reshape(-1),
        ),
        Mistake(
            "the halves have changed places: weights 0 … 15 are the low nibbles",
            lambda raw: jnp.concatenate([raw >> 4, raw & 15]),
        ),
        Mistake(
            "the first half still holds its high nibble: & 15 keeps the low four bits",
            lambda raw: jnp.concatenate([raw, raw >> 4]),
        ),
        Mistake(
            "these are the numbers q − 8; asked for are the stored codes, 0 … 15",
            lambda raw: solutions.unpack_nibbles(raw).astype(jnp.int32) - 8,
        ),
        Mistake(
            "a high nibble is not moved down yet: >> 4 after taking it",
            lambda raw: jnp.concatenate([raw & 15, raw & 240]),
        ),
        Mistake(
            "that is half of them: every byte holds two codes",
            lambda raw: raw & 15,
        ),
    ),
    hints=(
        "raw & 15 is the low nibble of every byte, raw >> 4 the high one",
        "jnp.concatenate([first half, second half])",
    ),
    lesson="Low and high nibbles are 16 weights apart: a processor splits 16 bytes at a time.",
)

Q4_0_SCALE = Exercise(
    name="q4_0_scale",
    task=(
        "q4_0_scale(w): for every block the scale with which its weight of largest magnitude "
        "becomes −8."
    ),
    difficulty=2,
    minutes=5,
    section='07, "A scale with a sign"',
    returns=("scales",),
    solution=solutions.q4_0_scale,
    cases=(
        Case("three blocks", (WEIGHTS,)),
        Case("the same blocks with their signs turned", (-WEIGHTS,)),
        Case("weights that are all positive", (jnp.abs(WEIGHTS),)),
        Case("a block of zeros among others", (WEIGHTS * jnp.array([[1.0], [0.0], [1.0]]),)),
    ),
    mistakes=(
        Mistake(
            "that scale has no sign: keep the sign of the largest weight, so that −8 is its code",
            lambda w: jnp.abs(w).max(-1) / 8,
        ),
        Mistake(
            "the codes −8 … 7 have one more on the negative side; dividing by 7 leaves it unused",
            lambda w: jnp.abs(w).max(-1) / 7,
        ),
        Mistake(
            "the sign is turned round: the largest weight would become +8, which is no code",
            lambda w: solutions.q4_0_scale(w) * -1,
        ),
        Mistake(
            "largest in magnitude, not largest: a negative weight can be the farthest from 0",
            lambda w: w.max(-1) / -8,
        ),
        Mistake(
            "always negative: the sign must come from the weight that is farthest from 0",
            lambda w: jnp.abs(w).max(-1) / -8,
        ),
        Mistake(
            "that is the range divided by 15: right with a minimum beside it, which Q4_0 lacks",
            lambda w: (w.max(-1) - w.min(-1)) / 15,
        ),
    ),
    hints=(
        "jnp.abs(w).argmax(axis=-1) says where the farthest weight is; which sign has it there?",
        "jnp.take_along_axis(w, places, axis=-1) picks it, places of shape (blocks, 1); then / -8",
    ),
    lesson="One weight is met exactly, and all sixteen codes can be used.",
)

BEST_SCALE = Exercise(
    name="best_scale",
    task=(
        "best_scale(w, q, v): the scale s that makes Σ v (w − s q)² least; 0 if all codes are 0."
    ),
    difficulty=2,
    minutes=6,
    section='07, "The best scale"',
    returns=("scale",),
    solution=solutions.best_scale,
    cases=(
        Case("32 weights, all counting alike", (ROW, CODES, jnp.ones(32))),
        Case("32 weights of different importance", (LARGE, COARSE, IMPORTANCE)),
        Case("one weight that alone counts", (ROW, CODES, jnp.zeros(32).at[3].set(2.0))),
        Case("codes that are all 0", (ROW, jnp.zeros(32), IMPORTANCE)),
    ),
    mistakes=(
        Mistake(
            "v is left out: important weights should have the larger say",
            lambda w, q, v: solutions.best_scale(w, q, jnp.ones(32)),
        ),
        Mistake(
            "upside down: divide by the codes squared, not by the weights",
            lambda w, q, v: (v * w * q).sum() / (v * w**2).sum(),
        ),
        Mistake(
            "a mean of w / q: small codes, whose quotient is the least certain, count as much",
            lambda w, q, v: (
                (v * jnp.where(q == 0, 0, w / jnp.where(q == 0, 1, q))).sum() / (v * (q != 0)).sum()
            ),
        ),
        Mistake(
            "Σvw / Σvq: with weights of both signs both sums are nearly 0; multiply by q first",
            lambda w, q, v: (v * w).sum() / (v * q).sum(),
        ),
        Mistake(
            "that is the derivative's numerator alone: divide by Σ v q²",
            lambda w, q, v: (v * w * q).sum(),
        ),
        Mistake(
            "v enters the numerator only; it belongs into both sums",
            lambda w, q, v: (v * w * q).sum() / (q**2).sum(),
        ),
        Mistake(
            "0 divided by 0: with codes that are all 0 the scale is 0",
            lambda w, q, v: (v * w * q).sum() / (v * q**2).sum(),
        ),
    ),
    hints=(
        "set the derivative with respect to s to 0: Σ v q (w − s q) = 0",
        "s = Σ v w q / Σ v q², and jnp.where guards the division",
    ),
    lesson="Other codes, another best scale: so ggml tries several sets of codes.",
)

SCALE_MIN_K4 = Exercise(
    name="scale_min_k4",
    task=(
        "scale_min_k4(raw): the eight scales and the eight minima, 0 … 63, in the 12 bytes of a "
        "Q4_K block."
    ),
    difficulty=3,
    minutes=10,
    section='07, "Twelve bytes, sixteen numbers"',
    returns=("scales", "minima"),
    solution=solutions.scale_min_k4,
    cases=(
        Case("12 random bytes", (TWELVE,)),
        Case("numbers below 16, so that no high bits are set", (SMALL,)),
        Case("high bits alone", (HIGH,)),
        Case("12 bytes of 0xFF", (jnp.full(12, 0xFF, jnp.uint8),)),
    ),
    mistakes=(
        Mistake(
            "scales and minima have changed places",
            lambda raw: solutions.scale_min_k4(raw)[::-1],
        ),
        Mistake(
            "the last four lack their two high bits, which lie on top of bytes 0 … 7",
            lambda raw: (
                jnp.concatenate([raw[:4] & 63, raw[8:] & 15]),
                jnp.concatenate([raw[4:8] & 63, raw[8:] >> 4]),
            ),
        ),
        Mistake(
            "the high bits must stand above the low four: >> 6, then << 4",
            lambda raw: (
                jnp.concatenate([raw[:4] & 63, raw[8:] & 15 | raw[:4] >> 6]),
                jnp.concatenate([raw[4:8] & 63, raw[8:] >> 4 | raw[4:8] >> 6]),
            ),
        ),
        Mistake(
            "the first four still carry two bits of others: & 63 keeps six",
            lambda raw: (
                jnp.concatenate([raw[:4], solutions.scale_min_k4(raw)[0][4:]]),
                jnp.concatenate([raw[4:8], solutions.scale_min_k4(raw)[1][4:]]),
            ),
        ),
        Mistake(
            "bytes 8 … 11 are read the wrong way round: low nibbles belong to the scales",
            lambda raw: (
                jnp.concatenate([raw[:4] & 63, raw[8:] >> 4 | raw[:4] >> 6 << 4]),
                jnp.concatenate([raw[4:8] & 63, raw[8:] & 15 | raw[4:8] >> 6 << 4]),
            ),
        ),
        Mistake(
            "the high bits are taken from the other four bytes: scales have them in bytes 0 … 3",
            lambda raw: (
                jnp.concatenate([raw[:4] & 63, raw[8:] & 15 | raw[4:8] >> 6 << 4]),
                jnp.concatenate([raw[4:8] & 63, raw[8:] >> 4 | raw[:4] >> 6 << 4]),
            ),
        ),
    ),
    hints=(
        "the first four of each are easy: raw[:4] & 63 and raw[4:8] & 63",
        "the last four scales: raw[8:] & 15 are their low bits, raw[:4] >> 6 << 4 the high ones",
        "the last four minima: raw[8:] >> 4 and raw[4:8] >> 6 << 4",
    ),
    lesson="Sixteen numbers of six bits in 96 bits, and none is wasted.",
)

REQUANTIZE = Exercise(
    name="requantize",
    task=(
        "requantize(w, d, scales, dmin, minima): the codes 0 … 15 of w (sub-blocks, 32) with "
        "ŵ = d·scale·q − dmin·minimum as stored; 0 where the step is 0."
    ),
    difficulty=2,
    minutes=7,
    section='07, "Rounded twice, and then once more"',
    returns=("codes",),
    solution=solutions.requantize,
    cases=(
        Case("three sub-blocks", (SUB, 0.0006, SIX[0], 0.004, SIX[1])),
        Case("a finer step, so that weights lie outside", (SUB, 0.0003, SIX[0], 0.002, SIX[1])),
        Case("no minimum at all", (jnp.abs(SUB), 0.0005, SIX[0], 0.004, 0 * SIX[1])),
        Case("a sub-block whose scale is 0", (SUB, 0.0006, FLAT[0], 0.004, FLAT[1])),
    ),
    mistakes=(
        Mistake(
            "the minimum is subtracted when decoding, so it is added here",
            lambda w, d, scales, dmin, minima: solutions.requantize(w, d, scales, -dmin, minima),
        ),
        Mistake(
            "codes of 4 bits end at 0 and 15: clip them",
            lambda w, d, scales, dmin, minima: jnp.where(
                scales[:, None] == 0,
                0,
                jnp.round(
                    (w + dmin * minima[:, None]) / jnp.where(scales == 0, 1, d * scales)[:, None]
                ),
            ),
        ),
        Mistake(
            "cut off instead of rounded to the nearest",
            lambda w, d, scales, dmin, minima: jnp.clip(
                jnp.floor(
                    (w + dmin * minima[:, None])
                    / jnp.where(scales == 0, jnp.inf, d * scales)[:, None]
                ),
                0,
                15,
            ),
        ),
        Mistake(
            "the 6-bit numbers are not multiplied by dmin yet",
            lambda w, d, scales, dmin, minima: solutions.requantize(w, d, scales, 1.0, minima),
        ),
        Mistake(
            "the minimum is missing: without it every negative weight has code 0",
            lambda w, d, scales, dmin, minima: solutions.requantize(w, d, scales, 0.0, minima),
        ),
        Mistake(
            "0 divided by 0: where the step is 0, the code is 0",
            lambda w, d, scales, dmin, minima: jnp.clip(
                jnp.round((w + dmin * minima[:, None]) / (d * scales[:, None])), 0, 15
            ),
        ),
    ),
    hints=(
        "solve ŵ = step · q − minimum for q, with step = d * scales[:, None]",
        "round, then jnp.clip(…, 0, 15); where step is 0 divide by jnp.inf",
    ),
    lesson="Rounding a scale does little harm if the codes are taken after it.",
)

USE_MORE_BITS = Exercise(
    name="use_more_bits",
    task=(
        "use_more_bits(layers): of so many layers, True for the first and the last eighth and for "
        "every third between."
    ),
    difficulty=2,
    minutes=6,
    section='07, "Who gets more"',
    returns=("chosen",),
    solution=solutions.use_more_bits,
    cases=(
        Case("32 layers", (32,)),
        Case("4 layers", (4,)),
        Case("30 layers", (30,)),
        Case("80 layers", (80,)),
    ),
    mistakes=(
        Mistake(
            "the counting of every third begins after the first eighth: i − layers // 8",
            lambda layers: (
                (jnp.arange(layers) < layers // 8)
                | (jnp.arange(layers) >= 7 * layers // 8)
                | (jnp.arange(layers) % 3 == 2)
            ),
        ),
        Mistake(
            "first and last eighth alone; between them every third has more bits as well",
            lambda layers: (
                (jnp.arange(layers) < layers // 8) | (jnp.arange(layers) >= 7 * layers // 8)
            ),
        ),
        Mistake(
            "every third alone; all of the first and of the last eighth have more bits too",
            lambda layers: (jnp.arange(layers) - layers // 8) % 3 == 2,
        ),
        Mistake(
            "the third of every three, remainder 2, not the first",
            lambda layers: (
                (jnp.arange(layers) < layers // 8)
                | (jnp.arange(layers) >= 7 * layers // 8)
                | ((jnp.arange(layers) - layers // 8) % 3 == 0)
            ),
        ),
        Mistake(
            "whole numbers: layers // 8, and 7 * layers // 8 for the last eighth",
            lambda layers: (
                (jnp.arange(layers) < layers / 8)
                | (jnp.arange(layers) >= 7 * layers / 8)
                | ((jnp.arange(layers) - layers // 8) % 3 == 2)
            ),
        ),
        Mistake(
            "7 * layers // 8, in this order: 7 * (layers // 8) begins the last eighth too early",
            lambda layers: (
                (jnp.arange(layers) < layers // 8)
                | (jnp.arange(layers) >= 7 * (layers // 8))
                | ((jnp.arange(layers) - layers // 8) % 3 == 2)
            ),
        ),
        Mistake(
            "the rule is turned over: these are the layers that get no more bits",
            lambda layers: ~solutions.use_more_bits(layers),
        ),
    ),
    hints=(
        "i = jnp.arange(layers) are the layers' numbers; eighth = layers // 8",
        "three conditions joined with |, each in brackets; the third: (i - eighth) % 3 == 2",
    ),
    lesson="Half of the layers of a large model, and all of it a rule of thumb.",
)

BITS_OF_MIXTURE = Exercise(
    name="bits_of_mixture",
    task=(
        "bits_of_mixture(weights, bits): bits per weight of a file whose tensors have so many "
        "weights and so many bits each."
    ),
    difficulty=1,
    minutes=3,
    section='07, "Why 4 bits are 4.9, 5.3 or 6.2"',
    returns=("bits",),
    solution=solutions.bits_of_mixture,
    cases=(
        Case("three kinds of tensors", TINY),
        Case("a large table and small layers", (jnp.array([9e8, 1e6, 1e6]), TINY[1])),
        Case("two of equal size", (jnp.array([5.0, 5.0]), jnp.array([4.5, 6.5625]))),
        Case("one tensor", (jnp.array([4096.0]), jnp.array([8.5]))),
    ),
    mistakes=(
        Mistake(
            "every tensor counts alike here; a large one should have the larger say",
            lambda weights, bits: bits.mean(),
        ),
        Mistake(
            "that is the size of the file in bits: divide by the number of weights",
            lambda weights, bits: (weights * bits).sum(),
        ),
        Mistake(
            "bytes per weight; asked for are bits",
            lambda weights, bits: (weights * bits).sum() / weights.sum() / 8,
        ),
        Mistake(
            "the type that most weights have: that is what the file is called, not what it costs",
            lambda weights, bits: bits[weights.argmax()],
        ),
        Mistake(
            "divide by the number of weights, not of tensors",
            lambda weights, bits: (weights * bits).mean(),
        ),
    ),
    hints=(
        "how many bits does a tensor take? And all of them?",
        "the sum of weights * bits, divided by the sum of weights",
    ),
    lesson="So the name of a file says less than its size.",
)

GGUF = (
    UNPACK_NIBBLES,
    Q4_0_SCALE,
    BEST_SCALE,
    SCALE_MIN_K4,
    REQUANTIZE,
    USE_MORE_BITS,
    BITS_OF_MIXTURE,
)
