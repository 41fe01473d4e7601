"""The shape of every widget: state → data → picture → this thin shell.

A widget is its controls at the left and one Picture at the right. A control that moves makes a new
frozen state, the state
a new Picture, the Picture one assignment of an SVG string: no `Output`, no stored state.
    `figure()` is the same picture for
paper, and a PNG of it travels with every display for readers without a kernel. Not here: widgets
that compute long (`run`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import ipywidgets

from qlab.plots.svg import Picture
from qlab.suggest import near
from qlab.widgets.controls import with_help
from qlab.widgets.known import check_offered, settings_of
from qlab.widgets.view import View, WithPicture


class Live(WithPicture):
    """A widget whose picture follows its controls at once.

    Args:
        name: its CSS class, `qlab-` put before.
        state: the frozen dataclass of its state; the fields are the controls' names.
        controls: field -> ipywidget with a `value` and a `tooltip`.
        lang: "en" or "ko".
        below: what else stands under the controls.
    """

    def __init__(
        self,
        name: str,
        state: Callable,
        controls: Mapping[str, Any],
        lang: str = "en",
        below: Sequence[Any] = (),
    ):
        self.controls, self.lang = dict(controls), lang
        self._state, self._quiet, self._shown = state, False, False
        self.ready = threading.Event()  # set when `warm` is done
        picture = self.draw(self.state)
        size = {"width": f"{picture.width + 4:g}px", "height": f"{picture.height + 4:g}px"}
        self.view = View(svg=picture.svg(), layout=ipywidgets.Layout(**size, flex="0 0 auto"))
        self.view.on_msg(self._on_message)
        column = ipywidgets.VBox([*map(with_help, self.controls.values()), *below])
        column.layout = ipywidgets.Layout(width="262px", flex="0 0 auto", margin="0 14px 0 0")
        row = ipywidgets.HBox([column, self.view], layout=ipywidgets.Layout(flex_flow="row wrap"))
        super().__init__([row])
        self.add_class("qlab-widget").add_class(f"qlab-{name}")
        for control in self.controls.values():
            control.observe(self._changed, "value")

    def __new__(cls, *args: Any, **chosen: Any) -> Self:
        """Refuses a keyword that the widget's state does not have, before anything is built."""
        known = settings_of(cls)
        for name in chosen:
            if known and name not in known:
                raise ValueError(f"{cls.__name__} has no setting {name!r}: {near(name, known)}")
        return super().__new__(cls, *args, **chosen)

    @property
    def state(self) -> Any:
        """What is chosen now."""
        return self._state(**{name: control.value for name, control in self.controls.items()})

    def draw(self, state: Any) -> Picture:
        """State to picture; pure. Every widget has its own."""
        raise NotImplementedError

    def arrange(self, changed: str) -> None:
        """Called before drawing when the control `changed` has moved: sets what depends on it."""

    def picked(self, name: str, x: float, y: float, key: str) -> None:
        """Called when the part `name` of the picture is clicked at (x, y) in 0 … 1, or given a
        key.
        """

    def warm(self) -> list[Callable[[], Any]]:
        """What to compute in the background once shown, so that later moves find it compiled."""
        return []

    def figure(self) -> Any:
        """The picture as it stands, a Matplotlib figure."""
        return self.draw(self.state).figure()

    def set(self, **values: Any) -> None:
        """Moves several controls and draws once.

        Raises:
            ValueError: a name that is no control, or a value that it does not offer.
        """
        self._quiet = True
        try:
            for name, value in values.items():
                if name not in self.controls:
                    raise ValueError(f"there is no control {name!r}: {near(name, self.controls)}")
                control = self.controls[name]
                check_offered(name, getattr(control, "options", None), value)
                control.value = value
        finally:
            self._quiet = False
        self.view.svg = self.draw(self.state).svg()

    def _changed(self, change: Mapping[str, Any]) -> None:
        if self._quiet:
            return
        self._quiet = True
        try:
            self.arrange(next(n for n, c in self.controls.items() if c is change["owner"]))
        finally:
            self._quiet = False
        self.view.svg = self.draw(self.state).svg()

    def _on_message(self, _: Any, message: Mapping[str, Any], __: Any) -> None:
        self.picked(message["pick"], message["x"] or 0, message["y"] or 0, message["key"])

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        self._shown = True
        self.warm_soon()
        return bundle

    def warm_soon(self) -> None:
        """Starts `warm` in the background if the widget is on a page."""
        if self._shown:
            threading.Thread(target=self._warm_up, args=(self.warm(),)).start()

    def _warm_up(self, tasks: list[Callable[[], Any]]) -> None:
        for task in tasks:
            # Python waits for this thread when it ends: killed inside XLA it would abort loudly.
            if not threading.main_thread().is_alive():
                return
            task()
        self.ready.set()
