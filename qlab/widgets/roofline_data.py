"""The state of `roofline()` and what it may be; predicted speeds are `evaluation.roofline`'s,
measured ones a bench's.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from qlab.evaluation.latency import Bench
from qlab.evaluation.machines import HARDWARE
from qlab.evaluation.roofline import Roof, crossover, decode_load, prefill_load, speedup
from qlab.evaluation.shapes import shape_of
from qlab.plots.widget_roofline import FULL, Measured, RooflineData
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
    {d.bandwidth / 1e9 for d in DEVICES.values()}
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
        ValueError: an unknown machine, or HERE without a bench.

    Example:
        >>> speeds_of("H100")
        (3350.0, 989.4)
    """
    if machine == HERE and bench is not None:
        roof = bench.roof(bench.rows[0])
        return float(f"{roof.bandwidth / 1e9:.3g}"), float(f"{roof.peak / 1e12:.3g}")
    if machine not in DEVICES:
        raise ValueError(f"no machine is called {machine!r}: {near(machine, DEVICES)}")
    device = DEVICES[machine]
    return device.bandwidth / 1e9, (device.flops or 0.0) / 1e12


def measured_of(bench: Bench | None) -> tuple[Measured, ...]:
    """The points of a bench: every row's decode, and its prompt."""
    points = []
    for row in bench.rows if bench else ():
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
    )


def options_of(bench: Bench | None) -> dict[str, list[Any]]:
    """What each control offers, the measured machine and models among it."""
    found: dict[str, list[Any]] = {"machine": [OWN, *DEVICES], "bandwidth": list(BANDWIDTHS)}
    found |= {"flops": list(FLOPS), "parameters": list(PARAMETERS)}
    if bench is not None:
        bandwidth, flops = speeds_of(HERE, bench)
        found["machine"].insert(0, HERE)
        found["bandwidth"] = sorted({*found["bandwidth"], bandwidth})
        found["flops"] = sorted({*found["flops"], flops})
        found["parameters"] = sorted({*found["parameters"], sized(bench)})
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
        "context": min(CONTEXTS, key=lambda n: abs(n - bench.context)),
    }
