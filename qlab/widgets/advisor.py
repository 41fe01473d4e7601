"""`advisor()`: which file of a model to download for a memory: weights, KV cache and reserve of
every file against it.
"""

from __future__ import annotations

from typing import Any

from qlab.evaluation.shapes import SHAPES, Shape, shape_of
from qlab.plots.svg import Picture
from qlab.plots.widget_advisor import draw_advisor
from qlab.plots.widget_words import say
from qlab.widgets import controls as make
from qlab.widgets.advisor_data import (
    ANY,
    BATCHES,
    CACHES,
    CONTEXTS,
    DEVICES,
    MEMORIES,
    TASK_NAMES,
    AdvisorState,
    advisor_data,
    memory_on,
)
from qlab.widgets.base import Live


class Advisor(Live):
    """The widget; see `advisor`."""

    def __init__(self, model: Shape | str | None = None, lang: str = "en", **chosen: Any):
        shape = shape_of(AdvisorState.model if model is None else model)
        self.shapes = {**SHAPES, shape.name: shape}
        if "hardware" in chosen:
            chosen.setdefault("memory", memory_on(chosen["hardware"], None))
        s = AdvisorState(shape.name, **chosen)
        devices = [(say("any, no speed", lang), ANY), *((name, name) for name in DEVICES[1:])]
        tasks = [(say(name, lang), name) for name in TASK_NAMES]
        contexts = [(f"{n:,}", n) for n in CONTEXTS]
        controls = {
            "model": make.choice("model", self.shapes, s.model, lang),
            "hardware": make.choice("hardware", devices, s.hardware, lang),
            "memory": make.steps("memory", MEMORIES, s.memory, lang),
            "context": make.steps("context", contexts, s.context, lang),
            "batch": make.steps("batch", BATCHES, s.batch, lang),
            "kv_bits": make.choice("KV cache", CACHES, s.kv_bits, lang),
            "task": make.choice("task", tasks, s.task, lang),
        }
        super().__init__("advisor", AdvisorState, controls, lang)

    def draw(self, state: AdvisorState) -> Picture:
        return draw_advisor(advisor_data(self.shapes[state.model], state), self.lang)

    def arrange(self, changed: str) -> None:
        state, memory = self.state, self.controls["memory"]
        if changed == "hardware" and state.hardware != ANY:
            memory.value = memory_on(state.hardware, None)
        if changed == "memory":
            memory.value = memory_on(state.hardware, state.memory)


def advisor(model_or_size: Any = None, lang: str = "en", **chosen: Any) -> Advisor:
    """Which file of a model fits a memory, how fast it would be, and what it costs in quality.

    Args:
        model_or_size: a loaded model, a name ("llama-3.1-8b") or a size ("13B") to begin with, as
            in `qlab.advise`; None: llama-3.1-70b.
        lang: "en" or "ko".
        chosen: what to begin with, fields of AdvisorState: `hardware="RTX 4090"`.

    Returns:
        the widget; `.figure()` is its picture.

    Example:
        >>> qlab.widgets.advisor("13B", hardware="RTX 3060 12GB")   # doctest: +SKIP
    """
    return Advisor(None if model_or_size is None else shape_of(model_or_size), lang, **chosen)
