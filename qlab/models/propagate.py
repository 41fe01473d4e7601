"""Which inputs a layer is calibrated on: the model is walked block by block, and the states between
two blocks wait in files.

    "quantized"   stage by stage, each reads what the quantized layers before it put out
                  (Frantar et al. 2022, arXiv 2210.17323: their `true_sequential`)
    "float"       every stage reads what the float model puts out

Plain reads and writes, a few sequences at a time: memory holds one block and its Stats, however
long the text is.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from qlab.models.calibrate import Batches, check_finite, empty_stats, rows_at_once
from qlab.models.judge import Seen
from qlab.models.taps import through
from qlab.models.transformer import Linear, Transformer, as_array
from qlab.stats import Stats

Stage = Sequence[str]


def dense_block(block: Any) -> Any:
    """A copy of a block with float32 weights, so that all blocks share their compiled programs."""

    def dense(node: Any) -> Any:
        if not isinstance(node, Linear):
            return node
        return Linear(jnp.asarray(as_array(node.weight), jnp.float32), node.bias)

    return jax.tree.map(dense, block, is_leaf=lambda node: isinstance(node, Linear))


class States:
    """What goes in and out of the blocks, in files: `0003/` holds what block 3 reads.

    Args:
        folder: where.
        kinds: "calibration" and, where there are any, "held_out" sequences.
    """

    def __init__(self, folder: Path, kinds: Mapping[str, Batches]):
        self.folder, self.kinds = folder, kinds
        self.rows = rows_at_once(kinds["calibration"])

    def begin(self, model: Transformer, finished: int) -> None:
        """Makes sure that the states block `finished` reads are there, and no others."""
        self.clear(but=finished)
        if finished == 0 and not self._at(0).exists():
            for kind, batches in self.kinds.items():
                for i, (tokens, _) in enumerate(batches.pieces(self.rows)):
                    self.write(0, kind, i, model.embed(jnp.asarray(tokens)))
            self.complete(0)

    def read(self, block: int, kind: str) -> Iterator[tuple[int, jax.Array, jax.Array]]:
        """Number, states (rows, time, hidden) and mask (rows, time) of every piece."""
        for i, (_, mask) in enumerate(self.kinds[kind].pieces(self.rows)):
            yield i, jnp.asarray(np.load(self._at(block) / f"{kind}.{i}.npy")), jnp.asarray(mask)

    def sample(self, block: int) -> tuple[jax.Array, jax.Array]:
        """States and mask of the first piece, of 2,048 tokens or a little less."""
        _, x, mask = next(self.read(block, "calibration"))
        return x, mask

    def write(self, block: int, kind: str, piece: int, x: jax.Array | None) -> None:
        """Keeps one piece of what `block` reads; it counts once `complete` is called."""
        folder = self._part(block)
        folder.mkdir(exist_ok=True)
        np.save(folder / f"{kind}.{piece}.npy", np.asarray(x, np.float32))

    def complete(self, block: int) -> None:
        """All pieces of what `block` reads are written."""
        shutil.rmtree(self._at(block), ignore_errors=True)  # of a run that ended just after this
        os.replace(self._part(block), self._at(block))

    def drop(self, block: int) -> None:
        """`block` is finished: nobody reads its input again."""
        shutil.rmtree(self._at(block), ignore_errors=True)

    def clear(self, but: int | None = None) -> None:
        """Removes all states, but those that one block reads."""
        for path in self.folder.iterdir():
            if path.is_dir() and (but is None or path != self._at(but)):  # no hidden file
                shutil.rmtree(path)

    def _at(self, block: int) -> Path:
        return self.folder / f"{block:04d}"

    def _part(self, block: int) -> Path:
        return self.folder / f"{block:04d}.part"


class Source(Protocol):
    """Where the inputs of a block's stages come from.

    Attributes:
        live: whether `seen` runs the block as it is now, or knows what the float block read.
    """

    live: bool

    def enter(self, index: int, block: Any) -> None:
        """Before a block's first stage; `block` is dense and nothing in it is quantized yet."""
        ...

    def seen(self, index: int, block: Any, stage: Stage) -> dict[str, Seen]:
        """Path inside the block -> what the linears of one stage read; in `block` the stages before
        are quantized.
        """
        ...

    def leave(self, index: int, block: Any) -> None:
        """After a block's last stage, unless it is the last block."""
        ...

    def sample(self, index: int) -> tuple[jax.Array, jax.Array]:
        """Some of what a block reads, (sequences, time, hidden), and its mask."""
        ...


class Given:
    """Stats that somebody else took, or none at all."""

    live = False

    def __init__(self, stats: Mapping[str, Stats]):
        self.stats = stats

    def enter(self, index: int, block: Any) -> None:
        """Nothing to do."""

    def seen(self, index: int, block: Any, stage: Stage) -> dict[str, Seen]:
        """Each linear's own."""
        return {path: Seen(self.stats.get(f"layers.{index}.{path}")) for path in stage}

    def leave(self, index: int, block: Any) -> None:
        """Nothing to do."""

    def sample(self, index: int) -> tuple[jax.Array, jax.Array]:
        """There is none."""
        raise ValueError("objective='block' runs the blocks on text: give batches=, not stats=")


class Float:
    """Every stage reads what the float model puts out: one pass through a block serves them all."""

    live = False

    def __init__(self, states: States):
        self.states = states
        self.found: dict[str, dict[str, Stats]] = {}

    def enter(self, index: int, block: Any) -> None:
        """Reads the whole block, and writes what the next one reads."""
        states, self.found = self.states, {}
        for kind in states.kinds:
            totals = empty_stats(block, block.STAGES)
            for i, x, mask in states.read(index, kind):
                y, totals = through(block, x, mask, totals)
                states.write(index + 1, kind, i, y)
            self.found[kind] = totals
        states.complete(index + 1)

    def seen(self, index: int, block: Any, stage: Stage) -> dict[str, Seen]:
        """Found on entering."""
        return _shared(index, stage, {kind: t[stage[0]] for kind, t in self.found.items()})

    def leave(self, index: int, block: Any) -> None:
        """Done on entering."""

    def sample(self, index: int) -> tuple[jax.Array, jax.Array]:
        """The first sequences."""
        return self.states.sample(index)


class Quantized:
    """Each stage reads what the quantized stages and blocks before it put out."""

    live = True

    def __init__(self, states: States):
        self.states = states

    def enter(self, index: int, block: Any) -> None:
        """Nothing to do yet."""

    def seen(self, index: int, block: Any, stage: Stage) -> dict[str, Seen]:
        """Runs the block up to this stage."""
        found = {}
        for kind in self.states.kinds:
            totals = empty_stats(block, [stage])
            for _, x, mask in self.states.read(index, kind):
                _, totals = through(block, x, mask, totals, output=False)
            found[kind] = totals[stage[0]]
        return _shared(index, stage, found)

    def leave(self, index: int, block: Any) -> None:
        """Writes what the next block reads: the output of this one, all quantized."""
        for kind in self.states.kinds:
            for i, x, mask in self.states.read(index, kind):
                y, _ = through(block, x, mask, {})
                self.states.write(index + 1, kind, i, y)
        self.states.complete(index + 1)

    def sample(self, index: int) -> tuple[jax.Array, jax.Array]:
        """The first sequences."""
        return self.states.sample(index)


def _shared(index: int, stage: Stage, found: Mapping[str, Stats]) -> dict[str, Seen]:
    """One stage's linears read the same input, so they share its Stats."""
    for stats in found.values():
        check_finite(f"layers.{index}.{stage[0]}", stats)
    return dict.fromkeys(stage, Seen(found["calibration"], found.get("held_out")))
