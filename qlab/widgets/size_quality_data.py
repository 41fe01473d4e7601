"""The ladder of GGUF mixtures, as `benchmarks/gguf_ladder.py` wrote it, and what one file judged on
one text shows of it. Nothing is measured here: every move is a lookup.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from qlab.models.mixtures import Row, as_it_is, bits_per_weight, layer_of
from qlab.plots.widget_size_quality import KINDS, Measured, Part, Point, SizeQualityData
from qlab.suggest import near

MOST = 10.0  # bits per weight of the files that are drawn: the floats lose nothing


@dataclasses.dataclass(frozen=True)
class SizeQualityState:
    """What is chosen: a `model`, one of its files (a mixture, and the text of its importance
    matrix or ""), and the text that `judged` it.
    """

    model: str = "tiny"
    file: str = "Q4_K_M"
    imatrix: str = ""
    judged: str = "english"


@dataclasses.dataclass(frozen=True, eq=False)
class Rung:
    """One measured file.

    Attributes:
        file, imatrix: the mixture and the text of its matrix.
        plan: every tensor.
        file_bytes: of the whole file.
        entry: the table's scores.
    """

    file: str
    imatrix: str
    plan: tuple[Row, ...]
    file_bytes: int
    entry: Mapping[str, Any]

    @property
    def bits(self) -> float:
        """Bits per weight of all tensors."""
        return bits_per_weight(self.plan)

    def score(self, judged: str, what: str) -> Measured | None:
        """A score and its bar, or a difference; None where there is none."""
        found = self.entry[judged].get(what)
        return found and (found[0], found[1])


Ladder = dict[tuple[str, str], Rung]


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """All models.

    Attributes:
        facts: the protocol, as JSON values.
        models: name -> its files, the largest first.
    """

    facts: Mapping[str, Any]
    models: Mapping[str, Ladder]

    def ladder(self, model: str) -> Ladder:
        """The files of a model.

        Raises:
            ValueError: a model that was not measured; the nearest is named.
        """
        if model not in self.models:
            raise ValueError(f"no files of {model!r} were measured: {near(model, self.models)}")
        return self.models[model]

    def files(self, model: str) -> list[str]:
        """The files that can be chosen, the smallest first."""
        found = [one.file for one in self.ladder(model).values() if one.bits < MOST]
        return [*dict.fromkeys(found)][::-1]

    def matrices(self, model: str, file: str) -> list[str]:
        """The importance matrices that a file was made with; "" is none.

        Raises:
            ValueError: a file that was not measured; the nearest is named.
        """
        if file not in (known := self.files(model)):
            raise ValueError(f"no file {file!r} of {model!r} was measured: {near(file, known)}")
        order = ["", *self.facts["judged"]]
        found = {read for name, read in self.ladder(model) if name == file}
        return sorted(found, key=order.index)


def table_of(table: Mapping[str, Any] | str | os.PathLike | None = None) -> Table:
    """The ladder's table.

    Args:
        table: the file that `benchmarks/gguf_ladder.py` wrote, or what is in it; None: the
            bundled one.

    Example:
        >>> table_of().matrices("tiny", "Q4_K_M")
        ['', 'english', 'korean']
    """
    given = table
    if not isinstance(given, Mapping):
        bundled = files("qlab.data").joinpath("gguf_ladder.json")
        file = bundled if given is None else Path(given).expanduser()
        given = json.loads(file.read_text(encoding="utf-8"))
    models = {name: _ladder(found) for name, found in given["models"].items()}
    return Table({key: v for key, v in given.items() if key != "models"}, models)


def _ladder(found: Mapping[str, Any]) -> Ladder:
    rungs = {}
    for entry in found["rows"]:
        types = entry["types"].split()
        wanted = entry.get("wanted", entry["types"]).split()
        plan = tuple(
            dataclasses.replace(as_it_is(name, tuple(shape), kind), wanted=asked)
            for (name, shape), kind, asked in zip(found["tensors"], types, wanted, strict=True)
        )
        at = (entry["mixture"], entry["imatrix"])
        rungs[at] = Rung(*at, plan, entry["file_bytes"], entry)
    return rungs


def size_quality_data(table: Table, state: SizeQualityState) -> SizeQualityData:
    """Everything that the picture shows.

    Raises:
        ValueError: a model, file or matrix that was not measured; the nearest is named.

    Example:
        >>> data = size_quality_data(table_of(), SizeQualityState())
        >>> f"{data.bits:.2f}", data.larger
        ('5.26', 'Q5_K_S')
    """
    ladder, judged = table.ladder(state.model), state.judged
    known = table.matrices(state.model, state.file)
    if state.imatrix not in known:
        measured = ", ".join(read or "none" for read in known)
        raise ValueError(
            f"{state.file} of {state.model!r} has no importance matrix {state.imatrix!r}: "
            f"measured are {measured}"
        )
    here = ladder[state.file, state.imatrix]
    larger = ladder.get((here.entry.get("larger", ""), state.imatrix))
    floor = ladder.get(("F16", ""))
    return SizeQualityData(
        **dataclasses.asdict(state),
        points=tuple(_point(one, judged) for one in ladder.values() if one.bits < MOST),
        bits=here.bits,
        bytes=sum(row.bytes for row in here.plan),
        file_bytes=here.file_bytes,
        top1=here.score(judged, "same_top1") or (1.0, 0.0),
        dlnppl=here.score(judged, "dlnppl") or (0.0, 0.0),
        plain=here.score(judged, "plain"),
        larger=larger.file if larger and larger.bits < MOST else None,
        larger_bits=larger.bits if larger else None,
        step=here.score(judged, "larger"),
        plan=parts_of(here.plan),
        floor=floor.score(judged, "kl") if floor else None,
        scored=(table.facts["scored"][state.model], table.facts["context"]),
    )


def _point(rung: Rung, judged: str) -> Point:
    kl = rung.score(judged, "kl") or (0.0, 0.0)
    return Point(rung.file, rung.imatrix, rung.bits, kl, rung.score(judged, "plain"))


def parts_of(plan: tuple[Row, ...]) -> tuple[Part, ...]:
    """The tensors by kind and layer; norms and biases together.

    Example:
        >>> [part.kind for part in parts_of(table_of().models["tiny"]["Q8_0", ""].plan)][:3]
        ['embedding', 'q', 'k']
    """
    order = [*dict.fromkeys(KINDS.values()), "norms"]
    found = [
        Part(_kind(row), layer_of(row.name), row.type, row.wanted, row.bytes, row.weights)
        for row in plan
    ]
    return tuple(sorted(found, key=lambda part: (order.index(part.kind), part.layer)))


def _kind(row: Row) -> str:
    name = row.name.split(".")[-2]
    return KINDS.get(name, "norms") if row.name.endswith(".weight") else "norms"
