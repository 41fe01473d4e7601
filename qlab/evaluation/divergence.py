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

CHUNK = 512  # tokens whose logits exist at one time: 2 · 512 · 49152 · 4 bytes = 200 MB for SmolLM2


class TokenScores(NamedTuple):
    """Each (tokens,) float32, in nats; `same` is 0 or 1, `dp` = q(right) − p(right)."""

    nll_reference: np.ndarray
    nll: np.ndarray
    kl: np.ndarray
    same: np.ndarray
    dp: np.ndarray


def token_scores(log_p: jax.Array, log_q: jax.Array, targets: jax.Array) -> TokenScores:
    """Reduces two rows of log-probabilities (tokens, vocab) to five numbers a token.

    Each term of the sum is written as p · (e^d − 1 − d) with d = log q − log p, which is never
    negative
    and adds up to the same KL because p and q both sum to one: rounding cannot push KL below zero.
    """
    d = log_q - log_p
    p = jnp.exp(log_p)
    # Both branches are the same function; the second does not overflow where q is far above p.
    term = jnp.where(d < 1, p * (jnp.expm1(jnp.minimum(d, 1.0)) - d), jnp.exp(log_q) - p - p * d)
    right_p = jnp.take_along_axis(log_p, targets[:, None], axis=1)[:, 0]
    right_q = jnp.take_along_axis(log_q, targets[:, None], axis=1)[:, 0]
    same = jnp.argmax(log_p, axis=1) == jnp.argmax(log_q, axis=1)
    return TokenScores(
        -right_p,
        -right_q,
        jnp.maximum(jnp.sum(term, axis=1), 0.0),  # one term can round to −1e-14
        same.astype(jnp.float32),
        jnp.exp(right_q) - jnp.exp(right_p),
    )


@jax.jit
def _both(reference, model, hidden_p, hidden_q, targets):
    log_p = jax.nn.log_softmax(reference.logits(hidden_p), axis=-1)
    log_q = jax.nn.log_softmax(model.logits(hidden_q), axis=-1)
    return token_scores(log_p, log_q, targets)


@jax.jit
def _alone(model, hidden, targets):
    log_q = jax.nn.log_softmax(model.logits(hidden), axis=-1)
    return -jnp.take_along_axis(log_q, targets[:, None], axis=1)[:, 0]


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
            there = _padded(np.asarray(hidden_reference[a:b]))
            found = _both(reference, model, there, here, goal)
            parts.append(TokenScores(*(np.asarray(x)[: b - a] for x in found)))
    return TokenScores(*(np.concatenate(x) for x in zip(*parts, strict=True)))
