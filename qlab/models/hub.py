"""Reading a folder in the hub's layout: config.json, weights (one file or
sharded), a tokenizer.

`read_folder` makes a model of it; `fetch` gets a hub id's folder through huggingface_hub. Not here:
names, our own artifacts and GGUF files (`load`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from qlab.io.gguf_values import Value
from qlab.io.pytorch import read_pytorch
from qlab.io.safetensors import read_json, read_safetensors
from qlab.models.architectures import assemble, hub_biases, hub_config, hub_path
from qlab.models.tokenizer import Tokenizer, from_json, from_vocabulary
from qlab.models.transformer import Label, Transformer

# All that a model needs; other frameworks' copies are not fetched.
WANTED = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "*.safetensors",
    "*.index.json",
)
# Where the weights are, best first. Pickled ones are fetched only where there are no others.
WEIGHTS = {"model.safetensors": read_safetensors, "pytorch_model.bin": read_pytorch}


def fetch(name: str) -> Path:
    """The local folder of a hub id such as "HuggingFaceTB/SmolLM2-135M", downloaded once.

    Raises:
        ConnectionError: the hub cannot be reached and nothing is cached, or it has no such model.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, allow_patterns=list(WANTED)))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=[*WANTED, "pytorch_model*.bin"]))
        return folder
    except Exception as error:  # the client's errors come from several libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConnectionError(
            f"the model {name!r} could not be fetched from the hub "
            f"({type(error).__name__}: {reason}); check the name and the "
            "connection, or give a local folder"
        ) from None


def read_folder(folder: Path, name: str | None = None) -> Transformer:
    """A model from a folder in the hub's layout, weights as float32.

    Args:
        folder: holds config.json and weights; tokenizer.json, or vocab.json and merges.txt, where
            there is one.
        name: the model's name; the folder's where None.

    Raises:
        ValueError: a part is missing, damaged or of another architecture; the sentence names it.
    """
    facts = read_json(folder / "config.json")
    config = _config(facts, folder / "config.json")
    kind = facts["model_type"]
    tensors = {hub_path(name, kind): t for name, t in read_tensors(folder).items()}
    for path in hub_biases(facts):
        if f"{path}.bias" not in tensors:
            raise ValueError(f"the tensor {path + '.bias'!r} is missing")
    notes = []
    if facts.get("sliding_window") and facts.get("use_sliding_window", True):
        notes.append(
            f"attends to every earlier token; the original to the last {facts['sliding_window']}: "
            "equal up to that length"
        )
    label = Label(
        name=name or folder.resolve().name,
        tokenizer=read_tokenizer(folder),
        notes=tuple(notes),
        provenance={"source": name or folder.resolve().name, "model_type": kind},
        header=_chat_template(folder),
    )
    return assemble(config, tensors, label)


def _config(facts: dict[str, Any], file: Path) -> Any:
    """`hub_config`, where a value that is missing or of another kind is told with its file."""
    try:
        config = hub_config(facts)
    except KeyError as error:
        raise ValueError(f"{file} has no value {error.args[0]!r}") from None
    except (TypeError, AttributeError, ZeroDivisionError) as error:
        raise ValueError(f"{file} has a value of another kind than expected: {error}") from None
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type == "int" and not (isinstance(value, int) and value > 0):
            raise ValueError(f"{file}: {field.name} is {value!r}, not a whole number above 0")
    return config


def read_tensors(folder: Path) -> dict[str, jax.Array]:
    """All tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json`
    lists; else of `pytorch_model.bin` in the same two ways.
    """
    for name, read in WEIGHTS.items():
        index = folder / f"{name}.index.json"
        if index.exists():
            return _read_shards(index, read)
        if (folder / name).exists():
            return read(folder / name)
    raise ValueError(
        f"{folder} has no model.safetensors and no index of shards, nor a pytorch_model.bin"
    )


def _read_shards(index: Path, read: Callable[[Path], dict[str, jax.Array]]) -> dict[str, jax.Array]:
    listed = read_json(index).get("weight_map", {})
    if not isinstance(listed, dict):
        raise ValueError(f"{index} has {listed!r:.60} as weight_map, not the file of each tensor")
    tensors: dict[str, jax.Array] = {}
    for name in sorted(set(listed.values())):
        tensors |= read(index.parent / name)
    lost = sorted(listed.keys() - tensors.keys())
    if lost:
        raise ValueError(f"{index} promises {lost[0]!r}, which no shard holds")
    return tensors


def _chat_template(folder: Path) -> dict[str, Value]:
    """The folder's chat template as a GGUF file carries it on; nothing where there is none."""
    settings = folder / "tokenizer_config.json"
    template = read_json(settings).get("chat_template") if settings.exists() else None
    known = isinstance(template, str)
    return {"tokenizer.chat_template": Value.of("str", template)} if known else {}


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer with the ids that its configs call end and begin; None where there is
    neither a tokenizer.json nor a vocab.json with its merges.txt.
    """
    ids: dict[str, Any] = {}
    for name in ("config.json", "generation_config.json"):  # the later one decides
        if (folder / name).exists():
            facts = read_json(folder / name)
            ids |= {
                key: facts[key]
                for key in ("eos_token_id", "bos_token_id")
                if facts.get(key) is not None
            }
    eos = ids.get("eos_token_id", ())
    eos, bos = (eos,) if isinstance(eos, int) else eos, ids.get("bos_token_id")
    if (folder / "tokenizer.json").exists():
        return from_json(folder / "tokenizer.json", eos, bos)
    if (folder / "vocab.json").exists():
        return from_vocabulary(folder, eos, bos)
    return None
