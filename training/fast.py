"""What makes training fast on a CPU with bfloat16 dot products: operands bf16, sums float32.

Every product, forward and backward, reads bfloat16 and accumulates in float32. Transposes are
written out row by row: left alone, XLA turns them into a view, and its CPU product of a transposed
view is two to three times slower. The cross-entropy never holds the logits of the whole batch.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint

from qlab.models.objective import TrainingAttention
from qlab.models.surgery import map_linears
from qlab.models.transformer import MLP, Block, Transformer

BF16, F32 = jnp.bfloat16, jnp.float32


def fixed(x: jax.Array) -> jax.Array:
    """Keeps XLA from folding a cast or a transpose into the product behind it."""
    return jax.lax.optimization_barrier(x)


def transposed(x: jax.Array) -> jax.Array:
    """The last two axes swapped, and the numbers moved in memory."""
    order = tuple(range(x.ndim))
    return fixed(with_layout_constraint(x.swapaxes(-1, -2), Layout(major_to_minor=order)))


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b for (..., m, k), (..., k, n) in bfloat16, float32 out."""
    return jnp.matmul(a, b, preferred_element_type=F32)


# ------------------------------------------------------------------------------------- linear


@jax.custom_vjp
def linear(x: jax.Array, w: jax.Array) -> jax.Array:
    """x (tokens, in) @ w (out, in)ᵀ -> (tokens, out) float32."""
    return linear_forward(x, w)[0]


def linear_forward(x: jax.Array, w: jax.Array):
    x, w = fixed(x.astype(BF16)), fixed(w.astype(BF16))
    return product(x, transposed(w)), (x, w)


def linear_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array):
    x, w = saved
    g = fixed(g.astype(BF16))
    if w.shape[0] >= w.shape[1]:  # transpose the narrower of x and g
        dw = fixed(product(transposed(x), g)).T
    else:
        dw = product(transposed(g), x)
    return product(g, w), dw


linear.defvjp(linear_forward, linear_backward)


class FastLinear(nnx.Module):
    """A `Linear` for training: same weight, products in bfloat16."""

    def __init__(self, weight: jax.Array):
        self.weight = nnx.data(weight)  # (out, in)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = linear(x.reshape(-1, x.shape[-1]), self.weight)
        return y.reshape(*x.shape[:-1], -1)


# ---------------------------------------------------------------------------------- attention


@jax.custom_vjp
def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Causal softmax(q kᵀ / √d) v; q (heads, group · time, d), k and v (heads, time, d)."""
    return attend_forward(q, k, v)[0]


def attend_forward(q: jax.Array, k: jax.Array, v: jax.Array):
    time = k.shape[1]
    q = fixed((q * q.shape[-1] ** -0.5).astype(BF16))
    k, v = fixed(k.astype(BF16)), fixed(v.astype(BF16))
    score = product(q, transposed(k))  # (heads, group · time, time)
    seen = jnp.arange(time) <= (jnp.arange(q.shape[1]) % time)[:, None]
    p = fixed(jax.nn.softmax(jnp.where(seen, score, -1e30), axis=-1).astype(BF16))
    return product(p, v), (q, k, v, p)


def attend_backward(saved: tuple[jax.Array, ...], g: jax.Array):
    q, k, v, p = saved
    g = fixed(g.astype(BF16))
    dp = product(g, transposed(v))  # (heads, group · time, time)
    ds = p * (dp - jnp.sum(p * dp, axis=-1, keepdims=True))
    ds = fixed(ds.astype(BF16))
    dq = product(ds, k) * q.shape[-1] ** -0.5
    dk = fixed(product(transposed(q), ds)).swapaxes(1, 2)  # q carries the 1/√d
    dv = fixed(product(transposed(g), p)).swapaxes(1, 2)
    return dq, dk, dv


attend.defvjp(attend_forward, attend_backward)


def turn(x: jax.Array, theta: float) -> jax.Array:
    """`transformer.rotate` from position 0, its cosines computed once and not for every head."""
    half = x.shape[-1] // 2
    frequency = theta ** (-np.arange(half) / half)
    angle = np.arange(x.shape[1])[:, None, None] * frequency  # (time, 1, half)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class FastMLP(nnx.Module):
    """An `MLP` for training: what the gate needs backward is computed again rather than kept."""

    def __init__(self, mlp: MLP):
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def __call__(self, x: jax.Array) -> jax.Array:
        gated = jax.checkpoint(lambda gate, up: jax.nn.silu(gate) * up)
        return self.down_proj(gated(self.gate_proj(x), self.up_proj(x)))


def swap(model: Transformer) -> Transformer:
    """Returns the same function with fast linears and fast attention, over the same weights."""
    model = map_linears(model, lambda _, layer: FastLinear(layer.weight))
    blocks = []
    for block in model.layers:
        new = Block(
            block.input_layernorm, block.self_attn, block.post_attention_layernorm, block.mlp
        )
        new.self_attn, new.mlp = (
            TrainingAttention(block.self_attn, turn, attend),
            FastMLP(block.mlp),
        )
        blocks.append(new)
    model.layers = nnx.List(blocks)
    return model


# ------------------------------------------------------------------------------ cross-entropy

CHUNK = 256  # tokens whose logits exist at one time


@jax.custom_vjp
def cross_entropy(hidden: jax.Array, table: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean −log softmax(hidden @ tableᵀ)[target].

    Args:
        hidden: (tokens, width) float32; tokens a multiple of CHUNK or fewer than CHUNK.
        table: (vocabulary, width), the tied embedding.
        targets: (tokens,) int32.
    """
    return cross_entropy_forward(hidden, table, targets)[0]


def chunk_loss(table: jax.Array, columns: jax.Array, carry: tuple, chunk: tuple):
    """Adds one chunk: its loss, d loss / d hidden, and its part of d loss / d tableᵀ."""
    total, dcolumns = carry
    h, target = chunk  # (chunk, width) bfloat16, (chunk,)
    logits = product(h, columns)  # (chunk, vocabulary)
    top = jnp.max(logits, axis=-1, keepdims=True)
    e = jnp.exp(logits - top)
    norm = jnp.sum(e, axis=-1, keepdims=True)
    right = jnp.take_along_axis(logits, target[:, None], axis=-1)
    hit = jnp.arange(logits.shape[1]) == target[:, None]
    g = fixed((e / norm - hit).astype(BF16))
    total += jnp.sum(jnp.log(norm) + top - right)
    return (total, dcolumns + product(transposed(h), g)), product(g, table)


def cross_entropy_forward(hidden: jax.Array, table: jax.Array, targets: jax.Array):
    tokens, width = hidden.shape
    chunk = min(CHUNK, tokens)
    table = fixed(table.astype(BF16))
    chunks = (hidden.astype(BF16).reshape(-1, chunk, width), targets.reshape(-1, chunk))
    begin = (jnp.float32(0), jnp.zeros((width, table.shape[0]), F32))
    (total, dcolumns), dhidden = jax.lax.scan(
        partial(chunk_loss, table, transposed(table)), begin, chunks
    )
    saved = (dhidden.reshape(tokens, width) / tokens, dcolumns.T / tokens)
    return total / tokens, saved


def cross_entropy_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array):
    dhidden, dtable = saved
    return g * dhidden, g * dtable, None


cross_entropy.defvjp(cross_entropy_forward, cross_entropy_backward)
