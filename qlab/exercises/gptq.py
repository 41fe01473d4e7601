"""The exercises of notebook 03: the push, what it leaves unchanged, and the choices around it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from qlab.exercises import solutions
from qlab.exercises.judge import Case, Exercise, Mistake


def _weights(seed: int, rows: int, columns: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (rows, columns))


def _hessian(seed: int, columns: int) -> jax.Array:
    """H of inputs that depend on each other, one of them larger than the rest."""
    x = _weights(seed, 4 * columns, columns) @ (jnp.eye(columns) + 0.5)
    x = x.at[:, columns // 2].multiply(3.0)
    return x.T @ x / len(x)


def _u(seed: int, columns: int) -> jax.Array:
    return jnp.linalg.cholesky(jnp.linalg.inv(_hessian(seed, columns))).T


def _rounded(w: jax.Array) -> jax.Array:
    return jnp.round(2 * w) / 2


W, U, H = _weights(0, 3, 5), _u(1, 5), _hessian(1, 5)
LATER = jnp.arange(5)

DIAGONAL_U = Exercise(
    name="diagonal_u",
    task="diagonal_u(h): U with H⁻¹ = Uᵀ U, where H has h (in,) on its diagonal and zeros beside.",
    difficulty=1,
    minutes=4,
    section='03, "One factorisation instead of many inverses"',
    returns=("U",),
    solution=solutions.diagonal_u,
    cases=(
        Case("h = 4, 1, 0.25", (jnp.array([4.0, 1.0, 0.25]),)),
        Case("a single input", (jnp.array([9.0]),)),
        Case("all inputs alike", (jnp.full(4, 16.0),)),
    ),
    mistakes=(
        Mistake(
            "that is H⁻¹ itself: Uᵀ U has to give it, so take the root of each entry",
            lambda h: jnp.diag(1 / h),
        ),
        Mistake(
            "Uᵀ U of yours is H: GPTQ factors the inverse, one over it",
            lambda h: jnp.diag(jnp.sqrt(h)),
        ),
        Mistake("that is H: invert it, then take the root", lambda h: jnp.diag(h)),
        Mistake(
            "these are the right numbers in a line: jnp.diag puts them on the diagonal of a matrix",
            lambda h: 1 / jnp.sqrt(h),
        ),
        Mistake(
            "the identity is U only where every h is 1",
            lambda h: jnp.eye(len(h)),
        ),
        Mistake(
            "beside the diagonal there have to be zeros: jnp.diag, not an outer product",
            lambda h: jnp.outer(1 / jnp.sqrt(h), 1 / jnp.sqrt(h)),
        ),
    ),
    hints=(
        "the inverse of a diagonal matrix has 1 / h on its diagonal",
        "of what number is 1 / h the square? jnp.diag makes a matrix of a vector",
    ),
    lesson="Beside its diagonal this U is zero, so nothing is pushed: with a diagonal H GPTQ is "
    "round to nearest.",
)

PUSH = Exercise(
    name="push",
    task=(
        "push(w, u, j, q): w (out, in) after column j has become q (out,) and its error has been "
        "pushed into the columns right of it by row j of u."
    ),
    difficulty=2,
    minutes=10,
    section='03, "The loop, line by line"',
    returns=("weights",),
    solution=solutions.push,
    cases=(
        Case("the second of 5 columns", (W, U, 1, _rounded(W[:, 1]))),
        Case("the first column", (W, U, 0, _rounded(W[:, 0]))),
        Case("the last column", (W, U, 4, _rounded(W[:, 4]))),
        Case("a column that was on the grid already", (W, U, 2, W[:, 2])),
    ),
    mistakes=(
        Mistake(
            "the columns to the right are right, but column j is not q yet",
            lambda w, u, j, q: solutions.push(w, u, j, q).at[:, j].set(w[:, j]),
        ),
        Mistake(
            "the division by U[j, j] is missing: E is the error divided by it",
            lambda w, u, j, q: (
                (w - jnp.outer(w[:, j] - q, jnp.where(LATER > j, u[j], 0.0))).at[:, j].set(q)
            ),
        ),
        Mistake(
            "the sign: the error is subtracted from the later columns, times U[j, k]",
            lambda w, u, j, q: (2 * w - solutions.push(w, u, j, q)).at[:, j].set(q),
        ),
        Mistake(
            "q − w instead of w − q: the error has the wrong sign",
            lambda w, u, j, q: 2 * w - solutions.push(w, u, j, q),
        ),
        Mistake(
            "nothing reaches the columns to the right: push with row j of U, U[j, k] (column j of "
            "U is zero below the diagonal)",
            lambda w, u, j, q: w.at[:, j].set(q),
        ),
        Mistake(
            "you divide by U[j, j] twice: E = (w − q) / U[j, j], once",
            lambda w, u, j, q: (
                (w - jnp.outer((w[:, j] - q) / u[j, j] ** 2, jnp.where(LATER > j, u[j], 0.0)))
                .at[:, j]
                .set(q)
            ),
        ),
        Mistake(
            "the columns left of j are rounded already and must not move: push into j + 1 … only",
            lambda w, u, j, q: (
                w - jnp.outer((w[:, j] - q) / u[j, j], u.T[j] + u[j] - jnp.diag(u) * (LATER == j))
            ),  # noqa: E501
        ),
        Mistake(
            "that is the change alone: return the weights after it",
            lambda w, u, j, q: solutions.push(w, u, j, q) - w,
        ),
    ),
    hints=(
        "three lines: error = …, the later columns minus an outer product, column j",
        "jnp.outer(error, u[j, j + 1 :]) has the shape of the columns to come",
        "w is a JAX array: w.at[:, j + 1 :].add(−…) gives a changed copy, w.at[:, j].set(q) too",
    ),
    lesson="Three lines, once a column: that is the whole of GPTQ's idea.",
)

ERRORS = Exercise(
    name="errors",
    task="errors(w, q, u): E (out, in) from the weights before and after, such that w − q = E u.",
    difficulty=2,
    minutes=6,
    section='03, "What the loop leaves behind"',
    returns=("E",),
    solution=solutions.errors,
    cases=(
        Case("3 rows of 5 weights", (W, _rounded(W), U)),
        Case("weights that lost nothing", (W, W, U)),
        Case("a diagonal U", (W, _rounded(W), jnp.diag(jnp.array([1.0, 2, 3, 4, 5])))),
    ),
    mistakes=(
        Mistake(
            "you multiply by U: E is what U is multiplied with, so U has to be undone",
            lambda w, q, u: (w - q) @ u,
        ),
        Mistake(
            "you divide by U's diagonal only: that is E only if the weights to the right are the "
            "corrected ones; from the original ones all of U is undone",
            lambda w, q, u: (w - q) / jnp.diagonal(u),
        ),
        Mistake("the sign is wrong: w − q, not q − w", lambda w, q, u: (q - w) @ jnp.linalg.inv(u)),
        Mistake(
            "you undo Uᵀ: E U = w − q has U on the right, not transposed",
            lambda w, q, u: (w - q) @ jnp.linalg.inv(u).T,
        ),
        Mistake("that is W − Q itself: divide it by U", lambda w, q, u: w - q),
    ),
    hints=(
        "if E U = D, what is E? (matrices do not commute: the inverse stands on the right)",
        "(w - q) @ jnp.linalg.inv(u)",
    ),
    lesson="Every error of the result is a push that was made: nothing else happens in GPTQ.",
)

OUTPUT_LOSS = Exercise(
    name="output_loss",
    task="output_loss(w, q, h): E‖(w − q) x‖², one number, for inputs with E[x xᵀ] = h.",
    difficulty=2,
    minutes=6,
    section='03, "What the loop leaves behind"',
    returns=("loss",),
    solution=solutions.output_loss,
    cases=(
        Case("3 rows of 5 weights", (W, _rounded(W), H)),
        Case("inputs that are independent and alike", (W, _rounded(W), 2 * jnp.eye(5))),
        Case("weights that lost nothing", (W, W, H)),
    ),
    mistakes=(
        Mistake(
            "that is ‖w − q‖²: it forgets the inputs; put h between the two",
            lambda w, q, h: ((w - q) ** 2).sum(),
        ),
        Mistake(
            "you use h's diagonal only: inputs that move together count through the rest of h",
            lambda w, q, h: ((w - q) ** 2 * jnp.diagonal(h)).sum(),
        ),
        Mistake(
            "that is its root: the loss is the square",
            lambda w, q, h: jnp.sqrt(((w - q) @ h * (w - q)).sum()),
        ),
        Mistake(
            "you average over the weights: take the sum",
            lambda w, q, h: ((w - q) @ h * (w - q)).mean(),
        ),
        Mistake(
            "that is half of it, as the original program prints it; leave the ½ out",
            lambda w, q, h: ((w - q) @ h * (w - q)).sum() / 2,
        ),
        Mistake(
            "one loss a row: sum over the rows too",
            lambda w, q, h: ((w - q) @ h * (w - q)).sum(-1),
        ),
        Mistake(
            "you measure q itself: it is the difference w − q that does damage",
            lambda w, q, h: (q @ h * q).sum(),
        ),
        Mistake(
            "(w − q) h is summed without the second w − q: signs cancel",
            lambda w, q, h: ((w - q) @ h).sum(),
        ),
    ),
    hints=(
        "‖d x‖² = xᵀ dᵀ d x = tr(d x xᵀ dᵀ); the mean over x makes h of x xᵀ",
        "the trace of d h dᵀ is the sum of (d @ h) * d over all entries",
    ),
    lesson="With the damped h it is ‖E‖² exactly: W − Q = E U, and U H Uᵀ = I.",
)

DAMPED = Exercise(
    name="damped",
    task="damped(h, damp): h with λ added to its diagonal, λ = damp · mean of h's diagonal.",
    difficulty=1,
    minutes=5,
    section='03, "Damping, and when Cholesky fails"',
    returns=("H",),
    solution=solutions.damped,
    cases=(
        Case("H of 5 inputs, damp 0.01", (H, 0.01)),
        Case("the same H a thousand times larger", (1000 * H, 0.01)),
        Case("no damping", (H, 0.0)),
        Case("H of rank one, which no Cholesky takes", (jnp.ones((4, 4)), 0.1)),
    ),
    mistakes=(
        Mistake(
            "λ has to grow with H: damp times the mean of its diagonal",
            lambda h, damp: h + damp * jnp.eye(len(h)),
        ),
        Mistake(
            "you add λ to every entry: only the diagonal, λ times jnp.eye",
            lambda h, damp: h + damp * jnp.diagonal(h).mean(),
        ),
        Mistake(
            "the mean is of the diagonal, not of all of h",
            lambda h, damp: h + damp * h.mean() * jnp.eye(len(h)),
        ),
        Mistake(
            "you take the largest entry of the diagonal: take the mean",
            lambda h, damp: h + damp * jnp.diagonal(h).max() * jnp.eye(len(h)),
        ),
        Mistake(
            "that is the trace, the sum of the diagonal: divide by the number of inputs",
            lambda h, damp: h + damp * jnp.trace(h) * jnp.eye(len(h)),
        ),
        Mistake(
            "you multiply each diagonal entry by 1 + damp; small entries then stay small: add the "
            "same λ to all",
            lambda h, damp: h + damp * jnp.diag(jnp.diagonal(h)),
        ),
        Mistake(
            "that is λ I alone: add it to h",
            lambda h, damp: damp * jnp.diagonal(h).mean() * jnp.eye(len(h)),
        ),
    ),
    hints=(
        "jnp.diagonal(h).mean() is one number",
        "jnp.eye(len(h)) has ones on the diagonal: λ times it is what to add",
    ),
    lesson="λ is measured in H's own units: whether H is a sum or a mean makes no difference.",
)

SCALED_U = Exercise(
    name="scaled_u",
    task="scaled_u(u, factor): u belongs to H; the U that belongs to factor · H.",
    difficulty=1,
    minutes=4,
    section='03, "What the loop leaves behind"',
    returns=("U",),
    solution=solutions.scaled_u,
    cases=(
        Case("H four times as large", (U, 4.0)),
        Case("H a thousand times as large", (U, 1000.0)),
        Case("H ten times smaller", (U, 0.1)),
    ),
    mistakes=(
        Mistake(
            "U stands twice in H⁻¹ = Uᵀ U, so each of the two takes the root of the factor",
            lambda u, factor: u / factor,
        ),
        Mistake(
            "upside down: U belongs to the inverse of H, so it shrinks when H grows",
            lambda u, factor: u * factor**0.5,
        ),
        Mistake(
            "upside down, and the root is missing: H⁻¹ = Uᵀ U is divided by the factor",
            lambda u, factor: u * factor,
        ),
        Mistake("U itself does change; it is the codes that do not", lambda u, factor: u),
        Mistake("once the root, not the square", lambda u, factor: u / factor**2),
    ),
    hints=(
        "what does (factor · H)⁻¹ = Uᵀ U become, in terms of H⁻¹?",
        "½ of a factor of 4 sits in each of the two U",
    ),
    lesson="E = (w − q) / U[j, j] grows by the same root, so E · U, the push, stays: the scale of "
    "H does not matter.",
)

ACT_ORDER = Exercise(
    name="act_order",
    task="act_order(h): the numbers of the columns, that of the largest h[j, j] first.",
    difficulty=1,
    minutes=4,
    section='03, "In which order?"',
    returns=("order",),
    solution=solutions.act_order,
    cases=(
        Case("H of 6 inputs", (_hessian(3, 6),)),
        Case(
            "two small inputs that move together",
            (jnp.array([[3.0, 0.0, 0.0], [0.0, 2.0, 1.9], [0.0, 1.9, 2.5]]),),
        ),
        Case("a diagonal H: 2, 5, 1, 4", (jnp.diag(jnp.array([2.0, 5.0, 1.0, 4.0])),)),
        Case("a dead channel", (_hessian(4, 4).at[1].set(0.0).at[:, 1].set(0.0),)),
    ),
    mistakes=(
        Mistake(
            "ascending: the smallest comes first; sort −h[j, j]",
            lambda h: jnp.argsort(jnp.diagonal(h)),
        ),
        Mistake(
            "these are each column's place in the order; asked is which column comes first, "
            "second, …: one argsort, not two",
            lambda h: jnp.argsort(jnp.argsort(-jnp.diagonal(h))),
        ),
        Mistake(
            "these are the sorted values: argsort gives the numbers of the columns",
            lambda h: -jnp.sort(-jnp.diagonal(h)),
        ),
        Mistake(
            "you sort the matrix: take its diagonal first",
            lambda h: jnp.argsort(-h),
        ),
        Mistake(
            "you sort by whole rows of h: only h[j, j] = E[x_j²] counts",
            lambda h: jnp.argsort(-jnp.abs(h).sum(-1)),
        ),
    ),
    hints=("jnp.argsort sorts upwards", "upwards in what? in −h[j, j]"),
    lesson="The important columns go first, while everybody else can still make up for them.",
)

RANGE_WEIGHTS = Exercise(
    name="range_weights",
    task=(
        "range_weights(w, earlier, present, group_scale): the weights on which a group's range is "
        "fitted: original w, minus what earlier lazy blocks have pushed into them, minus what the "
        'present one has; group_scale is "reference", "fresh" or "static".'
    ),
    difficulty=2,
    minutes=5,
    section='03, "Whose range?"',
    returns=("weights",),
    solution=solutions.range_weights,
    cases=(
        Case('"reference"', (W, 0.3 * _weights(5, 3, 5), 0.1 * _weights(6, 3, 5), "reference")),
        Case('"fresh"', (W, 0.3 * _weights(7, 3, 5), 0.1 * _weights(8, 3, 5), "fresh")),
        Case('"static"', (W, 0.3 * _weights(9, 3, 5), 0.1 * _weights(10, 3, 5), "static")),
    ),
    mistakes=(
        Mistake(
            '"reference" does not know yet what the present lazy block has pushed: that is "fresh"',
            lambda w, earlier, present, group_scale: (
                w - (0.0 if group_scale == "static" else earlier + present)
            ),
        ),
        Mistake(
            '"fresh" knows everything that was pushed so far, the present lazy block included',
            lambda w, earlier, present, group_scale: (
                w - (0.0 if group_scale == "static" else earlier)
            ),
        ),
        Mistake(
            '"static" is fitted before anything is pushed, on the original weights',
            lambda w, earlier, present, group_scale: (
                w - earlier - (0.0 if group_scale == "reference" else present)
            ),
        ),
        Mistake(
            "you always return the original weights: only static does",
            lambda w, earlier, present, group_scale: w,
        ),
        Mistake(
            "what is pushed is subtracted",
            lambda w, earlier, present, group_scale: (
                2 * w - solutions.range_weights(w, earlier, present, group_scale)
            ),
        ),
    ),
    hints=(
        "static: nothing was pushed yet. fresh: everything so far. reference: one of the two parts",
        "a chain of if group_scale == …, or a dict",
    ),
    lesson="Fresh ranges follow weights that compensation has already inflated; at two bits that "
    "hurts.",
)

GPTQ = (DIAGONAL_U, PUSH, ERRORS, OUTPUT_LOSS, SCALED_U, RANGE_WEIGHTS, ACT_ORDER, DAMPED)
