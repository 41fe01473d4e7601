"""`quantize_model`: a method on every linear layer, a Spec for each, and a report of what happened.

A Spec is given for all, by glob, or by a function of the path: mixed precision is data, not code. A
new model comes out; the old one is untouched. Embedding and head stay float here. Not here yet:
calibrating methods' batches and propagation.
"""

from __future__ import annotations

import fnmatch
import importlib.metadata
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from tqdm.auto import tqdm

from qlab.methods import METHODS
from qlab.models.report import LayerReport, Report
from qlab.models.surgery import linears, map_linears
from qlab.models.transformer import Label, Linear, Transformer, as_array
from qlab.qtensor import QTensor, Spec, bits_per_weight, dequantize
from qlab.specs import find, name_of
from qlab.stats import Stats, output_error
from qlab.suggest import near

Rule = Spec | str | Mapping[str, Spec | str | None] | Callable[[str], Spec | str | None]


def quantize_model(
    model: Transformer,
    method: str | Callable[..., QTensor],
    spec_or_rule: Rule,
    batches: Any = None,
    stats: Mapping[str, Stats] | None = None,
    act: Any = None,
    skip: Iterable[str] = (),
    propagate: str | None = None,
    cache: Any = None,
    progress: bool = True,
    **hyper: Any,
) -> Transformer:
    """A new model whose linears are QTensors.

    Args:
        model: any Transformer; weights that are QTensors already are dequantized first.
        method: a name in METHODS, or a function (w, stats, spec, **hyper) -> QTensor.
        spec_or_rule: a Spec or a name in SPECS for every linear; or {glob: Spec, name or None}, the
            first glob that matches a path decides; or a function path -> Spec, name or None. None,
            or no match, leaves a linear float.
        batches: calibration text; no method of this version takes it.
        stats: {path: Stats} handed to the method layer by layer; the report's loss is measured on
            them.
        act: quantization of activations; not in this version.
        skip: globs of paths that stay float, such as "layers.0.*" or "*.down_proj".
        propagate: "none" (or None): every layer sees the float model's inputs; the only way in
            this version.
        cache: a folder of finished layers; not in this version.
        progress: show a bar with the layer and its error.
        hyper: passed to the method.

    Returns:
        a Transformer; `.report` says what happened layer by layer, `.label.provenance` how to do
        it again.

    Raises:
        ValueError: an unknown method, Spec or glob (the nearest is suggested), a method that
            cannot fill a Spec, a block that does not divide a layer, or weights with NaN or Inf:
            the sentence names the layer.
        NotImplementedError: an argument that this version does not act on.

    Example:
        >>> model = qlab.load("tiny")   # doctest: +SKIP
        >>> q = quantize_model(model, "rtn", "int4_g64", skip=["*.down_proj"])   # doctest: +SKIP
        >>> print(q.report)                                    # doctest: +SKIP
    """
    _only_what_works(batches=batches, act=act, cache=cache)
    if propagate not in (None, "none"):
        raise NotImplementedError(
            f"propagate={propagate!r} needs calibration, which is not here yet"
        )
    run = _method(method)
    plan = _plan(linears(model), run, spec_or_rule, tuple(skip))
    rows: list[LayerReport] = []
    bar = tqdm(total=sum(s is not None for s in plan.values()), disable=not progress, leave=False)

    def change(path: str, layer: Linear) -> Linear:
        spec = plan[path]
        if spec is None:
            return layer
        q, row = _layer(path, layer, run, spec, (stats or {}).get(path), hyper)
        rows.append(row)
        loss = row.error if row.loss is None else row.loss
        bar.set_description(f"{_name(run)} {path}", refresh=False)
        bar.set_postfix_str(f"{'error' if row.loss is None else 'loss'} {loss:.4f}", refresh=False)
        bar.update()
        return Linear(q, layer.bias)

    with bar:
        new = map_linears(model, change)
    new.label = _label(model, run, spec_or_rule, plan, rows, hyper)
    return new


def _only_what_works(**given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            raise NotImplementedError(f"{name}= is not acted on by this version; leave it out")


# ---- who gets what -------------------------------------------------------------------------------


def _method(method: str | Callable[..., QTensor]) -> Callable[..., QTensor]:
    if callable(method):
        return method
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown: {near(method, METHODS)}")
    return METHODS[method]


def as_spec(spec: Spec | str | None) -> Spec | None:
    """A Spec from itself or its name in SPECS; None stays None."""
    if spec is None or isinstance(spec, Spec):
        return spec
    if not isinstance(spec, str):
        raise ValueError(f"a Spec, a name in SPECS or None is needed, not {spec!r}")
    return find(spec)


def _plan(
    layers: Mapping[str, Linear], run: Callable, rule: Rule, skip: tuple[str, ...]
) -> dict[str, Spec | None]:
    """The Spec of every path, checked before any work is done."""
    globs = skip + (tuple(rule) if isinstance(rule, Mapping) else ())
    for glob in globs:
        if not fnmatch.filter(layers, glob):
            raise ValueError(f"no linear matches {glob!r}: {near(glob, layers)}"[:300])
    plan: dict[str, Spec | None] = {}
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
        raise ValueError(f"method {_name(run)!r} cannot fill spec {name_of(spec)!r} ({path})")


def _name(run: Callable) -> str:
    return getattr(run, "__name__", type(run).__name__)


# ---- one layer -----------------------------------------------------------------------------------


def _layer(
    path: str, layer: Linear, run: Callable, spec: Spec, stats: Stats | None, hyper: dict[str, Any]
) -> tuple[QTensor, LayerReport]:
    w = as_array(layer.weight)
    try:
        q = run(w, stats, spec, **hyper)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(q, QTensor):
        raise ValueError(
            f"method {_name(run)!r} returned {type(q).__name__}, not a QTensor ({path})"
        )
    found = {key: float(value) for key, value in _measure(w, q).items()}
    row = LayerReport(
        path=path,
        shape=tuple(w.shape),
        spec=name_of(q.spec),
        bits_per_weight=bits_per_weight(q),
        error=found["error"],
        max_error=found["max_error"],
        clipped=found["clipped"],
        loss=None if stats is None else float(output_error(w, dequantize(q), stats)),
        notes=_notes(found, q.spec, spec),
    )
    return q, row


def _notes(found: Mapping[str, float], used: Spec, asked: Spec) -> tuple[str, ...]:
    notes = [f"{int(found[key])} {what}" for key, what in _ODDITIES.items() if found[key]]
    if used != asked:
        notes.append(f"the method used {name_of(used)}, not {name_of(asked)}")
    return tuple(notes)


_ODDITIES = {"dead": "input columns are all zero", "constant": "rows are constant"}


@jax.jit
def _measure(w: jax.Array, q: QTensor) -> dict[str, jax.Array]:
    """The numbers of a report: relative and largest error, share of clipped weights, dead columns,
    constant rows.
    """
    w_hat = dequantize(q)
    energy = jnp.sum(w * w)
    return {
        "error": jnp.sqrt(jnp.sum((w - w_hat) ** 2) / jnp.where(energy == 0, 1.0, energy)),
        "max_error": jnp.max(jnp.abs(w - w_hat)),
        "clipped": jnp.mean(_clipped(w, q)),
        "dead": jnp.sum(jnp.all(w == 0, axis=0)),
        "constant": jnp.sum(jnp.all(w == w[:, :1], axis=1)),
    }


def _clipped(w: jax.Array, q: QTensor) -> jax.Array:
    """Whether each weight lies more than half a step beyond the ends of its block's range, (out,
    in) bool.
    """
    values = q.spec.format.values
    first, last = _value_of(q, 0), _value_of(q, -1)
    unit = (last - first) / (values[-1] - values[0])  # a block's values are affine in the grid's
    below = first - unit * (values[1] - values[0]) / 2
    above = last + unit * (values[-1] - values[-2]) / 2
    # A negative scale turns the range round.
    return (w < jnp.minimum(below, above)) | (w > jnp.maximum(below, above))


def _value_of(q: QTensor, index: int) -> jax.Array:
    """What every weight would be with the code of the grid's `index`-th value, (out, in)."""
    code = q.spec.format.encode(jnp.float32(q.spec.format.values[index]))
    return dequantize(q.replace(codes=jnp.broadcast_to(code, q.shape)))


# ---- what travels with the model -----------------------------------------------------------------


def _label(
    model: Transformer,
    run: Callable,
    rule: Rule,
    plan: Mapping[str, Spec | None],
    rows: list[LayerReport],
    hyper: Mapping[str, Any],
) -> Label:
    specs = list(dict.fromkeys(row.spec for row in rows))
    spec = specs[0] if len(specs) == 1 else f"{len(specs)} specs"
    if isinstance(rule, str):
        spec = rule
    order = {path: i for i, path in enumerate(plan)}
    report = Report(
        model=model.name,
        method=_name(run),
        spec=spec,
        layers=tuple(sorted(rows, key=lambda row: order[row.path])),
        float_layers=tuple(path for path, s in plan.items() if s is None),
        notes=("embedding and head are not quantized", *model.notes),
    )
    provenance = {
        "model": dict(model.label.provenance, name=model.name),
        "method": _name(run),
        "spec": specs,
        "hyper": {name: repr(value) for name, value in sorted(hyper.items())},
        "versions": {name: _version(name) for name in ("qlab", "jax", "flax", "numpy")},
    }
    name = " ".join(filter(None, (model.name, _name(run), spec)))
    return Label(name, model.tokenizer, report, model.notes, provenance)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "source"
