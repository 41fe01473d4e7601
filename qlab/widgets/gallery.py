"""`gallery()`: every widget with its picture, a sentence, and the line that opens it."""

from __future__ import annotations

import html
import io
from typing import Any

import ipywidgets

from qlab.models.load import load
from qlab.models.quantize import quantize_model
from qlab.models.transformer import Transformer
from qlab.plots import style
from qlab.plots.widget_words import say
from qlab.widgets.advisor import advisor
from qlab.widgets.awq_curve import awq_curve
from qlab.widgets.base import Live
from qlab.widgets.block_scale import block_scale
from qlab.widgets.calibration import calibration
from qlab.widgets.formats import formats
from qlab.widgets.gptq_steps import gptq_steps
from qlab.widgets.hqq_steps import hqq_steps
from qlab.widgets.qat_live import qat_live
from qlab.widgets.report import report
from qlab.widgets.roofline import roofline
from qlab.widgets.size_quality import size_quality
from qlab.widgets.smoothquant import smoothquant
from qlab.widgets.source import Source, source_of
from qlab.widgets.superblock import superblock
from qlab.widgets.view import WithPicture
from qlab.widgets.weights import weights

# name -> (how it is made from a Source and a language, what it is for). A new widget gets a line
# here.
WIDGETS = {
    "formats": (
        lambda source, lang: formats(lang),
        "A number is a pattern of bits: flip them, walk to the neighbours, "
        "lay two formats on one line.",
    ),
    "block_scale": (
        block_scale,
        "A block of weights shares one scale: see which weights saturate, which vanish, "
        "and what a zero point buys.",
    ),
    "superblock": (
        superblock,
        "A GGUF file down to the bit: which bytes make one weight, the grid of each sub-block, "
        "and how its scale was found.",
    ),
    "weights": (
        weights,
        "A whole layer falls onto a grid: where the error is, what it costs in bits, "
        "what it does to the output.",
    ),
    "gptq_steps": (
        gptq_steps,
        "GPTQ column by column: round one, push its error into the others, see what that saves.",
    ),
    "awq_curve": (
        awq_curve,
        "AWQ's one number: how strongly large inputs are protected, who pays for it, "
        "and where it is best.",
    ),
    "smoothquant": (
        smoothquant,
        "SmoothQuant's one number: how far the inputs' outliers move into the weights, "
        "and what INT8 products gain by it.",
    ),
    "calibration": (
        lambda source, lang: calibration(lang=lang),  # measured on the bundled model
        "Which text a method reads, and how much of it: what that costs, on which text, "
        "and whether it is more than noise.",
    ),
    "size_quality": (
        lambda source, lang: size_quality(lang),  # measured on the bundled model
        "Which GGUF file: what every mixture costs in bits and in quality, "
        "what an importance matrix changes, and what is in the file.",
    ),
    "hqq_steps": (
        hqq_steps,
        "HQQ step by step: every group's zero point slides its levels to where the errors cost "
        "least, and no text is read.",
    ),
    "qat_live": (
        qat_live,
        "Training with rounded weights, here and now: how much of the loss comes back, "
        "and what the weights do between their levels.",
    ),
    "report": (
        lambda source, lang: report(_rounded(source), lang),
        "What quantization did to every layer: where it hurts, against plain rounding, and why, "
        "in words.",
    ),
    "advisor": (
        lambda source, lang: advisor(None, lang),
        "Which file to download: every one against your memory, with context, speed and loss.",
    ),
    "roofline": (
        lambda source, lang: roofline(None, lang),
        "Why few bits make decode faster, until when, and why not prompts: bytes over bandwidth "
        "against products over FLOP/s.",
    ),
}
ARGUMENTS = {
    "formats": "",
    "calibration": "",
    "size_quality": "",
    "report": "q",
    "advisor": "",
    "roofline": "",
}  # of those that do not take the model itself
SCALE = 0.5  # of a thumbnail


def _rounded(source: Source) -> Transformer:
    """The bundled model in 3 bits, with its losses: a large model's would take minutes."""
    source = source if source.name == "tiny" else Source(load("tiny"))
    stats = {path: source.stats(path) for path in source.layers}
    return quantize_model(source.model, "rtn", "int3_channel", stats=stats, progress=False)


class Gallery(WithPicture):
    """All widgets at a glance; see `gallery`."""

    def __init__(self, source: Source, lang: str = "en"):
        self.lang = lang
        self.shown: dict[str, Live] = {n: make(source, lang) for n, (make, _) in WIDGETS.items()}
        super().__init__([ipywidgets.HTML(self._entry(name)) for name in WIDGETS])
        self.add_class("qlab-widget").add_class("qlab-gallery")

    def _entry(self, name: str) -> str:
        widget = self.shown[name]
        call = ARGUMENTS.get(name, "model")
        return (
            '<div style="display:flex;flex-wrap:wrap;gap:18px;margin:0 0 18px 0">'
            f"{widget.draw(widget.state).svg(SCALE, picks=False)}"
            '<div style="width:380px;line-height:1.45;color:var(--jp-ui-font-color1,#212121)">'
            f"<b>{name}</b><br>{html.escape(say(WIDGETS[name][1], self.lang))}<br>"
            f"<code>qlab.widgets.{name}({call})</code></div></div>"
        )

    def figure(self) -> Any:
        """The pictures of all widgets, one under the other."""
        from matplotlib.figure import Figure
        from matplotlib.image import imread

        images = [imread(io.BytesIO(style.png(w.figure(), 100))) for w in self.shown.values()]
        width, height = max(i.shape[1] for i in images), sum(i.shape[0] + 40 for i in images)
        figure = Figure(figsize=(width / 100, height / 100), dpi=100, facecolor="white")
        top = height
        for name, image in zip(self.shown, images):
            top -= image.shape[0] + 40
            axes = figure.add_axes((0, top / height, 1, image.shape[0] / height))
            axes.imshow(image, aspect="auto", interpolation="none")
            axes.set_axis_off()
            axes.set_title(name, loc="left", fontsize=11, weight="bold", pad=6)
        figure.set_label("; ".join(WIDGETS[name][1] for name in self.shown))
        return figure


def gallery(model: Transformer | Source | None = None, lang: str = "en") -> Gallery:
    """Every widget with a picture and a sentence.

    Args:
        model: whose weights the pictures show; None: the bundled "tiny".
        lang: "en" or "ko".

    Example:
        >>> qlab.widgets.gallery()   # doctest: +SKIP
    """
    return Gallery(source_of(load("tiny") if model is None else model), lang)
