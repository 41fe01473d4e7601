"""What `make tables` measures, as data: models, tables, rows, and what is compared in pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import qlab
from qlab.methods.smoothquant import LEVELS
from qlab.models import with_outliers

TEXTS = ("english", "code", "math", "korean")
SEED = 0
FLOOR = "float, other batch"
CALIBRATION: dict[str, Any] = {"texts": TEXTS, "tokens": 16_384, "context": 256, "seed": SEED}
FEWER = {"smollm2-135m": {"tokens": 8192}}  # twelve rows in half an hour of two cores


class Model(NamedTuple):
    """A model that is measured: how it is had, and the windows of every text."""

    load: Callable[[], Any]
    windows: int


class Row(NamedTuple):
    """How a row's model is made: a method of METHODS, a Spec, settings, quantized inputs."""

    method: str
    spec: qlab.Spec
    hyper: dict[str, Any] = {}
    act: str | None = None

    @property
    def calibrated(self) -> bool:
        """Whether it reads text."""
        static = self.act is not None and qlab.ACTS[self.act].static
        return static or qlab.METHODS[self.method].propagate != "none"


class Table(NamedTuple):
    """Rows on some models; the first row is the float model."""

    rows: dict[str, Row | None]
    models: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = ()  # (row, less which other)
    notes: tuple[str, ...] = ()


MODELS = {
    "tiny": Model(lambda: qlab.load("tiny"), 64),
    "tiny with outliers": Model(lambda: with_outliers(qlab.load("tiny")), 64),
    "smollm2-135m": Model(lambda: qlab.load("smollm2-135m"), 8),
}
PLAIN = ("smollm2-135m", "tiny")
BITS = (4, 3, 2)
GRID = "Integers with zero points, float32 scales: `qlab.specs.gptq(bits, group, sym=False)`."


def _grid(bits: int, group: int | None = 64) -> qlab.Spec:
    return qlab.specs.gptq(bits, group, sym=False)


def _rounding() -> Table:
    names = {"INT8 channel": "int8_channel", "INT4 channel": "int4_channel"}
    names |= {
        f"INT{bits} g{g}": f"int{bits}_g{g}" for bits, g in ((4, 64), (4, 32), (3, 64), (2, 64))
    }
    rows: dict[str, Row | None] = {"float": None, FLOOR: None}
    return Table(rows | {n: Row("rtn", qlab.SPECS[spec]) for n, spec in names.items()}, PLAIN)


def _gptq() -> Table:
    """The paper's comparison on its own grid."""
    rows: dict[str, Row | None] = {"float": None}
    pairs = []
    for bits in BITS:
        for place, group in (("g64", 64), ("channel", None)):
            spec, what = _grid(bits, group), f"{bits} bit {place}"
            rows[f"RTN {what}"] = Row("rtn", spec)
            rows[f"GPTQ {what}"] = Row("gptq", spec)
            rows[f"GPTQ {what} act-order"] = Row("gptq", spec, {"act_order": True})
            pairs += [(f"GPTQ {what}", f"RTN {what}"), (f"GPTQ {what} act-order", f"GPTQ {what}")]
    return Table(rows, PLAIN, tuple(pairs), (GRID,))


def _weights() -> Table:
    """All methods for weights alone, in groups of 64."""
    rows: dict[str, Row | None] = {"float": None}
    pairs = []
    for bits in BITS:
        spec, what = _grid(bits), f"{bits} bit g64"
        rows[f"RTN {what}"] = Row("rtn", spec)
        rows[f"RTN {what} real zero"] = Row("rtn", qlab.specs.hqq(bits))
        rows[f"HQQ {what}"] = Row("hqq", qlab.specs.hqq(bits))
        rows[f"AWQ {what}"] = Row("awq", spec)
        rows[f"GPTQ {what}"] = Row("gptq", spec)
        rows[f"AWQ+GPTQ {what}"] = Row("awq", spec, {"quantizer": "gptq"})
        pairs += [(f"{name} {what}", f"RTN {what}") for name in ("HQQ", "AWQ", "GPTQ", "AWQ+GPTQ")]
        pairs += [(f"AWQ+GPTQ {what}", f"GPTQ {what}")]
        pairs += [(f"RTN {what} real zero", f"RTN {what}")]
        pairs += [(f"HQQ {what}", f"RTN {what} real zero")]
    notes = (
        GRID,
        "HQQ, and RTN with a real zero: float16 scales and real zero points, "
        "`qlab.specs.hqq(bits)`, no text. Such a grid need not contain 0. Where loud inputs meet "
        "small weights (SmolLM2, not tiny) that costs more at 3 bits than HQQ's search wins: "
        '`experiments/README.md`, "Must a grid contain 0?".',
    )
    return Table(rows, PLAIN, tuple(pairs), notes)


def _w8a8() -> Table:
    """Weights and inputs of 8 bits: the paper's levels, with and without its scales."""
    rows: dict[str, Row | None] = {"float": None}
    pairs = []
    for level, (weights, act) in LEVELS.items():
        spec = qlab.SPECS[weights]
        rows[f"W8A8 {act[5:]}"] = Row("rtn", spec, act=act)
        rows[f"SmoothQuant {level}"] = Row("smoothquant", spec, act=act)
        pairs.append((f"SmoothQuant {level}", f"W8A8 {act[5:]}"))
    spec, act = LEVELS["O3"]
    rows["SmoothQuant O3 searched"] = Row("smoothquant", qlab.SPECS[spec], {"alpha": "search"}, act)
    rows["LLM.int8()"] = Row("rtn", qlab.SPECS["int8_channel"], act="llm_int8")
    pairs += [("SmoothQuant O3 searched", "SmoothQuant O3"), ("LLM.int8()", "W8A8 token")]
    notes = (
        "Weights INT8 per tensor (LLM.int8(): per channel); inputs of all linears INT8 per token, "
        "per tensor of one sequence (dynamic) or per tensor, found on the calibration text "
        "(static); products int8 × int8 → int32. α = 0.5 but for the searched one.",
        "`tiny with outliers`: a few norm gains times 50, their consumers' columns divided by it "
        "(`qlab.models.with_outliers`); the float function is the same.",
    )
    return Table(rows, ("smollm2-135m", "tiny with outliers"), tuple(pairs), notes)


TABLES: dict[str, Table] = {
    "Round to nearest": _rounding(),
    "GPTQ": _gptq(),
    "Weights alone": _weights(),
    "Weights and inputs": _w8a8(),
}
ROWS: dict[str, Row | None] = {n: row for table in TABLES.values() for n, row in table.rows.items()}
