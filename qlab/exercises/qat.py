"""The exercises of notebook 08: slopes for rounding, learned steps and clips, ternary weights, and
a teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from qlab.exercises import solutions
from qlab.exercises.judge import Case, Exercise, Mistake

W = 0.5 * jax.random.normal(jax.random.key(12), (24,))
WIDE = 2 * jax.random.normal(jax.random.key(13), (24,))
G = jax.random.normal(jax.random.key(14), (24,))
FEW = jnp.array([-3.0, -1.1, -0.9, -0.2, 0.0, 0.3, 0.8, 1.2, 1.6, 2.5])
X = 1.5 * jax.random.normal(jax.random.key(15), (24,))
MATRIX = jax.random.normal(jax.random.key(16), (4, 6)) * jnp.array([[1.0], [0.2], [3.0], [0.5]])
STUDENT = 3 * jax.random.normal(jax.random.key(17), (4, 9))
TEACHER = 3 * jax.random.normal(jax.random.key(18), (4, 9))


def value_and_gradient(function: Callable[..., Any], w: jax.Array, scale: float) -> Any:
    """ŵ, and the gradient of w where that of ŵ is cos(0), cos(1), …; what is nothing stays it."""
    value = function(w, scale)
    if value is None or value is Ellipsis:
        return value
    g = jnp.cos(jnp.arange(w.size, dtype=jnp.float32))
    return value, jax.grad(lambda w: (g * function(w, scale)).sum())(w)


def _pretending(slope: Callable[[jax.Array, float], Any]) -> Callable[..., Any]:
    """Rounding with a slope of one's own."""

    @jax.custom_vjp
    def rounded(w: jax.Array, scale: float) -> jax.Array:
        return scale * jnp.round(w / scale)

    def backward(saved: tuple, g: jax.Array):
        return slope(*saved) * g, None

    rounded.defvjp(lambda w, scale: (rounded(w, scale), (w, scale)), backward)
    return rounded


@jax.custom_vjp
def _forgets_g(w: jax.Array, scale: float) -> jax.Array:
    return scale * jnp.round(w / scale)


_forgets_g.defvjp(lambda w, s: (_forgets_g(w, s), None), lambda _, g: (jnp.ones_like(g), None))

STRAIGHT_THROUGH = Exercise(
    name="straight_through",
    task=(
        "straight_through(w, scale): scale · round(w / scale), whose gradient is passed on to w as "
        "it is; jax.custom_vjp, or jax.lax.stop_gradient."
    ),
    difficulty=2,
    minutes=10,
    section='08, "Rounding has no slope"',
    returns=("values", "gradient"),
    solution=solutions.straight_through,
    cases=(
        Case("24 weights", (W, 0.25)),
        Case("a coarse step", (WIDE, 2.0)),
        Case("a fine step", (W, 0.01)),
    ),
    mistakes=(
        Mistake(
            "the values are right, but round has the slope 0, and so has your function: hide the "
            "rounding from jax.grad",
            lambda w, s: s * jnp.round(w / s),
        ),
        Mistake(
            "the gradient is right, but the weights are not rounded",
            lambda w, s: w,
        ),
        Mistake(
            "the backward function gets g, what comes from behind: pass that on, not ones",
            _forgets_g,
        ),
        Mistake(
            "the gradient is divided by the scale: round(w / s) · s has the slope 1 / s · s = 1",
            _pretending(lambda w, s: 1 / s),
        ),
        Mistake(
            "the gradient is multiplied by the scale: round(w / s) · s has the slope 1 / s · s = 1",
            _pretending(lambda w, s: s),
        ),
        Mistake(
            "codes, not weights: multiply by the scale again",
            lambda w, s: w + jax.lax.stop_gradient(jnp.round(w / s) - w),
        ),
    ),
    hints=(
        "forward and backward are two functions; f.defvjp(forward, backward) joins them",
        "backward(saved, g) returns one gradient for each argument: (g, None)",
        "or in one line: w + jax.lax.stop_gradient(ŵ − w)",
    ),
    lesson="Forward the stairs, backward a straight line: that is the whole estimator.",
    run=value_and_gradient,
)

CLIPPED_MASK = Exercise(
    name="clipped_mask",
    task=(
        "clipped_mask(w, scale, low, high): 1 where w / scale rounds to a code low … high, 0 where "
        "it is clipped to one of them."
    ),
    difficulty=1,
    minutes=5,
    section='08, "What is clipped"',
    returns=("mask",),
    solution=solutions.clipped_mask,
    cases=(
        Case("two bits and a step of 1", (FEW, 1.0, -2, 1)),
        Case("24 weights", (WIDE, 0.5, -4, 3)),
        Case("a grid that nothing leaves", (W, 0.25, -100, 100)),
        Case("codes from 0 on", (WIDE, 0.75, 0, 3)),
    ),
    mistakes=(
        Mistake(
            "1.2 still rounds to the last code 1 and is not clipped: round before you compare",
            lambda w, s, low, high: ((w / s >= low) & (w / s <= high)) * 1.0,
        ),
        Mistake(
            "the other way round: 1 where the gradient passes",
            lambda w, s, low, high: 1 - solutions.clipped_mask(w, s, low, high),
        ),
        Mistake(
            "low and high are codes, w is none: divide by the scale",
            lambda w, s, low, high: solutions.clipped_mask(w, 1.0, low, high),
        ),
        Mistake(
            "the end codes themselves are not clipped: >= and <=",
            lambda w, s, low, high: ((jnp.round(w / s) > low) & (jnp.round(w / s) < high)) * 1.0,
        ),
        Mistake(
            "there are two ends: weights below low are clipped too",
            lambda w, s, low, high: (jnp.round(w / s) <= high) * 1.0,
        ),
    ),
    hints=("which code would it have without the clip?", "low <= round(w / scale) <= high"),
    lesson="Pushing a clipped weight further out changes nothing, and now the gradient says so.",
)

LSQ_SLOPE = Exercise(
    name="lsq_slope",
    task=(
        "lsq_slope(w, scale, low, high): ∂ŵ/∂s of every weight: round(w/s) − w/s where w/s lies "
        "between low and high, low at and below it, high at and above it."
    ),
    difficulty=2,
    minutes=8,
    section='08, "The step is a parameter"',
    returns=("slopes",),
    solution=solutions.lsq_slope,
    cases=(
        Case("two bits and a step of 1", (FEW, 1.0, -2, 1)),
        Case("24 weights", (WIDE, 0.5, -4, 3)),
        Case("codes from 0 on", (WIDE, 0.75, 0, 3)),
    ),
    mistakes=(
        Mistake(
            "that is the code: what a step of its own slope gives. The rounding inside depends on "
            "s as well, with the slope −w/s",
            lambda w, s, low, high: jnp.clip(jnp.round(w / s), low, high),
        ),
        Mistake(
            "the sign: round(w/s) − w/s",
            lambda w, s, low, high: -solutions.lsq_slope(w, s, low, high),
        ),
        Mistake(
            "beyond the ends ŵ is s times the end's code, so the slope is that code and not 0",
            lambda w, s, low, high: jnp.where(
                (w / s > low) & (w / s < high), jnp.round(w / s) - w / s, 0.0
            ),
        ),
        Mistake(
            "beyond the ends nothing of w is left in ŵ: the slope is the end's code alone",
            lambda w, s, low, high: jnp.clip(jnp.round(w / s), low, high) - w / s,
        ),
        Mistake(
            "in codes: divide w by the scale on both places",
            lambda w, s, low, high: jnp.where(
                w / s <= low, low, jnp.where(w / s >= high, high, jnp.round(w / s) - w)
            ),
        ),
        Mistake(
            "times s: the slope of ŵ = s · c has no s in front",
            lambda w, s, low, high: s * solutions.lsq_slope(w, s, low, high),
        ),
    ),
    hints=(
        "write ŵ = s · clip(round(w/s)) and take the product rule, with a slope of 1 for round",
        "d/ds [s · round(w/s)] = round(w/s) + s · (−w/s²); two jnp.where for the ends",
    ),
    lesson="Clipped weights pull the step wider, the rounding of the others decides how far.",
)

STEP_GRADIENT = Exercise(
    name="step_gradient",
    task=(
        "step_gradient(g, slopes, high): the gradient of the one step that all N weights share, "
        "from g = ∂loss/∂ŵ and slopes = ∂ŵ/∂s, divided by √(N · high) as LSQ does."
    ),
    difficulty=2,
    minutes=5,
    section='08, "One step, many weights"',
    returns=("gradient",),
    solution=solutions.step_gradient,
    cases=(
        Case("24 weights of two bits", (G, solutions.lsq_slope(WIDE, 0.5, -2, 1), 1)),
        Case("24 weights of four bits", (G, solutions.lsq_slope(WIDE, 0.5, -8, 7), 7)),
        Case("a matrix", (TEACHER, STUDENT, 3)),
    ),
    mistakes=(
        Mistake("divide by √(N · high)", lambda g, d, high: (g * d).sum()),
        Mistake(
            "a sum over all weights, then divided by √(N · high); not a mean",
            lambda g, d, high: (g * d).mean() / jnp.sqrt(g.size * high),
        ),
        Mistake(
            "the gradient is scaled by N as well as by high: √(N · high)",
            lambda g, d, high: (g * d).sum() / jnp.sqrt(high),
        ),
        Mistake(
            "high is missing under the root: √(N · high)",
            lambda g, d, high: (g * d).sum() / jnp.sqrt(g.size),
        ),
        Mistake(
            "divided by the root: √(N · high), not N · high",
            lambda g, d, high: (g * d).sum() / (g.size * high),
        ),
        Mistake(
            "N counts all weights, rows times columns: g.size, not len(g)",
            lambda g, d, high: (g * d).sum() / jnp.sqrt(len(g) * high),
        ),
        Mistake(
            "the chain rule is missing: every slope is multiplied by its g",
            lambda g, d, high: d.sum() / jnp.sqrt(g.size * high),
        ),
    ),
    hints=(
        "the chain rule: every weight adds g · ∂ŵ/∂s",
        "(g * slopes).sum() / jnp.sqrt(g.size * high)",
    ),
    lesson="Without it a shared step gets a gradient √N times too loud for its own size.",
)

PACT_GRADIENT = Exercise(
    name="pact_gradient",
    task=(
        "pact_gradient(g, x, alpha): through clip(x, 0, α), the gradient of x (as x) and of α (a "
        "number): where x >= α all of g goes to α."
    ),
    difficulty=2,
    minutes=6,
    section='08, "Inputs: PACT"',
    returns=("dx", "dalpha"),
    solution=solutions.pact_gradient,
    cases=(
        Case("24 inputs", (G, X, 1.0)),
        Case("an input that is exactly α", (G[:10], FEW, 0.8)),
        Case("an α that nothing reaches", (G, X, 99.0)),
    ),
    mistakes=(
        Mistake(
            "α is one number: its gradient is the sum over all inputs that are clipped to it",
            lambda g, x, a: (solutions.pact_gradient(g, x, a)[0], jnp.where(x >= a, g, 0.0)),
        ),
        Mistake(
            "clipped inputs get nothing: g goes either to x or to α",
            lambda g, x, a: (jnp.where(x > 0, g, 0.0), jnp.where(x >= a, g, 0.0).sum()),
        ),
        Mistake(
            "clip(x, 0, α) has a lower end too: negative inputs get no gradient",
            lambda g, x, a: (jnp.where(x < a, g, 0.0), jnp.where(x >= a, g, 0.0).sum()),
        ),
        Mistake(
            "the chain rule: it is g that goes to α, not the number of clipped inputs",
            lambda g, x, a: (solutions.pact_gradient(g, x, a)[0], (x >= a).sum()),
        ),
        Mistake(
            "only what is clipped depends on α: the others are left out of the sum",
            lambda g, x, a: (solutions.pact_gradient(g, x, a)[0], g.sum()),
        ),
        Mistake(
            "at x = α exactly, g goes to α: >=",
            lambda g, x, a: (jnp.where((x > 0) & (x <= a), g, 0.0), jnp.where(x > a, g, 0.0).sum()),
        ),
    ),
    hints=(
        "clip(x, 0, α) is 0, x or α: what does each of the three depend on?",
        "dx = g where 0 < x < α; dα = the sum of g where x >= α",
    ),
    lesson="Where clipping hurts, g pulls α out; weight decay pulls it back in.",
)

ABSMEAN_TERNARY = Exercise(
    name="absmean_ternary",
    task=(
        "absmean_ternary(w): codes −1, 0 or 1 as w, and the scale of the whole matrix, mean |w| "
        "and at least 1e-5."
    ),
    difficulty=1,
    minutes=5,
    section='08, "Three values: BitNet"',
    returns=("codes", "scale"),
    solution=solutions.absmean_ternary,
    cases=(
        Case("a matrix of four rows", (MATRIX,)),
        Case("one row", (MATRIX[:1],)),
        Case("a matrix of zeros", (jnp.zeros((2, 3)),)),
    ),
    mistakes=(
        Mistake(
            "one scale for the whole matrix, not one a row",
            lambda w: (
                jnp.clip(jnp.round(w / jnp.abs(w).mean(-1, keepdims=True)), -1, 1),
                jnp.abs(w).mean(-1, keepdims=True),
            ),
        ),
        Mistake(
            "the mean, not the largest: with max |w| more than half of the weights become 0",
            lambda w: (jnp.round(w / jnp.abs(w).max()), jnp.abs(w).max()),
        ),
        Mistake(
            "of |w|: the mean of w itself is nearly 0",
            lambda w: (jnp.clip(jnp.round(w / w.mean()), -1, 1), w.mean()),
        ),
        Mistake(
            "clip to −1 … 1: large weights round to 2 and beyond",
            lambda w: (jnp.round(w / jnp.abs(w).mean()), jnp.abs(w).mean()),
        ),
        Mistake(
            "the sign alone has no 0: round(w / s), then clip",
            lambda w: (jnp.sign(w), jnp.maximum(jnp.abs(w).mean(), 1e-5)),
        ),
        Mistake(
            "a matrix of zeros: the scale is at least 1e-5, so that nothing is divided by 0",
            lambda w: (
                jnp.clip(jnp.round(w / jnp.abs(w).mean()), -1, 1),
                jnp.abs(w).mean(),
            ),
        ),
        Mistake(
            "1 / mean |w| is by what the paper's program multiplies; the scale is mean |w|",
            lambda w: (solutions.absmean_ternary(w)[0], 1 / solutions.absmean_ternary(w)[1]),
        ),
    ),
    hints=(
        "jnp.abs(w).mean() over everything; jnp.maximum(…, 1e-5)",
        "codes: jnp.clip(jnp.round(w / scale), -1, 1)",
    ),
    lesson="A weight is used once it is beyond half the average; products become additions.",
)

DISTILLATION = Exercise(
    name="distillation",
    task=(
        "distillation(student, teacher, temperature): logits (tokens, vocab); T² times KL(teacher "
        "‖ student) of both softmaxes at temperature T, the mean over tokens."
    ),
    difficulty=2,
    minutes=8,
    section='08, "A teacher"',
    returns=("loss",),
    solution=solutions.distillation,
    cases=(
        Case("four tokens at T = 1", (STUDENT, TEACHER, 1.0)),
        Case("four tokens at T = 4", (STUDENT, TEACHER, 4.0)),
        Case("a student who knows it all", (TEACHER, TEACHER, 2.0)),
        Case("a student who is a constant off", (TEACHER + 7, TEACHER, 2.0)),
        Case("one token", (STUDENT[:1], TEACHER[:1], 1.0)),
    ),
    mistakes=(
        Mistake(
            "the other way round: the teacher's probabilities weigh the difference",
            lambda s, t, T: solutions.distillation(t, s, T),
        ),
        Mistake(
            "T² is missing: softer targets have gradients smaller by 1 / T²",
            lambda s, t, T: solutions.distillation(s, t, T) / T**2,
        ),
        Mistake(
            "T once too often or too few: the factor is T²",
            lambda s, t, T: solutions.distillation(s, t, T) / T,
        ),
        Mistake(
            "both are softened, the teacher and the student",
            lambda s, t, T: solutions.distillation(T * s, t, T),
        ),
        Mistake(
            "divide the logits by T; multiplied they become harder, not softer",
            lambda s, t, T: T**2 * solutions.distillation(s, t, 1 / T) * T**2,
        ),
        Mistake(
            "that is the cross-entropy: what the teacher's own entropy leaves is the KL",
            lambda s, t, T: (
                -(T**2) * (jax.nn.softmax(t / T) * jax.nn.log_softmax(s / T)).sum(-1).mean()
            ),
        ),
        Mistake(
            "a mean over tokens and a sum over the vocabulary",
            lambda s, t, T: solutions.distillation(s, t, T) / s.shape[-1],
        ),
        Mistake(
            "a mean over tokens, not their sum",
            lambda s, t, T: solutions.distillation(s, t, T) * len(s),
        ),
        Mistake(
            "logits have no normalisation: log_softmax before they are compared",
            lambda s, t, T: T**2 * (jax.nn.softmax(t / T) * (t - s) / T).sum(-1).mean(),
        ),
    ),
    hints=(
        "jax.nn.log_softmax(logits / temperature) for both",
        "exp(log_t) · (log_t − log_s), summed over the vocabulary, averaged over tokens, times T²",
    ),
    lesson="A word says one thing about a token; a distribution says four thousand.",
)

QAT = (
    STRAIGHT_THROUGH,
    CLIPPED_MASK,
    LSQ_SLOPE,
    STEP_GRADIENT,
    PACT_GRADIENT,
    ABSMEAN_TERNARY,
    DISTILLATION,
)
