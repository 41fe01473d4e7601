"""What makes a function a method: (w, stats, spec, *, hyper…) -> QTensor, and an answer to
`supports(spec)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import jax

from qlab.qtensor import QTensor, Spec
from qlab.stats import Stats

# What happened inside a method, for the layer report: name -> number. The report knows "damp"
# (relative damping used), "rung" (steps of the ladder climbed), "dead" (channels never seen), and
# "static" (1 where ranges could not follow the corrected weights).
Facts = dict[str, jax.Array]


class Method(Protocol):
    """A quantization method.

    `supports(spec)` says whether it can fill the Spec; called with one that it cannot, it raises a
    ValueError naming both.
    """

    __name__: str
    supports: Callable[[Spec], bool]
    propagate: str  # what `quantize_model` feeds it by default: "none", "float" or "quantized"
    with_facts: Callable[..., tuple[QTensor, Facts]]

    def __call__(self, w: Any, stats: Stats | None, spec: Spec, **hyper: Any) -> QTensor: ...


def method(
    supports: Callable[[Spec], bool],
    propagate: str = "none",
    with_facts: Callable[..., tuple[QTensor, Facts]] | None = None,
) -> Callable[[Callable[..., QTensor]], Method]:
    """A decorator: the function itself, with what `quantize_model` asks of a method attached.

    Args:
        supports: whether it can fill a Spec.
        propagate: which inputs calibration gives it by default: "quantized" (what the layers
            quantized so far put out), "float", or "none" (it needs no text).
        with_facts: the same function returning (QTensor, Facts), for the layer report; by default
            there are no facts.
    """

    def mark(function: Callable[..., QTensor]) -> Method:
        marked = cast(Method, function)
        marked.supports = supports
        marked.propagate = propagate
        marked.with_facts = with_facts or (lambda *args, **hyper: (function(*args, **hyper), {}))
        return marked

    return mark
