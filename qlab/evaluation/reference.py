"""The reference runs once per text: its final hidden states are kept in a memory-mapped file.

hidden_size numbers a token instead of vocab_size (85 times fewer for SmolLM2); logits are
recomputed from them. A file's name is the hash of all that decides its content: weights, tokens,
batch, arithmetic, versions, and the code that ran.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlab.cache import cache_dir
from qlab.evaluation.windows import Windows
from qlab.models import kv, opt, transformer
from qlab.models.provenance import weights_hash

__all__ = ["arithmetic", "batches", "states", "states_file", "weights_hash"]

LIMIT = 4 * 2**30  # bytes of kept states; the longest unused go first


def arithmetic() -> str:
    """The numbers' width and the device they are computed on, in words."""
    device = jax.devices()[0]
    return f"float32, matmul precision highest, {device.platform} ({device.device_kind})"


def batches(model: Any, windows: Windows, batch: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Runs `batch` windows at a time: yields (start, stop, states (windows, scored, hidden)).

    The last batch is filled up with its first window, so that one compiled program serves all.
    """
    count, context = windows.tokens.shape
    for start in range(0, count, batch):
        stop = min(start + batch, count)
        tokens = windows.tokens[start:stop]
        filled = np.concatenate([tokens, np.repeat(tokens[:1], batch - (stop - start), axis=0)])
        hidden = model.hidden(jnp.asarray(filled))[: stop - start, windows.first : context - 1]
        yield start, stop, np.asarray(hidden, np.float32)


def states_file(weights: str, windows: Windows, batch: int) -> Path:
    """Where the states of these weights on these windows are kept."""
    code = hashlib.sha256("".join(map(inspect.getsource, (transformer, opt, kv))).encode())
    what = [weights, windows.hash, batch, arithmetic(), jax.__version__, code.hexdigest()]
    folder = cache_dir() / "states"
    folder.mkdir(exist_ok=True)
    return folder / f"{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]}.npy"


def states(
    model: Any, weights: str, windows: Windows, batch: int, progress: Callable[[int], None]
) -> np.ndarray:
    """The scored states (windows, scored, hidden) float32, from the file or computed into it.

    Args:
        model: dense, with `hidden`.
        weights: its `weights_hash`.
        windows: what to run.
        batch: windows at a time.
        progress: called with the number of windows just done.
    """
    path = states_file(weights, windows, batch)
    if path.exists():
        os.utime(path)
        progress(len(windows.tokens))
        return np.load(path, mmap_mode="r")
    shape = (*windows.targets.shape, model.config.hidden_size)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    kept = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
    for start, stop, hidden in batches(model, windows, batch):
        kept[start:stop] = hidden
        progress(stop - start)
    kept.flush()
    os.replace(temporary, path)
    _trim(path.parent, keep=path)
    return np.load(path, mmap_mode="r")


def _trim(folder: Path, keep: Path) -> None:
    """Removes the longest unused files beyond LIMIT bytes."""
    files = sorted(folder.glob("*.npy"), key=lambda f: f.stat().st_mtime, reverse=True)
    total = 0
    for file in files:
        total += file.stat().st_size
        if total > LIMIT and file != keep:
            file.unlink()
