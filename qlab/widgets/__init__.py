"""Interactive pictures for notebooks: state → data → picture → a thin ipywidgets shell;
`.figure()` of each is static.

`base` and `run` are the two classes that every widget has; pictures are drawn in
`qlab.plots.widget_*`. Needs anywidget.
"""

from qlab.widgets.advisor import advisor
from qlab.widgets.awq_curve import awq_curve
from qlab.widgets.block_scale import block_scale
from qlab.widgets.calibration import calibration
from qlab.widgets.formats import formats
from qlab.widgets.gallery import gallery
from qlab.widgets.gptq_steps import gptq_steps
from qlab.widgets.hqq_steps import hqq_steps
from qlab.widgets.qat_live import qat_live
from qlab.widgets.report import report
from qlab.widgets.roofline import roofline
from qlab.widgets.size_quality import size_quality
from qlab.widgets.smoothquant import smoothquant
from qlab.widgets.source import Source
from qlab.widgets.superblock import superblock
from qlab.widgets.weights import weights

__all__ = [
    "Source",
    "advisor",
    "awq_curve",
    "block_scale",
    "calibration",
    "formats",
    "gallery",
    "gptq_steps",
    "hqq_steps",
    "qat_live",
    "report",
    "roofline",
    "size_quality",
    "smoothquant",
    "superblock",
    "weights",
]
