"""The exercises of notebook 02: what the bits of a small float say, what is too large for it, and
who chooses the scale of a block.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qlab.exercises import solutions
from qlab.exercises.judge import Case, Exercise, Mistake

_KEYS = jax.random.split(jax.random.key(21), 4)
CODES = jnp.array([0x38, 0x3C, 0x41, 0x47, 0x5A, 0x7E, 0x08, 0x9D, 0xB8, 0xCB, 0xFE], jnp.uint8)
SMALL = jnp.array([0, 1, 2, 5, 7, 0x81, 0x87], jnp.uint8)
NONE = jnp.array([0x7E, 0x7F, 0xFE, 0xFF], jnp.uint8)
INPUTS = 40.0 * jax.random.normal(_KEYS[0], (8,))
WIDE = INPUTS.at[0].set(1000.0).at[5].set(-470.0).at[6].set(-3000.0)
BLOCKS = jax.random.normal(_KEYS[1], (24, 32)) * jnp.geomspace(0.05, 20.0, 24)[:, None]
ROUND = jnp.array([[6.0, -1.0], [12.0, 5.0], [4.0, 3.5], [-1.0, 0.2]])
SIGNED = jnp.array([[1.0, -7.0, 2.0], [-0.3, 0.1, 0.2]])
FLOOR, RCEIL = solutions.power_scales(BLOCKS)
SIXTEEN = jax.random.normal(_KEYS[2], (24, 16))
TOPS = jnp.abs(SIXTEEN).max(axis=-1)
EXACT = jnp.array([[6.0, 3.0, 1.5, -3.0, -1.5, 0.0, 6.0, -6.0], [6.0, 4.5, 4.5, 3.0, 0, 0, 0, 0]])
BOTH = jnp.array([1.0, 1.0]), jnp.array([1.5, 1.5])
POWERS = [2.0 ** jnp.round(jnp.log2(TOPS[:8] / end)) for end in (6, 4)]
NEAREST = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def _parts(code: jax.Array, bits: int = 3) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Sign, exponent and mantissa of codes with so many bits of mantissa."""
    code = jnp.asarray(code, jnp.int32)
    sign = jnp.where(code >= 128, -1.0, 1.0)
    return sign, (code & 127) >> bits, code & (2**bits - 1)


def _nan(code: jax.Array, value: jax.Array) -> jax.Array:
    return jnp.where(code & 127 == 127, jnp.nan, value)


def _without_implied_one(code: jax.Array) -> jax.Array:
    sign, exponent, mantissa = _parts(code)
    return _nan(code, sign * 2.0 ** (jnp.maximum(exponent, 1) - 7) * mantissa / 8)


def _always_normal(code: jax.Array) -> jax.Array:
    sign, exponent, mantissa = _parts(code)
    return _nan(code, sign * 2.0 ** (exponent - 7) * (1 + mantissa / 8))


def _small_by_seven(code: jax.Array) -> jax.Array:
    sign, exponent, mantissa = _parts(code)
    return _nan(code, sign * 2.0 ** (exponent - 7) * (jnp.minimum(exponent, 1) + mantissa / 8))


def _as_e5m2(code: jax.Array) -> jax.Array:
    sign, exponent, mantissa = _parts(code, 2)
    return sign * 2.0 ** (exponent - 15) * (1 + mantissa / 4)


def _no_nan(code: jax.Array) -> jax.Array:
    sign, exponent, mantissa = _parts(code)
    small = 2.0**-6 * mantissa / 8
    return sign * jnp.where(exponent == 0, small, 2.0 ** (exponent - 7) * (1 + mantissa / 8))


def _cast(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float8_e4m3fn).astype(jnp.float32)


def _error(w: jax.Array, scale: jax.Array, levels: list, power: float = 2) -> jax.Array:
    """Σ |w − ŵ|^power of every block, magnitudes on `levels`."""
    sizes, grid = jnp.abs(w) / scale[:, None], jnp.array(levels, jnp.float32)
    nearest = grid[jnp.abs(sizes[:, :, None] - grid).argmin(axis=-1)]
    return (jnp.abs(jnp.abs(w) - nearest * scale[:, None]) ** power).sum(axis=-1)


def _one_sided(w: jax.Array, scale: jax.Array) -> jax.Array:
    """The squared error where negative weights find no level below 0."""
    return _error(jnp.maximum(w, 0), scale, NEAREST) + (jnp.minimum(w, 0) ** 2).sum(axis=-1)


def _quantiles(right: int, left: int, offset: float) -> jax.Array:
    """NF4's construction with so many levels right and left of 0, not yet divided."""
    ndtri = jax.scipy.special.ndtri
    above = ndtri(jnp.linspace(offset, 0.5, right + 1)[:-1])
    below = -ndtri(jnp.linspace(offset, 0.5, left + 1)[:-1])
    return jnp.sort(jnp.concatenate([below, jnp.zeros(1), above]))


def _fp4(w: jax.Array, scale: jax.Array) -> jax.Array:
    return _error(w, scale, NEAREST)


def _symmetric(offset: float) -> jax.Array:
    above = jax.scipy.special.ndtri(jnp.linspace(offset, 0.5, 9)[:-1])
    levels = jnp.sort(jnp.concatenate([-above, above]))
    return levels / levels.max()


def _unsorted(offset: float) -> jax.Array:
    levels = solutions.nf4_levels(offset)
    return jnp.concatenate([levels[8:][::-1], levels[7:8], levels[:7]])


def _by_cdf(offset: float) -> jax.Array:
    cdf = jax.scipy.stats.norm.cdf
    above, below = cdf(jnp.linspace(offset, 0.5, 9)[:-1]), cdf(jnp.linspace(offset, 0.5, 8)[:-1])
    levels = jnp.sort(jnp.concatenate([-below, jnp.zeros(1), above]))
    return levels / levels.max()


E4M3_VALUE = Exercise(
    name="e4m3_value",
    task="e4m3_value(code): the numbers that E4M3's bit patterns 0 … 255 stand for.",
    difficulty=2,
    minutes=8,
    section='02, "A float by hand"',
    returns=("values",),
    solution=solutions.e4m3_value,
    cases=(
        Case("eleven ordinary codes", (CODES,)),
        Case("codes whose exponent bits are all 0", (SMALL,)),
        Case("the largest codes and the two that are NaN", (NONE,)),
        Case("all 256 codes", (jnp.arange(256),)),
    ),
    mistakes=(
        Mistake(
            "the bias of the exponent is 7: the bits 0111 mean 2⁰",
            lambda code: solutions.e4m3_value(code) / 2,
        ),
        Mistake(
            "the sign is missing: the highest bit, 128, says minus",
            lambda code: jnp.abs(solutions.e4m3_value(code)),
        ),
        Mistake(
            "a mantissa has a 1 in front of it that is not stored: 1 + mantissa / 8",
            _without_implied_one,
        ),
        Mistake(
            "exponent bits 0 are special: there is no 1 in front, so that 0 can be written",
            _always_normal,
        ),
        Mistake(
            "with exponent bits 0 the power is still 2⁻⁶, that of exponent bits 1",
            _small_by_seven,
        ),
        Mistake(
            "you read five bits of exponent and two of mantissa: that is E5M2",
            _as_e5m2,
        ),
        Mistake(
            "the last pattern of each sign, 0x7F and 0xFF, is NaN: there is no 480",
            _no_nan,
        ),
    ),
    hints=(
        "exponent = code >> 3 & 15, mantissa = code & 7, minus if code >= 128",
        "2.0 ** (exponent - 7) * (1 + mantissa / 8); with exponent 0: 2.0 ** -6 * mantissa / 8",
        "jnp.where chooses between the two; a last jnp.where(code & 127 == 127, jnp.nan, …)",
    ),
    lesson="Eight bits, 253 numbers, and from 2⁻⁶ up each has a neighbour within 12.5 %.",
)

TO_E4M3 = Exercise(
    name="to_e4m3",
    task="to_e4m3(x, scale): what x becomes in E4M3 under a scale, the ends for what is beyond.",
    difficulty=1,
    minutes=4,
    section='02, "Too large is not a number"',
    returns=("values",),
    solution=solutions.to_e4m3,
    cases=(
        Case("numbers that fit", (INPUTS, 0.5)),
        Case("numbers beyond both ends", (WIDE, 1.0)),
        Case("a scale that is too small", (INPUTS, 0.01)),
        Case("a large scale", (WIDE, 8.0)),
    ),
    mistakes=(
        Mistake(
            "the cast makes NaN of what is beyond 464; clip to ±448 before it",
            lambda x, scale: _cast(x / scale) * scale,
        ),
        Mistake(
            "clip what is cast, x / scale, and not x",
            lambda x, scale: _cast(jnp.clip(x, -448, 448) / scale) * scale,
        ),
        Mistake(
            "that is x in units of the scale: multiply by it again",
            lambda x, scale: solutions.to_e4m3(x, scale) / scale,
        ),
        Mistake(
            "there is a lower end too, −448",
            lambda x, scale: _cast(jnp.minimum(x / scale, 448)) * scale,
        ),
        Mistake(
            "240 is the end of E4M3's other variant, FNUZ; this one reaches 448",
            lambda x, scale: _cast(jnp.clip(x / scale, -240, 240)) * scale,
        ),
        Mistake(
            "clipped, but not rounded: the cast to jnp.float8_e4m3fn is missing",
            lambda x, scale: jnp.clip(x / scale, -448, 448) * scale,
        ),
        Mistake(
            "x is divided by the scale on its way in",
            lambda x, scale: _cast(jnp.clip(x * scale, -448, 448)) / scale,
        ),
    ),
    hints=(
        "four steps: divide, clip, cast there and back, multiply",
        "y.astype(jnp.float8_e4m3fn).astype(jnp.float32) is the cast there and back",
    ),
    lesson="One NaN in a layer's input is NaN in all of its outputs: hence the clip.",
)

POWER_SCALES = Exercise(
    name="power_scales",
    task=(
        "power_scales(w): the scales of blocks of FP4 as powers of two, "
        "2^(⌊log2 max|w|⌋ − 2) and 2^⌈log2(max|w| / 6)⌉."
    ),
    difficulty=2,
    minutes=6,
    section='02, "A scale that is a power of two"',
    returns=("floor", "rceil"),
    solution=solutions.power_scales,
    cases=(
        Case("24 blocks of 32 weights", (BLOCKS,)),
        Case("maxima of 6, 12, 4 and 1", (ROUND,)),
        Case("blocks whose largest magnitude is negative", (SIGNED,)),
    ),
    mistakes=(
        Mistake(
            "the two have changed places: first floor, then rceil",
            lambda w: solutions.power_scales(w)[::-1],
        ),
        Mistake(
            "rceil divides by 6 before it takes the logarithm; yours is the rule called ceil",
            lambda w: (
                solutions.power_scales(w)[0],
                2.0 ** (jnp.ceil(jnp.log2(jnp.abs(w).max(-1))) - 2),
            ),
        ),
        Mistake(
            "floor subtracts 2, the exponent of FP4's largest value 6 = 1.5 · 2²",
            lambda w: (2 * solutions.power_scales(w)[0], solutions.power_scales(w)[1]),
        ),
        Mistake(
            "the largest magnitude counts, whatever its sign: jnp.abs",
            lambda w: (
                2.0 ** (jnp.floor(jnp.log2(w.max(-1))) - 2),
                2.0 ** jnp.ceil(jnp.log2(w.max(-1) / 6)),
            ),
        ),
        Mistake(
            "these are max|w| / 6, no powers of two yet: E8M0 stores an exponent and no mantissa",
            lambda w: (jnp.abs(w).max(-1) / 6, jnp.abs(w).max(-1) / 6),
        ),
        Mistake(
            "these are the exponents; the scales are 2.0 ** exponent",
            lambda w: tuple(jnp.log2(s) for s in solutions.power_scales(w)),
        ),
        Mistake(
            "a maximum of exactly 6 · 2ᵏ fits already: floor + 1 is too much, ceil is not",
            lambda w: (
                solutions.power_scales(w)[0],
                2.0 ** (jnp.floor(jnp.log2(jnp.abs(w).max(-1) / 6)) + 1),
            ),
        ),
    ),
    hints=(
        "begin with amax = jnp.abs(w).max(axis=-1)",
        "jnp.log2, then jnp.floor or jnp.ceil, then 2.0 ** of it; floor subtracts 2 in between",
    ),
    lesson="Multiplying by such a scale only moves an exponent: no multiplier is needed.",
)

FLOOR_AND_RCEIL = Exercise(
    name="floor_and_rceil",
    task=(
        "floor_and_rceil(w, floor, rceil): the sums of squared errors of every block in FP4 under "
        "either scale, and which weights lie beyond 6 · floor."
    ),
    difficulty=3,
    minutes=12,
    section='02, "Floor clips, rceil does not"',
    returns=("error of floor", "error of rceil", "clipped"),
    solution=solutions.floor_and_rceil,
    cases=(
        Case("24 blocks of 32 weights", (BLOCKS, FLOOR, RCEIL)),
        Case("scales that are twice as large", (BLOCKS[:8], 2 * FLOOR[:8], 2 * RCEIL[:8])),
        Case("positive weights", (jnp.abs(BLOCKS[8:16]), FLOOR[8:16], RCEIL[8:16])),
    ),
    mistakes=(
        Mistake(
            "the errors have changed places: floor's first",
            lambda w, floor, rceil: (
                *solutions.floor_and_rceil(w, floor, rceil)[1::-1],
                jnp.abs(w) > 6 * floor[:, None],
            ),
        ),
        Mistake(
            "the sum of squares over the block was asked for, not their mean",
            lambda w, floor, rceil: (
                *(e / w.shape[-1] for e in solutions.floor_and_rceil(w, floor, rceil)[:2]),
                jnp.abs(w) > 6 * floor[:, None],
            ),
        ),
        Mistake(
            "FP4 has no 5 and no 7, but 0.5 and 1.5: these are the errors of integers",
            lambda w, floor, rceil: (
                _error(w, floor, list(range(8))),
                _error(w, rceil, list(range(8))),
                jnp.abs(w) > 6 * floor[:, None],
            ),
        ),
        Mistake(
            "the levels have negative twins: round |w|, or use both sides",
            lambda w, floor, rceil: (
                _one_sided(w, floor),
                _one_sided(w, rceil),
                jnp.abs(w) > 6 * floor[:, None],
            ),
        ),
        Mistake(
            "what is clipped may be negative too: compare |w|",
            lambda w, floor, rceil: (
                *solutions.floor_and_rceil(w, floor, rceil)[:2],
                w > 6 * floor[:, None],
            ),
        ),
        Mistake(
            "that is what rceil clips, nothing; asked for is floor",
            lambda w, floor, rceil: (
                *solutions.floor_and_rceil(w, floor, rceil)[:2],
                jnp.abs(w) > 6 * rceil[:, None],
            ),
        ),
        Mistake(
            "the errors are in units of the scale: multiply the levels by it before you subtract",
            lambda w, floor, rceil: (
                _fp4(w, floor) / floor**2,
                _fp4(w, rceil) / rceil**2,
                jnp.abs(w) > 6 * floor[:, None],
            ),
        ),
    ),
    hints=(
        "one helper for both: the error of w under a scale (blocks,), which is scale[:, None] here",
        "distances to all eight levels: jnp.abs(jnp.abs(w)[:, :, None] / scale[:, None, None] - "
        "levels), then levels[distances.argmin(axis=-1)]",
        "clipped = jnp.abs(w) > 6 * floor[:, None]",
    ),
    lesson="Floor's error sits in few, large weights; which of the two a model minds is measured.",
)

NVFP4_BITS = Exercise(
    name="nvfp4_bits",
    task="nvfp4_bits(rows, columns): bits per weight of a matrix in NVFP4, everything counted.",
    difficulty=1,
    minutes=3,
    section='02, "Two levels of scales"',
    returns=("bits",),
    solution=solutions.nvfp4_bits,
    cases=(
        Case("a matrix of 64 × 128", (64, 128)),
        Case("a matrix of 16 × 64", (16, 64)),
        Case("one block", (1, 16)),
    ),
    mistakes=(
        Mistake(
            "one float32 for the whole matrix is missing: 32 bits over all weights",
            lambda rows, columns: 4.5,
        ),
        Mistake(
            "NVFP4's blocks have 16 weights; 32 is MX",
            lambda rows, columns: 4 + 8 / 32 + 32 / (rows * columns),
        ),
        Mistake(
            "the scales of blocks are E4M3, 8 bits; only the matrix has a float32",
            lambda rows, columns: 4 + 32 / 16 + 32 / (rows * columns),
        ),
        Mistake(
            "the float32 is one a matrix, not one a row",
            lambda rows, columns: 4 + 8 / 16 + 32 / columns,
        ),
        Mistake(
            "a scale is shared by 16: its 8 bits are divided by 16",
            lambda rows, columns: 4 + 8 + 32 / (rows * columns),
        ),
        Mistake(
            "that is all bits of the matrix: divide by the number of its weights",
            lambda rows, columns: solutions.nvfp4_bits(rows, columns) * rows * columns,
        ),
    ),
    hints=(
        "three kinds of numbers are stored: codes, scales of blocks, the scale of the matrix",
        "4 + 8 / 16 + 32 / (how many weights the matrix has)",
    ),
    lesson="A quarter of a bit more than MXFP4, for short blocks and scales with a mantissa.",
)


FOUR_OR_SIX = Exercise(
    name="four_or_six",
    task=(
        "four_or_six(w, six, four): which blocks have the smaller squared error under the scale "
        "that ends at 4; of two equal ones 6 is kept."
    ),
    difficulty=2,
    minutes=8,
    section='02, "Four over six"',
    returns=("ends at 4",),
    solution=solutions.four_or_six,
    cases=(
        Case("24 blocks of 16 weights", (SIXTEEN, TOPS / 6, TOPS / 4)),
        Case("scales rounded to powers of two", (SIXTEEN[:8], *POWERS)),
        Case("a block that both write exactly, and one that 4 does", (EXACT, *BOTH)),
    ),
    mistakes=(
        Mistake(
            "the other way round: True is for the blocks that end at 4",
            lambda w, six, four: ~solutions.four_or_six(w, six, four),
        ),
        Mistake(
            "compare sums of squares; yours are sums of magnitudes",
            lambda w, six, four: _error(w, four, NEAREST, 1) < _error(w, six, NEAREST, 1),
        ),
        Mistake(
            "one answer for all: every block chooses for itself",
            lambda w, six, four: jnp.full(len(w), _fp4(w, four).sum() < _fp4(w, six).sum()),
        ),
        Mistake(
            "of two equal errors 6 is kept: < and not <=",
            lambda w, six, four: _fp4(w, four) <= _fp4(w, six),
        ),
        Mistake(
            "those are the errors in units of each scale: multiply back before you compare",
            lambda w, six, four: _fp4(w, four) / four**2 < _fp4(w, six) / six**2,
        ),
        Mistake(
            "the levels have negative twins: round |w|, or use both sides",
            lambda w, six, four: _one_sided(w, four) < _one_sided(w, six),
        ),
    ),
    hints=(
        "the helper of floor_and_rceil does it: the error of w under a scale",
        "error(w, four) < error(w, six), where error sums the squares along axis -1",
    ),
    lesson="The gap between 4 and 6 costs something only if a weight lies in it.",
)

NF4_LEVELS = Exercise(
    name="nf4_levels",
    task=(
        "nf4_levels(offset): 0, eight quantiles of the normal above and seven below, from offset "
        "to 0.5, ascending, the largest made 1."
    ),
    difficulty=3,
    minutes=10,
    section='02, "Levels where the weights are"',
    returns=("levels",),
    solution=solutions.nf4_levels,
    cases=(
        Case("the offset of the paper, 0.9677083", (0.9677083,)),
        Case("an offset of 0.99", (0.99,)),
        Case("an offset of 0.9", (0.9,)),
    ),
    mistakes=(
        Mistake(
            "the largest is not 1 yet: divide by it",
            lambda offset: _quantiles(8, 7, offset),
        ),
        Mistake(
            "the other way round: eight levels above 0 and seven below",
            lambda offset: _quantiles(7, 8, offset) / _quantiles(7, 8, offset).max(),
        ),
        Mistake(
            "these levels are evenly spaced; quantiles are close together where many weights are",
            lambda offset: jnp.linspace(-1.0, 1.0, 16),
        ),
        Mistake(
            "0 is missing among them: eight above, seven below, and 0",
            lambda offset: _symmetric(offset),
        ),
        Mistake(
            "they are not in order: jnp.sort",
            lambda offset: _unsorted(offset),
        ),
        Mistake(
            "a quantile is the inverse of the cdf: jax.scipy.special.ndtri or jax.scipy.stats."
            "norm.ppf",
            lambda offset: _by_cdf(offset),
        ),
    ),
    hints=(
        "jnp.linspace(offset, 0.5, 9)[:-1] are eight probabilities, the middle left out",
        "ndtri of them are the levels above; -ndtri(jnp.linspace(offset, 0.5, 8)[:-1]) those below",
        "put both and jnp.zeros(1) together, sort, divide by the largest",
    ),
    lesson="Levels crowd where a normal has most of its weights; that is all of NF4.",
)


FLOATS = (
    E4M3_VALUE,
    TO_E4M3,
    POWER_SCALES,
    FLOOR_AND_RCEIL,
    NVFP4_BITS,
    FOUR_OR_SIX,
    NF4_LEVELS,
)
