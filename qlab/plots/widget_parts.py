"""What every widget's picture has in common: axes, numbers, the readout in its place, the sentence
below it.

The top 92 pixels of every picture are the same: four numbers (bits per weight · SQNR · error ·
    bytes), then one sentence.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from qlab.plots.svg import Picture
from qlab.plots.widget_words import say

WIDTH = 740  # of every picture, in pixels
# Opacity of panels: in the dark theme their colour alone is so light that blue marks drown in it.
PANEL = 0.55


@dataclasses.dataclass(frozen=True)
class Axis:
    """Numbers to pixels: lo … hi onto start … end, straight or in powers of two.

    Example:
        >>> Axis(0, 10, 100, 200)(5)
        150.0
    """

    lo: float
    hi: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: Any) -> Any:
        lo, hi = (np.log2(self.lo), np.log2(self.hi)) if self.log else (self.lo, self.hi)
        with np.errstate(divide="ignore"):
            v = np.log2(value) if self.log else value
        return self.start + (v - lo) / (hi - lo) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """About `count` round numbers inside the axis."""
        if self.log:
            low, high = (
                int(np.ceil(np.log2(self.lo) - 1e-9)),
                int(np.floor(np.log2(self.hi) + 1e-9)),
            )
            step = max(1, -(-(high - low) // count))
            return [2.0**k for k in range(high, low - 1, -step)][::-1]
        raw = (self.hi - self.lo) / count
        power = 10.0 ** np.floor(np.log10(raw))
        step = power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.75)
        first, last = int(np.ceil(self.lo / step - 1e-9)), int(np.floor(self.hi / step + 1e-9))
        return [float(f"{k * step:.12g}") for k in range(first, last + 1)]


SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float, digits: int = 3) -> str:
    """A number as a reader writes it: `−0.125`, `2.4·10⁻⁵`.

    Example:
        >>> number(-0.125), number(0.000024)
        ('−0.125', '2.4·10⁻⁵')
    """
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else ("∞" if value > 0 else "−∞")
    text = f"{value:.{digits}g}"
    if "e" in text:
        mantissa, power = text.split("e")
        if 0 < int(power) < 7:
            text = f"{value:,.0f}"
        else:
            text = f"{mantissa}·10{str(int(power)).translate(SUPERSCRIPT)}"
    return text.replace("-", "−")


def power_of_two(value: float) -> str:
    """`2⁻³`, for the ticks of a logarithmic axis."""
    return "2" + str(round(float(np.log2(value)))).translate(SUPERSCRIPT)


def x_axis(picture: Picture, axis: Axis, y: float, label: str = "", count: int = 5) -> None:
    """A baseline at `y` with ticks and numbers below it, its label under them at the middle."""
    picture.segments(axis.start, y, axis.end, y, stroke="faint")
    for tick in axis.ticks(count):
        x = float(axis(tick))
        picture.segments(x, y, x, y + 4, stroke="faint")
        words = power_of_two(tick) if axis.log else number(tick)
        picture.text(x, y + 16, words, size=11, colour="muted", anchor="middle")
    middle = (axis.start + axis.end) / 2
    if label:
        picture.text(middle, y + 31, label, size=11, colour="muted", anchor="middle")


def share(value: float) -> str:
    """A fraction as a percentage of two or three figures.

    Example:
        >>> share(0.0943), share(0.4567)
        ('9.4 %', '46 %')
    """
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 9.95 else f"{number(percent, 2)} %"


def decibels(signal_to_noise: float) -> str:
    """10 log10 of a ratio of powers; no error at all is ∞."""
    if signal_to_noise == 0:
        return "−∞ dB"
    return f"{10 * np.log10(signal_to_noise):.1f} dB".replace("-", "−").replace("inf", "∞")


def size(bytes: float) -> str:
    """Bytes for a reader: `98 B`, `104 kB`, `35 GB` (powers of 1000)."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if bytes >= unit:
            return f"{number(bytes / unit)} {name}"
    return f"{bytes:.4g} B"


@dataclasses.dataclass(frozen=True)
class Readout:
    """The four numbers that stand at the same place in every picture; each (value, note)."""

    bits: tuple[str, str]
    sqnr: tuple[str, str]
    error: tuple[str, str]
    bytes: tuple[str, str]


def title(
    picture: Picture, x: float, y: float, words: str, colour: str = "", note: str = ""
) -> None:
    """A part's title, with a patch of its colour (never coloured text: it would be faint on dark
    pages) and a note below.
    """
    if colour:
        picture.rect(x, y - 9, 9, 9, fill=colour)
    picture.text(x + (15 if colour else 0), y, words, size=12.5, bold=True)
    if note:
        picture.text(x, y + 15, note, size=11, colour="muted")


def head(picture: Picture, readout: Readout, sentence: str, lang: str, names: tuple = ()) -> None:
    """Draws readout and sentence at the top, and puts both into the picture's label.

    Args:
        picture: WIDTH wide.
        readout: the numbers.
        sentence: what is to be seen, in one line.
        lang: "en" or "ko".
        names: what the four numbers are called, where it is not the usual.
    """
    names = names or ("bits per weight", "SQNR", "output error", "bytes")
    slots = (readout.bits, readout.sqnr, readout.error, readout.bytes)
    said = [f"{say(name, lang)} {value}" for name, (value, _) in zip(names, slots)]
    picture.label = f"{sentence} {', '.join(said)}"
    picture.rect(0, 0, WIDTH, 64, fill="panel", opacity=PANEL)
    for i, (name, (value, note)) in enumerate(zip(names, slots)):
        x = 14 + i * 184
        picture.text(x, 17, say(name, lang), size=11.5, colour="muted")
        picture.text(x, 39, value, size=20, bold=True)
        picture.text(x, 56, note, size=11, colour="muted")
    picture.text(0, 86, sentence, size=13)
