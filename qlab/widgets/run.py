"""Widgets that compute long: a button, a progress bar, a way to stop, and a table of results that
is kept.

A Run computes one row for each of its keys in a thread of its own, so the kernel stays free;
stopping takes effect after the
row in work, starting again goes on where it stopped. The controls are live: they look at the rows
that are there.
"""

from __future__ import annotations

import html
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import ipywidgets

from qlab.plots.svg import Picture
from qlab.plots.widget_words import say
from qlab.widgets.base import Live


class Run(Live):
    """A live widget over a table that is computed on demand; subclasses have `compute` and
    `draw_table`.

    Args:
        name, state, controls, lang: as `Live`.
        keys: what there is to compute, in order.

    Attributes:
        todo: the keys.
        table: key -> row, what has been computed.
        error: what `compute` raised last, or None.
    """

    def __init__(
        self,
        name: str,
        state: Callable,
        controls: Mapping[str, Any],
        keys: Sequence[Hashable],
        lang: str = "en",
    ):
        self.todo, self.table = list(keys), {}
        self.error: Exception | None = None
        self._stop, self._thread = threading.Event(), threading.Thread()
        half = ipywidgets.Layout(width="122px", margin="0 6px 6px 0")
        self.button = ipywidgets.Button(description=say("run", lang), layout=half)
        self.button.tooltip = say("Compute what is missing.", lang)
        self.stop_button = ipywidgets.Button(
            description=say("stop", lang), layout=half, disabled=True
        )
        self.stop_button.tooltip = say("Stop after the step in work; what is done is kept.", lang)
        self.progress = ipywidgets.IntProgress(
            0, 0, len(self.todo), layout=ipywidgets.Layout(width="250px")
        )
        self.note = ipywidgets.HTML(
            layout=ipywidgets.Layout(width="250px", height="32px", overflow="hidden")
        )
        self.button.on_click(lambda _: self.start())
        self.stop_button.on_click(lambda _: self.stop())
        buttons = ipywidgets.HBox([self.button, self.stop_button])
        super().__init__(name, state, controls, lang, [buttons, self.progress, self.note])
        self._tell()

    def compute(self, key: Hashable) -> Any:
        """One row. Runs in a thread, so it touches no widget."""
        raise NotImplementedError

    def draw_table(self, table: Mapping[Hashable, Any], state: Any) -> Picture:
        """The rows that are there, and the state, to a picture; pure."""
        raise NotImplementedError

    def draw(self, state: Any) -> Picture:
        return self.draw_table(dict(self.table), state)

    def start(self) -> None:
        """Computes the missing rows in the background; nothing happens if that is under way."""
        if self._thread.is_alive():
            return
        self._stop.clear()
        self.error = None
        self.button.disabled, self.stop_button.disabled = True, False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stops after the row in work."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the thread; True when it has ended."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        try:
            for key in [k for k in self.todo if k not in self.table]:
                if self._stop.is_set():
                    break
                self.table[key] = self.compute(key)
                self._tell()
                self.view.svg = self.draw(self.state).svg()
        except Exception as error:  # shown to the reader: a thread's traceback would be lost
            self.error = error
        finally:
            self.button.disabled, self.stop_button.disabled = False, True
            self._tell()

    def _tell(self) -> None:
        done = {"done": len(self.table), "all": len(self.todo)}
        self.progress.value = len(self.table)
        words = say("{done} of {all} done", self.lang, **done)
        if self.error is not None:
            words = f"{type(self.error).__name__}: {self.error}"
        self.note.value = f'<span style="font-size:11px">{html.escape(words)}</span>'
