"""`prepare`: a model whose linears compute as if they were quantized, and can be trained so.
`convert`: the quantized model that it has become, with the same logits, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from qlab.activations import ACTS, Act
from qlab.methods import qat as estimators
from qlab.methods.rtn import rtn
from qlab.methods.trained import LearnedAct, LearnedClip, LearnedStep, Trained
from qlab.models.checks import check_model
from qlab.models.plan import Plan, Rule, make_plan
from qlab.models.surgery import linears, map_linears
from qlab.models.transformer import Linear, Transformer, as_array
from qlab.observers import static
from qlab.stats import Stats
from qlab.suggest import near


def prepare(
    model: Transformer,
    spec: Rule,
    *,
    method: str = "ste",
    act: Any = None,
    skip: str | Iterable[str] = (),
    stats: Mapping[str, Stats] | None = None,
) -> Transformer:
    """A new model that computes with rounded weights, and passes gradients to the weights beneath.

    Args:
        model: any Transformer. Of one that was prepared before the trained weights are taken, so
            that a Spec may change in the middle of training; QTensors are dequantized.
        spec: a Spec or a name in SPECS, or {glob: such a one}, as for `quantize_model`.
        method: "ste", "clipped", "lsq", "pact" or "bitnet": how gradients pass, see
            `qlab.methods.qat`.
        act: how inputs are quantized, as for `quantize_model`. "bitnet" takes "int8_token" where
            nothing is said; "pact" needs an Act of block "tensor" and learns its end α; "lsq"
            learns the step of a static one without zero point ("int8_static").
        skip: a glob, or several, of linears that stay as they are.
        stats: {path: Stats} of the inputs, for static ranges and for where α and
            learned steps begin.

    Returns:
        a Transformer like any other: it evaluates, generates, and runs under jit and grad.

    Raises:
        ValueError: as `quantize_model` for Specs, globs and acts; a method that cannot train a
            Spec, naming both; static inputs or "pact" without Stats.

    Example:
        >>> model = qlab.load("tiny")                                        # doctest: +SKIP
        >>> prepared = qlab.models.prepare(model, "int2_g64", method="lsq")  # doctest: +SKIP
        >>> qlab.models.convert(prepared)(tokens) == prepared(tokens)        # doctest: +SKIP
    """
    plan = plan_of(model, spec, method, act, skip)

    def change(path: str, layer: Linear) -> Linear:
        task = plan[path]
        if task is None:
            return _left(layer)
        w = _master(layer)
        start = estimators.lsq_start(w, task.spec) if method == "lsq" else {}
        inputs = _inputs(path, method, task.act, stats)
        return Linear(Trained(w, start, task.spec, method), layer.bias, inputs)

    return map_linears(model, change)


def plan_of(
    model: Transformer, spec: Rule, method: str, act: Any, skip: str | Iterable[str]
) -> Plan:
    """Which linear gets what, checked before anything is done."""
    check_model(model)
    if model.kv is not None:
        raise ValueError(
            "training reads keys and values in float: train qlab.quantize_kv(model, None), and "
            "quantize the cache of the result"
        )
    if method not in estimators.ESTIMATORS:
        raise ValueError(f"method {method!r} is unknown: {near(method, estimators.ESTIMATORS)}")
    if method == "bitnet" and act is None:
        act = ACTS["int8_token"]
    plan = make_plan(linears(model), rtn, spec, skip, act)
    for path, task in plan.items():
        if task is None:
            continue
        try:
            estimators.check(method, task.spec)
            if method == "pact" and task.act is None:
                raise ValueError("method 'pact' trains the clip of inputs: act= says which")
            if method == "pact" and task.act is not None:
                estimators.check_pact(task.act.spec)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return plan


def needs_stats(plan: Plan, method: str) -> bool:
    """Whether `prepare` has to know the inputs."""
    acts = [task.act for task in plan.values() if task is not None and task.act is not None]
    return any(method == "pact" or (act.static and act.ranges is None) for act in acts)


def convert(prepared: Transformer) -> Transformer:
    """The quantized model that a prepared one has become: every weight in training a QTensor, every
    learned clip or step of inputs a static range. The logits are the same, bit for bit.

    Args:
        prepared: what `prepare` returned, trained or not.

    Returns:
        a new Transformer.

    Example:
        >>> q = qlab.models.convert(prepared)   # doctest: +SKIP
        >>> qlab.save(q, "folder")              # doctest: +SKIP
    """
    check_model(prepared, "prepared")

    def change(_: str, layer: Linear) -> Linear:
        weight, act = layer.weight, layer.act
        weight = _quantized(weight) if isinstance(weight, Trained) else weight
        return Linear(weight, layer.bias, _act(act) if isinstance(act, LearnedAct) else act)

    return map_linears(prepared, change)


_quantized = jax.jit(lambda weight: weight.quantized())
_act = jax.jit(lambda learned: learned.act())


def _master(layer: Linear) -> jax.Array:
    """The float weights: of one in training those beneath, not what they round to."""
    return layer.weight.w if isinstance(layer.weight, Trained) else as_array(layer.weight)


def _left(layer: Linear) -> Linear:
    """A linear that is not rounded here: float, or with the codes it came with."""
    if isinstance(layer.weight, Trained):
        return Linear(layer.weight.w, layer.bias)
    return Linear(layer.weight, layer.bias, layer.act)


def _inputs(
    path: str, method: str, act: Act | None, stats: Mapping[str, Stats] | None
) -> Act | LearnedAct | None:
    """The Act of a linear, with ranges or what learns them where it needs any."""
    if act is None or (method != "pact" and not (act.static and act.ranges is None)):
        return act
    if stats is None or path not in stats:
        raise ValueError(
            f"{path}: the range of its inputs is found on text: stats=qlab.calibrate(model, …)"
        )
    if method == "pact":
        return LearnedClip(jnp.max(stats[path].amax).astype(jnp.float32), act.spec)
    if method == "lsq" and estimators.one_step(act.spec):
        mean = jnp.mean(stats[path].mean_abs)
        return LearnedStep(estimators.lsq_first(mean, act.spec.format), act.spec)
    return act.with_ranges(static(stats[path], act.spec))
