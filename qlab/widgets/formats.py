"""`formats()`: a number is a pattern of bits. Flip them, walk to the neighbours, compare two
formats.
"""

from __future__ import annotations

from typing import Any

from qlab.plots.svg import Picture
from qlab.plots.widget_formats import draw_formats
from qlab.widgets import controls as make
from qlab.widgets.base import Live
from qlab.widgets.formats_data import FormatsState, formats_data
from qlab.widgets.numbers import LINES, SWITCHES, numbers


class Formats(Live):
    """The widget; see `formats`."""

    def __init__(self, lang: str = "en", **chosen: Any):
        state = FormatsState(**chosen)
        last = 2 ** numbers(state.format).bits - 1
        controls = {
            "format": make.choice("format", SWITCHES, state.format, lang),
            "place": make.slider("value", 0, last, state.place, lang),
            "other": make.choice("compare", LINES, state.other, lang),
            "log": make.switch("logarithmic line", state.log, lang),
            "same": make.switch("same largest value", state.same, lang),
        }
        controls["place"].readout = False
        super().__init__("formats", FormatsState, controls, lang)

    def draw(self, state: FormatsState) -> Picture:
        return draw_formats(formats_data(state), self.lang)

    def arrange(self, changed: str) -> None:
        if changed == "format":
            k, place = numbers(self.controls["format"].value), self.controls["place"]
            place.max = 2**k.bits - 1
            place.value = k.place(k.code(1.0))

    def picked(self, name: str, x: float, y: float, key: str) -> None:
        if key in ("", "Enter", " "):
            k = numbers(self.state.format)
            self.set(
                place=k.place(k.pattern(self.state.place) ^ 1 << int(name.removeprefix("bit")))
            )


def formats(lang: str = "en", **chosen: Any) -> Formats:
    """Bit fields as switches, the value and its neighbours, two formats on one line, the relative
    error.

    Args:
        lang: "en" or "ko".
        chosen: what to begin with, fields of FormatsState: `format="BF16"`.

    Returns:
        the widget; `.figure()` is its picture.

    Example:
        >>> qlab.widgets.formats()   # doctest: +SKIP
    """
    return Formats(lang, **chosen)
