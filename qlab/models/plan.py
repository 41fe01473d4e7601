"""Who gets what: the method, and the Spec of every linear, all checked before any work is done.

A Spec is given for all, by glob, or by a function of the path: mixed precision is data, not code.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from qlab.methods import METHODS
from qlab.models.transformer import Linear, Transformer
from qlab.qtensor import QTensor, Spec
from qlab.specs import find, name_of
from qlab.suggest import near

Rule = Spec | str | Mapping[str, Spec | str | None] | Callable[[str], Spec | str | None]
Plan = dict[str, Spec | None]  # path -> Spec; None stays float


@dataclasses.dataclass(frozen=True)
class Job:
    """What is done, to which model."""

    model: Transformer
    run: Callable[..., QTensor]
    plan: Plan
    hyper: Mapping[str, Any]

    @property
    def layers(self) -> int:
        """How many linears are quantized."""
        return sum(spec is not None for spec in self.plan.values())

    @property
    def blocks(self) -> int:
        """How many blocks there are up to the last with something to do."""
        todo = [int(path.split(".")[1]) for path, spec in self.plan.items() if spec is not None]
        return max(todo, default=-1) + 1


def find_method(method: str | Callable[..., QTensor]) -> Callable[..., QTensor]:
    """A method from itself or its name in METHODS."""
    if callable(method):
        return method
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown: {near(method, METHODS)}")
    return METHODS[method]


def method_name(run: Callable) -> str:
    """What a report calls a method."""
    return getattr(run, "__name__", type(run).__name__)


def check_hyper(run: Callable, hyper: Mapping[str, Any]) -> None:
    """Raises ValueError for a hyper-parameter that the method does not have."""
    taken = inspect.signature(run).parameters
    if any(p.kind is p.VAR_KEYWORD for p in taken.values()):
        return
    known = list(taken)[3:]  # after w, stats, spec
    for name in hyper:
        if name not in known:
            hint = near(name, known) if known else "it has no settings"
            raise ValueError(f"method {method_name(run)!r} takes no {name!r}: {hint}")


def as_spec(spec: Spec | str | None) -> Spec | None:
    """A Spec from itself or its name in SPECS; None stays None."""
    if spec is None or isinstance(spec, Spec):
        return spec
    if not isinstance(spec, str):
        raise ValueError(f"a Spec, a name in SPECS or None is needed, not {spec!r}")
    return find(spec)


def make_plan(
    layers: Mapping[str, Linear], run: Callable, rule: Rule, skip: tuple[str, ...]
) -> Plan:
    """The Spec of every path.

    Raises:
        ValueError: a glob that matches nothing, an unknown Spec, or one that does not fit a layer
            or the method.
    """
    globs = skip + (tuple(rule) if isinstance(rule, Mapping) else ())
    for glob in globs:
        if not fnmatch.filter(layers, glob):
            raise ValueError(f"no linear matches {glob!r}: {near(glob, layers)}"[:300])
    plan: Plan = {}
    for path, layer in layers.items():
        skipped = any(fnmatch.fnmatchcase(path, glob) for glob in skip)
        spec = None if skipped else _choose(rule, path)
        if spec is not None:
            _check_fit(path, layer, run, spec)
        plan[path] = spec
    return plan


def _choose(rule: Rule, path: str) -> Spec | None:
    if isinstance(rule, Mapping):
        return next((as_spec(s) for g, s in rule.items() if fnmatch.fnmatchcase(path, g)), None)
    if callable(rule):
        return as_spec(rule(path))
    return as_spec(rule)


def _check_fit(path: str, layer: Linear, run: Callable, spec: Spec) -> None:
    width = layer.weight.shape[-1]
    if isinstance(spec.block, int) and width % spec.block:
        kind = path.rpartition(".")[2]
        raise ValueError(
            f"{path} has {width} inputs, no multiple of block {spec.block}: "
            f"skip=['*.{kind}'] leaves it float, or a rule "
            f"{{'*.{kind}': another Spec, '*': this one}} gives it a smaller block"
        )
    supports = getattr(run, "supports", None)
    if supports is not None and not supports(spec):
        raise ValueError(f"method {method_name(run)!r} cannot fill spec {name_of(spec)!r} ({path})")
