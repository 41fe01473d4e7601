"""What makes a function a method: (w, stats, spec, *, hyper…) -> QTensor, and an answer to
`supports(spec)`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Protocol, cast

import jax
from jax.core import Tracer

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
    supports: Callable[[Spec], bool], propagate: str = "none"
) -> Callable[[Callable[..., QTensor]], Method]:
    """A decorator: the function itself, with what `quantize_model` asks of a method attached.

    Args:
        supports: whether it can fill a Spec.
        propagate: which inputs calibration gives it by default: "quantized" (as the layers
            quantized so far put them out), "float", or "none" (it needs no text).
    """

    def mark(function: Callable[..., QTensor]) -> Method:
        marked = cast(Method, function)
        marked.supports = supports
        marked.propagate = propagate
        marked.with_facts = lambda *args, **hyper: (function(*args, **hyper), {})
        return marked

    return mark


def method_with_facts(
    supports: Callable[[Spec], bool], propagate: str = "none"
) -> Callable[[Callable[..., tuple[QTensor, Facts]]], Method]:
    """`method` for a function that returns (QTensor, Facts): called it returns the QTensor alone,
    its `with_facts` both.
    """

    def mark(function: Callable[..., tuple[QTensor, Facts]]) -> Method:
        @functools.wraps(function)
        def first(*args: Any, **hyper: Any) -> QTensor:
            return function(*args, **hyper)[0]

        marked = method(supports, propagate)(first)
        marked.with_facts = function
        return marked

    return mark


def needed(stats: Stats | None, w: jax.Array) -> Stats:
    """The Stats of a layer with weights `w` (out, in), or one clear sentence.

    Raises:
        ValueError: there are none, or they are of another width.
    """
    if stats is None:
        raise ValueError("this method needs Stats of the layer's inputs: qlab.calibrate finds them")
    if stats.mean_abs.shape[-1] != w.shape[-1]:
        raise ValueError(f"{w.shape[-1]} columns but Stats of {stats.mean_abs.shape[-1]} channels")
    return stats


def require(holds: Any, sentence: str) -> None:
    """Raises ValueError(sentence) unless `holds`; under a trace nothing is known, and it passes."""
    if not isinstance(holds, Tracer) and not holds:
        raise ValueError(sentence)
