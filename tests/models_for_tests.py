"""Small random models and tokenizers that several test files share."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers

from qlab.models import opt
from qlab.models.tokenizer import Tokenizer
from qlab.models.transformer import Config, Label, Linear, Transformer

CONFIG = Config(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=256,
)
OPT_CONFIG = opt.OPTConfig(
    vocab_size=320,
    hidden_size=64,
    ffn_dim=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=256,
)


def byte_tokenizer(eos_ids=(0,)) -> Tokenizer:
    """Byte-level BPE: an end token, the 256 bytes, a few merges."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("Ġ", "a")]
    tokens = ["<|endoftext|>", *alphabet, *("".join(pair) for pair in merges)]
    definition = tokenizers.Tokenizer(
        models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges)
    )
    definition.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    definition.decoder = decoders.ByteLevel()
    definition.add_special_tokens(["<|endoftext|>"])
    return Tokenizer(definition, eos_ids)


def random_model(
    config: Config | opt.OPTConfig = CONFIG, seed: int = 0, scale: float = 8.0
) -> Transformer:
    """A random model with uneven norm gains (and OPT's biases); larger weights than at the start of
    training, so that every part of it matters to the logits."""
    init = opt.init if isinstance(config, opt.OPTConfig) else Transformer.init
    model = init(config, jax.random.key(seed))
    rng = np.random.default_rng(seed)

    def spread(leaf):
        if leaf.ndim == 1:
            return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
        return leaf * scale

    model = jax.tree.map(spread, model)
    model.label = Label("random", byte_tokenizer(), notes=("random weights",))
    return model


def tokens_for(model: Transformer, batch: int = 2, time: int = 24, seed: int = 0) -> jax.Array:
    shape = (batch, time)
    return jax.random.randint(jax.random.key(seed), shape, 0, model.config.vocab_size)


def hub_tensors(model: Transformer) -> dict[str, np.ndarray]:
    """The tensors under the names and in the layout of a hub's checkpoint."""
    tensors = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        path = jax.tree_util.keystr(keys, simple=True, separator=".")
        if not path.startswith("lm_head"):
            path = f"model.{path}" if model.config.model_type == "llama" else opt_name(path)
        tensors[path] = np.asarray(leaf)
    return tensors


def opt_name(path: str) -> str:
    """The hub's name of an OPT tensor."""
    return "model.decoder." + path.replace("norm.", "final_layer_norm.", path.startswith("norm."))


def write_hub_folder(model: Transformer, folder, shards: int = 1, **facts) -> None:
    """`model` as a hub's folder: config.json, one safetensors or an index with shards."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = {
        "llama": {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu"},
        "opt": {"architectures": ["OPTForCausalLM"], "activation_function": "relu"},
    }
    config = {
        "model_type": model.config.model_type,
        **kind[model.config.model_type],
        "eos_token_id": 0,
        **dataclasses.asdict(model.config),
        **facts,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(model.tokenizer.to_json())
    tensors = hub_tensors(model)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    index = {}
    for i in range(shards):
        name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[i::shards]}
        save_file(part, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def with_biases(model: Transformer, seed: int = 3, names=None) -> Transformer:
    """A copy with random biases on the named linears (all where None)."""
    from qlab.models.surgery import map_linears

    rng = np.random.default_rng(seed)

    def change(path, layer):
        if names is not None and path.rpartition(".")[2] not in names:
            return layer
        bias = rng.normal(0, 0.3, layer.weight.shape[0])
        return Linear(layer.weight, jnp.asarray(bias, jnp.float32))

    return map_linears(model, change)
