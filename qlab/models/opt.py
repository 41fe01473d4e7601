"""OPT in one file: x ← x + Attention(LayerNorm(x)), x ← x + fc2(relu(fc1(LayerNorm(x)))).

What differs from the Llama family: norms subtract the mean and have a bias, every linear has a
bias, positions are a learned table added to the tokens, and the MLP is a plain ReLU. The rest is
the `Transformer`'s. Not here: OPT-350m, which norms after the block. Zhang et al. 2022, arXiv
2205.01068; its hub layout: transformers, `modeling_opt.py`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from qlab.models.kv import KV
from qlab.models.transformer import Embedding, Feed, Label, Linear, Transformer, over_time

OFFSET = 2  # the table's first two rows belong to no position: fairseq kept them for padding
EPS = 1e-5  # torch's default; a hub's config.json does not name it


@dataclasses.dataclass(frozen=True)
class OPTConfig:
    """The facts of one OPT model, under the names of a hub's `config.json`."""

    model_type = "opt"  # not a field: the same for the whole family

    vocab_size: int
    hidden_size: int
    ffn_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = True

    @property
    def num_key_value_heads(self) -> int:
        return self.num_attention_heads

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


class LayerNorm(nnx.Module):
    """(x − mean x) / √(var x + ε) ⊙ g + b (Ba et al. 2016, arXiv 1607.06450, eq. 4)."""

    def __init__(self, weight: jax.Array, bias: jax.Array):
        self.weight, self.bias = nnx.data(weight), nnx.data(bias)  # (hidden,) each

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPS)
        return x * self.weight + self.bias


class Positions(nnx.Module):
    """A learned vector for every position, in row `position + 2` of the table."""

    def __init__(self, weight: jax.Array):
        self.weight = nnx.data(weight)  # (positions + 2, hidden)

    def __call__(self, position: jax.Array) -> jax.Array:
        known = self.weight.shape[0] - OFFSET
        if len(position) > known:
            raise ValueError(f"{len(position)} tokens are more than the model's {known} positions")
        # Past the end stands only what a prompt is padded with, and nothing ever reads that.
        return jnp.take(self.weight, position + OFFSET, axis=0, mode="clip")


class Attention(nnx.Module):
    """Causal attention with as many keys as queries and no rotation: positions came in at the
    bottom.
    """

    def __init__(
        self, q_proj: Linear, k_proj: Linear, v_proj: Linear, out_proj: Linear, head_dim: int
    ):
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = q_proj, k_proj, v_proj, out_proj
        self.head_dim = head_dim
        self.kv: KV | None = None  # set by `quantize_kv`

    def __call__(self, x: jax.Array, start: jax.Array, cache: Any, count: Any = None):
        batch, time, _ = x.shape
        split = (batch, time, -1, self.head_dim)
        q, k, v = (part(x).reshape(split) for part in (self.q_proj, self.k_proj, self.v_proj))
        y, cache = over_time(q, k, v, start, cache, self.kv, count)
        return self.out_proj(y.reshape(batch, time, -1)), cache


class Block(nnx.Module):
    """One layer. Mind the hub's name: `final_layer_norm` is the norm before the MLP."""

    STAGES = (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("self_attn.out_proj",),
        ("fc1",),
        ("fc2",),
    )
    # v -> out: attention averages over time. fc1 -> fc2: relu(x / c) = relu(x) / c for c > 0.
    FEEDS = (
        Feed("self_attn_layer_norm", STAGES[0], "self_attn"),
        Feed("self_attn.v_proj", STAGES[1], "self_attn.out_proj"),
        Feed("final_layer_norm", STAGES[2], "fc1"),
        Feed("fc1", STAGES[3], "fc2"),
    )

    def __init__(
        self,
        self_attn_layer_norm: LayerNorm,
        self_attn: Attention,
        final_layer_norm: LayerNorm,
        fc1: Linear,
        fc2: Linear,
    ):
        self.self_attn_layer_norm, self.self_attn = self_attn_layer_norm, self_attn
        self.final_layer_norm, self.fc1, self.fc2 = final_layer_norm, fc1, fc2

    def __call__(self, x: jax.Array, start: jax.Array, cache: Any = None, count: Any = None):
        y, cache = self.self_attn(self.self_attn_layer_norm(x), start, cache, count)
        x = x + y
        return x + self.fc2(jax.nn.relu(self.fc1(self.final_layer_norm(x)))), cache


def build(c: OPTConfig, take: Callable[..., Any], label: Label | None = None) -> Transformer:
    """The model made of `take(path, *shape)`: an array or QTensor of that shape, asked for in
    forward order.
    """

    def linear(path: str, out: int, inner: int) -> Linear:
        return Linear(take(f"{path}.weight", out, inner), take(f"{path}.bias", out))

    def norm(path: str) -> LayerNorm:
        return LayerNorm(take(f"{path}.weight", hidden), take(f"{path}.bias", hidden))

    def block(at: str) -> Block:
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        projections = (linear(f"{at}.self_attn.{name}", hidden, hidden) for name in names)
        return Block(
            norm(f"{at}.self_attn_layer_norm"),
            Attention(*projections, head_dim=c.head_dim),
            norm(f"{at}.final_layer_norm"),
            linear(f"{at}.fc1", c.ffn_dim, hidden),
            linear(f"{at}.fc2", hidden, c.ffn_dim),
        )

    hidden, table = c.hidden_size, (c.vocab_size, c.hidden_size)
    return Transformer(
        config=c,
        embed_tokens=Embedding(take("embed_tokens.weight", *table)),
        embed_positions=Positions(
            take("embed_positions.weight", c.max_position_embeddings + OFFSET, hidden)
        ),
        layers=[block(f"layers.{i}") for i in range(c.num_hidden_layers)],
        norm=norm("norm"),
        lm_head=None if c.tie_word_embeddings else Linear(take("lm_head.weight", *table)),
        label=label,
    )


def init(config: OPTConfig, key: jax.Array) -> Transformer:
    """OPT with random weights: normal with standard deviation 0.02, biases 0, norm gains 1.

    Example:
        >>> model = init(OPTConfig(64, 32, 64, 2, 4, 128), jax.random.key(0))
        >>> model(jnp.zeros((1, 5), jnp.int32)).shape
        (1, 5, 64)
    """

    def draw(path: str, *shape: int) -> jax.Array:
        nonlocal key
        if len(shape) == 1:
            return jnp.zeros(shape) if path.endswith(".bias") else jnp.ones(shape)
        key, now = jax.random.split(key)
        return jax.random.normal(now, shape, jnp.float32) * 0.02

    return build(config, draw)


# ---- the hub's files -----------------------------------------------------------------------------


def hub_path(name: str) -> str:
    """Our path of a hub's tensor: no `model.decoder.`, and the last norm is `norm` as everywhere.

    Example:
        >>> hub_path("model.decoder.layers.0.fc1.bias"), hub_path("decoder.final_layer_norm.bias")
        ('layers.0.fc1.bias', 'norm.bias')
    """
    path = re.sub(r"^(model\.)?decoder\.", "", name)
    return re.sub(r"^final_layer_norm\.", "norm.", path)


# What the family's other members do otherwise: (key of config.json, the value read here).
_ONLY = (
    ("do_layer_norm_before", True),
    ("activation_function", "relu"),
    ("enable_bias", True),
    ("layer_norm_elementwise_affine", True),
    ("_remove_final_layer_norm", False),
)


def hub_config(facts: Mapping[str, Any]) -> OPTConfig:
    """An `OPTConfig` from a hub's `config.json`.

    Raises:
        ValueError: a variant that is built otherwise, such as OPT-350m: the sentence says how.
    """
    hidden, heads = facts["hidden_size"], facts["num_attention_heads"]
    inner = facts.get("word_embed_proj_dim") or hidden
    if inner != hidden:
        raise ValueError(
            f"word_embed_proj_dim {inner} is not hidden_size {hidden}: OPT with projected "
            "embeddings (OPT-350m) is not supported; the other sizes are"
        )
    for key, wanted in _ONLY:
        if facts.get(key, wanted) != wanted:
            raise ValueError(f"{key} {facts[key]!r} is not supported; OPT's is {wanted!r}")
    if hidden % heads:
        raise ValueError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    return OPTConfig(
        vocab_size=facts["vocab_size"],
        hidden_size=hidden,
        ffn_dim=facts["ffn_dim"],
        num_hidden_layers=facts["num_hidden_layers"],
        num_attention_heads=heads,
        max_position_embeddings=facts.get("max_position_embeddings", 2048),
        tie_word_embeddings=facts.get("tie_word_embeddings", True),
    )
