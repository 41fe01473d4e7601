"""The controls of every widget: one width, a name, a tooltip and a short sentence below; all are
moved with the keyboard.

Arrow keys move a slider by one, Page Up and Page Down by more, Home and End to its ends.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

import ipywidgets

from qlab.plots.widget_words import say
from qlab.widgets.known import check_offered

# What each control is for, in a line; a name means the same in every widget.
HELP = {
    "layer": "Which matrix of the model.",
    "show": "What the picture compares.",
    "order": "As the data flows, or the largest on top.",
    "kind": "All linears, or those of one kind.",
    "numbers": "Which kind of numbers the levels are.",
    "bits": "Bits of a code: n bits are 2ⁿ levels.",
    "block": "How many weights share one scale.",
    "block type": "Of ggml's; k-quants need rows of whole 256s.",
    "importance E[x²]": "Errors count by their column's inputs (imatrix).",
    "weight k": "Arrow keys: on by one; or click it.",
    "range rule": "How a block finds its scale.",
    "channel": "Which row of the matrix …",
    "place": "… and which part of its row.",
    "format": "Whose bits are shown.",
    "value": "Arrow keys walk to the neighbouring values.",
    "compare": "The second format, below the line.",
    "logarithmic line": "Floats are even here, integers on the linear line.",
    "same largest value": "As a scale does: both reach exactly 1.",
    "piece": "Which 8 × 16 weights of the layer.",
    "damping": "Added to H's diagonal, times its mean.",
    "push the error (GPTQ)": "Off: plain rounding, column by column.",
    "act-order": "Columns with the largest inputs first.",
    "row": "Whose numbers are written out.",
    "step": "Arrow keys: a column on, a column back.",
    "constructed outliers": "A few inputs 50 times larger, their weights smaller.",
    "ratio r": "0: plain rounding. Larger: large inputs protected more.",
    "input channel": "By its place: 0 has the largest inputs.",
    "granularity": "How many inputs share one scale.",
    "alpha α": "0: the inputs keep their outliers. 1: all go to W.",
    "channel j": "By its place: 0 has the largest max|X|.",
    "power p": "Below 1: rather few large errors than many small.",
    "beta β": "Larger: smaller errors are put up with. hqq has 10.",
    "search step": "Arrow keys: a step on, a step back.",
    "token": "Whose inputs lie on the int8 grid.",
    "method": "What rounds the weights.",
    "windows": "How much text calibration reads.",
    "measure": "Perplexity in pairs, or the distance from the float model.",
    "file": "A mixture: which type every tensor gets.",
    "imatrix": "The text that the importance matrix was counted on.",
    "judged on": "The text that the models are scored on.",
    "scale": "By what the largest weight is divided.",
    "range, %": "Below 100: finer steps, but the largest saturate.",
    "model": "Whose size and shape.",
    "hardware": "Gives the speed, and sets its memory.",
    "memory": "GiB of all devices together.",
    "context": "Tokens that a sequence may have.",
    "batch": "Sequences at once, each with its own cache.",
    "KV cache": "Bits of a number that is kept of a token.",
    "task": "What asks for more bits, or for a warning.",
    "estimator": "Which slope rounding is taken to have.",
    "block row": "Whose first 64 weights stand on the stairs.",
    "rate": "How far a step moves the weights.",
    "teacher": "On: learns the float model's words, off: the text's.",
    "machine": "Sets both speeds below.",
    "parameters": "Layers and heads of the published model nearest.",
    "bits/weight": "Scales counted: 4 bits in groups of 64 are 4.25.",
    "bandwidth": "How fast memory is read.",
    "FLOP/s": "How fast is multiplied, densely.",
    "zero point": "Levels from the least to the largest weight.",
}
WIDTH = "250px"
_SMALL = "font-size:11px;line-height:13px;color:var(--jp-ui-font-color2,#616161)"
_STYLE = {"description_width": "76px"}


def _common(name: str, lang: str) -> dict[str, Any]:
    return {
        "description": say(name, lang),
        "tooltip": say(HELP[name], lang),
        "style": _STYLE,
        "layout": ipywidgets.Layout(width=WIDTH, margin="0"),
    }


def choice(name: str, options: Iterable, value: Any, lang: str) -> ipywidgets.Dropdown:
    """One of many: a drop-down list."""
    options = list(options)
    check_offered(name, options, value)
    return ipywidgets.Dropdown(options=options, value=value, **_common(name, lang))


def steps(name: str, options: Iterable, value: Any, lang: str) -> ipywidgets.SelectionSlider:
    """One of a few in order: a slider over them."""
    options = list(options)
    check_offered(name, options, value)
    return ipywidgets.SelectionSlider(options=options, value=value, **_common(name, lang))


def slider(name: str, low: int, high: int, value: int, lang: str) -> ipywidgets.IntSlider:
    """An integer from `low` to `high`."""
    return ipywidgets.IntSlider(value, low, high, **_common(name, lang))


def switch(name: str, value: bool, lang: str) -> ipywidgets.Checkbox:
    """On or off."""
    box = ipywidgets.Checkbox(value, indent=False, **_common(name, lang))
    box.style.description_width = "initial"
    return box


def with_help(control: ipywidgets.DOMWidget) -> ipywidgets.VBox:
    """A control and its sentence (its tooltip), in a fixed height, so that nothing moves."""
    words = html.escape(control.tooltip or "")
    line = ipywidgets.HTML(
        f'<div style="{_SMALL}">{words}</div>',
        layout=ipywidgets.Layout(width=WIDTH, height="27px", margin="0 0 9px 2px"),
    )
    return ipywidgets.VBox([control, line], layout=ipywidgets.Layout(overflow="hidden"))
