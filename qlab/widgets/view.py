"""What every widget is made of: a View, which shows an SVG and tells what was picked; and a PNG.

The only JavaScript of the house is here: to show an SVG needs none, to click on it does.
"""

from __future__ import annotations

import base64
from typing import Any

import anywidget
import ipywidgets
import traitlets

from qlab.plots import style


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
        bundle: Any = super()._repr_mimebundle_(**kwargs)
        data, meta = bundle if isinstance(bundle, tuple) else (bundle, {})
        return {**data, "image/png": base64.b64encode(style.png(self.figure(), 150)).decode()}, meta
