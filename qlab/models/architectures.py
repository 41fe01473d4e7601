"""From a file's facts and tensors to a `Transformer`, whatever the architecture: config keys and
tensor names as literals.

A model is assembled from a dictionary of tensors under its own paths
(`layers.3.self_attn.q_proj.weight`), which are the hub's names without the leading `model.`; a GGUF
file's names translate by `GGUF_NAMES`. OPT's facts are in `opt`. Not here: opening files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlab.models import opt
from qlab.models.transformer import (
    MLP,
    Attention,
    Block,
    Config,
    Embedding,
    Label,
    Linear,
    RMSNorm,
    Transformer,
)
from qlab.qtensor import QTensor

# GGUF's name (without .weight, .bias) -> ours; `{i}` is the layer.
GGUF_NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
    "blk.{i}.attn_norm": "layers.{i}.input_layernorm",
    "blk.{i}.attn_q": "layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_output": "layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_gate": "layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "layers.{i}.mlp.down_proj",
}

# model_type of the Llama family -> the linears that carry a bias whatever the config's flags say.
LLAMA_TYPES: dict[str, tuple[str, ...]] = {
    "llama": (),
    "mistral": (),
    "qwen2": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
}
# What our own files call an architecture -> its Config.
CONFIGS = {config.model_type: config for config in (Config, opt.OPTConfig)}
# Tensors of old checkpoints that repeat what the config says.
_IGNORED = re.compile(r"rotary_emb\.inv_freq$")


def hub_config(facts: Mapping[str, Any]) -> Config | opt.OPTConfig:
    """A `Config` or `OPTConfig` from a hub's `config.json`.

    Raises:
        ValueError: another architecture, scaled rotary positions, another activation, or a
            checkpoint that is already quantized: each by its name.
    """
    kind, known = facts.get("model_type"), (*LLAMA_TYPES, "opt")
    if kind not in known:
        raise ValueError(f"model_type {kind!r} is unknown; known: {', '.join(known)}")
    if facts.get("quantization_config"):
        method = facts["quantization_config"].get("quant_method", "some method")
        raise ValueError(f"the checkpoint is already quantized ({method}); load its float original")
    return opt.hub_config(facts) if kind == "opt" else _llama_config(facts)


def _llama_config(facts: Mapping[str, Any]) -> Config:
    rope = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type != "default":
        raise ValueError(
            f"rope_scaling {rope_type!r} is not supported; only plain rotary positions"
        )
    if facts.get("hidden_act", "silu") != "silu":
        raise ValueError(
            f"hidden_act {facts['hidden_act']!r} is not supported; the family's is 'silu'"
        )
    heads = facts["num_attention_heads"]
    return Config(
        vocab_size=facts["vocab_size"],
        hidden_size=facts["hidden_size"],
        intermediate_size=facts["intermediate_size"],
        num_hidden_layers=facts["num_hidden_layers"],
        num_attention_heads=heads,
        num_key_value_heads=facts.get("num_key_value_heads") or heads,
        head_dim=facts.get("head_dim") or facts["hidden_size"] // heads,
        rope_theta=float(rope.get("rope_theta") or facts.get("rope_theta") or 10_000.0),
        rms_norm_eps=facts.get("rms_norm_eps", 1e-6),
        max_position_embeddings=facts.get("max_position_embeddings", 2048),
        tie_word_embeddings=facts.get("tie_word_embeddings", False),
        attention_bias=facts.get("attention_bias", False),
        mlp_bias=facts.get("mlp_bias", False),
    )


def hub_path(name: str, model_type: str) -> str:
    """Our path of a hub's tensor.

    Example:
        >>> hub_path("model.layers.3.mlp.up_proj.weight", "llama")
        'layers.3.mlp.up_proj.weight'
    """
    return opt.hub_path(name) if model_type == "opt" else re.sub(r"^model\.", "", name)


def hub_biases(facts: Mapping[str, Any]) -> list[str]:
    """Paths of the linears that must have a bias by `config.json`, where a file may lack them."""
    if facts["model_type"] == "opt":
        return []  # its linears all have one: `assemble` asks for it
    found = set(LLAMA_TYPES[facts["model_type"]])
    if facts.get("attention_bias"):
        found |= {f"self_attn.{name}_proj" for name in "qkvo"}
    if facts.get("mlp_bias"):
        found |= {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
    return [
        f"layers.{i}.{path}" for i in range(facts["num_hidden_layers"]) for path in sorted(found)
    ]


def gguf_config(metadata: Mapping[str, Any], tied: bool) -> Config:
    """A `Config` from a GGUF header.

    Args:
        metadata: `io.gguf.read(path).metadata`.
        tied: the file has no `output.weight`.

    Raises:
        ValueError: another architecture, scaled rotary positions, or a missing key, by name.
    """
    kind = metadata.get("general.architecture")
    if kind != "llama":
        raise ValueError(f"the file's architecture is {kind!r}; GGUF files of 'llama' are read")
    scaling = metadata.get("llama.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(f"rope scaling {scaling!r} is not supported; only plain rotary positions")

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"llama.{key}", default)
        if value is None:
            raise ValueError(f"the GGUF header has no value 'llama.{key}'")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(
                f"the GGUF header has {value!r:.60} as 'llama.{key}', no number above 0"
            )
        return value

    heads, hidden = get("attention.head_count"), get("embedding_length")
    return Config(
        vocab_size=_tokens(metadata) or get("vocab_size"),
        hidden_size=hidden,
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=get("attention.head_count_kv", heads),
        head_dim=get("attention.key_length", hidden // heads),
        rope_theta=float(get("rope.freq_base", 10_000.0)),
        rms_norm_eps=float(f"{get('attention.layer_norm_rms_epsilon'):.7g}"),  # stored as float32
        max_position_embeddings=get("context_length"),
        tie_word_embeddings=tied,
    )


def _tokens(metadata: Mapping[str, Any]) -> int:
    """How many tokens a GGUF header lists."""
    tokens = metadata.get("tokenizer.ggml.tokens", ())
    if not isinstance(tokens, list | tuple):
        raise ValueError(f"the GGUF header has {tokens!r:.60} as 'tokenizer.ggml.tokens', no list")
    return len(tokens)


def gguf_path(name: str) -> str:
    """Our path of a GGUF tensor: `blk.3.attn_q.weight` -> `layers.3.self_attn.q_proj.weight`.

    Raises:
        ValueError: no tensor of the Llama family has this name.
    """
    stem, _, leaf = name.rpartition(".")
    layer = re.match(r"blk\.(\d+)\.", stem)
    pattern = re.sub(r"^blk\.\d+\.", "blk.{i}.", stem)
    if pattern not in GGUF_NAMES or leaf not in ("weight", "bias"):
        raise ValueError(f"tensor {name!r} belongs to no Llama model")
    return f"{GGUF_NAMES[pattern].format(i=layer and layer[1])}.{leaf}"


def gguf_name(path: str) -> str:
    """GGUF's name of a tensor at our path: the inverse of `gguf_path`.

    Raises:
        ValueError: no GGUF file of the Llama family has such a tensor.

    Example:
        >>> gguf_name("layers.3.self_attn.q_proj.weight")
        'blk.3.attn_q.weight'
    """
    stem, _, leaf = path.rpartition(".")
    layer = re.match(r"layers\.(\d+)\.", stem)
    pattern = re.sub(r"^layers\.\d+\.", "layers.{i}.", stem)
    names = {ours: theirs for theirs, ours in GGUF_NAMES.items()}
    if pattern not in names or leaf not in ("weight", "bias"):
        raise ValueError(f"tensor {path!r} has no name in a GGUF file of the Llama family")
    return f"{names[pattern].format(i=layer and layer[1])}.{leaf}"


def turned(path: str, config: Config) -> int | None:
    """How many heads a tensor has whose rows GGUF interleaves: those of q and k; None of others.

    Example:
        >>> turned("layers.0.self_attn.k_proj.weight", Config(64, 32, 64, 2, 4, 2, 8))
        2
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    return heads.get(path.split(".")[-2])


def half_split_rows(heads: int, rows: int) -> np.ndarray:
    """The row order that undoes GGUF's interleaving of rotary pairs in q and k.

    llama.cpp turns rows (2i, 2i + 1) of a head together, the hub (i, i + d/2); `w[order]` is the
    hub's.

    Args:
        heads: query heads for q, key-value heads for k.
        rows: heads · head_dim.
    """
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(rows)


def assemble(
    config: Config | opt.OPTConfig, tensors: Mapping[str, Any], label: Label | None = None
) -> Transformer:
    """A model from its tensors.

    Args:
        config: the model's facts; its class is the architecture.
        tensors: by path with `.weight` or `.bias` at the end: float arrays (made float32) or
            QTensors.
        label: the model's name, tokenizer and notes.

    Raises:
        ValueError: a tensor is missing, unknown, of another shape than the config says, or holds
            NaN or Inf.
    """
    parts = _Parts(tensors)
    if config.tie_word_embeddings:
        parts.rest.pop("lm_head.weight", None)  # some files store the tied table twice
    if isinstance(config, opt.OPTConfig):
        model = opt.build(config, parts.take, label)
    else:
        model = _llama(config, parts, label)
    if parts.rest:
        names = f"{min(parts.rest)!r} and {len(parts.rest) - 1} more"
        raise ValueError(f"tensors that belong to no part of the model: {names}")
    return model


def _llama(c: Config, parts: _Parts, label: Label | None) -> Transformer:
    embedding = Embedding(parts.take("embed_tokens.weight", c.vocab_size, c.hidden_size))
    blocks = [_block(parts, f"layers.{i}", c) for i in range(c.num_hidden_layers)]
    head = None if c.tie_word_embeddings else parts.linear("lm_head", c.vocab_size, c.hidden_size)
    norm = RMSNorm(parts.take("norm.weight", c.hidden_size), c.rms_norm_eps)
    return Transformer(c, embedding, blocks, norm, head, label)


def _block(parts: _Parts, at: str, c: Config) -> Block:
    wide, narrow = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    attention = Attention(
        parts.linear(f"{at}.self_attn.q_proj", wide, c.hidden_size),
        parts.linear(f"{at}.self_attn.k_proj", narrow, c.hidden_size),
        parts.linear(f"{at}.self_attn.v_proj", narrow, c.hidden_size),
        parts.linear(f"{at}.self_attn.o_proj", c.hidden_size, wide),
        c,
    )
    mlp = MLP(
        parts.linear(f"{at}.mlp.gate_proj", c.intermediate_size, c.hidden_size),
        parts.linear(f"{at}.mlp.up_proj", c.intermediate_size, c.hidden_size),
        parts.linear(f"{at}.mlp.down_proj", c.hidden_size, c.intermediate_size),
    )
    before = RMSNorm(parts.take(f"{at}.input_layernorm.weight", c.hidden_size), c.rms_norm_eps)
    after = parts.take(f"{at}.post_attention_layernorm.weight", c.hidden_size)
    return Block(before, attention, RMSNorm(after, c.rms_norm_eps), mlp)


class _Parts:
    """Tensors handed out once each, checked against the shape that the config asks for."""

    def __init__(self, tensors: Mapping[str, Any]):
        self.rest = {path: t for path, t in tensors.items() if not _IGNORED.search(path)}

    def take(self, path: str, *shape: int) -> Any:
        if path not in self.rest:
            raise ValueError(f"the tensor {path!r} is missing")
        return _checked(path, self.rest.pop(path), shape)

    def linear(self, path: str, out: int, inner: int) -> Linear:
        weight = self.take(f"{path}.weight", out, inner)
        bias = f"{path}.bias"
        return Linear(weight, self.take(bias, out) if bias in self.rest else None)


def _checked(path: str, value: Any, shape: tuple[int, ...]) -> Any:
    """`value` in its shape and finite: float32, or the QTensor as it is."""
    if tuple(value.shape) != shape:
        raise ValueError(f"tensor {path!r} has shape {tuple(value.shape)}, the config says {shape}")
    for part in jax.tree.leaves(value):
        if jnp.issubdtype(part.dtype, jnp.floating) and not bool(_finite(jnp.asarray(part))):
            raise ValueError(f"tensor {path!r} holds NaN or Inf; the file is damaged")
    return value if isinstance(value, QTensor) else jnp.asarray(value, jnp.float32)


_finite = jax.jit(lambda x: jnp.isfinite(x).all())
