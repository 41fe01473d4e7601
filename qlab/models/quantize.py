"""`quantize_model`: a method on every linear layer, block by block, and a report of what happened.

    plan       what each linear gets                propagate  which inputs it is calibrated on
    judge      one layer: run, measure, compare     resume     a killed run goes on where it was
    fold       channels scaled before, the inverse folded into what feeds them

A new model comes out; the old one is untouched. Embedding and head stay float here.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from tqdm.auto import tqdm

from qlab.activations import name_of as act_name
from qlab.activations import product
from qlab.models.calibrate import Batches, as_batches
from qlab.models.checks import check_model
from qlab.models.fold import Folded, check_objective, fold_block
from qlab.models.judge import Seen, quantize_layer, rescaled
from qlab.models.plan import PROPAGATE, Job, Methods, Rule, Task, find_method, make_plan
from qlab.models.propagate import Float, Given, Quantized, Source, States, dense_block
from qlab.models.provenance import facts, provenance_of
from qlab.models.report import LayerReport, Report
from qlab.models.resume import Finished, Folder
from qlab.models.surgery import get, linears, map_linears, put
from qlab.models.transformer import Label, Linear, Transformer
from qlab.observers import static
from qlab.qtensor import QTensor, dequantize
from qlab.specs import name_of
from qlab.stats import Stats
from qlab.suggest import counted, near

# What `activations.product` says, in the words of the report.
PRODUCTS = {
    "int": "products of integers",
    "fp8": "products of FP8 values",
    "float": "float products",
}


def quantize_model(
    model: Transformer,
    method: Methods,
    spec_or_rule: Rule,
    batches: Any = None,
    stats: Mapping[str, Stats] | None = None,
    act: Any = None,
    skip: str | Iterable[str] = (),
    propagate: str | None = None,
    cache: str | os.PathLike | None = None,
    progress: bool = True,
    held_out: float = 0.125,
    objective: str = "linear",
    **hyper: Any,
) -> Transformer:
    """A new model whose linears are QTensors.

    Args:
        model: any Transformer; weights that are QTensors already are dequantized first.
        method: a name in METHODS, or a function (w, stats, spec, **hyper) -> QTensor; or {glob:
            such a one}, the first glob that matches a path decides, and no match leaves it float.
        spec_or_rule: a Spec or a name in SPECS for every linear; or {glob: Spec, name or None}, the
            first glob that matches a path decides; or a function path -> Spec, name or None. None,
            or no match, leaves a linear float.
        batches: calibration text: a bundled domain such as "english", or several; {name: text};
            what `calibration_batches` returns; (sequences, time) token ids, lists of ids of any
            lengths, or {"input_ids", "attention_mask"}, padded on the right.
        stats: {path: Stats} from `calibrate`, in place of batches.
        act: how the inputs of the quantized linears are quantized when the model runs: a name in
            `activations.ACTS` such as "int8_token", a Spec, an Act, or {glob: such a one}. Static
            ranges are found on the calibration text. None: inputs stay float.
        skip: a glob, or several, of paths that stay float, such as "layers.0.*" or "*.down_proj".
        propagate: "quantized": each stage of a block ([q, k, v] → [o] → [gate, up] → [down]) is
            calibrated on what the quantized layers before it put out; "float": on the float
            model's inputs; "none": not at all, or "float" if there are batches. None: the method's
            own; for a plain function "float" if there are batches.
        cache: a folder for finished blocks: a run that was killed goes on from there, to the same
            bytes.
        progress: show a bar with the layer, its loss and RTN's, and the time left.
        held_out: share of the sequences (the last ones) that no method sees, on which the report
            judges each layer; at least one of eight or more; 0: none.
        objective: on what methods that scale channels (AWQ) search: "linear", the linears' own
            outputs, known from H; "block", the real output of the attention or MLP around them on
            the first 2,048 tokens, as AWQ's program does, which runs it once for each candidate.
        hyper: settings of the method, or of those methods that have them. `quantizer` may be a
            name in METHODS.

    Returns:
        a Transformer; `.report` says what happened layer by layer, `.label.provenance` how to do
        it again.

    Raises:
        ValueError: an unknown method, setting, Spec or glob (the nearest is suggested), a method
            that cannot fill a Spec or is given no text it needs, a block that does not divide a
            layer, a folder that holds another run, or weights or inputs with NaN or Inf: the
            sentence names the layer.

    Example:
        >>> model = qlab.load("tiny")   # doctest: +SKIP
        >>> q = quantize_model(model, "gptq", "int4_g64", "english")   # doctest: +SKIP
        >>> print(q.report)                                            # doctest: +SKIP
    """
    check_model(model)
    if isinstance(hyper.get("quantizer"), str):
        hyper["quantizer"] = find_method(hyper["quantizer"])
    plan = make_plan(linears(model), method, spec_or_rule, skip, act, hyper)
    job = Job(model, plan, hyper, objective)
    check_objective(job)
    mode = _mode(job, propagate, batches, stats)
    kinds: dict[str, Batches] = {}
    if batches is not None:
        kept, held = as_batches(model, batches).split(held_out)
        kinds = {"calibration": kept} | ({} if held is None else {"held_out": held})
    _check_stats(job, stats)
    provenance = provenance_of(job, mode, kinds, stats)
    with _workplace(job, cache, provenance) as (folder, place):
        states = States(place, kinds) if kinds else None
        done = _run_blocks(job, _source(mode, states, stats), states, folder, progress)
    new = _assembled(job, done[0])
    notes = (*_origin(job, mode, kinds), *_rounded_before(job))
    new.label = _label(job, spec_or_rule, done[1], provenance, notes)
    return new


def _assembled(job: Job, found: Mapping[str, Any]) -> Transformer:
    """The model with its new parts: QTensors of linears, ranges of their inputs, arrays of what
    was scaled.
    """

    def change(path: str, layer: Linear) -> Linear:
        task = job.plan[path]
        if task is None:
            return Linear(layer.weight, layer.bias, layer.act)  # its own: arrays may be put there
        act, ranges = task.act, found.get(f"{path}.act.ranges")
        if act is not None and ranges is not None:
            act = act.with_ranges(ranges)
        return Linear(found[path], layer.bias, act)

    new = map_linears(job.model, change)
    for path, value in found.items():
        if not isinstance(value, QTensor):
            _, index, inside = path.split(".", 2)
            put(new.layers[int(index)], inside, value)
    return new


# ---- what it is calibrated on --------------------------------------------------------------------


def _mode(job: Job, propagate: str | None, batches: Any, stats: Any) -> str:
    """What layers will read: "none", "given", "float" or "quantized", as far as there is text."""
    own = job.propagate
    if propagate is not None and propagate not in PROPAGATE:
        raise ValueError(f"propagate={propagate!r} is unknown: {near(propagate, PROPAGATE)}")
    if batches is not None and stats is not None:
        raise ValueError("batches= and stats= exclude each other: stats are taken from batches")
    if stats is not None:
        if propagate == "quantized":
            raise ValueError(
                "stats= are taken before anything is quantized, so propagate='quantized' cannot "
                "use them: give batches="
            )
        return "given"
    if batches is None:
        needed = propagate if propagate in ("float", "quantized") else own
        if needed in ("float", "quantized"):
            raise ValueError(
                f"method {job.method!r} with propagate={needed!r} needs calibration text: "
                "batches='english', your own {name: text} or token ids, or stats=qlab.calibrate(…)"
            )
        if any(_static(task) for task in job.tasks):
            raise ValueError("static ranges of inputs are found on text: give batches= or stats=")
        return "none"
    chosen = propagate or own or "float"
    return "float" if chosen == "none" else chosen


def _static(task: Task) -> bool:
    """Whether the ranges of a task's inputs have yet to be found."""
    return task.act is not None and task.act.static and task.act.ranges is None


def _check_stats(job: Job, stats: Mapping[str, Stats] | None) -> None:
    """Stats of paths that there are; and of all, if the method cannot do without."""
    if stats is None:
        return
    for path in stats:
        if path not in job.plan:
            raise ValueError(
                f"stats= has {path!r}, no linear of this model: {near(path, job.plan)}"
            )
    missing = [
        path
        for path, task in job.plan.items()
        if task is not None
        and (getattr(task.run, "propagate", "none") != "none" or _static(task))
        and path not in stats
    ]
    if missing:
        raise ValueError(
            f"method {job.method!r} needs Stats of every linear it quantizes: stats= "
            f"lacks {missing[0]!r}" + (f" and {len(missing) - 1} more" if missing[1:] else "")
        )


def _source(mode: str, states: States | None, stats: Mapping[str, Stats] | None) -> Source:
    if states is None:
        return Given(stats or {})
    return Quantized(states) if mode == "quantized" else Float(states)


def _origin(job: Job, mode: str, kinds: Mapping[str, Batches]) -> tuple[str, ...]:
    """The report's lines on what the layers were calibrated on."""
    if mode == "given":
        notes = ("calibrated on the Stats given",)
        if job.propagate == "quantized":
            return (
                *notes,
                f"{job.method} by default calibrates each layer on what the quantized "
                "layers before it put out; Stats cannot follow that, batches= can",
            )
        return notes
    if not kinds:
        return ()
    text = kinds["calibration"]
    domains = ", ".join(text.provenance.get("domains", ())) or "token ids"
    inputs = "the float model's inputs"
    if mode == "quantized":
        inputs = "each stage reading what the quantized layers before it put out"
    line = f"calibrated on {counted(text.count, 'token')} ({domains}), {inputs}"
    if "held_out" in kinds:
        line += f"; judged also on {counted(kinds['held_out'].count, 'token')} held out"
    return (line,)


def _rounded_before(job: Job) -> tuple[str, ...]:
    """The report's line on layers that came quantized: what is rounded now are their values."""
    found = linears(job.model)
    weights = [found[path].weight for path, task in job.plan.items() if task is not None]
    again = [w for w in weights if isinstance(w, QTensor)]
    if not again:
        return ()
    was = ", ".join(dict.fromkeys(name_of(w.spec) for w in again))
    line = f"{counted(len(again), 'linear')} came quantized ({was}) and were rounded again: errors"
    return (line + " are against those values, not the float weights",)


# ---- block by block ------------------------------------------------------------------------------


@contextlib.contextmanager
def _workplace(
    job: Job, cache: str | os.PathLike | None, provenance: Mapping[str, Any]
) -> Iterator[tuple[Folder | None, Path]]:
    """The folder of finished blocks, if one is asked for, and where states are kept."""
    if cache is not None:
        folder = Folder(cache, facts(job, provenance))
        yield folder, folder.states
        return
    with tempfile.TemporaryDirectory(prefix="qlab-") as place:
        yield None, Path(place)


def _run_blocks(
    job: Job, source: Source, states: States | None, folder: Folder | None, progress: bool
) -> Finished:
    """Every block in turn; it is finished once the next one's input and its own result are kept."""
    done: Finished = ({}, [])
    start = min(folder.finished, job.blocks) if folder else 0
    for i in range(start):
        _gather(done, folder.load(i) if folder else done)
    if states and start < job.blocks:
        states.begin(job.model, start)
    bar = tqdm(total=len(job.tasks), initial=len(done[1]), disable=not progress, leave=False)
    with bar:
        for i in range(start, job.blocks):
            block = dense_block(job.model.layers[i])
            found = _run_block(job, i, block, source, bar)
            if i + 1 < job.blocks:
                source.leave(i, block)
            if folder:
                folder.finish(i, found)
            if states:
                states.drop(i)
            _gather(done, found)
    if states:
        states.clear()
    return done


def _gather(done: Finished, more: Finished) -> None:
    done[0].update(more[0])
    done[1].extend(more[1])


def _run_block(job: Job, index: int, block: Any, source: Source, bar: tqdm) -> Finished:
    """Quantizes the linears of one dense block, which holds the rounded weights in the end."""
    done: Finished = ({}, [])
    source.enter(index, block)
    folded = fold_block(job, index, block, source)
    _gather(done, (_scaled_parts(job, index, block, folded), []))
    for stage in block.STAGES:
        todo = {p: task for p in stage if (task := job.plan[f"layers.{index}.{p}"]) is not None}
        seen = source.seen(index, block, stage) if todo else {}
        for path, task in todo.items():
            full, layer, how = f"layers.{index}.{path}", get(block, path), folded.get(path)
            bar.set_description(f"{job.method} {full}", refresh=False)
            mine = seen[path] if how is None or source.live else rescaled(seen[path], how.scale)
            q, row = quantize_layer(full, layer, task, mine, how)
            put(block, path, Linear(dequantize(q), layer.bias))
            _gather(done, ({full: q, **_input_ranges(full, task, mine)}, [row]))
            bar.set_postfix_str(_brief(row), refresh=False)
            bar.update()
    return done


def _scaled_parts(
    job: Job, index: int, block: Any, folded: Mapping[str, Folded]
) -> dict[str, QTensor | jax.Array]:
    """The new arrays of norms, biases and float linears of a block whose channels were scaled."""
    found: dict[str, QTensor | jax.Array] = {}
    for path in {*folded, *(how.feeder for how in folded.values())}:
        full, part = f"layers.{index}.{path}", get(block, path)
        if job.plan.get(full) is None:
            found[f"{full}.weight"] = part.weight
        if getattr(part, "bias", None) is not None:
            found[f"{full}.bias"] = part.bias
    return dict(sorted(found.items()))


def _input_ranges(path: str, task: Task, seen: Seen) -> dict[str, QTensor]:
    """The static ranges of a linear's inputs, if it has any."""
    if task.act is None or not _static(task) or seen.calibration is None:
        return {}
    return {f"{path}.act.ranges": static(seen.calibration, task.act.spec)}


def _brief(row: LayerReport) -> str:
    if row.loss is None:
        return f"error {row.error:.4f}"
    return f"loss {row.loss:.4f}" + ("" if row.rtn_loss is None else f", RTN {row.rtn_loss:.4f}")


# ---- what travels with the model -----------------------------------------------------------------


def _label(
    job: Job,
    rule: Rule,
    rows: list[LayerReport],
    provenance: dict[str, Any],
    notes: tuple[str, ...],
) -> Label:
    specs = list(dict.fromkeys(row.spec for row in rows))
    spec = specs[0] if len(specs) == 1 else f"{len(specs)} specs"
    if isinstance(rule, str):
        spec = rule
    model, layers = job.model, linears(job.model)
    left = [path for path, task in job.plan.items() if task is None]
    before = [path for path in left if isinstance(layers[path].weight, QTensor)]
    if before:
        keep = "keeps the codes it" if len(before) == 1 else "keep the codes they"
        some = before[0] + (" …" if before[1:] else "")
        notes = (*notes, f"{counted(len(before), 'linear')} {keep} came with: {some}")
    report = Report(
        model=model.name,
        method=job.method,
        spec=spec,
        layers=tuple(rows),
        float_layers=tuple(path for path in left if path not in before),
        notes=(
            *notes,
            *_inputs_said(job),
            "embedding and head are not quantized",
            *model.notes,
        ),
    )
    name = " ".join(filter(None, (model.name, job.method, spec)))
    header = model.label.header
    return Label(name, model.tokenizer, report, model.notes, provenance, header)


def _inputs_said(job: Job) -> list[str]:
    """How inputs are quantized and multiplied, one line a way."""
    found: dict[str, int] = {}
    for task in job.tasks:
        if task.act is not None:
            how = PRODUCTS[product(task.spec, task.act)]
            line = f"inputs {act_name(task.act)}, {how}; the losses are those of the weights alone"
            found[line] = found.get(line, 0) + 1
    return [f"{counted(count, 'linear')}: {line}" for line, count in found.items()]
