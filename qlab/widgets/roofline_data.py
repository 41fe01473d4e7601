"""The state of `roofline()` and what it may be; predicted speeds are `evaluation.roofline`'s,
measured ones a bench's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from qlab.evaluation.latency import Bench
from qlab.evaluation.machines import HARDWARE
from qlab.evaluation.roofline import Roof, crossover, decode_load, prefill_load, speedup
from qlab.evaluation.shapes import shape_of
from qlab.plots.widget_roofline import FULL, MODELS, Measured, RooflineData
from qlab.suggest import near

OWN, HERE = "own", "measured here"
# Only those whose makers say how fast they multiply have a roof.
DEVICES = {name: device for name, device in HARDWARE.items() if device.flops}
PARAMETERS = (0.135, 0.36, 0.6, 1.0, 1.7, 3.0, 8.0, 14.0, 32.0, 70.0, 123.0, 405.0)
BITS = (2.25, 3.25, 4.25, 5.25, 6.25, 8.25, 16.0, 32.0)
BATCHES = tuple(2**k for k in range(11))
CONTEXTS = (128, 512, 2048, 8192, 32_768, 131_072)
SHOWN = (1, 4, 16, 64)  # batches that have a point
_STEPS = (1.0, 2.0, 5.0)
BANDWIDTHS = sorted(
    {d.bandwidth / 1e9 for d in HARDWARE.values()}
    | {m * 10.0**k for m in _STEPS for k in range(1, 4)}
)
FLOPS = sorted(
    {d.flops / 1e12 for d in DEVICES.values() if d.flops}
    | {m * 10.0**k for m in _STEPS for k in range(-2, 4)}
)


@dataclasses.dataclass(frozen=True)
class RooflineState:
    """`parameters` in billions, `bandwidth` in GB/s, `flops` in TFLOP/s; `bits` of a weight,
    `context` tokens of each of `batch` sequences. A `machine` other than "own" gives its two.
    """

    machine: str = "H100"
    parameters: float = 8.0
    bits: float = 4.25
    batch: int = 1
    context: int = 128
    bandwidth: float = 3350.0
    flops: float = 989.4


def speeds_of(machine: str, bench: Bench | None = None) -> tuple[float, float]:
    """(GB/s, TFLOP/s) of a machine, to three figures where they were measured.

    Args:
        machine: a key of DEVICES, or HERE.
        bench: what was measured.

    Raises:
        ValueError: an unknown machine, one whose maker states no FLOP/s, or HERE without a bench.

    Example:
        >>> speeds_of("H100")
        (3350.0, 989.4)
    """
    if machine == HERE and bench is not None:
        roof = bench.roof(bench.rows[0])
        return float(f"{roof.bandwidth / 1e9:.3g}"), float(f"{roof.peak / 1e12:.3g}")
    if machine in HARDWARE and machine not in DEVICES:
        raise ValueError(
            f"{machine}: its maker states no FLOP/s; machine='own' takes "
            f"bandwidth={HARDWARE[machine].bandwidth / 1e9:g} and flops= (TFLOP/s) that you know"
        )
    if machine not in DEVICES:
        raise ValueError(f"no machine is called {machine!r}: {near(machine, DEVICES)}")
    device = DEVICES[machine]
    return device.bandwidth / 1e9, (device.flops or 0.0) / 1e12


def settled(values: Mapping[str, Any], bench: Bench | None = None) -> dict[str, Any]:
    """What is chosen, so that machine and speeds agree: a machine, upper or lower case, brings its
    two; a speed alone is of the machine "own".

    Raises:
        ValueError: a machine that has speeds of its own, and a speed; or as `speeds_of`.

    Example:
        >>> settled({"machine": "h100"})
        {'machine': 'H100', 'bandwidth': 3350.0, 'flops': 989.4}
        >>> settled({"bandwidth": 100.0})
        {'bandwidth': 100.0, 'machine': 'own'}
    """
    speeds = [name for name in ("bandwidth", "flops") if name in values]
    if "machine" not in values:
        return {**values, "machine": OWN} if speeds else dict(values)
    spelt = {name.lower(): name for name in (OWN, HERE, *HARDWARE)}
    machine = spelt.get(str(values["machine"]).lower(), str(values["machine"]))
    if machine == OWN:
        return {**values, "machine": OWN}
    own = dict(zip(("bandwidth", "flops"), speeds_of(machine, bench)))
    if speeds:
        raise ValueError(
            f"{machine} has {own['bandwidth']:g} GB/s and {own['flops']:g} TFLOP/s: leave "
            f"{speeds[0]}={values[speeds[0]]!r} out, or say machine='own'"
        )
    return {**values, "machine": machine, **own}


def under_roof(bench: Bench) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Models of a bench that are drawn, and in words those that are not: they multiply in another
    dtype than the first, whose roof it is, or there is no colour left.
    """
    kinds = {row.model: row.products for row in bench.rows}
    roof = bench.rows[0].products
    drawn = [model for model, kind in kinds.items() if kind == roof][: len(MODELS)]
    others = {model: kind for model, kind in kinds.items() if model not in drawn}
    words = [f"{model} ({kind})" if kind != roof else model for model, kind in others.items()]
    return tuple(drawn), tuple(words)


def measured_of(bench: Bench | None) -> tuple[Measured, ...]:
    """The points of a bench: decode and prompt of every row that is `under_roof`."""
    points, drawn = [], under_roof(bench)[0] if bench else ()
    for row in bench.rows if bench else ():
        if row.model not in drawn:
            continue
        for decode, load, taken in ((True, row.decode, row.seconds),
                                    (False, row.prompt, row.first_token)):  # fmt: skip
            reached = load.operations / taken
            points.append(Measured(row.model, row.batch, decode, load.intensity, reached))
    return tuple(points)


def roofline_data(state: RooflineState, bench: Bench | None = None) -> RooflineData:
    """Everything that the picture shows. A size has the layers and heads of the published model
    nearest to it, or is the measured model; on the measured machine the cache is float32, as qlab
    keeps it, else 16 bits.

    Args:
        state: what is chosen.
        bench: what was measured, if anything; drawn under the machine it was measured on.

    Example:
        >>> data = roofline_data(RooflineState())
        >>> round(data.speed), f"{data.gain:.2f}", round(data.cross)
        (840, '3.75', 117)
    """
    s, roof = state, Roof(state.bandwidth * 1e9, state.flops * 1e12)
    shape = shape_of(s.parameters * 1e9)
    if bench is not None and s.parameters == sized(bench):
        shape = bench.rows[0].shape
    kv = 32.0 if s.machine == HERE else 16.0
    here, empty = (decode_load(shape, s.bits, s.batch, n, kv) for n in (s.context, 0))
    return RooflineData(
        machine=s.machine,
        parameters=shape.params,
        bits=s.bits,
        batch=s.batch,
        context=s.context,
        roof=roof,
        decodes={n: decode_load(shape, s.bits, n, s.context, kv) for n in SHOWN},
        full={n: decode_load(shape, FULL, n, s.context, kv) for n in SHOWN},
        here=here,
        weights=empty.bytes,
        cache=here.bytes - empty.bytes,
        prompt=prefill_load(shape, s.bits, s.batch, s.context, kv),
        faster=tuple((n, speedup(shape, s.bits, roof, n, s.context, kv)) for n in BATCHES),
        cross=crossover(shape, s.bits, roof, s.context, kv),
        cross_full=crossover(shape, FULL, roof, s.context, kv),
        measured=measured_of(bench) if s.machine == HERE else (),
        left_out=under_roof(bench)[1] if bench and s.machine == HERE else (),
    )


def options_of(bench: Bench | None) -> dict[str, list[Any]]:
    """What each control offers, the measured machine and models among it."""
    found: dict[str, list[Any]] = {"machine": [OWN, *DEVICES], "bandwidth": list(BANDWIDTHS)}
    found |= {"flops": list(FLOPS), "parameters": list(PARAMETERS), "context": list(CONTEXTS)}
    if bench is not None:
        bandwidth, flops = speeds_of(HERE, bench)
        found["machine"].insert(0, HERE)
        found["bandwidth"] = sorted({*found["bandwidth"], bandwidth})
        found["flops"] = sorted({*found["flops"], flops})
        found["parameters"] = sorted({*found["parameters"], sized(bench)})
        found["context"] = sorted({*found["context"], bench.context})
    return found


def sized(bench: Bench) -> float:
    """Billions of parameters of a bench's first model, to three figures."""
    return float(f"{bench.rows[0].shape.params / 1e9:.3g}")


def begin(bench: Bench) -> dict[str, Any]:
    """What the widget shows first of a bench: its machine, its first model as it was measured."""
    row = bench.rows[0]
    bits = 8 * row.weight_bytes / row.shape.params
    return {
        "machine": HERE,
        "parameters": sized(bench),
        "bits": min(BITS, key=lambda b: abs(b - bits)),
        "context": bench.context,
    }
