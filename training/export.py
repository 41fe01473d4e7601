"""Writes a checkpoint as the bundled model: bfloat16 safetensors under hub names, and its story.

The same checkpoint gives the same bytes. `training.json` tells how the weights came to be: loss
curve, seeds, hashes of the data, tokens seen, versions, wall time.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from qlab.models.transformer import Transformer
from training import muon, train

MANIFEST = Path(__file__).with_name("corpus.json")
TARGET = Path(__file__).parent.parent / "qlab" / "data" / "tiny"
OPTIMIZER = {
    "muon_rate": train.MUON_RATE,
    "adam_rate": train.ADAM_RATE,
    "warm_up_steps": train.WARM_UP,
    "flat": train.FLAT,
    "clip": muon.CLIP,
    "momentum": muon.MOMENTUM,
    "rms": muon.RMS,
    "decay": muon.DECAY,
    "betas": [muon.BETA1, muon.BETA2],
}
LIMIT = 16e6  # bytes of the weights' file


def tensors(model: Transformer) -> dict[str, np.ndarray]:
    """Returns {hub name: bfloat16 array}; a tied head is not written."""
    matrices, rest = muon.split(model)
    return {
        f"model.{path}": np.asarray(leaf.astype(jnp.bfloat16))
        for path, leaf in sorted((matrices | rest).items())
    }


def hub_config() -> dict[str, Any]:
    """Returns `config.json` as a Llama of the hub has it."""
    c = train.CONFIG
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "hidden_act": "silu",
        "rope_theta": c.rope_theta,
        "rms_norm_eps": c.rms_norm_eps,
        "max_position_embeddings": c.max_position_embeddings,
        "tie_word_embeddings": c.tie_word_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": None,
        "eos_token_id": 0,
        "dtype": "bfloat16",
    }


def curve(log: Path, last: int, points: int = 200) -> tuple[list[dict], list[dict]]:
    """Returns (loss curve of means over stretches of steps, held-out losses) up to step `last`.

    A resumed run repeats the steps since its checkpoint; the last record of a step counts.
    """
    records = {}
    for line in log.read_text().splitlines():
        record = json.loads(line)
        if record["step"] <= last:
            records[record["step"]] = record
    ordered = [records[step] for step in sorted(records)]
    size = max(1, len(ordered) // points)
    means = [
        {
            "step": part[-1]["step"],
            "tokens": part[-1]["tokens"],
            "loss": round(sum(r["loss"] for r in part) / len(part), 4),
            "rate": part[-1]["rate"],
        }
        for part in (ordered[i : i + size] for i in range(0, len(ordered), size))
    ]
    held = [
        {
            "step": r["step"],
            "tokens": r["tokens"],
            **{d: round(v, 4) for d, v in r["held_out"].items()},
        }
        for r in ordered
        if "held_out" in r
    ]
    return means, held


def story(folder: Path, checkpoint: Path, step: int, seconds: float, seed: int) -> dict[str, Any]:
    """Returns `training.json`."""
    manifest = json.loads(MANIFEST.read_text())
    losses, held = curve(checkpoint.parent / "log.jsonl", step)
    return {
        "recipe": "training/README.md",
        "parameters": 0,
        "steps": step,
        "tokens": step * train.BATCH * train.WINDOW,
        "finished": losses[-1]["rate"] < 1e-3 if losses else False,
        "wall_seconds": round(seconds),
        "tokens_per_second": round(step * train.BATCH * train.WINDOW / max(seconds, 1)),
        "batch": train.BATCH,
        "window": train.WINDOW,
        "seeds": {"weights": seed, "order": seed, "corpus": manifest["seed"]},
        "optimizer": OPTIMIZER,
        "data": {
            "tokens": manifest["tokens"],
            "sha256": manifest["sha256"],
            "tokenizer_sha256": manifest["tokenizer_sha256"],
            "texts_sha256": manifest["texts_sha256"],
            "groups": {g: sum(found.values()) for g, found in manifest["groups"].items()},
        },
        "versions": {
            "python": platform.python_version(),
            "jax": jax.__version__,
            "numpy": np.__version__,
        },
        "units": "loss: mean negative log-likelihood per token, nats; held out: first 16 windows "
        "of each calibration text",
        "loss": losses,
        "held_out": held,
    }


def write(path: Path, fill: Callable[[Path], Any]) -> None:
    """Fills a file under another name and then puts it in place."""
    partial = path.with_name(path.name + ".partial")
    fill(partial)
    os.replace(partial, path)


def export(folder: Path, checkpoint: Path, target: Path = TARGET, seed: int = 0) -> None:
    """Writes model.safetensors, config.json, tokenizer.json and training.json.

    Args:
        folder: the folder given to fetch; holds tokenizer.json.
        checkpoint: a file of `training.train`, with log.jsonl beside it.
        target: folder to write.
        seed: of the run.

    Raises:
        ValueError: the weights take more than 16 MB, or the tokenizer is not the corpus's.
    """
    (model, _), step, seconds = train.restore(checkpoint, train.start(train.CONFIG, seed))
    raw = save(tensors(model), metadata={"format": "pt"})
    if len(raw) > LIMIT:
        raise ValueError(f"the weights take {len(raw)} bytes, more than {LIMIT:.0f}")
    told = story(folder, checkpoint, step, seconds, seed)
    told["parameters"] = sum(leaf.size for leaf in jax.tree.leaves(model))
    told["weights_sha256"] = hashlib.sha256(raw).hexdigest()
    source = folder / "tokenizer.json"
    if hashlib.sha256(source.read_bytes()).hexdigest() != told["data"]["tokenizer_sha256"]:
        raise ValueError(f"{source.name} is not the tokenizer of the corpus")
    target.mkdir(parents=True, exist_ok=True)
    write(target / "model.safetensors", lambda p: p.write_bytes(raw))
    write(target / "config.json", lambda p: p.write_text(json.dumps(hub_config(), indent=1) + "\n"))
    write(target / "tokenizer.json", lambda p: shutil.copyfile(source, p))
    write(target / "training.json", lambda p: p.write_text(json.dumps(told, indent=1) + "\n"))
    print(f"step {step}: {len(raw)} bytes, sha256 {told['weights_sha256'][:16]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the folder given to fetch")
    parser.add_argument("--checkpoints", default="checkpoints", help="name of their folder")
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    found = train.checkpoints(arguments.folder / arguments.checkpoints)
    if not found:
        raise ValueError(f"no checkpoint in {arguments.folder / arguments.checkpoints}")
    export(arguments.folder, found[-1], arguments.target)


if __name__ == "__main__":
    main()
