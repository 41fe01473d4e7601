"""The calibration lab's table, as `benchmarks/calibration_lab.py` wrote it, and what one choice of
method, bits, windows and judge shows of it. Nothing is computed here: every move is a lookup.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

from qlab.plots.widget_calibration import KL, MIXED, PPL, CalibrationData, Measured
from qlab.suggest import near

RTN = "rtn"


MEASURES = {PPL: "dlnppl", KL: "kl"}  # the picture's name -> the table's


@dataclasses.dataclass(frozen=True)
class CalibrationState:
    """What is chosen: `windows` of calibration, the text that `judged` the models, and by which
    `measure`, a name of MEASURES.
    """

    method: str = "gptq"
    bits: int = 3
    windows: int = 256
    judged: str = "korean"
    measure: str = PPL


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """The rows of one model.

    Attributes:
        model: its name.
        facts: the protocol, as JSON values.
        rows: (method, bits, text, windows) -> entry; RTN's stand under (method, bits).
        control: runs of RTN, and how many of them moved.
    """

    model: str
    facts: Mapping[str, Any]
    rows: Mapping[tuple, Any]
    control: tuple[int, int]

    @cached_property
    def keys(self) -> list[tuple]:
        """Those of the rows that read text."""
        return [key for key in self.rows if len(key) == 4]

    def values(self, place: int) -> tuple[Any, ...]:
        """All methods, bits, texts or windows, by their place in a key."""
        return tuple(dict.fromkeys(key[place] for key in self.keys))

    @property
    def judges(self) -> tuple[str, ...]:
        """The texts that judge."""
        return tuple(self.facts["judged"])

    def start(self, **chosen: Any) -> CalibrationState:
        """The state to begin with: as chosen, else its default where the table has it."""
        fields = dataclasses.fields(CalibrationState)
        offered = (self.values(0), self.values(1), self.values(3), self.judges, tuple(MEASURES))
        usual: dict[str, Any] = {
            field.name: field.default if field.default in values else values[0]
            for field, values in zip(fields, offered, strict=True)
        }
        return CalibrationState(**{**usual, **chosen})


def table_of(
    model: str = "tiny", table: Mapping[str, Any] | str | os.PathLike | None = None
) -> Table:
    """One model's rows of a table.

    Args:
        model: its name in the table.
        table: the file that `benchmarks/calibration_lab.py` wrote, or what is in it; None: the
            bundled one.

    Raises:
        ValueError: a model without rows, or a row that is missing.

    Example:
        >>> table_of().values(3)
        (4, 16, 64, 256)
    """
    given = _read(table)
    models = given["models"]
    if model not in models:
        raise ValueError(f"the calibration lab has no rows of {model!r}: {near(model, models)}")
    found = models[model]
    rows = {_key(entry): entry for entry in found["rows"]}
    control = (found["control"]["runs"], found["control"]["differ"])
    made = Table(model, {k: v for k, v in given.items() if k != "models"}, rows, control)
    wanted = [*product(*(made.values(place) for place in range(4)))]
    wanted += [(RTN, bits) for bits in made.values(1)]
    missing = [key for key in wanted if key not in rows]
    if missing or MIXED not in made.values(2):
        key = missing[0] if missing else (MIXED,)
        raise ValueError(f"the table of {model!r} has no row of {', '.join(map(str, key))}")
    return made


def _read(table: Mapping[str, Any] | str | os.PathLike | None) -> Mapping[str, Any]:
    if isinstance(table, Mapping):
        return table
    bundled = files("qlab.data").joinpath("calibration_lab.json")
    file = bundled if table is None else Path(table).expanduser()
    return json.loads(file.read_text(encoding="utf-8"))


def _key(entry: Mapping[str, Any]) -> tuple:
    if entry["method"] == RTN:
        return RTN, entry["bits"]
    return entry["method"], entry["bits"], entry["text"], entry["windows"]


def difference(entry: Mapping[str, Any], mixed: Mapping[str, Any], measure: str) -> Measured:
    """What a judge's entry differs by from mixed text's: perplexities in pairs; the bars of two
    KLs are added as if they were independent, which makes them wider than in pairs.
    """
    if measure == PPL:
        value, bar = entry["mixed"]
        return value, bar
    (value, bar), (other, other_bar) = entry["kl"], mixed["kl"]
    return value - other, 0.0 if entry is mixed else math.hypot(bar, other_bar)


def calibration_data(table: Table, state: CalibrationState) -> CalibrationData:
    """Everything that the picture shows.

    Example:
        >>> data = calibration_data(table_of(), CalibrationState(windows=256))
        >>> data.farthest, data.matters
        ('code', True)
    """
    texts, sizes, judged = table.values(2), table.values(3), state.judged
    measure, rtn = MEASURES[state.measure], table.rows[RTN, state.bits][judged]
    at = {text: table.rows[state.method, state.bits, text, state.windows] for text in texts}
    every = {text: [table.rows[state.method, state.bits, text, n] for n in sizes] for text in texts}
    return CalibrationData(
        **dataclasses.asdict(state),
        model=table.model,
        texts=texts,
        judges=table.judges,
        sizes=sizes,
        costs={text: _pair(row[judged][measure]) for text, row in at.items()},
        rtn=_pair(rtn[measure]),
        differences={
            text: {j: difference(row[j], at[MIXED][j], state.measure) for j in table.judges}
            for text, row in at.items()
        },
        curves={text: [_pair(row[judged]["kl"]) for row in rows] for text, rows in every.items()},
        rtn_kl=_pair(rtn["kl"]),
        context=table.facts["context"],
        scored=(table.facts["scored"][table.model], table.facts["scored_context"]),
        control=table.control,
    )


def _pair(measured: Sequence[float]) -> Measured:
    value, bar = measured
    return value, bar
