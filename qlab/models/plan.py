"""Who gets what: the method, the Spec and the quantization of inputs of every linear, all checked
before any work is done.

Each is given for all or by glob, a Spec also by a function of the path: mixed precision is data,
not code.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from qlab import activations
from qlab.activations import Act
from qlab.methods import METHODS
from qlab.models.transformer import Linear, Transformer
from qlab.qtensor import QTensor, Spec
from qlab.specs import SPECS, find, name_of
from qlab.suggest import counted, near

Rule = Spec | str | Mapping[str, Spec | str | None] | Callable[[str], Spec | str | None]
Run = Callable[..., QTensor]
Methods = str | Run | Mapping[str, str | Run | None]
PROPAGATE = ("none", "float", "quantized")


class Task(NamedTuple):
    """What one linear gets: a method with its settings, a Spec, and how its inputs are
    quantized.
    """

    run: Run
    hyper: Mapping[str, Any]
    spec: Spec
    act: Act | None = None


Plan = dict[str, Task | None]  # path -> Task; None stays as it is


@dataclasses.dataclass(frozen=True)
class Job:
    """What is done, to which model."""

    model: Transformer
    plan: Plan
    hyper: Mapping[str, Any]
    objective: str = "linear"

    @property
    def tasks(self) -> list[Task]:
        """Those there are, in forward order."""
        return [task for task in self.plan.values() if task is not None]

    @property
    def runs(self) -> list[Run]:
        """The methods, each once."""
        return list(dict.fromkeys(task.run for task in self.tasks))

    @property
    def method(self) -> str:
        """What a report calls it: "awq", "awq + gptq" with a quantizer, "awq, gptq" for two."""
        inner = self.hyper.get("quantizer")
        names = ", ".join(method_name(run) for run in self.runs)
        return names if inner is None else f"{names} + {method_name(inner)}"

    @property
    def propagate(self) -> str | None:
        """The most that any of its methods wants to be calibrated on; None: none of them says."""
        inner = self.hyper.get("quantizer")
        wishes = [getattr(run, "propagate", None) for run in (*self.runs, inner)]
        return max((w for w in wishes if w), key=PROPAGATE.index, default=None)

    @property
    def blocks(self) -> int:
        """How many blocks there are up to the last with something to do."""
        todo = [int(path.split(".")[1]) for path, task in self.plan.items() if task is not None]
        return max(todo, default=-1) + 1


def find_method(method: str | Run) -> Run:
    """A method from itself or its name in METHODS."""
    if callable(method):
        return method
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown: {near(method, METHODS)}")
    return METHODS[method]


def method_name(run: Callable) -> str:
    """What a report calls a method."""
    return getattr(run, "__name__", type(run).__name__)


def taken(run: Callable, hyper: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that a method, or a step of one, has."""
    kinds = {p.kind for p in inspect.signature(run).parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return dict(hyper)
    return {name: value for name, value in hyper.items() if name in settings(run)}


def settings(run: Callable) -> list[str]:
    """What a method takes after weights, Stats and Spec."""
    return list(inspect.signature(run).parameters)[3:]


def check_hyper(runs: Iterable[Run], hyper: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting that none of the methods has."""
    runs = list(runs)
    for name in hyper:
        if runs and not any(name in taken(run, hyper) for run in runs):
            known = dict.fromkeys(
                n for r in runs for n in list(inspect.signature(r).parameters)[3:]
            )
            hint = near(name, known) if known else "it has no settings"
            who = " and ".join(repr(method_name(run)) for run in runs)
            raise ValueError(f"method {who} takes no {name!r}: {hint}")


def as_spec(spec: Spec | str | None) -> Spec | None:
    """A Spec from itself or its name in SPECS; None stays None."""
    if spec is None or isinstance(spec, Spec):
        return spec
    if not isinstance(spec, str):
        raise ValueError(f"a Spec, a name in SPECS or None is needed, not {spec!r}")
    return find(spec)


def make_plan(
    layers: Mapping[str, Linear],
    methods: Methods,
    rule: Rule,
    skip: str | Iterable[str] = (),
    act: Any = None,
    hyper: Mapping[str, Any] | None = None,
) -> Plan:
    """The Task of every path.

    Raises:
        ValueError: a glob that matches nothing, an unknown name or setting, a Spec that does not
            fit a layer or its method, or nothing to quantize at all.
    """
    skip, hyper = (skip,) if isinstance(skip, str) else tuple(skip), hyper or {}
    for given in (skip, methods, rule, act):
        _check_globs(layers, given)
    plan: Plan = {}
    for path, layer in layers.items():
        run = _choose(methods, path)
        spec = as_spec(rule(path) if callable(rule) else _choose(rule, path))
        if run is None or spec is None or any(fnmatch.fnmatchcase(path, glob) for glob in skip):
            plan[path] = None
            continue
        run, how = find_method(run), _choose(act, path)
        _check_fit(path, layer, run, spec)
        plan[path] = Task(
            run, taken(run, hyper), spec, None if how is None else activations.find(how)
        )
    if layers and not any(plan.values()):
        all_of_them = f"{counted(len(plan), 'linear')}, skipped or left float"
        raise ValueError(f"nothing is quantized: the model has {all_of_them}")
    check_hyper(dict.fromkeys(task.run for task in plan.values() if task), hyper)
    return plan


def _check_globs(layers: Mapping[str, Linear], given: Any) -> None:
    for glob in given if isinstance(given, Mapping | tuple) else ():
        if not fnmatch.filter(layers, glob):
            raise ValueError(f"no linear matches {glob!r}: {near(glob, layers)}"[:300])


def _choose(given: Any, path: str) -> Any:
    """What is given for a path: by the first glob that matches, or for all."""
    if not isinstance(given, Mapping):
        return given
    return next((one for glob, one in given.items() if fnmatch.fnmatchcase(path, glob)), None)


def _check_fit(path: str, layer: Linear, run: Run, spec: Spec) -> None:
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
        fills = [name for name, known in SPECS.items() if supports(known)]
        few = f"; it fills {', '.join(fills)}" if 0 < len(fills) <= 20 else ""
        raise ValueError(
            f"method {method_name(run)!r} cannot fill spec {name_of(spec)!r} ({path}){few}"
        )
