"""`roofline()`: what a decode step and a prompt may reach on a machine, where few bits help and
where not; with what `qlab.bench` measured under it.
"""

from __future__ import annotations

from typing import Any

from qlab.evaluation.latency import Bench
from qlab.plots.svg import Picture
from qlab.plots.widget_roofline import draw_roofline
from qlab.plots.widget_words import say
from qlab.widgets import controls as make
from qlab.widgets.base import Live
from qlab.widgets.roofline_data import (
    BATCHES,
    BITS,
    HERE,
    OWN,
    RooflineState,
    begin,
    options_of,
    roofline_data,
    settled,
    speeds_of,
)


class Roofline(Live):
    """The widget; see `roofline`."""

    def __init__(self, bench: Bench | None = None, lang: str = "en", **chosen: Any):
        self.bench = bench
        start = {"machine": RooflineState.machine} if bench is None else begin(bench)
        chosen = {**settled(start, bench), **settled(chosen, bench)}
        s, offered = RooflineState(**chosen), options_of(bench)
        named = {OWN: "the two sliders'", HERE: HERE}
        machines = [(say(named[m], lang) if m in named else m, m) for m in offered["machine"]]
        sizes = [(f"{n:g}B" if n >= 1 else f"{n * 1e3:g}M", n) for n in offered["parameters"]]
        bandwidths = [(f"{n:,g} GB/s", n) for n in offered["bandwidth"]]
        flops = [(f"{n:,g} T/s" if n >= 1 else f"{n * 1e3:,g} G/s", n) for n in offered["flops"]]
        contexts = [(f"{n:,}", n) for n in offered["context"]]
        controls = {
            "machine": make.choice("machine", machines, s.machine, lang),
            "parameters": make.steps("parameters", sizes, s.parameters, lang),
            "bits": make.steps("bits/weight", BITS, s.bits, lang),
            "batch": make.steps("batch", BATCHES, s.batch, lang),
            "context": make.steps("context", contexts, s.context, lang),
            "bandwidth": make.steps("bandwidth", bandwidths, s.bandwidth, lang),
            "flops": make.steps("FLOP/s", flops, s.flops, lang),
        }
        super().__init__("roofline", RooflineState, controls, lang)

    def draw(self, state: RooflineState) -> Picture:
        data = roofline_data(state, self.bench)
        return draw_roofline(data, self.lang)

    def arrange(self, changed: str) -> None:
        """A machine sets both sliders; a slider moved by hand is nobody's machine."""
        state = self.state
        if changed == "machine" and state.machine != OWN:
            bandwidth, flops = speeds_of(state.machine, self.bench)
            self.controls["bandwidth"].value, self.controls["flops"].value = bandwidth, flops
        if changed in ("bandwidth", "flops"):
            self.controls["machine"].value = OWN

    def set(self, **values: Any) -> None:
        """Moves several controls and draws once; a machine brings its two speeds, a speed makes
        the machine "own".

        Raises:
            ValueError: as `roofline`.
        """
        super().set(**settled(values, self.bench))


def roofline(bench: Bench | None = None, lang: str = "en", **chosen: Any) -> Roofline:
    """The least time of a decode step and of a prompt, and what few bits change about it.

    Args:
        bench: what `qlab.bench` returned: its machine is offered, its rows are drawn under it.
        lang: "en" or "ko".
        chosen: what to begin with, fields of RooflineState: `machine="RTX 4090", batch=16`; or
            `bandwidth=100, flops=2`, of a machine of your own.

    Returns:
        the widget; `.figure()` is its picture.

    Raises:
        ValueError: a machine that is not known, or without FLOP/s, or with a speed beside it; a
            value that no slider has.

    Example:
        >>> qlab.widgets.roofline(machine="RTX 4090", parameters=8.0, bits=4.25)   # doctest: +SKIP
    """
    if bench is not None and not isinstance(bench, Bench):
        raise ValueError(f"roofline takes what qlab.bench returned, not {bench!r:.60}")
    return Roofline(bench, lang, **chosen)
