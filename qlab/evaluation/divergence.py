"""Two models side by side, token by token: from final states to five numbers a scored token.

KL = Σ_v p(v) · (log p(v) − log q(v)), p the reference, q the candidate, over the whole vocabulary.
The logits of both are computed in chunks inside one compiled function and never leave it, so memory
does not grow with text × vocabulary. llama.cpp stores p as 16-bit integers and skips terms with log
p ≤ −16 (`perplexity.cpp`); here nothing is rounded or skipped.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

CHUNK = 128  # tokens whose logits exist at one time: 2 · 128 · 49152 · 4 bytes = 50 MB for SmolLM2
LANES = 512


class TokenScores(NamedTuple):
    """Each (tokens,) float32, in nats; `same` is 0 or 1, `dp` = q(right) − p(right)."""

    nll_reference: Any  # jax.Array inside a program, np.ndarray outside
    nll: Any
    kl: Any
    same: Any
    dp: Any


def token_scores(z_p: jax.Array, z_q: jax.Array, targets: jax.Array) -> TokenScores:
    """Reduces two rows of logits (tokens, vocab) to five numbers a token.

    With d = log q − log p each term of the sum is written as p · (e^d − 1 − d), which is never
    negative and adds up to the same KL because p and q both sum to one: rounding cannot push KL
    below zero, and what two batch sizes differ by can still be seen.
    """
    norm_p, norm_q = log_sum_exp(z_p), log_sum_exp(z_q)  # (tokens,)
    d = (z_q - z_p) - (norm_q - norm_p)[:, None]
    p = jnp.exp(z_p - norm_p[:, None])
    q = jnp.exp(z_q - norm_q[:, None])
    # Both branches are one function; the second does not overflow where q is far above p.
    term = jnp.where(d < 1, p * (jnp.expm1(jnp.minimum(d, 1.0)) - d), q - p - p * d)
    right_p = jnp.take_along_axis(z_p, targets[:, None], axis=1)[:, 0] - norm_p
    right_q = jnp.take_along_axis(z_q, targets[:, None], axis=1)[:, 0] - norm_q
    return TokenScores(
        -right_p,
        -right_q,
        jnp.maximum(row_sum(term), 0.0),  # one term can round to −1e-14
        _same_top(z_p, z_q).astype(jnp.float32),
        jnp.exp(right_q) - jnp.exp(right_p),
    )


def row_sum(x: jax.Array) -> jax.Array:
    """Sums (rows, n) over n, LANES columns side by side.

    XLA on a CPU adds a row's numbers one after another; in lanes it is several times faster, and
    rounds less.
    """
    whole = x.shape[1] - x.shape[1] % LANES
    lanes = x[:, :whole].reshape(len(x), -1, LANES)
    return lanes.sum(axis=1).sum(axis=1) + x[:, whole:].sum(axis=1)


def log_sum_exp(z: jax.Array) -> jax.Array:
    """ln Σ e^z of every row."""
    top = z.max(axis=1)
    return top + jnp.log(row_sum(jnp.exp(z - top[:, None])))


def _same_top(a: jax.Array, b: jax.Array) -> jax.Array:
    """Whether a's largest entry is b's too; two `argmax` would take as long as a matrix product."""
    top_a, top_b = a.max(axis=1), b.max(axis=1)
    return jnp.where(a == top_a[:, None], b, -jnp.inf).max(axis=1) == top_b


@jax.jit
def _both(reference, model, hidden_p, hidden_q, targets):
    return token_scores(reference.logits(hidden_p), model.logits(hidden_q), targets)


@jax.jit
def _alone(model, hidden, targets):
    z = model.logits(hidden)
    return log_sum_exp(z) - jnp.take_along_axis(z, targets[:, None], axis=1)[:, 0]


def _chunks(total: int) -> list[tuple[int, int]]:
    return [(a, min(a + CHUNK, total)) for a in range(0, total, CHUNK)]


def _padded(x: np.ndarray) -> np.ndarray:
    """Rows of zeros up to CHUNK, so that one compiled program serves every chunk."""
    return np.pad(x, [(0, CHUNK - len(x))] + [(0, 0)] * (x.ndim - 1))


def score(
    model: Any,
    hidden: np.ndarray,
    targets: np.ndarray,
    reference: Any = None,
    hidden_reference=None,
) -> TokenScores:
    """Scores one batch of final hidden states.

    Args:
        model: the candidate; only its `logits` is used.
        hidden: (tokens, hidden) float32, the candidate's final normed states.
        targets: (tokens,) int32, the token that follows each state.
        reference: the model to compare with; None: only `nll` is known, the rest is NaN.
        hidden_reference: (tokens, hidden) float32, its states.

    Returns:
        TokenScores of numpy arrays (tokens,).
    """
    parts = []
    for a, b in _chunks(len(targets)):
        here, goal = _padded(hidden[a:b]), _padded(targets[a:b])
        if reference is None:
            nll = np.asarray(_alone(model, here, goal))[: b - a]
            nothing = np.full_like(nll, np.nan)
            parts.append(TokenScores(nothing, nll, nothing, nothing, nothing))
        else:
            there = _padded(np.asarray(hidden_reference)[a:b])
            found = _both(reference, model, there, here, goal)
            parts.append(TokenScores(*(np.asarray(x)[: b - a] for x in found)))
    return TokenScores(*(np.concatenate(x) for x in zip(*parts, strict=True)))
