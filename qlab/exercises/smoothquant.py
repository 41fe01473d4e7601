"""The exercises of notebook 05: int8 inputs, integer products, scales that move outliers, and
LLM.int8().
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qlab.exercises import solutions
from qlab.exercises.judge import Case, Exercise, Mistake

X = jax.random.normal(jax.random.key(5), (4, 6))
LOUD = X.at[:, 2].multiply(-40.0)  # one channel as large models have it
PADDED = LOUD.at[1].set(0.0)
W = jax.random.normal(jax.random.key(6), (4, 6))
OTHER = 3 * jax.random.normal(jax.random.key(7), (3, 6))
GAIN = jnp.array([0.5, 3.0, 1.0, 8.0, 0.25, 2.0])
BIAS = jnp.array([0.1, -0.2, 0.0, 0.4, 0.3, -1.0])
SQUARE = jax.random.normal(jax.random.key(8), (6, 6))
S = jnp.array([1.0, 2.0, 1.5, 4.0, 0.8, 0.5])
QX = jax.random.randint(jax.random.key(9), (4, 6), -127, 128, jnp.int8)
QW = jax.random.randint(jax.random.key(10), (4, 6), -127, 128, jnp.int8)
SX = jnp.array([[0.5], [0.1], [2.0], [0.3]])
SW = jnp.array([[0.02], [0.05], [0.01], [0.03]])
SIX = jnp.array(
    [[1, 6, 5.9, 0, 7, -1], [-7, 2, -5.9, 0.5, 8, 9], [8, 3, 5, -6.5, 9, 10]], jnp.float32
)


def largest(x: jax.Array) -> jax.Array:
    return jnp.abs(x).max(-1, keepdims=True)


EFFECTIVE_LEVELS = Exercise(
    name="effective_levels",
    task=(
        "effective_levels(x): one scale max|x| / 127 for all of x (tokens, in); how many of the "
        "levels -127 ... 127 does each channel span, from -max|x_j| to max|x_j|, 0 included: (in,)."
    ),
    difficulty=1,
    minutes=6,
    section='05, "What one loud channel does to a grid"',
    returns=("levels",),
    solution=solutions.effective_levels,
    cases=(
        Case("four tokens with one loud channel", (LOUD,)),
        Case("four tokens without", (X,)),
        Case("a channel of zeros", (LOUD.at[:, 0].set(0.0),)),
        Case("a single token", (LOUD[:1],)),
    ),
    mistakes=(
        Mistake(
            "one level a step upwards: the codes go as far down, and 0 is a level too",
            lambda x: jnp.round(jnp.abs(x).max(0) / (jnp.abs(x).max() / 127)),
        ),
        Mistake(
            "0 is a level too: from -k to k there are 2 k + 1",
            lambda x: 2 * jnp.round(jnp.abs(x).max(0) / (jnp.abs(x).max() / 127)),
        ),
        Mistake(
            "every channel has its own scale here; the grid has one for all of x",
            lambda x: 2 * jnp.round(127 * jnp.abs(x).max(0) / jnp.abs(x).max(0)) + 1,
        ),
        Mistake(
            "a level is reached or it is not: round to whole codes",
            lambda x: 2 * 127 * jnp.abs(x).max(0) / jnp.abs(x).max() + 1,
        ),
        Mistake(
            "this is one number a token; asked for is one a channel: axis=0",
            lambda x: 2 * jnp.round(127 * jnp.abs(x).max(1) / jnp.abs(x).max()) + 1,
        ),
        Mistake(
            "the largest of |x|, not of x: the most negative input counts too",
            lambda x: 2 * jnp.round(127 * x.max(0) / x.max()) + 1,
        ),
        Mistake(
            "the step is max|x| / 127, since codes go from -127 to 127 and not from 0 to 255",
            lambda x: 2 * jnp.round(255 * jnp.abs(x).max(0) / jnp.abs(x).max()) + 1,
        ),
    ),
    hints=(
        "what is the code of the largest |x| of a channel?",
        "k = round(max|x_j| / step) with step = max|x| / 127; from -k to k there are 2 k + 1",
    ),
    lesson="One loud channel pays for all 255 levels, and the others are left with a handful.",
)

INT8_TOKEN = Exercise(
    name="int8_token",
    task=(
        "int8_token(x): x (tokens, in) -> int8 codes (tokens, in), -127 ... 127, and the scales "
        "(tokens, 1), one a token; a token of zeros has codes 0 and scale 0."
    ),
    difficulty=1,
    minutes=6,
    section='05, "One scale for what?"',
    returns=("codes", "scale"),
    solution=solutions.int8_token,
    cases=(
        Case("four tokens with one loud channel", (LOUD,)),
        Case("four tokens without", (X,)),
        Case("a token of zeros, as padding is", (PADDED,)),
        Case("a single token", (X[:1],)),
    ),
    mistakes=(
        Mistake(
            "one scale for all tokens: every token has its own largest input",
            lambda x: (jnp.round(127 * x / jnp.abs(x).max()), jnp.abs(x).max() / 127),
        ),
        Mistake(
            "one scale a channel: a token is a row, so the maximum goes along axis=-1",
            lambda x: (jnp.round(127 * x / jnp.abs(x).max(0)), jnp.abs(x).max(0) / 127),
        ),
        Mistake(
            "the largest of |x|, not of x: the most negative input counts too",
            lambda x: (
                jnp.round(127 * x / x.max(-1, keepdims=True)),
                x.max(-1, keepdims=True) / 127,
            ),
        ),
        Mistake(
            "a token of zeros becomes 0 / 0: where the scale is 0, divide by 1",
            lambda x: (jnp.round(x / (largest(x) / 127)), largest(x) / 127),
        ),
        Mistake(
            "a cast to int8 cuts towards zero: jnp.round first",
            lambda x: (
                jnp.trunc(x / jnp.where(largest(x) == 0, 1.0, largest(x) / 127)),
                largest(x) / 127,
            ),
        ),
        Mistake(
            "these are not codes but the inputs they stand for: without the last times scale",
            lambda x: (
                solutions.int8_token(x)[0] * solutions.int8_token(x)[1],
                largest(x) / 127,
            ),
        ),
        Mistake(
            "divided by 128: the largest code of a symmetric int8 grid is 127",
            lambda x: (
                jnp.round(x / jnp.where(largest(x) == 0, 1.0, largest(x) / 128)),
                largest(x) / 128,
            ),
        ),
    ),
    hints=(
        "the largest |x| of a row becomes 127: scale = that / 127",
        "jnp.round(x / scale).astype(jnp.int8), with jnp.where(scale == 0, 1.0, scale) below",
    ),
    lesson="Found anew for every token while the model runs: that is what dynamic means.",
)

INT_MATMUL = Exercise(
    name="int_matmul",
    task=(
        "int_matmul(qx, qw, sx, sw): int8 codes qx (tokens, in) and qw (out, in) with scales sx "
        "(tokens, 1) and sw (out, 1) -> the product (tokens, out) in float."
    ),
    difficulty=2,
    minutes=8,
    section='05, "Real integers"',
    returns=("product",),
    solution=solutions.int_matmul,
    cases=(
        Case("4 tokens and 4 outputs", (QX, QW, SX, SW)),
        Case("3 tokens and 4 outputs", (QX[:3], QW, SX[:3], SW)),
        Case("4 tokens and 2 outputs", (QX, QW[:2], SX, SW[:2])),
        Case("the largest codes there are", (127 + 0 * QX, 127 + 0 * QW, SX, SW)),
    ),
    mistakes=(
        Mistake(
            "the sum of int8 products does not fit int8 and wrapped around: sum in int32",
            lambda qx, qw, sx, sw: (qx @ qw.T) * sx * sw.T,
        ),
        Mistake(
            "int16 holds two of the largest products and no third: sum in int32",
            lambda qx, qw, sx, sw: (qx.astype(jnp.int16) @ qw.astype(jnp.int16).T) * sx * sw.T,
        ),
        Mistake(
            "the scales of the weights belong to the columns of the result: sw.T",
            lambda qx, qw, sx, sw: (qx.astype(int) @ qw.astype(int).T) * sx * sw,
        ),
        Mistake(
            "the scales of the inputs belong to its rows, those of the weights to its columns",
            lambda qx, qw, sx, sw: (qx.astype(int) @ qw.astype(int).T) * sx.T * sw,
        ),
        Mistake(
            "the weights' scales are missing",
            lambda qx, qw, sx, sw: (qx.astype(int) @ qw.astype(int).T) * sx,
        ),
        Mistake(
            "the inputs' scales are missing",
            lambda qx, qw, sx, sw: (qx.astype(int) @ qw.astype(int).T) * sw.T,
        ),
        Mistake(
            "these are the int32 sums: each still has to be multiplied by two scales",
            lambda qx, qw, sx, sw: qx.astype(int) @ qw.astype(int).T,
        ),
    ),
    hints=(
        "jnp.matmul(qx, qw.T, preferred_element_type=jnp.int32) keeps the sums whole",
        "sx is (tokens, 1) and scales rows; sw.T is (1, out) and scales columns",
    ),
    lesson="All sums are exact; floats come in once, at the end, for every element of the result.",
)

SMOOTH_SCALES = Exercise(
    name="smooth_scales",
    task=(
        "smooth_scales(amax_x, weights, alpha): amax_x (in,) = max|X_j|, a list of weights "
        "(out, in) that read this X -> s (in,) = max|X_j|^alpha / max|W_j|^(1 - alpha)."
    ),
    difficulty=2,
    minutes=8,
    section='05, "Move the difficulty"',
    returns=("scales",),
    solution=solutions.smooth_scales,
    cases=(
        Case("two linears, alpha = 0.8", (GAIN, [W, OTHER], 0.8)),
        Case("one linear, alpha = 0.5", (GAIN, [W], 0.5)),
        Case("alpha = 1", (GAIN, [OTHER, W], 1.0)),
        Case("alpha = 0", (GAIN, [OTHER, W], 0.0)),
    ),
    mistakes=(
        Mistake(
            "alpha and 1 - alpha have changed places: alpha is the exponent of X",
            lambda a, ws, alpha: solutions.smooth_scales(a, ws, 1 - alpha),
        ),
        Mistake(
            "upside down: a loud input has a large s, by which it is divided",
            lambda a, ws, alpha: 1 / solutions.smooth_scales(a, ws, alpha),
        ),
        Mistake(
            "multiplied; divide by max|W_j| to the power 1 - alpha",
            lambda a, ws, alpha: a**alpha * jnp.abs(jnp.concatenate(ws)).max(0) ** (1 - alpha),
        ),
        Mistake(
            "both to the power alpha; the weights' exponent is 1 - alpha",
            lambda a, ws, alpha: (a / jnp.abs(jnp.concatenate(ws)).max(0)) ** alpha,
        ),
        Mistake(
            "only the first linear counts here; all of them get this s",
            lambda a, ws, alpha: solutions.smooth_scales(a, ws[:1], alpha),
        ),
        Mistake(
            "the mean over the linears; the largest |w| of all of them counts",
            lambda a, ws, alpha: (
                a**alpha / (sum(jnp.abs(w).max(0) for w in ws) / len(ws)) ** (1 - alpha)
            ),
        ),
        Mistake(
            "the largest of |w|, not of w: the most negative weight counts too",
            lambda a, ws, alpha: a**alpha / jnp.concatenate(ws).max(0) ** (1 - alpha),
        ),
    ),
    hints=(
        "first max|W_j| (in,): over the rows of each matrix, then over the matrices",
        "jnp.concatenate(weights) puts the rows of all linears below each other",
    ),
    lesson="At alpha = 1/2 the largest |x| and |w| of every channel become equally large.",
)

SMOOTH_FOLD = Exercise(
    name="smooth_fold",
    task=(
        "smooth_fold(gain, bias, w, s): a LayerNorm's gain and bias (in,) and weights (out, in) "
        "after s (in,) has moved into them, so that the layer computes what it did."
    ),
    difficulty=2,
    minutes=6,
    section='05, "Who divides by s?"',
    returns=("gain", "bias", "weights"),
    solution=solutions.smooth_fold,
    cases=(
        Case("six channels", (GAIN, BIAS, SQUARE, S)),
        Case("a norm without bias", (GAIN, 0 * BIAS, W, S)),
        Case("no scale at all", (GAIN, BIAS, W, jnp.ones(6))),
        Case("three channels", (S[:3], BIAS[:3], W[:, :3], GAIN[:3])),
    ),
    mistakes=(
        Mistake(
            "the bias is part of the input too, and has to be divided",
            lambda gain, bias, w, s: (gain / s, bias, w * s),
        ),
        Mistake(
            "the bias is divided like the gain, not multiplied",
            lambda gain, bias, w, s: (gain / s, bias * s, w * s),
        ),
        Mistake(
            "the other way round: the weights take s, the norm 1 / s",
            lambda gain, bias, w, s: (gain * s, bias * s, w / s),
        ),
        Mistake(
            "the weights are as they were: nothing multiplies by s",
            lambda gain, bias, w, s: (gain / s, bias / s, w),
        ),
        Mistake(
            "the norm is as it was: the input is not divided by s yet",
            lambda gain, bias, w, s: (gain, bias, w * s),
        ),
        Mistake(
            "you scale the rows of the weights; an input channel is a column",
            lambda gain, bias, w, s: (gain / s, bias / s, w * s[:, None]),
        ),
    ),
    hints=(
        "the layer reads gain · (normalised x) + bias: all of it has to be divided by s",
        "w (out, in) times s (in,) scales columns, as it should",
    ),
    lesson="The float model is what it was, and nothing is left to do when it runs.",
)

OUTLIER_CHANNELS = Exercise(
    name="outlier_channels",
    task=(
        "outlier_channels(x, threshold): for every channel of x (tokens, in), whether any token "
        "has |x| >= threshold: (in,) of True and False."
    ),
    difficulty=1,
    minutes=4,
    section='05, "LLM.int8(): keep the outliers"',
    returns=("channels",),
    solution=solutions.outlier_channels,
    cases=(
        Case("three tokens, one 6 exactly", (SIX, 6.0)),
        Case("a threshold of 7", (SIX, 7.0)),
        Case("a threshold that nothing reaches", (SIX, 100.0)),
        Case("other inputs", (LOUD, 6.0)),
    ),
    mistakes=(
        Mistake(
            "|x|: a large negative input is an outlier as well",
            lambda x, threshold: (x >= threshold).any(0),
        ),
        Mistake(
            "a number that equals the threshold is an outlier: >=",
            lambda x, threshold: (jnp.abs(x) > threshold).any(0),
        ),
        Mistake(
            "one token is enough: any instead of all",
            lambda x, threshold: (jnp.abs(x) >= threshold).all(0),
        ),
        Mistake(
            "one answer a token; asked for is one a channel: axis=0",
            lambda x, threshold: (jnp.abs(x) >= threshold).any(1),
        ),
        Mistake(
            "a mean hides a single large token; any |x| counts",
            lambda x, threshold: jnp.abs(x).mean(0) >= threshold,
        ),
        Mistake(
            "these are the channels' numbers; asked for is True or False for every channel",
            lambda x, threshold: jnp.flatnonzero((jnp.abs(x) >= threshold).any(0)),
        ),
        Mistake(
            "True for every number; one for each channel is asked for: .any(axis=0)",
            lambda x, threshold: jnp.abs(x) >= threshold,
        ),
    ),
    hints=(
        "jnp.abs(x) >= threshold is True or False for every number",
        "along the tokens, axis=0, any of them is enough",
    ),
    lesson="Nothing is calibrated: which channels stay float is seen in the very input.",
)

MIXED_PRODUCT = Exercise(
    name="mixed_product",
    task=(
        "mixed_product(x, qw, sw, outlying): x (tokens, in) times the weights qw (out, in) int8 "
        "with scales sw (out, 1): outlying (in,) channels in float, the others in int8, each "
        "token's scale without the outliers. You may use int8_token and int_matmul."
    ),
    difficulty=3,
    minutes=12,
    section='05, "LLM.int8(): keep the outliers"',
    returns=("product",),
    solution=solutions.mixed_product,
    cases=(
        Case("one loud channel", (LOUD, QW, SW, jnp.arange(6) == 2)),
        Case("no outlying channel", (X, QW, SW, jnp.zeros(6, bool))),
        Case("two outlying channels", (LOUD, QW[:3], SW[:3], jnp.arange(6) % 3 == 2)),
        Case("nothing but outlying channels", (LOUD, QW, SW, jnp.ones(6, bool))),
    ),
    mistakes=(
        Mistake(
            "the scales of the tokens still come from the outliers: take them out first",
            lambda x, qw, sw, outlying: (
                solutions.int_matmul(
                    jnp.where(outlying, 0, solutions.int8_token(x)[0]),
                    qw,
                    solutions.int8_token(x)[1],
                    sw,
                )
                + jnp.where(outlying, x, 0.0) @ (qw * sw).T
            ),
        ),
        Mistake(
            "the outlying channels are lost: their float product has to be added",
            lambda x, qw, sw, outlying: solutions.mixed_product(
                jnp.where(outlying, 0.0, x), qw, sw, outlying
            ),
        ),
        Mistake(
            "the outlying channels count twice: set them to 0 for the integer product",
            lambda x, qw, sw, outlying: (
                solutions.mixed_product(x, qw, sw, jnp.zeros(len(outlying), bool))
                + jnp.where(outlying, x, 0.0) @ (qw * sw).T
            ),
        ),
        Mistake(
            "nothing is in float here: this is int8 for every channel",
            lambda x, qw, sw, outlying: solutions.int_matmul(
                *(solutions.int8_token(x)[0], qw, solutions.int8_token(x)[1], sw)
            ),
        ),
        Mistake(
            "everything is in float here: nothing of x is rounded",
            lambda x, qw, sw, outlying: x @ (qw * sw).T,
        ),
        Mistake(
            "in the float product the weights are qw times sw, not the codes alone",
            lambda x, qw, sw, outlying: (
                solutions.mixed_product(jnp.where(outlying, 0.0, x), qw, sw, outlying)
                + jnp.where(outlying, x, 0.0) @ qw.T
            ),
        ),
        Mistake(
            "the parts are interchanged: outlying channels stay float, the others become int8",
            lambda x, qw, sw, outlying: solutions.mixed_product(x, qw, sw, ~outlying),
        ),
    ),
    hints=(
        "inside = jnp.where(outlying, 0.0, x): what is left to int8_token",
        "two products are added: int_matmul of the one, (x - inside) @ (qw * sw).T of the other",
    ),
    lesson="A product is a sum over channels, so every channel may have its own arithmetic.",
)

SMOOTHQUANT = (
    EFFECTIVE_LEVELS,
    INT8_TOKEN,
    INT_MATMUL,
    SMOOTH_SCALES,
    SMOOTH_FOLD,
    OUTLIER_CHANNELS,
    MIXED_PRODUCT,
)
