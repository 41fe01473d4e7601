"""The Llama family in one file: x ← x + Attention(RMSNorm(x)), x ← x + MLP(RMSNorm(x)), thirty
times over.

A model is a flax nnx module and therefore a pytree: `jax.jit`, `vmap`, `grad` and `tree_map` take
it as it is. Every matrix that quantization touches is a `Linear` whose weight is an array or a
`QTensor`, under the path it has on the hub (`layers.3.self_attn.q_proj`); q, k, v and gate, up stay
separate. Not here: where weights come from (`load`), sampling (`generate`), replacing layers
(`surgery`). Touvron et al. 2023, arXiv 2302.13971; RoPE: arXiv 2104.09864; GQA: arXiv 2305.13245.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from qlab.activations import Act, act_matmul
from qlab.kernels import Packed, matmul
from qlab.kernels import dequantize as unpack
from qlab.methods.trained import LearnedAct, Trained
from qlab.models.kv import KV, KVCache, over_sequence
from qlab.qtensor import QTensor, dequantize

# Products of float32 stay float32 on every device; a GPU or TPU would otherwise round the operands
# first.
PRECISION = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class Config:
    """The facts of one model of the Llama family, under the names of a hub's `config.json`."""

    model_type = "llama"  # not a field: the same for the whole family
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False


@dataclasses.dataclass
class Label:
    """What travels with a model and never changes what it computes: name, tokenizer, report,
    notes, provenance, and the metadata of the GGUF file that it came from, if any.

    All labels are equal, so two models that differ only in their labels share one compiled program.
    """

    name: str = ""
    tokenizer: Any = None
    report: Any = None
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    header: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Label)

    def __hash__(self) -> int:
        return hash(Label)


Weight = jax.Array | QTensor | Packed | Trained


def as_array(weight: Weight) -> jax.Array:
    """The numbers a weight stands for: itself, a QTensor's or Packed's `dequantize`, or the rounded
    value of one in training, with its gradient.
    """
    if isinstance(weight, Packed):
        return unpack(weight)
    if isinstance(weight, Trained):
        return weight.value()
    return dequantize(weight) if isinstance(weight, QTensor) else weight


class Linear(nnx.Module):
    """y = x Wᵀ + b with W (out, in): the one place where a weight is transposed.

    With `act` the input is quantized too, and where both sides are integers so is the product. A
    Packed weight is multiplied by a kernel; one in training (`Trained`) multiplies as the QTensor
    that it becomes.
    """

    def __init__(
        self,
        weight: Weight,
        bias: jax.Array | None = None,
        act: Act | LearnedAct | None = None,
    ):
        self.weight = nnx.data(weight)  # (out, in)
        self.bias = nnx.data(bias)  # (out,) or None
        self.act = nnx.data(act)

    def __call__(self, x: jax.Array) -> jax.Array:
        if isinstance(self.weight, Packed):
            assert not isinstance(self.act, LearnedAct)  # only beside a weight in training
            y = matmul(x, self.weight, self.act)
        elif isinstance(self.weight, Trained):
            y = self.weight.product(x, self.act)
        elif isinstance(self.act, Act):
            y = act_matmul(x, self.weight, self.act)
        else:
            y = jnp.matmul(x, as_array(self.weight).T, precision=PRECISION)
        return y if self.bias is None else y + self.bias


class Embedding(nnx.Module):
    """Row `token` of a (vocab, hidden) table; the same table reads logits out of a tied model."""

    def __init__(self, weight: Weight):
        self.weight = nnx.data(weight)  # (vocab, hidden)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return as_array(self.weight)[tokens]


class RMSNorm(nnx.Module):
    """x / √(mean x² + ε) ⊙ g (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4)."""

    def __init__(self, weight: jax.Array, eps: float):
        self.weight = nnx.data(weight)  # (hidden,)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps) * self.weight


def rotate(x: jax.Array, position: jax.Array, theta: float) -> jax.Array:
    """Rotary positions, half-split order: pair (i, i + d/2) turns by position · θ^(−2i/d).

    Args:
        x: (batch, time, heads, head_dim).
        position: (time,) int32, the absolute position of every row of `x`.
        theta: the base of the frequencies.
    """
    half = x.shape[-1] // 2
    frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)  # (half,)
    angle = position[:, None].astype(jnp.float32) * frequency  # (time, half)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    cos = jnp.concatenate([cos, cos], axis=-1)[:, None, :]  # (time, 1, head_dim)
    sin = jnp.concatenate([-sin, sin], axis=-1)[:, None, :]
    return x * cos + jnp.roll(x, half, axis=-1) * sin


class Cache(nnx.Module):
    """The keys and values of one layer, up to a fixed length; rows past the current position are
    zeros.
    """

    def __init__(self, keys: jax.Array, values: jax.Array):
        self.keys = nnx.data(keys)  # (batch, length, kv_heads, head_dim)
        self.values = nnx.data(values)  # (batch, length, kv_heads, head_dim)

    def write(self, keys: jax.Array, values: jax.Array, start: jax.Array) -> Cache:
        """A new cache with rows `start : start + time` replaced."""
        put = jax.lax.dynamic_update_slice_in_dim
        return Cache(put(self.keys, keys, start, axis=1), put(self.values, values, start, axis=1))


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, allowed: jax.Array, causal: bool = False
) -> jax.Array:
    """softmax(q kᵀ / √d) v for every head, the softmax over the `allowed` keys.

    Args:
        q: (batch, time, heads, d).
        k: (batch, seen, kv_heads, d); each serves heads / kv_heads neighbouring queries.
        v: as `k`.
        allowed: (time, seen) bool.
        causal: promises that query i may see no key after i, whose scores are then not computed.

    Returns:
        (batch, time, heads, d).
    """
    batch, time, _, d = q.shape
    seen, kv_heads = k.shape[1:3]

    def one(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """One key-value head of one sequence: (group, time, d), (seen, d), (seen, d)."""
        size = max(128, -(-time // 4)) if causal else time  # queries at a time
        parts = []
        for first in range(0, time, size):
            rows = slice(first, min(first + size, time))
            keys = slice(0, rows.stop if causal else seen)
            score = jnp.matmul(q[:, rows].reshape(-1, d), k[keys].T, precision=PRECISION) / d**0.5
            score = score.reshape(-1, rows.stop - first, keys.stop)
            weight = jax.nn.softmax(jnp.where(allowed[rows, keys], score, -jnp.inf), axis=-1)
            y = jnp.matmul(weight.reshape(-1, keys.stop), v[keys], precision=PRECISION)
            parts.append(y.reshape(-1, rows.stop - first, d))
        return jnp.concatenate(parts, axis=1)

    q = q.reshape(batch, time, kv_heads, -1, d).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch * kv_heads, -1, time, d)
    k, v = (x.transpose(0, 2, 1, 3).reshape(batch * kv_heads, seen, d) for x in (k, v))
    # XLA's batched products are slow on a CPU: one head after another is faster there.
    y = jax.lax.platform_dependent(
        q, k, v, cpu=lambda *heads: jax.lax.map(lambda x: one(*x), heads), default=jax.vmap(one)
    )
    return y.reshape(batch, -1, time, d).transpose(0, 2, 1, 3)


def over_time(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    start: jax.Array,
    cache: Any,
    kv: KV | None,
    count: jax.Array | None,
) -> tuple[jax.Array, Any]:
    """What queries at positions `start …` read of their own and all earlier keys and values:
    ((batch, time, heads, d), new cache).

    Args:
        q: (batch, time, heads, d).
        k: (batch, time, kv_heads, d).
        v: as `k`.
        start: the first position.
        cache: a Cache, a KVCache where there is a recipe, or None: the sequence begins here.
        kv: how keys and values are quantized; None: they are not.
        count: how many of the tokens are real; None: all. A float cache need not know.
    """
    time = q.shape[1]
    if kv is not None:
        if cache is None:
            return over_sequence(q, k, v, kv), None
        return cache.attend(q, k, v, start, time if count is None else count)
    position = start + jnp.arange(time)
    if cache is None:
        seen = position
    else:
        cache = cache.write(k, v, start)
        k, v = cache.keys, cache.values
        seen = jnp.arange(k.shape[1])
    return attend(q, k, v, seen <= position[:, None], causal=cache is None), cache


class Attention(nnx.Module):
    """Causal attention; each of `kv_heads` keys serves heads / kv_heads queries (grouped-query
    attention).
    """

    def __init__(
        self, q_proj: Linear, k_proj: Linear, v_proj: Linear, o_proj: Linear, config: Config
    ):
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = q_proj, k_proj, v_proj, o_proj
        self.head_dim, self.theta = config.head_dim, config.rope_theta
        self.kv: KV | None = None  # set by `quantize_kv`

    def __call__(self, x: jax.Array, start: jax.Array, cache: Any, count: Any = None):
        batch, time, _ = x.shape
        position = start + jnp.arange(time)
        split = (batch, time, -1, self.head_dim)
        q = rotate(self.q_proj(x).reshape(split), position, self.theta)
        k = rotate(self.k_proj(x).reshape(split), position, self.theta)
        v = self.v_proj(x).reshape(split)
        y, cache = over_time(q, k, v, start, cache, self.kv, count)
        return self.o_proj(y.reshape(batch, time, -1)), cache


class MLP(nnx.Module):
    """down(silu(gate x) ⊙ up x): the gated unit SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, gate_proj: Linear, up_proj: Linear, down_proj: Linear):
        self.gate_proj, self.up_proj, self.down_proj = gate_proj, up_proj, down_proj

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class Feed(NamedTuple):
    """`feeder`'s output channels are the input channels of `consumers`, up to functions that
    commute with a positive scale.

    So feeder rows / c and consumer columns · c leave the block's function as it was. With
    `by_kv_head`, one feeding channel reaches the same channel of every query head that shares its
    key-value head. `whole` is the module whose output shows what a change of the consumers does.
    """

    feeder: str
    consumers: tuple[str, ...]
    whole: str
    by_kv_head: bool = False


class Block(nnx.Module):
    """One layer: normalise, mix over time, add; normalise, mix over channels, add.

    `STAGES` lists its linears in forward order; those of one stage read the same input. `FEEDS`
    says who feeds whom.
    """

    STAGES = (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.o_proj",),
        ("mlp.gate_proj", "mlp.up_proj"),
        ("mlp.down_proj",),
    )
    # v -> o: attention averages over time, channel by channel. up -> down: up is a factor of the
    # gated product.
    FEEDS = (
        Feed("input_layernorm", STAGES[0], "self_attn"),
        Feed("self_attn.v_proj", STAGES[1], "self_attn.o_proj", by_kv_head=True),
        Feed("post_attention_layernorm", STAGES[2], "mlp"),
        Feed("mlp.up_proj", STAGES[3], "mlp.down_proj"),
    )

    def __init__(
        self,
        input_layernorm: RMSNorm,
        self_attn: Attention,
        post_attention_layernorm: RMSNorm,
        mlp: MLP,
    ):
        self.input_layernorm, self.self_attn = input_layernorm, self_attn
        self.post_attention_layernorm, self.mlp = post_attention_layernorm, mlp

    def __call__(self, x: jax.Array, start: jax.Array, cache: Any = None, count: Any = None):
        y, cache = self.self_attn(self.input_layernorm(x), start, cache, count)
        x = x + y
        return x + self.mlp(self.post_attention_layernorm(x)), cache


# All layers of a model have one structure, so they share this one compiled program: compile time
# does not grow with depth.
_run = jax.jit(lambda block, x, start, cache, count=None: block(x, start, cache, count))
_read_out = jax.jit(lambda head, hidden: head(hidden))


class Transformer(nnx.Module):
    """A causal language model: tokens (batch, time) int32 -> logits (batch, time, vocab) float32.

    The parts are the architecture: another one hands in its own blocks, final norm and positions
    (`opt`).

    Example:
        >>> model = Transformer.init(Config(64, 32, 64, 2, 4, 2, 8), jax.random.key(0))
        >>> model(jnp.zeros((1, 5), jnp.int32)).shape
        (1, 5, 64)
    """

    def __init__(
        self,
        config: Any,
        embed_tokens: Embedding,
        layers: Sequence[Any],
        norm: Any,
        lm_head: Linear | None = None,
        label: Label | None = None,
        embed_positions: Any = None,
    ):
        self.config = config
        self.embed_tokens = embed_tokens
        self.embed_positions = nnx.data(embed_positions)  # None: the blocks rotate by position
        self.layers = nnx.List(layers)
        self.norm = norm
        self.lm_head = nnx.data(lm_head)  # None: tied to the embedding
        self.label = label or Label()

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.logits(self.hidden(tokens))

    def embed(self, tokens: jax.Array, start: jax.Array | int = 0) -> jax.Array:
        """What the first block reads: tokens (batch, time) at positions `start …` -> (batch, time,
        hidden) float32.
        """
        x = self.embed_tokens(tokens)
        if self.embed_positions is None:
            return x
        return x + self.embed_positions(start + jnp.arange(tokens.shape[1]))

    def hidden(self, tokens: jax.Array) -> jax.Array:
        """The normed states that the head reads, (batch, time, hidden) float32."""
        x = self.embed(tokens)
        for block in self.layers:
            x, _ = _run(block, x, jnp.int32(0), None)
        return self.norm(x)

    def logits(self, hidden: jax.Array) -> jax.Array:
        """Scores of every token of the vocabulary, (..., vocab) float32."""
        return _read_out(self.lm_head or Linear(self.embed_tokens.weight), hidden)

    def step(self, tokens: jax.Array, start: jax.Array, caches: list[Any], count: Any = None):
        """Run `tokens` (batch, time) at positions `start …` against the caches: (hidden states,
        new caches). The first `count` tokens are real, the others pad; None: all are.
        """
        x, new = self.embed(tokens, start), []
        for block, cache in zip(self.layers, caches, strict=True):
            x, cache = _run(block, x, start, cache, count)
            new.append(cache)
        return self.norm(x), new

    @property
    def kv(self) -> KV | None:
        """How keys and values are quantized (`quantize_kv`); None: they are float."""
        return self.layers[0].self_attn.kv if len(self.layers) else None

    def caches(self, batch: int, length: int) -> list[Any]:
        """Empty caches for `length` positions, one a layer."""
        shape = (batch, length, self.config.num_key_value_heads, self.config.head_dim)
        if self.kv is not None:
            return [KVCache.empty(self.kv, *shape) for _ in self.layers]
        return [Cache(jnp.zeros(shape), jnp.zeros(shape)) for _ in self.layers]

    @property
    def name(self) -> str:
        return self.label.name

    @property
    def tokenizer(self) -> Any:
        return self.label.tokenizer

    @property
    def report(self) -> Any:
        return self.label.report

    @property
    def notes(self) -> tuple[str, ...]:
        return self.label.notes

    @staticmethod
    def init(config: Config, key: jax.Array) -> Transformer:
        """The Llama family with random weights: normal with standard deviation 0.02, residual
        outputs smaller by √(2·layers).
        """

        def matrix(out: int, inner: int, std: float, bias: bool) -> Linear:
            nonlocal key
            key, now = jax.random.split(key)
            w = jax.random.normal(now, (out, inner), jnp.float32) * std
            return Linear(w, jnp.zeros(out) if bias else None)

        return build(config, matrix)


def build(config: Config, matrix: Any) -> Transformer:
    """The skeleton, filled by `matrix(out, in, std, bias) -> Linear`, called in forward order;
    norm gains are ones.
    """
    c = config
    small = 0.02 / (2 * c.num_hidden_layers) ** 0.5
    wide, narrow = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim

    def norm() -> RMSNorm:
        return RMSNorm(jnp.ones(c.hidden_size), c.rms_norm_eps)

    embedding = Embedding(matrix(c.vocab_size, c.hidden_size, 0.02, False).weight)
    layers = [
        Block(
            norm(),
            Attention(
                matrix(wide, c.hidden_size, 0.02, c.attention_bias),
                matrix(narrow, c.hidden_size, 0.02, c.attention_bias),
                matrix(narrow, c.hidden_size, 0.02, c.attention_bias),
                matrix(c.hidden_size, wide, small, c.attention_bias),
                c,
            ),
            norm(),
            MLP(
                matrix(c.intermediate_size, c.hidden_size, 0.02, c.mlp_bias),
                matrix(c.intermediate_size, c.hidden_size, 0.02, c.mlp_bias),
                matrix(c.hidden_size, c.intermediate_size, small, c.mlp_bias),
            ),
        )
        for _ in range(c.num_hidden_layers)
    ]
    head = None
    if not c.tie_word_embeddings:
        head = matrix(c.vocab_size, c.hidden_size, 0.02, False)
    return Transformer(c, embedding, layers, norm(), head)
