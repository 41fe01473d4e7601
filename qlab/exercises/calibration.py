"""The exercises of notebook 06: what a text leaves behind, when it is enough, what is noise, and
how to do without text.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qlab.exercises import solutions
from qlab.exercises.judge import Case, Exercise, Mistake

_X, _Y = (jax.random.normal(jax.random.key(k), (n, 3)) for k, n in ((5, 8), (6, 40)))
H_A, H_B = _X.T @ _X / 8, 4 * _Y.T @ _Y / 40
_TEXT = 3.0 + jax.random.normal(jax.random.key(7), (8,))  # windows differ more than models do
LOSS_A, LOSS_B = _TEXT, _TEXT + 0.05 + 0.04 * jax.random.normal(jax.random.key(8), (8,))
VALUES = jnp.array([0.078, -0.017, 0.055, 0.004, -0.030, 0.019])
BARS = jnp.array([0.014, 0.008, 0.010, 0.009, 0.016, 0.010])
INPUTS = jnp.concatenate([jax.random.normal(jax.random.key(9), (199,)), jnp.array([40.0])])
ERRORS = jnp.array([0.8, -0.5, 0.3, -0.05, 0.02, -1.5])
WEIGHTS = jax.random.normal(jax.random.key(10), (3, 8))
SCALE = (WEIGHTS.max(1) - WEIGHTS.min(1)) / 3
CODES = jnp.clip(jnp.round(WEIGHTS / SCALE[:, None] + 1.4), 0, 3)
LEFT = solutions.shrink(WEIGHTS - (CODES - 1.4) * SCALE[:, None], 10.0, 0.7)

MERGED = Exercise(
    name="merged",
    task=(
        "merged(h_a, tokens_a, h_b, tokens_b): E[x xᵀ] over two texts together, from that of each."
    ),
    difficulty=1,
    minutes=4,
    section='06, "What a method does with it"',
    returns=("H",),
    solution=solutions.merged,
    cases=(
        Case("8 tokens and 40", (H_A, 8, H_B, 40)),
        Case("texts of equal length", (H_A, 16, H_B, 16)),
        Case("the same two, longer and shorter", (H_B, 3, H_A, 300)),
    ),
    mistakes=(
        Mistake(
            "the mean of both, as if they were equally long: every token counts once",
            lambda h_a, tokens_a, h_b, tokens_b: (h_a + h_b) / 2,
        ),
        Mistake(
            "a sum over tokens is not divided by their number yet",
            lambda h_a, tokens_a, h_b, tokens_b: tokens_a * h_a + tokens_b * h_b,
        ),
        Mistake(
            "the shares have changed places: the longer text has the larger say",
            lambda h_a, tokens_a, h_b, tokens_b: (
                (tokens_b * h_a + tokens_a * h_b) / (tokens_a + tokens_b)
            ),
        ),
        Mistake(
            "adding the two is too much: H is a mean, not a sum",
            lambda h_a, tokens_a, h_b, tokens_b: h_a + h_b,
        ),
        Mistake(
            "that is the second text alone",
            lambda h_a, tokens_a, h_b, tokens_b: h_b,
        ),
    ),
    hints=(
        "tokens_a * h_a is the sum of x xᵀ over the first text",
        "add the two sums, and divide by the number of all tokens",
    ),
    lesson="So calibration can be split among machines, and texts be mixed afterwards.",
)

WINDOWS_NEEDED = Exercise(
    name="windows_needed",
    task=(
        "windows_needed(inputs, context): the fewest windows of `context` tokens with which H "
        "(inputs, inputs) can have full rank."
    ),
    difficulty=1,
    minutes=3,
    section='06, "Too little text"',
    returns=("windows",),
    solution=solutions.windows_needed,
    cases=(
        Case("768 inputs, windows of 128", (768, 128)),
        Case("256 inputs, windows of 100", (256, 100)),
        Case("11,008 inputs, windows of 2,048", (11_008, 2048)),
        Case("fewer inputs than one window has tokens", (100, 512)),
    ),
    mistakes=(
        Mistake(
            "one too few where it does not divide: the last window must not be cut off",
            lambda inputs, context: inputs // context,
        ),
        Mistake(
            "one too many where it divides exactly",
            lambda inputs, context: inputs // context + 1,
        ),
        Mistake(
            "these are tokens; a window holds `context` of them",
            lambda inputs, context: inputs,
        ),
        Mistake(
            "windows come whole: round up",
            lambda inputs, context: inputs / context,
        ),
        Mistake(
            "H has inputs² numbers, but its rank is at most `inputs`",
            lambda inputs, context: -(-(inputs**2) // context),
        ),
    ),
    hints=(
        "every token adds one x xᵀ, a matrix of rank one",
        "as many tokens as inputs, in whole windows: -(-a // b) divides and rounds up",
    ),
    lesson="That is the least. A well-known H takes many times as many.",
)

PAIRED = Exercise(
    name="paired",
    task=(
        "paired(a, b): losses of two models on the same windows; the mean of b − a and its "
        "standard error."
    ),
    difficulty=2,
    minutes=6,
    section='06, "The whole model"',
    returns=("difference", "standard error"),
    solution=solutions.paired,
    cases=(
        Case("eight windows", (LOSS_A, LOSS_B)),
        Case("the better one second", (LOSS_B, LOSS_A)),
        Case("a difference that is the same everywhere", (LOSS_A, LOSS_A + 0.25)),
    ),
    mistakes=(
        Mistake(
            "not paired: these are the two bars added. Take b − a first, window by window",
            lambda a, b: (b.mean() - a.mean(), jnp.sqrt((a.var(ddof=1) + b.var(ddof=1)) / len(a))),
        ),
        Mistake(
            "that is how much windows scatter; their mean scatters √n times less",
            lambda a, b: ((b - a).mean(), (b - a).std(ddof=1)),
        ),
        Mistake(
            "of n windows, n − 1 say something about the scatter: ddof=1",
            lambda a, b: ((b - a).mean(), (b - a).std() / jnp.sqrt(len(a))),
        ),
        Mistake(
            "the wrong way round: above 0 should mean that b loses more",
            lambda a, b: ((a - b).mean(), (a - b).std(ddof=1) / jnp.sqrt(len(a))),
        ),
        Mistake(
            "divide by √n, not by n",
            lambda a, b: ((b - a).mean(), (b - a).std(ddof=1) / len(a)),
        ),
    ),
    hints=(
        "d = b - a has one number for each window; what both models share is gone",
        "its standard deviation (ddof=1) divided by the root of the number of windows",
    ),
    lesson="Hard windows are hard for both models, and no longer count as noise.",
)

VERDICT = Exercise(
    name="verdict",
    task=(
        "verdict(values, bars): for every difference +1 or −1 if it is more than two standard "
        "errors above or below 0, else 0."
    ),
    difficulty=1,
    minutes=4,
    section='06, "More than noise?"',
    returns=("verdicts",),
    solution=solutions.verdict,
    cases=(
        Case("six differences", (VALUES, BARS)),
        Case("bars twice as wide", (VALUES, 2 * BARS)),
        Case("one difference of exactly two errors", (jnp.array([0.5]), jnp.array([0.25]))),
        Case("no bar at all", (VALUES, jnp.zeros(6))),
    ),
    mistakes=(
        Mistake(
            "one standard error is too little: chance alone is beyond it one time in three",
            lambda values, bars: jnp.where(jnp.abs(values) > bars, jnp.sign(values), 0),
        ),
        Mistake(
            "better and worse look alike here: keep the sign",
            lambda values, bars: jnp.abs(values) > 2 * bars,
        ),
        Mistake(
            "every difference has a sign; 0 if the bar could explain it",
            lambda values, bars: jnp.sign(values),
        ),
        Mistake(
            "only what is worse is found: a difference below 0 can be clear as well",
            lambda values, bars: values > 2 * bars,
        ),
        Mistake(
            "the difference itself is kept; only its sign is asked for",
            lambda values, bars: jnp.where(jnp.abs(values) > 2 * bars, values, 0),
        ),
    ),
    hints=(
        "jnp.abs(values) > 2 * bars is true where it is clear",
        "jnp.where(condition, jnp.sign(values), 0)",
    ),
    lesson="Of twenty differences that are none, one is beyond two errors by chance.",
)

PERCENTILE_RANGE = Exercise(
    name="percentile_range",
    task=(
        "percentile_range(x, q): low and high, those of x cut to ± p, with q percent of all |x| "
        "up to p."
    ),
    difficulty=2,
    minutes=6,
    section='06, "A range is calibrated too"',
    returns=("low", "high"),
    solution=solutions.percentile_range,
    cases=(
        Case("200 inputs, one of them 40", (INPUTS, 99.0)),
        Case("q = 100 cuts nothing", (INPUTS, 100.0)),
        Case("inputs that are never negative", (jnp.abs(INPUTS), 95.0)),
        Case("the large one is negative", (-INPUTS, 99.0)),
    ),
    mistakes=(
        Mistake(
            "nothing is cut: that is the range from minimum to maximum",
            lambda x, q: (x.min(), x.max()),
        ),
        Mistake(
            "a range that begins at −p, though no input is as low: cut the minimum, do not move it",
            lambda x, q: (-jnp.percentile(jnp.abs(x), q), jnp.percentile(jnp.abs(x), q)),
        ),
        Mistake(
            "percentiles of x at each end; asked for is one p, of |x|",
            lambda x, q: (jnp.percentile(x, 100 - q), jnp.percentile(x, q)),
        ),
        Mistake(
            "q percent of the largest is not what q percent of the inputs reach",
            lambda x, q: (
                jnp.maximum(x.min(), -q / 100 * jnp.abs(x).max()),
                jnp.minimum(x.max(), q / 100 * jnp.abs(x).max()),
            ),
        ),
        Mistake(
            "only the upper end is cut",
            lambda x, q: (x.min(), jnp.minimum(x.max(), jnp.percentile(jnp.abs(x), q))),
        ),
    ),
    hints=(
        "jnp.percentile(jnp.abs(x), q) is p",
        "low is the larger of min x and −p, high the smaller of max x and p",
    ),
    lesson="The others are clipped, and the rest get finer steps.",
)

SHRINK = Exercise(
    name="shrink",
    task="shrink(x, beta, p): sign(x) · max(|x| − |x|^(p−1) / beta, 0), for every error x.",
    difficulty=2,
    minutes=5,
    section='06, "What if there is no text at all? HQQ"',
    returns=("outliers",),
    solution=solutions.shrink,
    cases=(
        Case("six errors", (ERRORS, 10.0, 0.7)),
        Case("a smaller beta", (ERRORS, 2.0, 0.7)),
        Case("p = 1, where every error loses the same", (ERRORS, 4.0, 1.0)),
    ),
    mistakes=(
        Mistake(
            "the sign is lost: a negative error stays negative",
            lambda x, beta, p: jnp.maximum(jnp.abs(x) - jnp.abs(x) ** (p - 1) / beta, 0),
        ),
        Mistake(
            "small errors have changed sides: below 0 they become 0",
            lambda x, beta, p: jnp.sign(x) * (jnp.abs(x) - jnp.abs(x) ** (p - 1) / beta),
        ),
        Mistake(
            "every error loses 1 / beta; small ones should lose more: |x|^(p−1) / beta",
            lambda x, beta, p: jnp.sign(x) * jnp.maximum(jnp.abs(x) - 1 / beta, 0),
        ),
        Mistake(
            "the exponent is p − 1: below 1 it makes small errors lose more",
            lambda x, beta, p: jnp.sign(x) * jnp.maximum(jnp.abs(x) - jnp.abs(x) ** p / beta, 0),
        ),
        Mistake(
            "divided by beta, not multiplied",
            lambda x, beta, p: (
                jnp.sign(x) * jnp.maximum(jnp.abs(x) - jnp.abs(x) ** (p - 1) * beta, 0)
            ),
        ),
    ),
    hints=(
        "first the size of every error, with jnp.abs(x), and the sign at the end",
        "jnp.maximum(size - size ** (p - 1) / beta, 0)",
    ),
    lesson="Small errors become 0, large ones nearly stay: those are put up with.",
)

ZERO_UPDATE = Exercise(
    name="zero_update",
    task=(
        "zero_update(codes, w, outliers, scale): for every group the mean of "
        "codes − (w − outliers) / scale."
    ),
    difficulty=1,
    minutes=4,
    section='06, "What if there is no text at all? HQQ"',
    returns=("zero",),
    solution=solutions.zero_update,
    cases=(
        Case("three groups of 8", (CODES, WEIGHTS, LEFT, SCALE)),
        Case("no outliers", (CODES, WEIGHTS, jnp.zeros((3, 8)), SCALE)),
        Case("two groups", (CODES[:2], WEIGHTS[:2], 3 * LEFT[:2], SCALE[:2])),
    ),
    mistakes=(
        Mistake(
            "the outliers are not taken out of w",
            lambda codes, w, outliers, scale: (codes - w / scale[:, None]).mean(-1),
        ),
        Mistake(
            "the sign is turned round: codes first, the weights in steps subtracted",
            lambda codes, w, outliers, scale: ((w - outliers) / scale[:, None] - codes).mean(-1),
        ),
        Mistake(
            "one zero point for all; every group has its own mean",
            lambda codes, w, outliers, scale: jnp.full(
                len(w), (codes - (w - outliers) / scale[:, None]).mean()
            ),
        ),
        Mistake(
            "a sum; the mean is asked for",
            lambda codes, w, outliers, scale: (codes - (w - outliers) / scale[:, None]).sum(-1),
        ),
        Mistake(
            "outliers are taken out of w, not added",
            lambda codes, w, outliers, scale: (codes - (w + outliers) / scale[:, None]).mean(-1),
        ),
    ),
    hints=(
        "scale[:, None] has the shape (groups, 1), which divides (groups, n)",
        ".mean(axis=-1) gives one number for each group",
    ),
    lesson="The scale stays, the codes follow: only the zero point is searched.",
)

CALIBRATION = (MERGED, WINDOWS_NEEDED, PAIRED, VERDICT, PERCENTILE_RANGE, SHRINK, ZERO_UPDATE)
