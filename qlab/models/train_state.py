"""The state of a training run and its checkpoints: a step is a function of (state, step) alone, so
a run that was killed goes on to the same bits.

    run.json          all that decides the result
    step-00000100/    orbax: parameters, the optimizer's state, the losses so far

orbax writes a checkpoint under another name and moves it into place, so what is there is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from qlab.activations import Act
from qlab.io.safetensors import read_json
from qlab.models.resume import check_same, hold, names_in, write_json
from qlab.models.transformer import Transformer
from qlab.qtensor import QTensor

Params = dict[str, jax.Array]
KEPT = 2  # checkpoints that stay


class State(NamedTuple):
    """What a step changes."""

    params: Params
    optimizer: Any


# ---- a model and its parameters ------------------------------------------------------------------


def _leaf(node: object) -> bool:
    return isinstance(node, QTensor | Act)


def trainable(model: Transformer) -> Params:
    """The arrays that training moves, by tree path: all but codes, ranges and zero points."""
    found = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(model, is_leaf=_leaf):
        path = jax.tree_util.keystr(keys, simple=True, separator=".")
        if not _leaf(leaf) and not path.endswith(".learned.zero"):
            found[path] = leaf
    return found


def filled(model: Transformer, params: Params) -> Transformer:
    """The model with these parameters in their places."""

    def put(keys: tuple, leaf: Any) -> Any:
        return params.get(jax.tree_util.keystr(keys, simple=True, separator="."), leaf)

    return jax.tree_util.tree_map_with_path(put, model, is_leaf=_leaf)


# ---- checkpoints ---------------------------------------------------------------------------------


class Checkpoints:
    """The folder of one run, which no other process uses until `with` is left.

    Args:
        path: made if it is not there.
        facts: all that decides the result, as JSON values.

    Raises:
        ValueError: the folder holds something else, or another run: the sentence says in what;
            another run is using it.
    """

    def __init__(self, path: str | os.PathLike, facts: Mapping[str, Any]):
        self.path = Path(path).expanduser().resolve()
        if self.path.is_file():
            raise ValueError(f"checkpoint={str(path)!r} is a file; give a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        facts = json.loads(json.dumps(facts))  # as they come back from the file
        if (self.path / "run.json").exists():
            check_same(self.path, read_json(self.path / "run.json"), facts)
        elif names_in(self.path):
            raise ValueError(f"the folder {self.path} holds something else: give an empty one")
        else:
            write_json(self.path / "run.json", facts)
        self.lock = hold(self.path)  # last: an error above must not keep it
        for broken in self.path.glob("step-*.orbax-checkpoint-tmp*"):  # of a run that was killed
            shutil.rmtree(broken, ignore_errors=True)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        if self.lock is not None:
            self.lock.close()

    def steps(self) -> list[int]:
        """The steps that are kept, in order."""
        names = (re.fullmatch(r"step-(\d{8})", path.name) for path in self.path.iterdir())
        return sorted(int(found[1]) for found in names if found)

    def save(self, step: int, state: State, losses: list[float]) -> None:
        """Keeps a state, and drops older ones."""
        import orbax.checkpoint as ocp  # a second to import: only where something is kept

        if step in self.steps():
            return
        tree = {**_flat(state), "losses": np.asarray(losses, np.float32)}
        with ocp.StandardCheckpointer() as writer:
            writer.save(self._place(step), tree)
            writer.wait_until_finished()
        for old in self.steps()[:-KEPT]:
            shutil.rmtree(self._place(old))

    def newest(self, fresh: State) -> tuple[int, State, list[float]]:
        """Step, state and losses of the last checkpoint; of none: step 0 and the fresh state."""
        import orbax.checkpoint as ocp

        if not self.steps():
            return 0, fresh, []
        step = self.steps()[-1]
        like = {**_flat(fresh), "losses": np.zeros(step, np.float32)}
        with ocp.StandardCheckpointer() as reader:
            found = reader.restore(self._place(step), like)
        losses = [float(x) for x in found.pop("losses")]
        leaves, tree = jax.tree.flatten(fresh)
        arrays = [found[f"{i:05d}"] for i in range(len(leaves))]
        return step, jax.tree.unflatten(tree, arrays), losses

    def _place(self, step: int) -> Path:
        return self.path / f"step-{step:08d}"


def _flat(state: State) -> dict[str, Any]:
    """The state's arrays by their number: whatever an optimizer's state is made of."""
    return {f"{i:05d}": leaf for i, leaf in enumerate(jax.tree.leaves(state))}
