"""Quantization-aware training: the loss of the rounded model moves the weights beneath.

    prepare → steps of AdamW on  CE(next token)  or  KL(teacher ‖ student)  → convert

A step is a function of (state, step number): rates and the order of the data follow from the step,
so a run that was killed goes on to the same codes. Not here: how gradients pass the rounding
(`methods.qat`), losses (`objective`), checkpoints (`train_state`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tqdm.auto import tqdm

from qlab.activations import name_of as act_name
from qlab.methods.rtn import rtn
from qlab.methods.trained import Trained
from qlab.models.calibrate import Batches, as_batches, calibrate, is_text, whole_texts
from qlab.models.checks import check_model
from qlab.models.judge import Seen, quantize_layer
from qlab.models.objective import Mix, batch_loss
from qlab.models.plan import Plan, Rule, Task
from qlab.models.prepare import convert, needs_stats, plan_of, prepare
from qlab.models.provenance import code_hash, fingerprint_of, task_in_words, versions, weights_hash
from qlab.models.report import LayerReport, Report
from qlab.models.surgery import dense, linears
from qlab.models.train_state import Checkpoints, Params, State, filled, trainable
from qlab.models.transformer import Label, Linear, Transformer
from qlab.specs import name_of
from qlab.suggest import counted

CALIBRATION = 16  # sequences on which ranges of inputs are found
WARM_UP = 0.05  # share of the steps in which the rate rises
# Of weights. `tiny` in int2_g64, 40 steps by ste with a teacher: loss 1.41 at 3e-4, 0.96 at 1e-3,
# 0.76 at 3e-3; larger models want less. By lsq 0.31 at 1e-3, with steps at 0.003 or 0.01 alike.
RATE = 1e-3
STEP_RATE = 3e-3  # of learned steps, relative to their size


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a training run is, after each of its steps.

    Attributes:
        step: steps done, 1 … steps.
        steps: of the whole run.
        loss: of this step's batch, nats per token, before the step was taken.
        rate: share of the full learning rate that the step had.
        tokens: predicted so far.
        model: the prepared model after the step; `convert` makes the quantized one of it.
    """

    step: int
    steps: int
    loss: float
    rate: float
    tokens: int
    model: Transformer


class Settings(NamedTuple):
    """The numbers of a run."""

    steps: int
    batch: int
    learning_rate: float
    step_rate: float
    weight_decay: float
    kd: float | None
    temperature: float
    seed: int

    def check(self) -> None:
        """Raises ValueError for a number that means nothing."""
        for name in ("steps", "batch"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is not a whole number from 1 on")
        for name in ("learning_rate", "temperature", "step_rate", "weight_decay"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
                raise ValueError(f"{name}={value!r} is not a number")
            if not value > 0 and name in ("learning_rate", "temperature"):
                raise ValueError(f"{name}={value!r} is not positive")
            if not value >= 0:
                raise ValueError(f"{name}={value!r} is negative")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed={self.seed!r} is not a whole number from 0 on")
        if self.kd is not None and not (isinstance(self.kd, int | float) and 0 <= self.kd <= 1):
            raise ValueError(f"kd={self.kd!r} is not a share: 0 ≤ kd ≤ 1")


def qat(
    model: Transformer,
    spec: Rule,
    batches: Any = "english",
    *,
    teacher: Transformer | None = None,
    act: Any = None,
    steps: int = 200,
    method: str = "ste",
    learning_rate: float = RATE,
    batch: int = 8,
    optimizer: optax.GradientTransformation | None = None,
    skip: str | Iterable[str] = (),
    kd: float | None = None,
    temperature: float = 1.0,
    step_rate: float = STEP_RATE,
    weight_decay: float = 0.01,
    context: int | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike | None = None,
    every: int = 50,
    devices: Sequence[Any] | None = None,
    callback: Callable[[int, float, Transformer], Any] | None = None,
    progress: bool = True,
) -> Transformer:
    """Trains a model while it is quantized, and returns the quantized one.

    Args:
        model: any Transformer; untouched. One that was `prepare`d goes on from its weights.
        spec: a Spec or a name in SPECS, or {glob: such a one}, as for `quantize_model`.
        batches: text: a domain or several, or {name: text}, of which all is used; or sequences as
            `quantize_model` takes them.
        teacher: a model whose distribution the student learns; None: the next token.
        act: how inputs are quantized, as for `quantize_model`.
        steps: of the optimizer.
        method: "ste", "clipped", "lsq", "pact" or "bitnet"; see `qlab.methods.qat`.
        learning_rate: of the weights; it rises for a twentieth of the steps and falls to zero as a
            cosine.
        batch: sequences a step.
        optimizer: an optax transform with a rate of its own, in place of AdamW and the schedule.
        skip: a glob, or several, of linears that stay float. They are trained too.
        kd: weight of the teacher's loss, 1 − kd is that of the next token's; None: 1.
        temperature: of both distributions; the teacher's loss is multiplied by its square.
        step_rate: of learned steps and clips, relative to their size: 0.003 moves one by 0.3 % a
            step at most. They have no weight decay.
        weight_decay: of matrices.
        context: tokens in a sequence of text; None: 512, at most what the model allows.
        seed: of the order of the sequences.
        checkpoint: a folder: a run that was killed goes on from its last checkpoint, to the same
            losses and codes.
        every: steps between checkpoints.
        devices: the batch is split among them; None: as many of `jax.devices()` as divide it.
        callback: called as (step, loss, prepared model) after each step.
        progress: show a bar with the loss and the time left.

    Returns:
        a Transformer of QTensors; `.report` says how far each layer's codes are from its trained
        weights, `.label.provenance` how to do it again, the losses included.

    Raises:
        ValueError: as `prepare`; too little text for one batch, both numbers named; a checkpoint of
            another run, what differs named; a loss that is not finite, the step named.

    Example:
        >>> model = qlab.load("tiny")                                              # doctest: +SKIP
        >>> q = qlab.qat(model, "int2_g64", "english", teacher=model, steps=100)   # doctest: +SKIP
        >>> qlab.evaluate(q, reference=model, texts="english")                     # doctest: +SKIP
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every={every!r} is not a whole number of steps from 1 on")
    settings = Settings(steps, batch, learning_rate, step_rate, weight_decay, kd, temperature, seed)
    run = Run.start(model, spec, batches, settings, method, act, skip, context, teacher,
                    optimizer, devices)  # fmt: skip
    kept = nullcontext() if checkpoint is None else Checkpoints(checkpoint, run.facts())
    losses: list[float] = []
    last = None
    shown = tqdm(total=steps, desc=f"qat {method}", disable=not progress, leave=False)
    with kept as folder, shown as bar:
        for last in run.go(folder, every, losses, keep=callback is not None):
            bar.update(last.step - bar.n)
            bar.set_postfix(loss=f"{last.loss:.3f}", refresh=False)
            if callback is not None:
                callback(last.step, last.loss, last.model)
    assert last is not None
    return run.finished(last.model, losses)


def qat_steps(
    model: Transformer,
    spec: Rule,
    batches: Any = "english",
    *,
    teacher: Transformer | None = None,
    act: Any = None,
    steps: int = 200,
    method: str = "ste",
    learning_rate: float = RATE,
    batch: int = 8,
    optimizer: optax.GradientTransformation | None = None,
    skip: str | Iterable[str] = (),
    kd: float | None = None,
    temperature: float = 1.0,
    step_rate: float = STEP_RATE,
    weight_decay: float = 0.01,
    context: int | None = None,
    seed: int = 0,
    devices: Sequence[Any] | None = None,
) -> Iterator[Progress]:
    """`qat` one step at a time: yields where it is after each, and may be left at any.

    To change bits in the middle, begin anew from the prepared model: `qat_steps(last.model, other
    spec, …)` goes on from the weights beneath.

    Args, Raises: as `qat`. What is wrong with the arguments is raised at once, not at the first
    step.

    Example:
        >>> for now in qlab.models.qat_steps(model, "int2_g64", steps=20):   # doctest: +SKIP
        ...     print(now.step, now.loss)
        >>> q = qlab.models.convert(now.model)                               # doctest: +SKIP
    """
    settings = Settings(steps, batch, learning_rate, step_rate, weight_decay, kd, temperature, seed)
    run = Run.start(model, spec, batches, settings, method, act, skip, context, teacher,
                    optimizer, devices)  # fmt: skip
    return run.go(None, 0, [], keep=True)


# ---- one run -------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Run:
    """All that decides the result, checked."""

    model: Transformer
    prepared: Transformer
    teacher: Transformer | None
    text: Batches
    settings: Settings
    method: str
    plan: Plan
    optimizer: Optimizer
    devices: tuple[Any, ...]

    @staticmethod
    def start(
        model, spec, batches, settings, method, act, skip, context, teacher, optimizer, devices
    ) -> Run:
        """Checks everything, and prepares the model."""
        settings.check()
        if teacher is not None:
            check_model(teacher, "teacher")
        elif settings.kd is not None:
            raise ValueError(f"kd={settings.kd} weighs a teacher's loss: teacher= is not given")
        plan = plan_of(model, spec, method, act, skip)
        cut = whole_texts(model, batches, context) if is_text(batches) else None
        text = cut or as_batches(model, batches)
        if len(text) < settings.batch:
            raise ValueError(
                f"{counted(text.count, 'token')} are {counted(len(text), 'sequence')}, fewer than "
                f"one batch of {settings.batch}"
            )
        if text.tokens.shape[1] < 2:
            raise ValueError("a sequence of 1 token has no next one: training needs 2")
        stats = None
        if needs_stats(plan, method):
            some = Batches(text.tokens[:CALIBRATION, :-1], text.mask[:CALIBRATION, :-1], {})
            stats = calibrate(dense(model), some)
        prepared = prepare(model, spec, method=method, act=act, skip=skip, stats=stats)
        how = Optimizer.own(settings) if optimizer is None else Optimizer(optimizer, False)
        return Run(model, prepared, None if teacher is None else dense(teacher), text, settings,
                   method, plan, how, _devices(devices, settings.batch))  # fmt: skip

    def go(
        self, folder: Checkpoints | None, every: int, losses: list[float], keep: bool
    ) -> Iterator[Progress]:
        """The steps that are left. `losses` is filled with those of all steps; with `keep` a model
        that was yielded outlives the next step.
        """
        # What is trained is a copy: a step may take the memory of its argument.
        params = jax.tree.map(jnp.copy, trainable(self.prepared))
        state = State(params, self.optimizer.transform.init(params))
        done, state, before = (0, state, []) if folder is None else folder.newest(state)
        losses.extend(before)
        mesh = jax.sharding.Mesh(np.array(self.devices), ("data",))
        state = jax.device_put(state, NamedSharding(mesh, P()))
        teacher, model = jax.device_put((self.teacher, self.prepared), NamedSharding(mesh, P()))
        step_function = make_step(mesh, self.optimizer, not keep)
        if done == self.settings.steps:  # finished before: nothing is left but to say so
            yield self._progress(done, losses[-1], 0.0, state)
        for step in range(done, self.settings.steps):
            rows, weights = self.rows(step)
            share = rate(step, self.settings.steps)
            state, loss = step_function(state, model, teacher, rows, weights, self._numbers(share))
            loss = float(loss)
            if not math.isfinite(loss):
                raise ValueError(f"step {step + 1}: the loss is {loss}; a lower learning_rate= "
                                 "may help" + self._kept(folder))  # fmt: skip
            losses.append(loss)
            if folder is not None and ((step + 1) % every == 0 or step + 1 == self.settings.steps):
                folder.save(step + 1, state, losses)
            yield self._progress(step + 1, loss, share, state)

    def _kept(self, folder: Checkpoints | None) -> str:
        steps = [] if folder is None else folder.steps()
        return f"; the checkpoint of step {steps[-1]} is kept" if steps else ""

    def _progress(self, step: int, loss: float, share: float, state: State) -> Progress:
        model = filled(self.prepared, state.params)
        return Progress(step, self.settings.steps, loss, share, self._tokens(step), model)

    def _tokens(self, step: int) -> int:
        """Predictions in so many steps, padding counted."""
        return step * self.settings.batch * (self.text.tokens.shape[1] - 1)

    def rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (batch, time + 1) of a step, and the weights (batch, time) of predictions: one
        seeded order of all sequences a pass.
        """
        batch, count = self.settings.batch, len(self.text)
        passes = count // batch
        order = np.random.default_rng((self.settings.seed, step // passes)).permutation(count)
        chosen = order[step % passes * batch :][:batch]
        real = self.text.mask[chosen, 1:].astype(np.float32)
        return self.text.tokens[chosen], real / max(real.sum(), 1.0)

    def _numbers(self, share: float) -> dict[str, Any]:
        s = self.settings
        kd = 0.0 if self.teacher is None else 1.0 if s.kd is None else s.kd
        mix = Mix(*(np.float32(x) for x in (1 - kd, kd, s.temperature)))
        rates = {"weights": s.learning_rate * share, "steps": s.step_rate * share}
        return {"mix": mix, "rates": {name: np.float32(x) for name, x in rates.items()}}

    # ---- what travels with the result ----

    def provenance(self) -> dict[str, Any]:
        """What the result is made of, as JSON values."""
        tasks = [task for task in self.plan.values() if task is not None]
        acts = dict.fromkeys(act_name(task.act) for task in tasks if task.act is not None)
        model = self.model
        found = {
            "model": dict(model.label.provenance, name=model.name, weights=weights_hash(model)),
            "method": f"qat {self.method}",
            "spec": list(dict.fromkeys(name_of(task.spec) for task in tasks)),
            "hyper": {**self.settings._asdict(), "optimizer": self.optimizer.said()},
            "text": dict(self.text.provenance, sequences=len(self.text), sha256=self.text.hash),
            "versions": versions("optax"),
        }
        if acts:
            found["act"] = list(acts)
        if self.teacher is not None:
            found["teacher"] = {"name": self.teacher.name, "weights": weights_hash(self.teacher)}
        return found

    def facts(self) -> dict[str, Any]:
        """All that decides the result, one short value for each reason why a folder may not fit."""
        plan = {p: "float" if t is None else task_in_words(t) for p, t in self.plan.items()}
        first = self.devices[0]
        own = self.optimizer.scheduled
        return {
            **self.provenance(),
            "plan": plan,
            "code": code_hash(rtn),
            "optimizer": "AdamW" if own else fingerprint_of(self.optimizer.transform, "optimizer"),
            "device": f"{len(self.devices)} × {first.platform} ({first.device_kind})",
        }

    def finished(self, prepared: Transformer, losses: list[float]) -> Transformer:
        """The converted model with its label."""
        new, model, method = convert(prepared), self.model, f"qat {self.method}"
        layers = linears(prepared)
        rows = tuple(
            _row(path, layer.weight, linears(new)[path].weight)
            for path, layer in layers.items()
            if isinstance(layer.weight, Trained)
        )
        specs = list(dict.fromkeys(row.spec for row in rows))
        spec = specs[0] if len(specs) == 1 else f"{len(specs)} specs"
        left = tuple(path for path, x in layers.items() if isinstance(x.weight, jax.Array))
        few = max(1, min(10, len(losses) // 4))
        begin, end = (float(np.mean(part)) for part in (losses[:few], losses[-few:]))
        tokens = self._tokens(self.settings.steps)
        what = "the next token" if self.teacher is None else f"{self.teacher.name} as teacher"
        notes = (
            f"trained by {self.method} for {counted(self.settings.steps, 'step')} on "
            f"{counted(tokens, 'token')} ({what}): loss {begin:.3f} → {end:.3f}",
            "errors are those of the codes against the trained weights, not the old model's",
            "embedding and head are trained and not quantized",
        )
        report = Report(model.name, method, spec, rows, left, (*notes, *model.notes))
        curve = {"start": begin, "end": end, "steps": [round(x, 6) for x in losses]}
        made = {**self.provenance(), "loss": curve, "tokens": tokens}
        name = " ".join(filter(None, (model.name, method, spec)))
        header = model.label.header
        new.label = Label(name, model.tokenizer, report, model.notes, made, header)
        return new


def _row(path: str, weight: Trained, q: Any) -> LayerReport:
    """How far a layer's codes are from its trained weights."""
    task = Task(lambda w, stats, spec: q, {}, weight.spec)
    return quantize_layer(path, Linear(weight.w), task, Seen())[1]


def _devices(given: Sequence[Any] | None, batch: int) -> tuple[Any, ...]:
    """Those given, or as many as divide the batch."""
    if given is None:
        there = jax.devices()
        return tuple(there[: max(n for n in range(1, len(there) + 1) if batch % n == 0)])
    if not len(given):
        raise ValueError("devices=[] are none: None takes as many as divide the batch")
    if batch % len(given):
        raise ValueError(f"a batch of {batch} is not a multiple of {counted(len(given), 'device')}")
    return tuple(given)


def rate(step: int, steps: int) -> float:
    """Share of the full learning rate: up for WARM_UP of the steps, then down as a cosine.

    Example:
        >>> [round(rate(step, 100), 2) for step in (0, 4, 52, 99)]
        [0.2, 1.0, 0.5, 0.0]
    """
    up = max(1, round(WARM_UP * steps))
    if step < up:
        return (step + 1) / up
    return 0.5 * (1 + math.cos(math.pi * (step - up) / max(1, steps - up)))


# ---- one step ------------------------------------------------------------------------------------


class Optimizer(NamedTuple):
    """An optax transform; a scheduled one gives directions of unit rate."""

    transform: optax.GradientTransformation
    scheduled: bool

    @staticmethod
    def own(settings: Settings) -> Optimizer:
        return Optimizer(_adamw(settings.weight_decay), True)

    def said(self) -> str:
        return "AdamW, cosine" if self.scheduled else "one's own"


def group(path: str, leaf: jax.Array) -> str:
    """What a parameter is: "steps" (learned steps, offsets, clips), "matrices" or "vectors"."""
    if ".learned." in path or path.endswith((".act.alpha", ".act.step")):
        return "steps"
    return "matrices" if leaf.ndim > 1 else "vectors"


@functools.cache
def _adamw(weight_decay: float) -> optax.GradientTransformation:
    """AdamW without its rate; learned steps move relative to their size, and do not decay."""
    adam = functools.partial(optax.scale_by_adam, b2=0.99)
    kinds: dict[Any, optax.GradientTransformation] = {
        "matrices": optax.chain(adam(), optax.add_decayed_weights(weight_decay)),
        "vectors": adam(),
        "steps": optax.chain(adam(), optax.scale_by_param_block_rms(1e-8)),
    }

    def labels(params: Mapping[str, jax.Array]) -> dict[str, str]:
        return {path: group(path, leaf) for path, leaf in params.items()}

    return optax.chain(optax.clip_by_global_norm(1.0), optax.partition(kinds, labels))


@functools.cache
def make_step(mesh: jax.sharding.Mesh, optimizer: Optimizer, donate: bool) -> Callable:
    """The compiled `step(state, model, teacher, rows, weights, numbers) -> (state, loss)`; the
    batch is split over the mesh, and gradients are summed.
    """

    def local(state: State, model, teacher, rows, weights, numbers):
        def loss(params: Params) -> jax.Array:
            return batch_loss(filled(model, params), rows, weights, numbers["mix"], teacher)

        value, gradient = jax.value_and_grad(loss)(state.params)
        value, gradient = jax.lax.psum((value, gradient), "data")
        found, moved = optimizer.transform.update(gradient, state.optimizer, state.params)
        updates = cast(Params, found)
        if optimizer.scheduled:
            rates = numbers["rates"]
            for path, update in updates.items():
                kind = "steps" if group(path, update) == "steps" else "weights"
                updates[path] = -rates[kind] * update
        return State(cast(Params, optax.apply_updates(state.params, updates)), moved), value

    whole, split = P(), P("data")
    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(whole, whole, whole, split, split, whole),
        out_specs=(whole, whole),
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=0 if donate else ())
