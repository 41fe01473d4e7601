"""Training in the background, one step at a time: it may be paused, told other settings, and
closed; what goes wrong is kept.

    ready → preparing → training → paused | finished | failed → preparing | training …

A thread takes the steps, so the kernel stays free. What is seen from outside is one frozen
`Snapshot`, replaced as a whole. Other settings begin a new phase from the weights beneath.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import qlab.data
from qlab.models.calibrate import Batches, whole_texts
from qlab.models.objective import Mix, batch_loss
from qlab.models.prepare import prepare
from qlab.models.qat import Progress, qat_steps
from qlab.models.surgery import dense, linears
from qlab.models.transformer import Transformer
from qlab.plots.widget_qat_live import (
    FAILED,
    FINISHED,
    PAUSED,
    PREPARING,
    READY,
    TRAINING,
    Phase,
)
from qlab.qtensor import Spec

BATCH, TIME = 4, 128  # sequences a step, tokens in each
HELD_OUT = 16  # sequences on which the loss is shown: text that no step reads
STEPS = 60  # of a phase


@dataclasses.dataclass(frozen=True)
class Choice:
    """How to train.

    Attributes:
        bits: what the Spec is called in words. spec, method: as for `qlab.qat`.
        rate: learning rate. teacher: whether the float model is one.
    """

    bits: str
    spec: Spec
    method: str
    rate: float
    teacher: bool


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Where training is.

    Attributes:
        status: a word of `plots.widget_qat_live`.
        start: held-out loss of the float model; NaN before it is known.
        phases: what has been trained.
        model, before: the prepared model now, and a step ago; None before the first phase.
        error: what the last step raised, or None.
    """

    status: str = READY
    start: float = float("nan")
    phases: tuple[Phase, ...] = ()
    model: Transformer | None = None
    before: Transformer | None = None
    error: Exception | None = None


class Training:
    """Trains a float model while it is quantized.

    Args:
        model: a float Transformer with a tokenizer; untouched.
        tell: called after every change of `now`, in whichever thread made it.
        steps: of a phase.
        take: what gives the steps, as `qat_steps`.

    Attributes:
        now: the Snapshot.
    """

    def __init__(
        self,
        model: Transformer,
        tell: Callable[[], None],
        steps: int = STEPS,
        take: Callable[..., Iterator[Progress]] = qat_steps,
    ):
        self.model, self.tell, self.steps, self.take = model, tell, steps, take
        self.now = Snapshot()
        self._lock = threading.Lock()
        self._thread = threading.Thread()
        self._going, self._stop, self._closed = False, False, False
        self._over = False  # whether the phase in work is done
        self._choice: Choice | None = None  # what is asked for
        self._phase: Choice | None = None  # what the steps in work were begun with
        self._left: Iterator[Progress] = iter(())

    # ---- from outside ----

    @property
    def going(self) -> bool:
        """Whether a thread takes steps."""
        return self._going

    def start(self, choice: Choice) -> None:
        """Trains on in the background; while that is under way only the settings change."""
        with self._lock:
            self._choice = choice
            if self._closed:
                return
            self._stop = False
            if self._going:
                return
            self._going, self._over = True, False
            self._thread = threading.Thread(target=self._work)
            self._thread.start()

    def change(self, choice: Choice) -> None:
        """Other settings from the next step on; nothing is started."""
        self._choice = choice

    def pause(self) -> None:
        """Stops after the step in work."""
        self._stop = True

    def close(self) -> None:
        """Stops after the step in work, for good."""
        self._closed = True

    def reset(self) -> None:
        """Forgets what was trained; nothing happens while training is under way."""
        with self._lock:
            if not self._going:
                self.now, self._phase = Snapshot(start=self.now.start), None

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the thread; True when it has ended."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    # ---- in the thread ----

    def _work(self) -> None:
        try:
            while self._goes_on():
                self._step()
        except Exception as error:  # shown to the reader: a thread's traceback would be lost
            with self._lock:
                self._going, self._phase = False, None
                self._put(status=FAILED, error=error)
        self.tell()

    def _goes_on(self) -> bool:
        """Whether to take another step; if not, the thread has ended for whoever asks."""
        with self._lock:
            # Python waits for this thread when it ends: killed inside XLA it would abort loudly.
            alive = threading.main_thread().is_alive()
            if self._stop or self._closed or self._over or not alive:
                self._going = False
                if not self._over:
                    self._put(status=PAUSED if self.now.phases else READY)
            return self._going

    def _step(self) -> None:
        """One step, begun anew where the settings are others or the last phase is over."""
        if self._phase != self._choice or self._phase is None:
            self._begin(self._choice)
            return
        progress = next(self._left)
        *before, phase = self.now.phases
        losses = (*phase.losses, held_out(progress.model, self.rows))
        phases = (*before, dataclasses.replace(phase, losses=losses))
        over = progress.step == progress.steps
        status = FINISHED if over else TRAINING
        self._put(status=status, phases=phases, before=self.now.model, model=progress.model)
        if over:
            self._phase, self._over = None, True
        self.tell()

    def _begin(self, choice: Any) -> None:
        """A new phase: the same weights, rounded in another way."""
        self._put(status=PREPARING, error=None)
        self.tell()
        now = self.now
        base = self.model if now.model is None else now.model
        prepared = prepare(base, choice.spec, method=choice.method)
        left = self.take(
            base, choice.spec, self.text, steps=self.steps, method=choice.method,
            learning_rate=choice.rate, batch=BATCH, seed=len(now.phases),
            teacher=self.model if choice.teacher else None,
        )  # fmt: skip
        start = now.start
        if np.isnan(start):
            start = held_out(self.model, self.rows)
        act = next(iter(linears(prepared).values())).act  # those of "bitnet" are rounded too
        rounded = held_out(prepare(self.model, choice.spec, act=act), self.rows)
        begin = now.phases[-1].end if now.phases else 0
        first = (held_out(prepared, self.rows),)
        phase = Phase(begin, choice.bits, choice.method, choice.teacher, rounded, first)
        self._left, self._phase = left, choice
        self._put(status=PREPARING, start=start, phases=(*now.phases, phase), model=prepared,
                  before=prepared)  # fmt: skip
        self.tell()

    def _put(self, **changed: Any) -> None:
        self.now = dataclasses.replace(self.now, **changed)

    @cached_property
    def text(self) -> Batches:
        """What is trained on."""
        return whole_texts(self.model, "english", TIME)

    @cached_property
    def rows(self) -> np.ndarray:
        """(HELD_OUT, TIME + 1) token ids that no step reads."""
        text = qlab.data.texts("english", "evaluation")[: 16 * HELD_OUT * TIME]
        return whole_texts(self.model, {"held out": text}, TIME).tokens[:HELD_OUT]


def held_out(model: Transformer, rows: np.ndarray) -> float:
    """Nats per token of a model, prepared or float, on rows (sequences, time + 1) of token ids."""
    return float(_loss(dense(model), rows))


@jax.jit
def _loss(model: Transformer, rows: jax.Array) -> jax.Array:
    weights = jnp.full((rows.shape[0], rows.shape[1] - 1), 1 / rows[:, 1:].size, jnp.float32)
    mix = Mix(jnp.float32(1), jnp.float32(0), jnp.float32(1))
    return batch_loss(model, rows, weights, mix, None)
