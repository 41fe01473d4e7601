"""Training in the notebook: what is shown is the library's own, and no press of a button, no error
and no end of the page leaves a thread behind.
"""

import dataclasses
import json
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("anywidget")

import qlab
from qlab.models.load import load
from qlab.models.prepare import prepare
from qlab.models.surgery import linears
from qlab.plots.widget_qat_live import (
    FAILED,
    FINISHED,
    PAUSED,
    READY,
    RECORDED,
    TRAINING,
    Phase,
    draw_qat_live,
    sentence,
)
from qlab.qtensor import dequantize, load_ranges, quantize
from qlab.widgets import qat_live
from qlab.widgets.qat_live_data import (
    BITS,
    METHODS,
    QatLiveState,
    qat_live_data,
    recorded,
    slopes_of,
    to_json,
)
from qlab.widgets.qat_training import Snapshot, Training, held_out
from qlab.widgets.source import Source

LAYER = "layers.1.self_attn.k_proj"  # the smallest: (128, 256)
STATE = QatLiveState(layer=LAYER)
LONG = 60  # seconds: what a busy machine may need for what takes one


@pytest.fixture(scope="module")
def source():
    return Source(load("tiny"))


# ---- without training


def test_the_slopes_are_the_estimators():
    """Of integers 0 … 3 with z = 1: u in −1 … 2; LSQ's slopes as in the paper's equations 3, 5."""
    spec = BITS["2 bits"]
    ste, clipped, lsq = (slopes_of(spec, m, 1.0) for m in ("ste", "clipped", "lsq"))
    at = ste.at
    np.testing.assert_array_equal(ste.value, np.clip(np.round(at), 0, 3))
    assert (ste.weight == 1).all() and ste.step is None and clipped.step is None
    np.testing.assert_array_equal(clipped.weight, (at > -0.5) & (at < 3.5))
    inside = (at > 0) & (at < 3)
    np.testing.assert_array_equal(lsq.weight, inside)
    wanted = np.where(inside, np.round(at) - at, np.clip(np.round(at), 0, 3) - 1)
    np.testing.assert_allclose(lsq.step, wanted, atol=1e-5)


@pytest.mark.parametrize("bits", BITS)
def test_the_weights_are_on_the_librarys_levels(source, bits):
    data = qat_live_data(source, Snapshot(), dataclasses.replace(STATE, bits=bits, channel=5))
    w, spec = jnp.asarray(source.weight(LAYER)), BITS[bits]
    q = quantize(w, spec)
    codes = np.asarray(spec.format.decode(q.codes))[5, :64]
    at = data.weights.block
    low, high = data.levels[0], data.levels[-1]
    np.testing.assert_array_equal(np.clip(np.round(at), low, high)[abs(at % 1 - 0.5) > 1e-3],
                                  codes[abs(at % 1 - 0.5) > 1e-3])  # fmt: skip
    assert data.weights.moved == data.weights.last == 0
    np.testing.assert_array_equal(data.weights.before, data.weights.now)
    assert data.width == qlab.bits_per_weight(spec) and np.isnan(data.regained)


def test_levels_that_moved_are_counted(source):
    """The layer with all signs changed: a level is c − z, whatever the zero point."""
    model = prepare(source.model, BITS["2 bits"])
    weight = linears(model)[LAYER].weight
    other = jax.tree.map(lambda x: x, model)
    linears(other)[LAYER].weight = dataclasses.replace(weight, w=-weight.w)
    data = qat_live_data(source, Snapshot(model=other, before=model), STATE)
    levels = []
    for w in (weight.w, -weight.w):
        q = quantize(w, BITS["2 bits"])
        scale = np.repeat(np.asarray(load_ranges(q, w.shape)[0]), 64, axis=1)
        levels.append(np.round(np.asarray(dequantize(q)) / scale))
    assert data.weights.moved == pytest.approx((levels[0] != levels[1]).mean())
    assert data.weights.last == data.weights.moved > 0.3


def test_the_recorded_run_is_a_run(source):
    state, data = recorded()
    assert state == QatLiveState() and data.status == RECORDED
    (phase,) = data.phases
    assert len(phase.losses) == data.steps + 1 and data.start < phase.losses[-1] < phase.rounded
    assert phase.losses[0] == pytest.approx(phase.rounded, abs=0.02)  # z and s begin as rounding's
    rows = Training(source.model, print).rows
    assert held_out(source.model, rows) == pytest.approx(data.start, abs=2e-3)
    plain = prepare(source.model, BITS[state.bits])
    assert held_out(plain, rows) == pytest.approx(phase.rounded, abs=2e-3)
    again = json.loads(json.dumps(to_json(data, state)))
    assert again["data"]["phases"][0]["losses"] == list(phase.losses)


def test_the_sentence_says_where_it_is(source):
    empty = qat_live_data(source, Snapshot(), STATE)
    assert "not trained yet" in sentence(empty, "en")
    phase = Phase(0, "2 bits", "lsq", True, 4.0, (4.0, 3.5))
    data = dataclasses.replace(empty, start=3.0, phases=(phase,), status=TRAINING)
    assert "step 1 of 60" in sentence(data, "en") and "4.000 to 3.500" in sentence(data, "en")
    assert data.regained == 0.5
    for status in (TRAINING, PAUSED, FINISHED, RECORDED):
        for lang in ("en", "ko"):
            draw_qat_live(dataclasses.replace(data, status=status), lang).svg()
    failed = dataclasses.replace(data, status=FAILED, error="ValueError: too hot")
    assert sentence(failed, "en") == "ValueError: too hot"
    worse = dataclasses.replace(data, phases=(dataclasses.replace(phase, losses=(4.0, 4.2)),))
    assert worse.regained == pytest.approx(-0.2)
    assert "−20 %" in draw_qat_live(worse).label


# ---- the states of a training


class Gate:
    """Stands for `qat_steps`: a step is taken when it is let through."""

    def __init__(self, model, wrong_at=None):
        self.model, self.wrong_at, self.calls = model, wrong_at, []
        self.open, self.taken = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, model, spec, text, *, steps, method, **how):
        self.calls.append((spec, method, model, how))
        prepared = prepare(self.model, spec, method=method)
        return self._steps(prepared, steps)

    def _steps(self, prepared, steps):
        for step in range(1, steps + 1):
            assert self.open.acquire(timeout=LONG)
            if step == self.wrong_at:
                raise ValueError("the loss is nan")
            self.taken.release()
            yield SimpleNamespace(step=step, steps=steps, model=prepared)


@pytest.fixture
def gated(source, monkeypatch):
    monkeypatch.setattr("qlab.widgets.qat_training.held_out", lambda model, rows: 3.0)
    gate = Gate(source.model)
    training = Training(source.model, lambda: None, steps=3, take=gate)
    yield gate, training
    training.close()
    gate.open.release(99)
    assert training.wait(LONG)


def test_start_pause_and_on(gated):
    gate, training = gated
    assert training.now.status == READY and not training.going
    training.start(STATE.choice)
    training.start(STATE.choice)  # a second start while it is under way
    gate.open.release()
    assert gate.taken.acquire(timeout=LONG)
    training.pause()
    gate.open.release()  # the step in work is finished …
    assert training.wait(LONG) and not training.going
    assert training.now.status == PAUSED and len(gate.calls) == 1
    done = len(training.now.phases[-1].losses) - 1
    assert done in (1, 2)  # … and none is begun after it
    training.start(STATE.choice)
    gate.open.release(99)
    assert training.wait(LONG) and training.now.status == FINISHED
    assert len(gate.calls) == 1 and len(training.now.phases) == 1
    assert training.now.phases[0].end == 3
    training.start(STATE.choice)  # what is finished goes on with another phase
    assert training.wait(LONG) and [p.begin for p in training.now.phases] == [0, 3]
    assert gate.calls[1][3]["seed"] == 1


def test_other_bits_go_on_from_the_weights_beneath(gated):
    gate, training = gated
    training.start(STATE.choice)
    gate.open.release()
    assert gate.taken.acquire(timeout=LONG)
    training.change(dataclasses.replace(STATE, bits="3 bits", method="ste").choice)
    gate.open.release(99)
    assert training.wait(LONG) and training.now.status == FINISHED
    first, second = training.now.phases
    assert (first.bits, second.bits, second.method) == ("2 bits", "3 bits", "ste")
    assert second.begin == first.end < 3 and second.end == first.end + 3
    assert gate.calls[1][0] == BITS["3 bits"]
    assert gate.calls[0][2] is training.model and gate.calls[1][2] is not training.model


def test_an_error_is_kept_and_training_starts_again(gated):
    gate, training = gated
    gate.wrong_at = 2
    training.start(STATE.choice)
    gate.open.release(99)
    assert training.wait(LONG) and not training.going
    assert training.now.status == FAILED and "nan" in str(training.now.error)
    assert training.now.phases[0].end == 1  # what was done before is there
    gate.wrong_at = None
    training.start(STATE.choice)
    assert training.wait(LONG) and training.now.status == FINISHED and training.now.error is None
    training.reset()
    assert training.now.status == READY and not training.now.phases and training.now.model is None


def test_closed_it_stays_closed(gated):
    gate, training = gated
    training.start(STATE.choice)
    gate.open.release()
    assert gate.taken.acquire(timeout=LONG)
    training.close()
    gate.open.release()
    assert training.wait(LONG) and not training.going
    training.start(STATE.choice)
    assert not training.going


# ---- the widget


def test_the_widget_follows_its_buttons(source, monkeypatch):
    monkeypatch.setattr("qlab.widgets.qat_training.held_out", lambda model, rows: 3.0)
    widget = qat_live(source, layer=LAYER)
    gate = widget.training.take = Gate(source.model, wrong_at=2)
    assert not widget.start_button.disabled and widget.pause_button.disabled
    widget.start()
    assert widget.start_button.disabled and not widget.pause_button.disabled
    before = widget.view.svg
    gate.open.release(99)
    assert widget.training.wait(LONG)
    assert widget.view.svg != before and "the loss is nan" in widget.view.svg
    assert "the loss is nan" in widget.note.value and not widget.start_button.disabled
    widget.reset()
    assert widget.training.now.phases == () and "not trained yet" in widget.view.svg
    widget.close()


def test_what_cannot_be_trained_cannot_be_chosen(source):
    widget = qat_live(source, layer=LAYER)
    widget.controls["method"].value = "bitnet"
    assert widget.state.bits == "ternary"
    widget.controls["bits"].value = "4 bits"
    assert widget.state.method == "ste"
    for bits in BITS:
        for method in METHODS:
            if method != "bitnet" or bits == "ternary":
                qlab.methods.qat.check(method, BITS[bits])
    widget.close()


@pytest.mark.slow  # compiles a step
def test_a_real_step(source):
    """Two steps of `qat_steps`: the loss on other text is that of the model, float and rounded."""
    training = Training(source.model, lambda: None, steps=2)
    training.start(STATE.choice)
    assert training.wait(600) and training.now.status == FINISHED, training.now.error
    (phase,) = training.now.phases
    assert phase.losses[-1] == pytest.approx(held_out(training.now.model, training.rows))
    logits = source.model(jnp.asarray(training.rows[:, :-1]))
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), training.rows[:, 1:, None], -1)
    assert training.now.start == pytest.approx(-float(picked.mean()), abs=1e-4)
    assert phase.losses[-1] < phase.losses[0]
