"""The exercises of notebook 09: what a token costs, from where on few bits no longer help, and the
inside of a kernel that multiplies by four bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from qlab.exercises import solutions
from qlab.exercises.judge import Case, Exercise, Mistake

_KEYS = jax.random.split(jax.random.key(19), 5)
BYTES = jax.random.randint(_KEYS[0], (4, 3), 0, 256).astype(jnp.uint8)
STEPS = (jnp.arange(8, dtype=jnp.uint8) * 16 + jnp.arange(15, 7, -1, dtype=jnp.uint8))[:, None]
CODES = jax.random.randint(_KEYS[1], (8, 3), -8, 8).astype(jnp.int8)
SCALES = jnp.exp(jax.random.normal(_KEYS[2], (4, 3)))
X = jax.random.normal(_KEYS[3], (5, 8))
WIDE = jax.random.randint(_KEYS[4], (32, 8), -8, 8).astype(jnp.int8)

DECODE_BYTES = Exercise(
    name="decode_bytes",
    task=(
        "decode_bytes(weights, bits, tokens, cached, cache_bits): bytes that a decode step of one "
        "sequence reads: every weight, and for each of its tokens `cached` numbers."
    ),
    difficulty=1,
    minutes=4,
    section='09, "What a token costs"',
    returns=("bytes",),
    solution=solutions.decode_bytes,
    cases=(
        Case("7.5 billion weights in 4.25 bits and 2,048 tokens", (7.5e9, 4.25, 2048, 65_536, 16)),
        Case("an empty cache", (135e6, 16, 0, 11_520, 16)),
        Case("a cache in 4.5 bits", (70e9, 4.5, 131_072, 163_840, 4.5)),
        Case("a million weights, far smaller than the cache", (1e6, 8, 64, 65_536, 16)),
    ),
    mistakes=(
        Mistake(
            "in bits; eight of them are a byte",
            lambda w, b, t, c, k: w * b + t * c * k,
        ),
        Mistake(
            "the cache is missing: every step reads the keys and values of all tokens again",
            lambda w, b, t, c, k: w * b / 8,
        ),
        Mistake(
            "the cache of one token; a sequence has `tokens` of them",
            lambda w, b, t, c, k: w * b / 8 + c * k / 8,
        ),
        Mistake(
            "the numbers of the cache have bits of their own, cache_bits",
            lambda w, b, t, c, k: (w + t * c) * b / 8,
        ),
        Mistake(
            "`cached` counts keys and values already: no 2 in front",
            lambda w, b, t, c, k: w * b / 8 + 2 * t * c * k / 8,
        ),
        Mistake(
            "for one new token the weights are read once, not once for each token before it",
            lambda w, b, t, c, k: t * w * b / 8 + t * c * k / 8,
        ),
    ),
    hints=(
        "two sums of bits: weights · bits, and tokens · cached · cache_bits",
        "(weights * bits + tokens * cached * cache_bits) / 8",
    ),
    lesson="Divide by the bandwidth, and you know the least time of a token.",
)

COMPUTE_BOUND_BATCH = Exercise(
    name="compute_bound_batch",
    task=(
        "compute_bound_batch(bits, bandwidth, peak): the batch at which reading the weights "
        "(bandwidth in bytes/s) takes as long as multiplying by them (peak in FLOP/s); no cache."
    ),
    difficulty=2,
    minutes=6,
    section='09, "From which batch on"',
    returns=("batch",),
    solution=solutions.compute_bound_batch,
    cases=(
        Case("4.25 bits on an H100", (4.25, 3350e9, 989.4e12)),
        Case("16 bits on an H100", (16, 3350e9, 989.4e12)),
        Case("32 bits on a small processor", (32, 40e9, 100e9)),
    ),
    mistakes=(
        Mistake(
            "a weight is used for a multiplication and an addition: 2 FLOP for each sequence",
            lambda bits, bw, peak: bits / 8 / bw * peak,
        ),
        Mistake(
            "bits are not bytes: / 8",
            lambda bits, bw, peak: bits * peak / (2 * bw),
        ),
        Mistake(
            "upside down: reading takes bits / 8 / bandwidth, multiplying 2 · batch / peak",
            lambda bits, bw, peak: 16 * bw / (bits * peak),
        ),
        Mistake(
            "that is the ridge, FLOP for each byte, whatever the bits: how many sequences does a "
            "weight of so many bits need for it?",
            lambda bits, bw, peak: peak / bw,
        ),
        Mistake(
            "the quotient as it is: the two meet between two whole batches",
            lambda bits, bw, peak: jnp.ceil(bits * peak / (16 * bw)),
        ),
    ),
    hints=(
        "for one weight: seconds to read it, and seconds to use it for `batch` sequences",
        "bits / 8 / bandwidth = 2 · batch / peak; solve for the batch",
    ),
    lesson="Fewer bits end the waiting sooner: a quarter of the bits, a quarter of the batch.",
)

CACHE_CROSSOVER = Exercise(
    name="cache_crossover",
    task=(
        "cache_crossover(weights, bits, cached, cache_bits): how many tokens, all sequences "
        "together, have a cache of as many bytes as the weights."
    ),
    difficulty=1,
    minutes=4,
    section='09, "The cache grows too"',
    returns=("tokens",),
    solution=solutions.cache_crossover,
    cases=(
        Case("7.5 billion weights in 4.25 bits", (7.5e9, 4.25, 65_536, 16)),
        Case("the same in 16 bits", (7.5e9, 16, 65_536, 16)),
        Case("a cache in 4.5 bits", (7.5e9, 4.25, 65_536, 4.5)),
    ),
    mistakes=(
        Mistake(
            "the bits of the cache are missing",
            lambda w, b, c, k: w * b / c,
        ),
        Mistake(
            "the bits of the weights are missing",
            lambda w, b, c, k: w / (c * k),
        ),
        Mistake(
            "once in bits and once in bytes: both sides in the same unit",
            lambda w, b, c, k: w * b / 8 / (c * k),
        ),
        Mistake(
            "upside down: weights over what one token keeps",
            lambda w, b, c, k: c * k / (w * b),
        ),
        Mistake(
            "numbers, not bytes: the two sides have different bits",
            lambda w, b, c, k: w / c,
        ),
    ),
    hints=(
        "one token keeps cached · cache_bits bits",
        "weights * bits / (cached * cache_bits)",
    ),
    lesson="Beyond it the cache decides, and it is the cache that is worth quantizing.",
)

SPEEDUP_BOUND = Exercise(
    name="speedup_bound",
    task=(
        "speedup_bound(weights, bits, rest): how many times fewer bytes a step reads than with "
        "weights of 16 bits; `rest` bytes (a head, a cache) stay as they are."
    ),
    difficulty=2,
    minutes=5,
    section='09, "What four bits can win"',
    returns=("times",),
    solution=solutions.speedup_bound,
    cases=(
        Case("4.25 bits and a head of a gigabyte", (7e9, 4.25, 1.05e9)),
        Case("4.25 bits and nothing else to read", (7e9, 4.25, 0.0)),
        Case("8.25 bits and a long cache", (1e9, 8.25, 6e9)),
    ),
    mistakes=(
        Mistake(
            "what stays as it is belongs to both sides",
            lambda w, b, rest: 16 / b,
        ),
        Mistake(
            "the rest is read before and after: it is missing above",
            lambda w, b, rest: w * 2 / (w * b / 8 + rest),
        ),
        Mistake(
            "the rest is read before and after: it is missing below",
            lambda w, b, rest: (w * 2 + rest) / (w * b / 8),
        ),
        Mistake(
            "the rest is in bytes, the weights in bits: / 8",
            lambda w, b, rest: (w * 16 + rest) / (w * b + rest),
        ),
        Mistake(
            "upside down: how many times fewer, before over after",
            lambda w, b, rest: (w * b / 8 + rest) / (w * 2 + rest),
        ),
        Mistake(
            "the share that is saved; asked for is before over after",
            lambda w, b, rest: 1 - (w * b / 8 + rest) / (w * 2 + rest),
        ),
    ),
    hints=(
        "bytes before: weights · 2 + rest",
        "(weights * 2 + rest) / (weights * bits / 8 + rest)",
    ),
    lesson="3.76 is the most for 4.25 bits; what was not quantized takes its part of that.",
)

KERNEL_NIBBLES = Exercise(
    name="kernel_nibbles",
    task=(
        "kernel_nibbles(packed): bytes (in/2, out) to signed codes −8 … 7 (in, out): row 2r is the "
        "low nibble of row r, row 2r + 1 the high one, each in two's complement."
    ),
    difficulty=2,
    minutes=8,
    section='09, "Two codes in a byte"',
    returns=("codes",),
    solution=solutions.kernel_nibbles,
    cases=(
        Case("four rows of random bytes", (BYTES,)),
        Case("nibbles that count up and down", (STEPS,)),
        Case("one byte, 0x8F", (jnp.array([[0x8F]], jnp.uint8),)),
    ),
    mistakes=(
        Mistake(
            "two's complement: from 8 on a nibble stands for itself less 16, not less 8",
            lambda p: jnp.stack([p & 15, p >> 4], 1).reshape(-1, p.shape[1]).astype(int) - 8,
        ),
        Mistake(
            "signed: nibbles 8 … 15 are −8 … −1",
            lambda p: jnp.stack([p & 15, p >> 4], axis=1).reshape(-1, p.shape[1]),
        ),
        Mistake(
            "low and high alternate row by row here: stack them and reshape, no concatenate",
            lambda p: jnp.concatenate(
                [solutions.kernel_nibbles(p)[::2], solutions.kernel_nibbles(p)[1::2]]
            ),
        ),
        Mistake(
            "low and high have changed places: row 2r is the low nibble",
            lambda p: solutions.kernel_nibbles((p << 4) | (p >> 4)),
        ),
        Mistake(
            "the new axis goes between in/2 and out: axis=1",
            lambda p: jnp.stack(
                [solutions.kernel_nibbles(p)[::2], solutions.kernel_nibbles(p)[1::2]], axis=-1
            ).reshape(-1, p.shape[1]),
        ),
    ),
    hints=(
        "packed & 15 and packed >> 4; then nibbles above 7 less 16 (as int32: uint8 has no −1)",
        "jnp.stack([low, high], axis=1).reshape(-1, packed.shape[1]) alternates the rows",
    ),
    lesson="A TPU does this in one instruction: a bitcast to int4.",
)

W4_TILE = Exercise(
    name="w4_tile",
    task=(
        "w4_tile(x, codes, scale): x (tokens, in) times weights (in, out), which are codes times "
        "scale (groups, out), one row of scales for every in/groups inputs."
    ),
    difficulty=2,
    minutes=10,
    section='09, "The inner tile"',
    returns=("y",),
    solution=solutions.w4_tile,
    cases=(
        Case("five tokens, four groups of two inputs", (X, CODES, SCALES)),
        Case("one token", (X[:1], CODES, SCALES)),
        Case("one group", (X, CODES, SCALES[:1])),
        Case("a scale for every input", (X[:, :4], CODES[:4], SCALES)),
    ),
    mistakes=(
        Mistake(
            "neighbouring inputs share a scale: repeat each row of scales, do not tile them",
            lambda x, c, s: x @ (c * jnp.tile(s, (len(c) // len(s), 1))),
        ),
        Mistake(
            "every group has its own scale, not all of them the first",
            lambda x, c, s: x @ (c * s[0]),
        ),
        Mistake(
            "the codes alone are multiplied: scale them before the product",
            lambda x, c, s: x @ c.astype(jnp.float32),
        ),
        Mistake(
            "a sum over groups of different scales: scale first, or multiply group by group",
            lambda x, c, s: (x @ c.astype(jnp.float32)) * s.sum(axis=0),
        ),
        Mistake(
            "code times scale, not code over scale",
            lambda x, c, s: solutions.w4_tile(x, c, 1 / s),
        ),
        Mistake(
            "tokens and outputs have changed places: x @ w is (tokens, out)",
            lambda x, c, s: solutions.w4_tile(x, c, s).T,
        ),
    ),
    hints=(
        "jnp.repeat(scale, inputs of a group, axis=0) has a row of scales for every input",
        "x @ (codes * jnp.repeat(scale, len(codes) // len(scale), axis=0))",
    ),
    lesson="This is all that a tile does; the kernel only sees to it that w is never whole.",
)


def kernel_output(
    kernel: Callable[..., Any], codes: jax.Array, scale: jax.Array, empty: jax.Array
) -> Any:
    """What a kernel writes in place of `empty`, interpreted; None where it writes nothing."""
    said: list[Any] = []

    def whole(codes_ref: Any, scale_ref: Any, w_ref: Any) -> None:
        w_ref[...] = jnp.full_like(empty, jnp.nan)  # what is not written is seen
        said.append(kernel(codes_ref, scale_ref, w_ref))

    shape = jax.ShapeDtypeStruct(empty.shape, empty.dtype)
    w = pl.pallas_call(whole, out_shape=shape, interpret=True)(codes, scale)
    if not bool(jnp.isnan(w).all()):
        return w
    if said[0] is None or said[0] is Ellipsis:
        return None
    raise ValueError("a kernel returns nothing, it writes: w_ref[...] = your weights")


def _writes(values: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[..., None]:
    """A kernel that writes what a function makes of its codes and scales."""

    def kernel(codes_ref: Any, scale_ref: Any, w_ref: Any) -> None:
        w_ref[...] = values(codes_ref[...].astype(jnp.float32), scale_ref[...])

    return kernel


def _group(codes: jax.Array, scale: jax.Array) -> int:
    return len(codes) // len(scale)


def _half(codes_ref: Any, scale_ref: Any, w_ref: Any) -> None:
    size = _group(codes_ref, scale_ref)
    w_ref[:size] = codes_ref[:size].astype(jnp.float32) * scale_ref[0]


DEQUANTIZE_TILE = Exercise(
    name="dequantize_tile",
    task=(
        "dequantize_tile(codes_ref, scale_ref, w_ref): a Pallas kernel; read codes (in, out) int8 "
        "and scales (groups, out), write the float32 weights (in, out) to w_ref."
    ),
    difficulty=3,
    minutes=12,
    section='09, "A kernel of your own"',
    returns=("weights",),
    solution=solutions.dequantize_tile,
    cases=(
        Case("four groups of two inputs", (CODES, SCALES, jnp.zeros((8, 3)))),
        Case("one group", (CODES, SCALES[:1], jnp.zeros((8, 3)))),
        Case("32 inputs of 8 outputs", (WIDE, jnp.exp(X[:4]), jnp.zeros((32, 8)))),
    ),
    mistakes=(
        Mistake(
            "neighbouring inputs share a scale: repeat each row of scales, do not tile them",
            _writes(lambda c, s: c * jnp.tile(s, (_group(c, s), 1))),
        ),
        Mistake(
            "every group has its own scale, not all of them the first",
            _writes(lambda c, s: c * s[:1]),
        ),
        Mistake("the codes are not scaled", _writes(lambda c, s: c)),
        Mistake(
            "code times scale, not code over scale",
            _writes(lambda c, s: c / jnp.repeat(s, _group(c, s), axis=0)),
        ),
        Mistake("only the first group is written; the others hold what was there before", _half),
    ),
    hints=(
        "codes_ref[...] reads the whole tile, w_ref[...] = writes it; astype(jnp.float32) first",
        "w_ref[...] = codes * jnp.repeat(scale, len(codes) // len(scale), axis=0)",
    ),
    lesson="Reads, arithmetic, a write: the rest of a kernel says which tile, and in which order.",
    run=kernel_output,
    empty=(
        "nothing was written to w_ref so far; put your code in place of ...\n"
        "  (w_ref[...] = writes a block; w_ref = only gives the name to something else)"
    ),
)

KERNELS = (
    DECODE_BYTES,
    COMPUTE_BOUND_BATCH,
    CACHE_CROSSOVER,
    SPEEDUP_BOUND,
    KERNEL_NIBBLES,
    W4_TILE,
    DEQUANTIZE_TILE,
)
