"""The exercises of notebook 04: which channels matter, what a scale does, and where it goes."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qlab.exercises import solutions
from qlab.exercises.judge import Case, Exercise, Mistake

SIZES = jnp.array([0.5, 3.0, 1.0, 8.0, 0.25, 2.0])
W = jax.random.normal(jax.random.key(4), (3, 6))
S = jnp.array([1.0, 2.0, 1.5, 4.0, 1.0, 0.5])
LOSSES = jnp.array([[4.0, 1.0, 2.0, 5.0], [3.0, 5.0, 2.5, 1.0], [6.0, 3.0, 3.5, 4.0]])
RATIOS = jnp.array([0.0, 0.25, 0.5, 0.75])

SALIENT = Exercise(
    name="salient",
    task="salient(size, count): the numbers of the `count` channels with the largest E|x|.",
    difficulty=1,
    minutes=3,
    section='04, "Which weights matter?"',
    returns=("channels",),
    solution=solutions.salient,
    cases=(
        Case("six channels, two wanted", (SIZES, 2)),
        Case("one wanted", (SIZES, 1)),
        Case("all wanted", (SIZES[:4], 4)),
        Case("other inputs", (SIZES[::-1], 3)),
    ),
    mistakes=(
        Mistake(
            "these are the smallest: argsort counts upwards",
            lambda size, count: jnp.argsort(size)[:count],
        ),
        Mistake(
            "the right channels, but the largest should come first",
            lambda size, count: jnp.argsort(size)[-count:],
        ),
        Mistake(
            "these are the sizes; asked for are the channels' numbers",
            lambda size, count: jnp.sort(size)[::-1][:count],
        ),
        Mistake(
            "these are all channels in order; only the first `count` are wanted",
            lambda size, count: jnp.argsort(-size),
        ),
        Mistake(
            "these are the first channels as they come: sort by size first",
            lambda size, count: jnp.arange(count),
        ),
    ),
    hints=(
        "jnp.argsort gives the numbers of the elements, smallest element first",
        "sort -size instead, and keep the first ones",
    ),
    lesson="That is all AWQ asks of the text: one number a channel.",
)

SCALED_ROUND = Exercise(
    name="scaled_round",
    task=(
        "scaled_round(w, s, step): w (out, in) scaled up by s (in,), rounded to whole multiples "
        "of step, and scaled back."
    ),
    difficulty=1,
    minutes=5,
    section='04, "Scale up, round, scale down"',
    returns=("weights",),
    solution=solutions.scaled_round,
    cases=(
        Case("six channels", (W, S, 0.25)),
        Case("a finer step", (W, S, 0.1)),
        Case("one channel times 4", (W, jnp.ones(6).at[2].set(4.0), 0.5)),
    ),
    mistakes=(
        Mistake(
            "the weights are still scaled up: divide by s after rounding",
            lambda w, s, step: jnp.round(w * s / step) * step,
        ),
        Mistake(
            "that is plain rounding: s does nothing",
            lambda w, s, step: jnp.round(w / step) * step,
        ),
        Mistake(
            "upside down: this scales down before rounding and up after it",
            lambda w, s, step: jnp.round(w / s / step) * step * s,
        ),
        Mistake(
            "these are codes: whole numbers of steps; times step, then divided by s",
            lambda w, s, step: jnp.round(w * s / step),
        ),
        Mistake(
            "you cut off instead of rounding to the nearest",
            lambda w, s, step: jnp.floor(w * s / step) * step / s,
        ),
        Mistake(
            "nothing is rounded",
            lambda w, s, step: w,
        ),
    ),
    hints=(
        "three steps: times s, round to a multiple of step, divided by s",
        "jnp.round(x / step) * step is x rounded to a multiple of step",
    ),
    lesson="A channel that is scaled up by s has errors of at most step / (2 s).",
)

AWQ_SCALE = Exercise(
    name="awq_scale",
    task="awq_scale(size, r): E|x| to the power r, divided by one number so that max · min = 1.",
    difficulty=2,
    minutes=6,
    section='04, "One number to search"',
    returns=("scales",),
    solution=solutions.awq_scale,
    cases=(
        Case("r = 0.5", (SIZES, 0.5)),
        Case("r = 1", (SIZES, 1.0)),
        Case("r = 0", (SIZES, 0.0)),
        Case("inputs ten times larger", (10 * SIZES, 0.5)),
    ),
    mistakes=(
        Mistake(
            "not centred yet: the largest times the smallest is not 1",
            lambda size, r: size**r,
        ),
        Mistake(
            "the largest is 1: divide by the root of largest times smallest instead",
            lambda size, r: size**r / (size**r).max(),
        ),
        Mistake(
            "you divide by the mean; the root of largest times smallest is what is asked for",
            lambda size, r: size**r / (size**r).mean(),
        ),
        Mistake(
            "the root is missing: dividing by c changes max · min by c twice",
            lambda size, r: size**r / ((size**r).max() * (size**r).min()),
        ),
        Mistake(
            "r is an exponent, not a factor",
            lambda size, r: solutions.awq_scale(r * size + (r == 0), 1.0),
        ),
    ),
    hints=(
        "first size ** r, then one number that divides all of them",
        "if all are divided by c, max · min is divided by c²: c is a square root",
    ),
    lesson="Scaling all inputs by ten changes nothing: only the ratios between channels count.",
)

BEST_RATIO = Exercise(
    name="best_ratio",
    task=(
        "best_ratio(losses, ratios): q, k and v read one input and must share its scale. losses "
        "(linears, n) for the n ratios; the one ratio that is best for all together."
    ),
    difficulty=2,
    minutes=5,
    section='04, "Who divides by s?"',
    returns=("ratio",),
    solution=solutions.best_ratio,
    cases=(
        Case("three linears", (LOSSES, RATIOS)),
        Case("one linear", (LOSSES[:1], RATIOS)),
        Case("two linears", (LOSSES[1:], RATIOS)),
        Case("one linear with far larger losses", (LOSSES.at[1].multiply(10.0), RATIOS)),
    ),
    mistakes=(
        Mistake(
            "the mean of everybody's own best: a ratio that nobody has tried together",
            lambda losses, ratios: ratios[losses.argmin(1)].mean(),
        ),
        Mistake(
            "this is the place of the ratio; the ratio itself is wanted",
            lambda losses, ratios: losses.sum(0).argmin(),
        ),
        Mistake(
            "best for a single linear, the luckiest one: add the losses of all first",
            lambda losses, ratios: ratios[losses.min(0).argmin()],
        ),
        Mistake(
            "this is the worst ratio: a loss should be small",
            lambda losses, ratios: ratios[losses.sum(0).argmax()],
        ),
        Mistake(
            "this is the least loss, not the ratio that has it",
            lambda losses, ratios: losses.sum(0).min(),
        ),
    ),
    hints=(
        "what is the whole block's loss at the first ratio?",
        "add over the linears, find the place of the least, take the ratio there",
    ),
    lesson="A linear with large errors has the larger say, as it should.",
)

FOLD = Exercise(
    name="fold",
    task=(
        "fold(gain, w, s): the norm's gain (in,) and the weights (out, in) after the scale s (in,) "
        "has moved into both, so that the layer computes what it did."
    ),
    difficulty=2,
    minutes=6,
    section='04, "Who divides by s?"',
    returns=("gain", "weights"),
    solution=solutions.fold,
    cases=(
        Case("six channels", (SIZES, W, S)),
        Case("no scale at all", (SIZES, W, jnp.ones(6))),
        Case("a square matrix", (S[:3], W[:, :3], SIZES[:3])),
    ),
    mistakes=(
        Mistake(
            "the other way round: the weights take s, the gain 1 / s",
            lambda gain, w, s: (gain * s, w / s),
        ),
        Mistake(
            "nobody divides: the layer's output has changed",
            lambda gain, w, s: (gain * s, w * s),
        ),
        Mistake(
            "the gain is as it was: the input is not divided by s yet",
            lambda gain, w, s: (gain, w * s),
        ),
        Mistake(
            "the weights are as they were: nothing multiplies by s",
            lambda gain, w, s: (gain / s, w),
        ),
    ),
    hints=(
        "the layer reads gain · (normalised x): who can divide its input by s for free?",
        "(w · s) @ (gain / s · x) is w @ (gain · x)",
    ),
    lesson="The scale costs nothing when the model runs: it has become part of two arrays.",
)

CLIP = Exercise(
    name="clip",
    task="clip(w, share): every row of w (rows, group) cut at ± share times its largest |w|.",
    difficulty=1,
    minutes=4,
    section='04, "The other half: clipping"',
    returns=("weights",),
    solution=solutions.clip,
    cases=(
        Case("three rows", (W, 0.7)),
        Case("share 1 changes nothing", (W, 1.0)),
        Case("rows of different size", (W * jnp.array([[1.0], [10.0], [0.1]]), 0.55)),
    ),
    mistakes=(
        Mistake(
            "one limit for all rows: every row has its own largest weight",
            lambda w, share: jnp.clip(w, -share * jnp.abs(w).max(), share * jnp.abs(w).max()),
        ),
        Mistake(
            "share is a part of the row's largest weight, not a limit by itself",
            lambda w, share: jnp.clip(w, -share, share),
        ),
        Mistake(
            "weights beyond the limit move to the limit; yours became 0",
            lambda w, share: jnp.where(
                jnp.abs(w) > share * jnp.abs(w).max(-1, keepdims=True), 0.0, w
            ),
        ),
        Mistake(
            "you shrink every weight; only those beyond the limit change",
            lambda w, share: w * share,
        ),
        Mistake(
            "the largest of |w|, not of w: the most negative weight counts too",
            lambda w, share: jnp.clip(
                w, -share * w.max(-1, keepdims=True), share * w.max(-1, keepdims=True)
            ),
        ),
    ),
    hints=(
        "jnp.clip(w, low, high), and low and high may be (rows, 1)",
        "share * jnp.abs(w).max(axis=-1, keepdims=True)",
    ),
    lesson="One weight saturates, all others of its group get a finer step.",
)

AWQ = (SALIENT, SCALED_ROUND, AWQ_SCALE, BEST_RATIO, FOLD, CLIP)
