"""`qat_live()`: training with the quantizer in the loop, here and now: start it, pause it, change
the bits or the estimator in the middle, and watch the loss and the weights.
"""

from __future__ import annotations

import html
from typing import Any

import ipywidgets

from qlab.models.load import load
from qlab.models.transformer import Transformer
from qlab.plots.svg import Picture
from qlab.plots.widget_qat_live import FAILED, draw_qat_live
from qlab.plots.widget_words import say
from qlab.widgets import controls as make
from qlab.widgets.base import Live
from qlab.widgets.qat_live_data import (
    BITS,
    METHODS,
    RATES,
    TERNARY,
    QatLiveState,
    qat_live_data,
    recorded,
)
from qlab.widgets.qat_training import BATCH, HELD_OUT, STEPS, TIME, Training
from qlab.widgets.source import Source, source_of

TRAINS = ("bits", "method", "rate", "teacher")  # what training has to know


class QatLive(Live):
    """The widget; see `qat_live`."""

    def __init__(self, source: Source, lang: str = "en", **chosen: Any):
        self.source = source
        self.training = Training(source.model, self._tell)
        s = QatLiveState(**chosen)
        controls = {
            "layer": make.choice("layer", source.options, s.layer, lang),
            "bits": make.steps("bits", [(say(b, lang), b) for b in BITS], s.bits, lang),
            "method": make.choice("estimator", METHODS, s.method, lang),
            "rate": make.steps("rate", [(f"{r:g}", r) for r in RATES], s.rate, lang),
            "teacher": make.switch("teacher", s.teacher, lang),
            "channel": make.slider(
                "block row", 0, len(source.weight(s.layer)) - 1, s.channel, lang
            ),
        }
        super().__init__("qat_live", QatLiveState, controls, lang, self._below(lang))
        self._show()

    def _below(self, lang: str) -> list[Any]:
        """Buttons, progress and a note."""
        small = ipywidgets.Layout(width="80px", margin="0 4px 6px 0")
        self.start_button, self.pause_button, self.reset_button = (
            ipywidgets.Button(description=say(words, lang), layout=small, tooltip=say(tip, lang))
            for words, tip in (
                ("start", "Train on, from where it stands."),
                ("pause", "Stop after the step in work."),
                ("anew", "Forget what was trained."),
            )
        )
        self.start_button.on_click(lambda _: self.start())
        self.pause_button.on_click(lambda _: self.pause())
        self.reset_button.on_click(lambda _: self.reset())
        self.progress = ipywidgets.IntProgress(0, 0, STEPS, layout={"width": "250px"})
        self.note = ipywidgets.HTML(layout={"width": "250px", "min_height": "44px"})
        buttons = [self.start_button, self.pause_button, self.reset_button]
        return [ipywidgets.HBox(buttons), self.progress, self.note]

    def draw(self, state: QatLiveState) -> Picture:
        snapshot = self.training.now
        if not snapshot.phases and snapshot.error is None and not self.training.going:
            of, data = recorded()
            if self.source.name == "tiny" and state == of:
                return draw_qat_live(data, self.lang)
        return draw_qat_live(qat_live_data(self.source, snapshot, state), self.lang)

    def start(self) -> None:
        """Trains in the background; nothing happens if that is under way."""
        self.training.start(self.state.choice)
        self._show()

    def pause(self) -> None:
        """Stops after the step in work."""
        self.training.pause()

    def reset(self) -> None:
        """Back to the float weights, while nothing is being trained."""
        self.training.reset()
        self._tell()

    def close(self) -> None:
        """Stops training after the step in work, and closes the widget."""
        self.training.close()
        super().close()

    def arrange(self, changed: str) -> None:
        c = self.controls
        if changed == "method" and c["method"].value == "bitnet":
            c["bits"].value = TERNARY
        if changed == "bits" and c["bits"].value != TERNARY and c["method"].value == "bitnet":
            c["method"].value = "ste"
        if changed == "layer":
            most = len(self.source.weight(c["layer"].value)) - 1
            c["channel"].value, c["channel"].max = min(c["channel"].value, most), most
        if changed in TRAINS:
            self.training.change(self.state.choice)

    def set(self, **values: Any) -> None:
        super().set(**values)
        self.training.change(self.state.choice)

    def _tell(self) -> None:
        """Shows where training is; called in its thread too."""
        self._show()
        self.view.svg = self.draw(self.state).svg()

    def _show(self) -> None:
        now, going = self.training.now, self.training.going
        self.start_button.disabled, self.pause_button.disabled = going, not going
        self.reset_button.disabled = going or not now.phases
        self.progress.value = len(now.phases[-1].losses) - 1 if now.phases else 0
        words = say(
            "A step reads {n} tokens of English; the loss shown is on {m} others.", self.lang,
            n=BATCH * TIME, m=f"{HELD_OUT * TIME:,}",
        )  # fmt: skip
        if now.status == FAILED:
            words = f"{type(now.error).__name__}: {now.error}"
        self.note.value = f'<div style="font-size:11px;line-height:14px">{html.escape(words)}</div>'


def qat_live(model: Transformer | Source | None = None, lang: str = "en", **chosen: Any) -> QatLive:
    """Quantization-aware training in the notebook: the loss on held-out text beside the float
    model's and plain rounding's, a layer's weights between the levels of their grid, and the slope
    that the estimator takes rounding to have.

    Training goes on in the background; other bits, another estimator or rate take effect with the
    next step, from the weights beneath. Before it is started a recorded run is shown.

    Args:
        model: a Transformer with a tokenizer, or a Source; None: the bundled "tiny".
        lang: "en" or "ko".
        chosen: what to begin with, fields of QatLiveState: `bits="3 bits", method="ste"`.

    Returns:
        the widget; `.start()`, `.pause()` and `.reset()` are its buttons, `.figure()` its picture.

    Example:
        >>> qlab.widgets.qat_live()   # doctest: +SKIP
    """
    return QatLive(source_of(load("tiny") if model is None else model), lang, **chosen)
