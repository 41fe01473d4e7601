"""The exercises of notebook 01: scale, codes, zero point, groups, and what two bits lose."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qlab.exercises import solutions
from qlab.exercises.judge import Case, Exercise, Mistake


def _rows(seed: int, *shape: int) -> jax.Array:
    """Weights as a layer has them: a bell around zero, rows of different widths."""
    width = jnp.linspace(0.05, 0.4, shape[0])[:, None]
    return width * jax.random.normal(jax.random.key(seed), shape)


def _amax(w: jax.Array) -> jax.Array:
    return jnp.abs(w).max(axis=-1, keepdims=True)


ORDINARY = Case("4 rows of 16 weights", (_rows(0, 4, 16),))
NEGATIVE = Case("a row of negative weights", (-jnp.abs(_rows(1, 3, 8)),))
POSITIVE = Case("a row of positive weights", (jnp.abs(_rows(2, 3, 8)) + 0.1,))
ZEROS = Case("an all-zero row", (jnp.concatenate([_rows(3, 2, 8), jnp.zeros((1, 8))]),))


def _error_cases() -> tuple[Case, ...]:
    w = _rows(4, 4, 16)
    rough = jnp.round(w / 0.1) * 0.1
    return (
        Case("weights rounded to tenths", (w, rough)),
        Case("weights that were lost altogether", (w, jnp.zeros_like(w))),
        Case("weights that did not change", (w, w)),
        Case("weights that are all zero", (jnp.zeros((2, 4)), jnp.zeros((2, 4)))),
    )


RELATIVE_ERROR = Exercise(
    name="relative_error",
    task="relative_error(w, w_hat): ‖w − ŵ‖ / ‖w‖ over all weights, and 0 if all are zero.",
    difficulty=1,
    minutes=4,
    section='01, "How much was lost?"',
    returns=("error",),
    solution=solutions.relative_error,
    cases=_error_cases(),
    mistakes=(
        Mistake(
            "that is the square of it: the square root is missing",
            lambda w, v: ((w - v) ** 2).sum() / (w**2).sum(),
        ),
        Mistake(
            "that is the error in the weights' own units: divide by the size of w",
            lambda w, v: jnp.sqrt(((w - v) ** 2).mean()),
        ),
        Mistake(
            "that is ‖w − ŵ‖: divide by ‖w‖ to make it relative",
            lambda w, v: jnp.linalg.norm(w - v),
        ),
        Mistake(
            "that is the mean squared error: take the root, and divide by the size of w",
            lambda w, v: ((w - v) ** 2).mean(),
        ),
        Mistake(
            "that is the ratio of mean absolute values; ‖·‖ is the root of the sum of squares",
            lambda w, v: jnp.abs(w - v).sum() / jnp.abs(w).sum(),
        ),
        Mistake(
            "you divide by ‖ŵ‖: measure against what was there before",
            lambda w, v: jnp.linalg.norm(w - v) / jnp.linalg.norm(v),
        ),
        Mistake(
            "you divide number by number and then average: small weights then count most; "
            "divide the two norms",
            lambda w, v: jnp.abs((w - v) / w).mean(),
        ),
        Mistake(
            "you give one error a row: take the norm over all weights, without axis",
            lambda w, v: jnp.linalg.norm(w - v, axis=-1) / jnp.linalg.norm(w, axis=-1),
        ),
        Mistake(
            "that is in per cent: leave the 100 out",
            lambda w, v: 100 * jnp.linalg.norm(w - v) / jnp.linalg.norm(w),
        ),
        Mistake(
            "that is the largest error of a single weight; take the norm of all of them",
            lambda w, v: jnp.abs(w - v).max(),
        ),
        Mistake(
            "errors of both signs cancel in your sum: square them first",
            lambda w, v: (w - v).sum() / w.sum(),
        ),
        Mistake(
            "jnp.linalg.norm(…, 2) of a matrix is its largest singular value; leave the 2 out",
            lambda w, v: jnp.linalg.norm(w - v, 2) / jnp.linalg.norm(w, 2),
        ),
        Mistake(
            "you return NaN for weights that are all zero, 0 / 0: jnp.where can catch it",
            lambda w, v: jnp.linalg.norm(w - v) / jnp.linalg.norm(w),
        ),
    ),
    hints=(
        "jnp.linalg.norm of a matrix, without more arguments, is the root of the sum of squares",
        "for zeros: jnp.where(size == 0, 1.0, size) in the denominator",
    ),
    lesson="0.1 means: the error is a tenth as long as the weights themselves: 20 dB below them.",
)

SCALE = Exercise(
    name="scale",
    task="scale(w): one symmetric INT4 scale a row, (rows, 1): the largest magnitude becomes 7.",
    difficulty=1,
    minutes=5,
    section='01, "A scale"',
    returns=("scale",),
    solution=solutions.scale,
    cases=(
        ORDINARY,
        Case("weights a thousand times smaller", (_rows(5, 4, 16) / 1000,)),
        NEGATIVE,
        POSITIVE,
        ZEROS,
    ),
    mistakes=(
        Mistake(
            "your scale is 2.14 times too small: did you divide by 15 instead of 7? "
            "15 steps span both sides, and max|w| is one side only",
            lambda w: _amax(w) / 15,
        ),
        Mistake(
            "you divide by 8: then the largest positive weight becomes 8, which INT4 lacks; "
            "its codes are -8 … 7",
            lambda w: _amax(w) / 8,
        ),
        Mistake(
            "you divide by 7.5, the middle between -8 and 7: a convention too (see the last "
            "section), but here the largest magnitude shall become 7",
            lambda w: _amax(w) / 7.5,
        ),
        Mistake(
            "you divide by 16, the number of codes; count steps from 0", lambda w: _amax(w) / 16
        ),
        Mistake("that is max|w|: divide by 7, the largest code", lambda w: _amax(w)),
        Mistake(
            "upside down: that is codes per unit of weight; the scale is weight per code",
            lambda w: 7 / _amax(w),
        ),
        Mistake(
            "the abs is missing: a row whose largest magnitude is negative gets a wrong scale",
            lambda w: w.max(axis=-1, keepdims=True) / 7,
        ),
        Mistake(
            "abs comes after max: take the magnitudes first, then the largest of them",
            lambda w: jnp.abs(w.max(axis=-1, keepdims=True)) / 7,
        ),
        Mistake(
            "(max − min) / 15 is the range of an asymmetric grid; symmetric means max|w| / 7",
            lambda w: (w.max(-1, keepdims=True) - w.min(-1, keepdims=True)) / 15,
        ),
        Mistake(
            "(max − min) / 7 counts both sides of zero: take max|w|",
            lambda w: (w.max(-1, keepdims=True) - w.min(-1, keepdims=True)) / 7,
        ),
        Mistake(
            "(max − min) / 14 is the mean of both sides: the longer one does not fit; take max|w|",
            lambda w: (w.max(-1, keepdims=True) - w.min(-1, keepdims=True)) / 14,
        ),
        Mistake(
            "// rounds down to whole numbers, here to 0: divide with /",
            lambda w: _amax(w) // 7,
        ),
        Mistake(
            "the mean is too small a range: the largest magnitude has to fit",
            lambda w: jnp.abs(w).mean(-1, keepdims=True) / 7,
        ),
        Mistake(
            "you take one maximum for the whole matrix; with axis=-1 every row gets its own",
            lambda w: jnp.abs(w).max() / 7,
        ),
        Mistake(
            "wrong shape and direction: axis=0 gives one scale a column; rows are along axis=-1",
            lambda w: jnp.abs(w).max(axis=0) / 7,
        ),
        Mistake(
            "axis=0 gives one scale a column; the largest of a row is along axis=-1",
            lambda w: jnp.abs(w).max(axis=0, keepdims=True) / 7,
        ),
    ),
    hints=(
        "which code should the largest magnitude of a row get?",
        "jnp.abs(w).max(axis=-1, keepdims=True), and then?",
    ),
    lesson="Even an all-zero row is harmless here; the next step, w / scale, has to beware of it.",
)


def _code_cases() -> tuple[Case, ...]:
    w = _rows(6, 4, 16)
    zeros = ZEROS.args[0]
    return (
        Case("4 rows of 16 weights", (w, _amax(w) / 7)),
        Case("scales that are too small for the largest weights", (w, _amax(w) / 12)),
        Case("an all-zero row with scale 0", (zeros, _amax(zeros) / 7)),
    )


def _int(x: jax.Array) -> jax.Array:
    return jnp.clip(x, -8, 7)


def _safe(s: jax.Array) -> jax.Array:
    return jnp.where(s == 0, 1.0, s)


CODES = Exercise(
    name="codes",
    task="codes(w, scale): the nearest integer to w / scale, from -8 to 7; 0 where scale is 0.",
    difficulty=2,
    minutes=8,
    section='01, "Four steps, four pictures"',
    returns=("codes",),
    solution=solutions.codes,
    cases=_code_cases(),
    mistakes=(
        Mistake(
            "astype(int) cuts towards zero: 2.9 becomes 2. Round to the nearest first",
            lambda w, s: _int(jnp.trunc(w / _safe(s))),
        ),
        Mistake(
            "floor goes down always: -0.1 becomes -1. The nearest is jnp.round",
            lambda w, s: _int(jnp.floor(w / _safe(s))),
        ),
        Mistake(
            "ceil goes up always: 0.1 becomes 1. The nearest is jnp.round",
            lambda w, s: _int(jnp.ceil(w / _safe(s))),
        ),
        Mistake("the rounding is missing: codes are integers", lambda w, s: _int(w / _safe(s))),
        Mistake(
            "all your codes are 0: dividing w by the scale you are given counts steps",
            lambda w, s: _int(jnp.round(w * s)),
        ),
        Mistake(
            "these are weights again: you multiplied by the scale; that step comes later",
            lambda w, s: _int(jnp.round(w / _safe(s))) * s,
        ),
        Mistake(
            "the codes 0 … 15 belong to a grid with a zero point; here they are -8 … 7",
            lambda w, s: jnp.clip(jnp.round(w / _safe(s)), 0, 15),
        ),
        Mistake(
            "you add 8: that is how a file stores them; here codes are -8 … 7",
            lambda w, s: _int(jnp.round(w / _safe(s))) + 8,
        ),
        Mistake(
            "some codes are beyond 7 or -8, and four bits cannot hold them: clip the codes",
            lambda w, s: jnp.round(w / _safe(s)),
        ),
        Mistake(
            "you clip to ±7: -8 is a code too",
            lambda w, s: jnp.clip(jnp.round(w / _safe(s)), -7, 7),
        ),
        Mistake(
            "you clip to ±8: there is no code 8, the codes are -8 … 7",
            lambda w, s: jnp.clip(jnp.round(w / _safe(s)), -8, 8),
        ),
        Mistake(
            "you return NaN for an all-zero row, 0 / 0: replace a scale of 0 by 1 before dividing",
            lambda w, s: _int(jnp.round(w / s)),
        ),
    ),
    hints=(
        "three steps: divide, round, clip; then think of scale 0",
        "jnp.clip(jnp.round(w / scale), -8, 7) is right but for scale 0, where 0 / 0 is NaN",
    ),
    lesson="Divide, round, clip: that is all there is to quantizing with a given scale.",
)


def _range(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    low, high = w.min(axis=-1, keepdims=True), w.max(axis=-1, keepdims=True)
    return jnp.minimum(low, 0), jnp.maximum(high, 0)


def _ranged(w: jax.Array, steps: float = 15, sign: float = -1, rounding=jnp.round):
    low, high = _range(w)
    scale = jnp.where(high == low, 1.0, (high - low) / steps)
    return scale, rounding(sign * low / scale)


def _own_range(w: jax.Array):
    low, high = w.min(axis=-1, keepdims=True), w.max(axis=-1, keepdims=True)
    scale = jnp.where(high == low, 1.0, (high - low) / 15)
    return scale, jnp.round(-low / scale)


def _unguarded(w: jax.Array):
    low, high = _range(w)
    scale = (high - low) / 15
    return scale, jnp.round(-low / scale)


ZERO_POINT = Exercise(
    name="zero_point",
    task=(
        "zero_point(w): scale and zero point of every row, two arrays (rows, 1), so that "
        "min … max, stretched to contain 0, becomes 0 … 15. "
        "A row of zeros gets scale 1 and zero point 0."
    ),
    difficulty=2,
    minutes=8,
    section='01, "A zero point"',
    returns=("scale", "zero point"),
    solution=solutions.zero_point,
    cases=(ORDINARY, POSITIVE, NEGATIVE, ZEROS),
    mistakes=(
        Mistake(
            "16 codes have 15 steps between them: divide max − min by 15",
            lambda w: _ranged(w, steps=16),
        ),
        Mistake(
            "the sign of the zero point is wrong: the code of w = 0 is round(−min / scale)",
            lambda w: _ranged(w, sign=1),
        ),
        Mistake(
            "the zero point is a code, so round it",
            lambda w: _ranged(w, rounding=lambda x: x),
        ),
        Mistake(
            "floor is not the nearest code: use jnp.round for the zero point",
            lambda w: _ranged(w, rounding=jnp.floor),
        ),
        Mistake(
            "that is the symmetric scale max|w| / 7, with zero point 8: fit min … max instead",
            lambda w: (_amax(w) / 7, jnp.full_like(_amax(w), 8)),
        ),
        Mistake(
            "in the other order, please: first the scale, then the zero point",
            lambda w: _ranged(w)[::-1],
        ),
        Mistake(
            "your zero point is in weights: divide by the scale to get a code",
            lambda w: (_ranged(w)[0], -_range(w)[0]),
        ),
        Mistake(
            "your zero point is min itself: it has to be the code of w = 0, round(−min / scale)",
            lambda w: (_ranged(w)[0], w.min(axis=-1, keepdims=True)),
        ),
        Mistake(
            "when all weights have one sign the range has to be stretched to 0, or the zero point "
            "is no code between 0 and 15",
            _own_range,
        ),
        Mistake(
            "when all weights have one sign the range has to be stretched to 0; clipping the zero "
            "point afterwards moves the whole grid off the weights",
            lambda w: (_own_range(w)[0], jnp.clip(_own_range(w)[1], 0, 15)),
        ),
        Mistake(
            "you return NaN for an all-zero row: max = min = 0, and the scale 0 divides; "
            "give it scale 1",
            _unguarded,
        ),
    ),
    hints=(
        "write down which weight gets code 0 and which gets code 15, then which code 0 gets",
        "low = min(w.min, 0), high = max(w.max, 0), scale = (high − low) / 15, zero = −low / scale",
        "jnp.where(high == low, 1.0, (high − low) / 15) is the scale that survives zeros",
    ),
    lesson="Zero itself is always a code now: padding and dropped weights stay exactly zero.",
)


def _grouped(w: jax.Array, group: int) -> jax.Array:
    rows, columns = w.shape
    padded = jnp.pad(jnp.abs(w), ((0, 0), (0, -columns % group)))
    return padded.reshape(rows, -1, group)


GROUP_SCALE = Exercise(
    name="group_scale",
    task=(
        "group_scale(w, group): a symmetric INT4 scale for every `group` neighbours in a row, "
        "(rows, groups); the last group of a row may be short."
    ),
    difficulty=3,
    minutes=12,
    section='01, "Smaller groups"',
    returns=("scales",),
    solution=solutions.group_scale,
    cases=(
        Case("4 rows of 16 weights in groups of 8", (_rows(7, 4, 16), 8)),
        Case("groups as long as the row", (_rows(8, 3, 8), 8)),
        Case("negative weights", (-jnp.abs(_rows(9, 3, 8)), 4)),
        Case("rows of 10 weights in groups of 4, so that the last has 2", (_rows(10, 3, 10), 4)),
    ),
    mistakes=(
        Mistake(
            "one scale a row: cut the row into groups first, w.reshape(rows, -1, group)",
            lambda w, group: _amax(w) / 7,
        ),
        Mistake(
            "flat: all groups in one line; the result has the shape (rows, groups)",
            lambda w, group: _grouped(w, group).reshape(-1, group).max(-1) / 7,
        ),
        Mistake(
            "a third axis is left over: without keepdims the result is (rows, groups)",
            lambda w, group: _grouped(w, group).max(-1, keepdims=True) / 7,
        ),
        Mistake(
            "reshape(rows, group, -1) makes `group` groups of a row; you want groups of `group` "
            "weights, reshape(rows, -1, group)",
            lambda w, group: jnp.abs(w).reshape(len(w), group, -1).max(-1) / 7,
        ),
        Mistake(
            "reshape(rows, -1, group).max(axis=1) compares weights of different groups: the "
            "weights of one group are along the last axis",
            lambda w, group: _grouped(w, group).max(1) / 7,
        ),
        Mistake(
            "your groups run down the columns: neighbours in a row share a scale",
            lambda w, group: _grouped(w.T, group).max(-1).T / 7,
        ),
        Mistake(
            "your scales are 2.14 times too small: 15 spans both sides of zero, max|w| only one",
            lambda w, group: _grouped(w, group).max(-1) / 15,
        ),
        Mistake(
            "you divide by 8, but the largest code is 7",
            lambda w, group: _grouped(w, group).max(-1) / 8,
        ),
        Mistake("divide by 7, the largest code", lambda w, group: _grouped(w, group).max(-1)),
        Mistake(
            "the abs is missing: negative weights count too",
            lambda w, group: w.reshape(len(w), -1, group).max(-1) / 7,
        ),
        Mistake(
            "the last, short group is missing: its weights need a scale too",
            lambda w, group: (
                jnp.abs(w)[:, : w.shape[1] // group * group].reshape(len(w), -1, group).max(-1) / 7
            ),
        ),
    ),
    hints=(
        "reshape cuts a row of 16 into 2 × 8: which axis holds the weights of a group?",
        "jnp.abs(w).reshape(rows, -1, group).max(axis=-1) / 7, once the length is a multiple",
        "jnp.pad(…, ((0, 0), (0, -columns % group))) fills with zeros, which change no maximum",
    ),
    lesson="Real formats ask for rows that the group divides; now you know what they spare.",
)

LOST = Exercise(
    name="lost",
    task="lost(w): the share of every row, (rows,), that symmetric 2-bit rounding makes zero.",
    difficulty=2,
    minutes=6,
    section='01, "Two bits"',
    returns=("share",),
    solution=solutions.lost,
    cases=(
        Case("4 rows of 64 weights", (_rows(11, 4, 64),)),
        Case("a row with one large weight", (_rows(12, 2, 32).at[0, 3].set(-9.0),)),
        NEGATIVE,
        ZEROS,
    ),
    mistakes=(
        Mistake(
            "you count what survives: 1 minus that is lost",
            lambda w: (jnp.abs(w) > _amax(w) / 2).mean(-1),
        ),
        Mistake(
            "the step is max|w| / 1, not max|w| / 2 (the largest 2-bit code is 1): everything "
            "below half a step becomes zero, and half a step is max|w| / 2",
            lambda w: (jnp.abs(w) <= _amax(w) / 4).mean(-1),
        ),
        Mistake(
            "not everything below a whole step is lost: from half a step on, 1 is nearer",
            lambda w: (jnp.abs(w) < _amax(w)).mean(-1),
        ),
        Mistake(
            "you take one maximum for the whole matrix; every row has its own scale",
            lambda w: (jnp.abs(w) <= jnp.abs(w).max() / 2).mean(-1),
        ),
        Mistake(
            "that is a count: divide by the length of the row",
            lambda w: (jnp.abs(w) <= _amax(w) / 2).sum(-1),
        ),
        Mistake(
            "that is one share for all rows together; axis=-1 gives one a row",
            lambda w: (jnp.abs(w) <= _amax(w) / 2).mean(),
        ),
        Mistake(
            "in percent; a share is between 0 and 1",
            lambda w: 100 * (jnp.abs(w) <= _amax(w) / 2).mean(-1),
        ),
        Mistake(
            "the abs is missing: every negative weight counts as small",
            lambda w: (w <= _amax(w) / 2).mean(-1),
        ),
        Mistake(
            "the abs is missing in the scale: the largest magnitude may be negative",
            lambda w: (jnp.abs(w) <= w.max(-1, keepdims=True) / 2).mean(-1),
        ),
        Mistake(
            "without a scale everything rounds to 0: count what is below half a step, max|w| / 2",
            lambda w: (jnp.abs(w) <= 0.5).mean(-1),
        ),
        Mistake(
            "those were zero before; count what becomes zero",
            lambda w: (w == 0).mean(-1),
        ),
        Mistake(
            "an all-zero row becomes zero altogether: its share is 1. Compare with <=, and do not "
            "divide: 0 / 0 is NaN, which equals nothing",
            lambda w: (jnp.abs(w) < _amax(w) / 2).mean(-1),
        ),
    ),
    hints=(
        "the largest 2-bit code is 1, so the scale is max|w| itself",
        "what is nearer to 0 than to ±max|w|?",
    ),
    lesson="On a bell-shaped row nearly everything is lost: the levels stand where nobody is.",
)

NUMBERS = (RELATIVE_ERROR, SCALE, CODES, ZERO_POINT, GROUP_SCALE, LOST)
