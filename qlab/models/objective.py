"""What training minimises, and the form in which a model computes it fast.

    loss = Σ over tokens of  (1 − kd)·CE(next token) + kd·T²·KL(teacher ‖ student at temperature T)

Hinton et al. 2015, arXiv 1503.02531, for T². The logits of a whole batch never exist: a chunk of
them is made, turned into its part of the gradient, and dropped. Attention keeps its weights for the
way back, one head after another. Not here: what moves the weights (`models.qat`).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from qlab.models.surgery import dense
from qlab.models.transformer import PRECISION, Attention, Transformer, as_array, rotate

CHUNK = 256  # tokens whose logits exist at one time
PRODUCT = partial(jnp.matmul, precision=PRECISION)


class Head(NamedTuple):
    """What reads logits: states (tokens, width) and a table (vocab, width)."""

    hidden: jax.Array
    table: jax.Array


class Mix(NamedTuple):
    """The weights of the two losses and the temperature: () float32 each."""

    ce: Any
    kl: Any
    temperature: Any


def head_of(model: Transformer, tokens: jax.Array) -> Head:
    """The states that a model reads logits from, of tokens (batch, time), flat."""
    hidden = model.hidden(tokens)
    table = as_array((model.lm_head or model.embed_tokens).weight)
    return Head(hidden.reshape(-1, hidden.shape[-1]), table)


def batch_loss(
    model: Transformer, rows: jax.Array, weights: jax.Array, mix: Mix, teacher: Transformer | None
) -> jax.Array:
    """The loss of one batch.

    Args:
        model: prepared or float.
        rows: (batch, time + 1) int32.
        weights: (batch, time) float32 of every prediction, adding up to 1 over all devices.
        mix: of the two losses.
        teacher: a float model, or None: then only the next token counts.
    """
    student = head_of(for_training(model), rows[:, :-1])
    there = None
    if teacher is not None:
        there = jax.tree.map(jax.lax.stop_gradient, head_of(for_training(teacher), rows[:, :-1]))
    return _token_loss(student, rows[:, 1:].reshape(-1), weights.reshape(-1), mix, there)


# ---- cross-entropy and divergence, in chunks -----------------------------------------------------


@jax.custom_vjp
def _token_loss(head: Head, targets: jax.Array, weights: jax.Array, mix: Mix, there: Head | None):
    return _token_loss_forward(head, targets, weights, mix, there)[0]


def _token_loss_forward(head, targets, weights, mix, there):
    tokens = len(targets)
    size = min(CHUNK, tokens)

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, -tokens % size)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, size, *x.shape[1:])

    taught = None if there is None else there.hidden
    chunks = jax.tree.map(cut, (head.hidden, targets, weights, taught))
    step = partial(_chunk, head.table, None if there is None else there.table, mix)
    begin = (jnp.float32(0), jnp.zeros_like(head.table))
    (total, dtable), dhidden = jax.lax.scan(step, begin, chunks)
    return total, Head(dhidden.reshape(-1, dhidden.shape[-1])[:tokens], dtable)


def _chunk(table: jax.Array, taught: jax.Array | None, mix: Mix, carry: tuple, chunk: tuple):
    """Adds one chunk: its loss, d loss / d hidden, and its part of d loss / d table."""
    total, dtable = carry
    hidden, target, weight, there = chunk
    logits = PRODUCT(hidden, table.T)  # (chunk, vocab)
    log_p = jax.nn.log_softmax(logits)
    hit = jnp.arange(logits.shape[1]) == target[:, None]
    each = -jnp.take_along_axis(log_p, target[:, None], axis=-1)[:, 0]
    slope = jnp.exp(log_p) - hit
    if there is not None and taught is not None:
        t = mix.temperature
        log_s = jax.nn.log_softmax(logits / t)
        log_t = jax.nn.log_softmax(PRODUCT(there, taught.T) / t)
        kl = jnp.sum(jnp.exp(log_t) * (log_t - log_s), axis=-1)
        each = mix.ce * each + mix.kl * t * t * kl
        slope = mix.ce * slope + mix.kl * t * (jnp.exp(log_s) - jnp.exp(log_t))
    slope = slope * weight[:, None]
    total += jnp.sum(each * weight)
    return (total, dtable + PRODUCT(slope.T, hidden)), PRODUCT(slope, table)


def _token_loss_backward(saved: Head, g: jax.Array):
    return Head(g * saved.hidden, g * saved.table), None, None, None, None


_token_loss.defvjp(_token_loss_forward, _token_loss_backward)


# ---- the model in the form that trains fast ------------------------------------------------------


def for_training(model: Transformer) -> Transformer:
    """The same function, every weight rounded once before anything runs, attention with a gradient
    of its own. Sums may round otherwise.
    """
    model = dense(model)
    return jax.tree.map(
        lambda node: TrainingAttention(node) if isinstance(node, Attention) else node,
        model,
        is_leaf=lambda node: isinstance(node, Attention),
    )


def _turn(x: jax.Array, theta: float) -> jax.Array:
    """`rotate` from position 0."""
    return rotate(x, jnp.arange(x.shape[1]), theta)


class TrainingAttention(nnx.Module):
    """`Attention` from position 0 and without cache; its softmax is kept for the way back.

    `turn` (x, θ) rotates (batch, time, heads, d), `attend` is what `causal` is, by default both as
    exact as the model's own.
    """

    def __init__(self, attention: Attention, turn: Any = None, attend: Any = None):
        self.q_proj, self.k_proj = attention.q_proj, attention.k_proj
        self.v_proj, self.o_proj = attention.v_proj, attention.o_proj
        self.head_dim, self.theta = attention.head_dim, attention.theta
        self.turn, self.attend = turn or _turn, attend or causal

    def __call__(self, x: jax.Array, start: jax.Array, cache: None, count: None = None):
        batch, time, _ = x.shape
        split = (batch, time, -1, self.head_dim)
        q = self.turn(self.q_proj(x).reshape(split), self.theta)
        k = self.turn(self.k_proj(x).reshape(split), self.theta)
        v = self.v_proj(x).reshape(split)
        kv = k.shape[2]
        q = q.reshape(batch, time, kv, -1, self.head_dim).transpose(0, 2, 3, 1, 4)
        q = q.reshape(batch * kv, -1, self.head_dim)  # (heads, group · time, d)
        k, v = (a.swapaxes(1, 2).reshape(batch * kv, time, -1) for a in (k, v))
        y = self.attend(q, k, v).reshape(batch, -1, time, self.head_dim).swapaxes(1, 2)
        return self.o_proj(y.reshape(batch, time, -1)), cache


@jax.custom_vjp
def causal(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """softmax(q kᵀ / √d) v, no key after its query: q (heads, group · time, d), k, v (heads, time,
    d).
    """
    return _causal_forward(q, k, v)[0]


def _by_head(one: Any, *heads: jax.Array) -> Any:
    """One head after another on a CPU, whose batched products are slow; all at once elsewhere."""
    return jax.lax.platform_dependent(
        *heads, cpu=lambda *x: jax.lax.map(lambda h: one(*h), x), default=jax.vmap(one)
    )


def _causal_forward(q: jax.Array, k: jax.Array, v: jax.Array):
    time = k.shape[1]
    seen = jnp.arange(time) <= (jnp.arange(q.shape[1]) % time)[:, None]

    def one(q: jax.Array, k: jax.Array, v: jax.Array):
        score = PRODUCT(q, k.T) * q.shape[-1] ** -0.5
        p = jax.nn.softmax(jnp.where(seen, score, -jnp.inf), axis=-1)
        return PRODUCT(p, v), p

    y, p = _by_head(one, q, k, v)
    return y, (q, k, v, p)


def _causal_backward(saved: tuple, g: jax.Array):
    def one(q: jax.Array, k: jax.Array, v: jax.Array, p: jax.Array, g: jax.Array):
        dp = PRODUCT(g, v.T)
        ds = p * (dp - jnp.sum(p * dp, axis=-1, keepdims=True)) * q.shape[-1] ** -0.5
        return PRODUCT(ds, k), PRODUCT(ds.T, q), PRODUCT(p.T, g)

    return _by_head(one, *saved, g)


causal.defvjp(_causal_forward, _causal_backward)
