"""A folder of finished blocks: a run that was killed goes on from the last of them, to the same
bytes.

    run.json                          all that decides the result
    block-0003.safetensors, .json     what block 3 became, and its rows of the report
    states/0004/                      what block 4 reads

Every file is written under another name and moved into place, block-0003.json last: a block is
finished exactly if it is there. A run that finished none has nothing to lose: another may take its
folder.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from safetensors.numpy import save_file

from qlab.io.atomic import atomic_file
from qlab.io.safetensors import leaves, qtensor, read_json, read_safetensors
from qlab.models.report import LayerReport
from qlab.qtensor import QTensor

NAMED = 4  # differences that a sentence names
ABSENT = "not set"  # never a JSON text: those have quotation marks
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
        self.facts = json.loads(json.dumps(facts))  # as they come back from the file
        if (self.path / "run.json").exists():
            self._join(read_json(self.path / "run.json"))
        elif names_in(self.path):
            raise ValueError(f"the folder {self.path} holds something else: give an empty one")
        else:
            write_json(self.path / "run.json", self.facts)
        self.states.mkdir(exist_ok=True)

    def _join(self, old: Mapping[str, Any]) -> None:
        """Goes on with the run that is there, or takes the place of one that finished nothing."""
        unfinished = {"run.json", "states", self._block(0, "safetensors").name}
        if old == self.facts or names_in(self.path) - unfinished:
            return check_same(self.path, old, self.facts)
        shutil.rmtree(self.states, ignore_errors=True)  # what the other run's first block reads
        write_json(self.path / "run.json", self.facts)

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
            tensors[path] = qtensor(path, facts["quantized"][path], tensors)
        return tensors, [LayerReport.from_dict(row) for row in facts["rows"]]

    def finish(self, block: int, done: Finished) -> None:
        """Keeps a block.

        Raises:
            ValueError: another run has taken the folder meanwhile.
        """
        check_same(self.path, read_json(self.path / "run.json"), self.facts)
        tensors, quantized = leaves(done[0])
        if tensors:
            part = self.path / "block.part"
            save_file(tensors, part)
            os.replace(part, self._block(block, "safetensors"))
        rows = [dataclasses.asdict(row) for row in done[1]]
        write_json(self._block(block, "json"), {"quantized": quantized, "rows": rows})

    def _block(self, block: int, ending: str) -> Path:
        return self.path / f"block-{block:04d}.{ending}"


def hold(folder: Path) -> Any:
    """Keeps a folder to one run until what is returned is closed.

    Raises:
        ValueError: another run holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: two runs may not share a folder there, unwatched
        return None
    lock = open(folder / ".lock", "a")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise ValueError(f"another run is using the folder {folder}: give each its own") from None
    return lock


def names_in(folder: Path) -> set[str]:
    """What a folder holds, without hidden files and what a killed run left half written."""
    names = {path.name for path in folder.iterdir()}
    return {name for name in names if not name.startswith(".") and not name.endswith(".part")}


def check_same(folder: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises ValueError where two runs differ, saying in what."""
    said = [
        f"{name} was {_short(before)}, is {_short(now)}"
        for name, before, now in differences(old, new)
    ]
    if said:
        more = f"; and {len(said) - NAMED} more" if len(said) > NAMED else ""
        raise ValueError(
            f"the folder {folder} holds another run: {'; '.join(said[:NAMED])}{more}. Give another "
            "folder, or delete it"
        )


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], inside: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Name, old and new value of every leaf that two nested mappings do not share.

    Example:
        >>> list(differences({"hyper": {"damp": 1}, "spec": 4}, {"hyper": {"damp": 2}, "spec": 4}))
        [('hyper.damp', 1, 2)]
    """
    for key in {**old, **new}:
        before, now = old.get(key, ABSENT), new.get(key, ABSENT)
        if isinstance(before, Mapping) and isinstance(now, Mapping):
            yield from differences(before, now, f"{inside}{key}.")
        elif before != now:
            yield f"{inside}{key}", before, now


def _short(value: Any) -> str:
    text = value if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 72 else text[:71] + "…"  # a hash is whole


def write_json(path: Path, value: Any) -> None:
    """Writes JSON values to a file, whole or not at all."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(path, overwrite=True) as sink:
        sink.write(text.encode())
