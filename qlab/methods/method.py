"""What makes a function a method: (w, stats, spec, *, hyper…) -> QTensor, and an answer to
`supports(spec)`.
"""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from qlab.qtensor import QTensor, Spec
from qlab.stats import Stats

# What happened inside a method, for the layer report: name -> number. The report knows "damp"
# (relative damping used), "rung" (steps of the ladder climbed), "dead" (channels never seen),
# "static" (1 where ranges could not follow the corrected weights), "ratio" (how the input
# channels were scaled), and "floored" (columns whose importance `kquants` raised).
Facts = dict[str, jax.Array]


class Fold(NamedTuple):
    """A method that first scales input channels, in three steps, so that `quantize_model` can put
    the scales into what feeds a layer.

    Attributes:
        candidates: (weights, stats, specs, *, hyper…) -> ratios (n,), scales (n, in): what is
            tried; weights and specs of all linears that read the same input.
        losses: (weights, stats, specs, scales) -> (n,): what each costs.
        finish: (w, stats, spec, *, hyper…) -> (QTensor, Facts): quantizes weights already scaled.
        feeders: "all", or "norms": only inputs that come out of a norm are scaled.
    """

    candidates: Callable[..., tuple[jax.Array, jax.Array]]
    losses: Callable[..., jax.Array]
    finish: Callable[..., tuple[QTensor, Facts]]
    feeders: str = "all"


class Method(Protocol):
    """A quantization method.

    `supports(spec)` says whether it can fill the Spec; called with one that it cannot, it raises a
    ValueError naming both.
    """

    __name__: str
    supports: Callable[[Spec], bool]
    propagate: str  # what `quantize_model` feeds it by default: "none", "float" or "quantized"
    with_facts: Callable[..., tuple[QTensor, Facts]]
    fold: Fold | None  # how it scales input channels, if it does

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
        marked.fold = None
        return marked

    return mark


def method_with_facts(
    supports: Callable[[Spec], bool], propagate: str = "none", fold: Fold | None = None
) -> Callable[[Callable[..., tuple[QTensor, Facts]]], Method]:
    """`method` for a function that returns (QTensor, Facts): called it returns the QTensor alone,
    its `with_facts` both.
    """

    def mark(function: Callable[..., tuple[QTensor, Facts]]) -> Method:
        @functools.wraps(function)
        def both(w: Any, stats: Any, spec: Any, **hyper: Any) -> tuple[QTensor, Facts]:
            check_arguments(function, w, spec, hyper)
            return function(w, stats, spec, **hyper)

        @functools.wraps(function)
        def first(w: Any, stats: Any, spec: Any, **hyper: Any) -> QTensor:
            return both(w, stats, spec, **hyper)[0]

        marked = method(supports, propagate)(first)
        marked.with_facts = both
        marked.fold = fold
        return marked

    return mark


def facts_of(run: Callable[..., QTensor]) -> Callable[..., tuple[QTensor, Facts]]:
    """A method with its facts; a plain function has none."""
    plain = lambda *args, **hyper: (run(*args, **hyper), {})  # noqa: E731
    return getattr(run, "with_facts", plain)


def check_arguments(function: Callable, w: Any, spec: Any, hyper: Mapping[str, Any]) -> None:
    """Refuses weights that are no matrix, a Spec that is none, and settings of another kind than
    the method's defaults.

    Raises:
        ValueError: the sentence names the argument and what was given.
    """
    if not isinstance(spec, Spec):
        raise ValueError(f"a Spec is needed, not {spec!r}; a named one is qlab.SPECS[name]")
    if jnp.ndim(w) != 2:
        raise ValueError(f"weights are (out, in), not of shape {jnp.shape(w)}")
    known = inspect.signature(function).parameters
    for name, value in hyper.items():
        default = known[name].default if name in known else None
        kind, said = KINDS.get(type(default), (object, ""))
        if isinstance(default, float) and isinstance(value, jax.Array) and value.ndim == 0:
            continue  # a number computed by jax, perhaps under a trace
        if isinstance(value, str) and name in known and "str" in str(known[name].annotation):
            continue  # a word is one of the possibilities: alpha="search"
        a_truth = isinstance(value, bool | np.bool_) == isinstance(default, bool)  # bools are ints
        if kind is not object and not (isinstance(value, kind) and a_truth):
            raise ValueError(f"{name} is {said}, not {value!r}")


# The type of a setting's default -> what may be given, and in words.
KINDS: dict[type, tuple[Any, str]] = {
    bool: ((bool, np.bool_), "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: (str, "a word"),
}


def needed(stats: Stats | None, w: jax.Array) -> Stats:
    """The Stats of a layer with weights `w` (out, in), or one clear sentence.

    Raises:
        ValueError: there are none, they are of another width, of no tokens, or their H is no
            symmetric (in, in) matrix.
    """
    if not isinstance(stats, Stats):
        got = "" if stats is None else f", not {type(stats).__name__}"
        raise ValueError(
            f"this method needs Stats of the layer's inputs{got}: qlab.calibrate finds them"
        )
    inner, h = w.shape[-1], stats.hessian
    require(
        stats.mean_abs.shape[-1] == inner,
        f"{inner} columns but Stats of {stats.mean_abs.shape[-1]} channels",
    )
    require(h.shape == (inner, inner), f"{inner} columns but an H of shape {h.shape}")
    require(
        stats.tokens > 0, "these Stats are of 0 tokens: they know nothing of the layer's inputs"
    )
    skew = jnp.abs(h - h.T).max() > 1e-3 * jnp.abs(h).max()
    require(~skew, "H = E[x xᵀ] is symmetric, but the H of these Stats is not")
    return stats


def require(holds: Any, sentence: str) -> None:
    """Raises ValueError(sentence) unless `holds`; under a trace nothing is known, and it passes."""
    if not isinstance(holds, Tracer) and not holds:
        raise ValueError(sentence)
