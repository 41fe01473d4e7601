"""A folder of finished blocks: a run that was killed goes on from the last of them, to the same
bytes.

    run.json                          all that decides the result
    block-0003.safetensors, .json     what block 3 became, and its rows of the report
    states/0004/                      what block 4 reads

Every file is written under another name and moved into place, block-0003.json last: a block is
finished exactly if it is there.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from safetensors.numpy import save_file

from qlab.io.safetensors import _leaves, _qtensor, read_json, read_safetensors
from qlab.models.report import LayerReport
from qlab.qtensor import QTensor

Finished = tuple[dict[str, QTensor | jax.Array], list[LayerReport]]


class Folder:
    """The finished blocks of one run.

    Args:
        path: made if it is not there.
        facts: all that decides the result, as JSON values.

    Raises:
        ValueError: the folder holds something else, or a run that differs: the sentence says in
            what.
    """

    def __init__(self, path: str | os.PathLike, facts: Mapping[str, Any]):
        self.path = Path(path).expanduser()
        self.states = self.path / "states"
        if self.path.is_file():
            raise ValueError(f"cache={str(path)!r} is a file; give a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        facts = json.loads(json.dumps(facts))  # as they come back from the file
        if (self.path / "run.json").exists():
            _check_same(self.path, read_json(self.path / "run.json"), facts)
        elif any(not p.name.endswith(".part") for p in self.path.iterdir()):
            raise ValueError(f"the folder {self.path} holds something else: give an empty one")
        else:
            _write(self.path / "run.json", facts)
        self.states.mkdir(exist_ok=True)

    @property
    def finished(self) -> int:
        """How many blocks are finished."""
        count = 0
        while self._block(count, "json").exists():
            count += 1
        return count

    def load(self, block: int) -> Finished:
        """One finished block: its QTensors by path, and its rows of the report."""
        facts = read_json(self._block(block, "json"))
        tensors: dict[str, Any] = {}
        if facts["quantized"]:
            tensors = dict(read_safetensors(self._block(block, "safetensors")))
        # Nested QTensors have the longer paths: made first, they are parts of the outer ones.
        for path in sorted(facts["quantized"], key=len, reverse=True):
            tensors[path] = _qtensor(path, facts["quantized"][path], tensors)
        return tensors, [LayerReport.from_dict(row) for row in facts["rows"]]

    def finish(self, block: int, done: Finished) -> None:
        """Keeps a block."""
        tensors, quantized = _leaves(done[0])
        if tensors:
            part = self.path / "block.part"
            save_file(tensors, part)
            os.replace(part, self._block(block, "safetensors"))
        rows = [dataclasses.asdict(row) for row in done[1]]
        _write(self._block(block, "json"), {"quantized": quantized, "rows": rows})

    def _block(self, block: int, ending: str) -> Path:
        return self.path / f"block-{block:04d}.{ending}"


def _check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    differ = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if differ:
        said = "; ".join(f"{key} was {_short(old, key)}, is {_short(new, key)}" for key in differ)
        raise ValueError(
            f"the folder {folder} holds another run: {said}. Give another folder, or delete it"
        )


def _short(facts: Mapping[str, Any], key: str) -> str:
    text = json.dumps(facts.get(key), ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"


def _write(path: Path, value: Any) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(part, path)
