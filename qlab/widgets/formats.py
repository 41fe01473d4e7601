"""`formats()`: a number is a pattern of bits. Flip them, walk to the neighbours, compare two
formats, or all that have few bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from qlab.plots.svg import Picture
from qlab.plots.widget_formats import draw_formats
from qlab.plots.widget_words import say
from qlab.widgets import controls as make
from qlab.widgets.base import Live
from qlab.widgets.formats_data import EVERY, TWO, FormatsState, formats_data
from qlab.widgets.numbers import LINES, SWITCHES, numbers


class Formats(Live):
    """The widget; see `formats`."""

    def __init__(self, lang: str = "en", **chosen: Any):
        state = FormatsState(**chosen)
        last = 2 ** numbers(state.format).bits - 1
        shows = [(say(name, lang), name) for name in (TWO, EVERY)]
        controls = {
            "show": make.choice("show", shows, state.show, lang),
            "format": make.choice("format", SWITCHES, state.format, lang),
            "place": make.slider("value", 0, last, state.place, lang),
            "other": make.choice("compare", LINES, state.other, lang),
            "log": make.switch("logarithmic line", state.log, lang),
            "same": make.switch("same largest value", state.same, lang),
        }
        controls["place"].readout = False
        controls["other"].disabled = state.show == EVERY
        super().__init__("formats", FormatsState, controls, lang)

    def draw(self, state: FormatsState) -> Picture:
        return draw_formats(formats_data(state), self.lang)

    def arrange(self, changed: str) -> None:
        self.controls["other"].disabled = self.controls["show"].value == EVERY
        if changed == "format":
            k, place = numbers(self.controls["format"].value), self.controls["place"]
            place.max = 2**k.bits - 1
            place.value = k.place(k.code(1.0))

    def picked(self, name: str, x: float, y: float, key: str) -> None:
        if key not in ("", "Enter", " "):
            return
        if name.startswith("line:"):
            self._open(name.removeprefix("line:"))
        else:
            k = numbers(self.state.format)
            self.set(
                place=k.place(k.pattern(self.state.place) ^ 1 << int(name.removeprefix("bit")))
            )

    def _open(self, name: str) -> None:
        """The bits of another row: of what the number has become in it."""
        row = next(r for r in formats_data(self.state).rows if r.name == name)
        k = numbers(name)
        place = k.place(k.code(np.nan_to_num(row.becomes)))
        slider = self.controls["place"]
        slider.max = max(slider.max, place)
        self.set(format=name, place=place)
        slider.max = 2**k.bits - 1


def formats(lang: str = "en", **chosen: Any) -> Formats:
    """Bit fields as switches, the value and its neighbours, two formats on one line and their
    relative error; or every format with few bits, and what the value becomes in it.

    Args:
        lang: "en" or "ko".
        chosen: what to begin with, fields of FormatsState: `format="BF16"`.

    Returns:
        the widget; `.figure()` is its picture.

    Example:
        >>> qlab.widgets.formats()   # doctest: +SKIP
    """
    return Formats(lang, **chosen)
