"""What makes a function a method: (w, stats, spec, *, hyper…) -> QTensor, and an answer to
`supports(spec)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

from qlab.qtensor import QTensor, Spec
from qlab.stats import Stats


class Method(Protocol):
    """A quantization method.

    `supports(spec)` says whether it can fill the Spec; called with one that it cannot, it raises a
    ValueError naming both.
    """

    __name__: str
    supports: Callable[[Spec], bool]

    def __call__(self, w: Any, stats: Stats | None, spec: Spec, **hyper: Any) -> QTensor: ...


def method(supports: Callable[[Spec], bool]) -> Callable[[Callable[..., QTensor]], Method]:
    """A decorator: the function itself, with `supports` attached."""

    def mark(function: Callable[..., QTensor]) -> Method:
        marked = cast(Method, function)
        marked.supports = supports
        return marked

    return mark
