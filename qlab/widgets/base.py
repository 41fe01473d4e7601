"""The shape of every widget: state → data → picture → this thin shell.

A widget is its controls at the left and one Picture at the right. A control that moves makes a new
frozen state, the state
a new Picture, the Picture one assignment of an SVG string: no `Output`, no stored state.
    `figure()` is the same picture for
paper, and a PNG of it travels with every display for readers without a kernel. Not here: widgets
that compute long (`run`).
"""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anywidget
import ipywidgets
import traitlets

from qlab.plots import style
from qlab.plots.svg import Picture
from qlab.widgets.controls import with_help


class View(anywidget.AnyWidget):
    """Shows an SVG string; tells which part of it was clicked, or given Enter, Space or an arrow
    key.
    """

    svg = traitlets.Unicode("").tag(sync=True)

    _esm = """
    const keys = ["Enter", " ", "ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"];
    function render({ model, el }) {
      el.dataset.lmSuppressShortcuts = "true";   // keys pressed here are not JupyterLab's
      const draw = () => {
        const focused = el.contains(document.activeElement) && document.activeElement.dataset.pick;
        el.innerHTML = model.get("svg");
        if (focused) el.querySelector(`[data-pick="${focused}"]`)?.focus({ preventScroll: true });
      };
      const tell = (event) => {
        const target = event.target.closest("[data-pick]");
        if (!target || (event.type === "keydown" && !keys.includes(event.key))) return;
        event.preventDefault();
        const box = target.getBoundingClientRect();
        model.send({ pick: target.dataset.pick, key: event.key ?? "",
                     x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) /
                         box.height });
        target.focus({ preventScroll: true });
      };
      model.on("change:svg", draw);
      el.addEventListener("click", tell);
      el.addEventListener("keydown", tell);
      draw();
    }
    export default { render };
    """
    _css = """
    .qlab-widget .widget-inline-hbox .widget-label { text-align: left; }
    .qlab-picks { position: absolute; inset: 0; }
    .qlab-picks rect { cursor: pointer; outline: none; }
    .qlab-picks rect:hover { stroke: var(--jp-border-color1, #bdbdbd); }
    .qlab-picks rect:focus-visible { stroke: var(--jp-brand-color1, #1976d2); stroke-width: 2; }
    """


class WithPicture(ipywidgets.VBox):
    """A widget that also carries a PNG: executed notebooks show it on GitHub and in HTML without a
    network.
    """

    def figure(self) -> Any:
        """The picture as it stands, a Matplotlib figure."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        data, meta = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "image/png": base64.b64encode(style.png(self.figure(), 150)).decode()}, meta


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
            ValueError: for a name that is no control.
        """
        self._quiet = True
        try:
            for name, value in values.items():
                if name not in self.controls:
                    known = ", ".join(self.controls)
                    raise ValueError(f"there is no control {name!r}; there are {known}")
                self.controls[name].value = value
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
            threading.Thread(target=self._warm_up, args=(self.warm(),), daemon=True).start()

    def _warm_up(self, tasks: list[Callable[[], Any]]) -> None:
        for task in tasks:
            task()
        self.ready.set()
