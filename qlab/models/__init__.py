"""Models: the Llama family and OPT, where weights come from, what is done to a model as a whole."""

from qlab.models.calibrate import Batches, calibrate, calibration_batches
from qlab.models.channels import dither, grid_study, scale_channels, with_outliers
from qlab.models.generate import generate
from qlab.models.importance import imatrix
from qlab.models.load import load
from qlab.models.quantize import quantize_model
from qlab.models.report import LayerReport, Report
from qlab.models.surgery import dense, linears, map_linears
from qlab.models.tokenizer import Tokenizer
from qlab.models.transformer import Config, Label, Linear, Transformer

__all__ = [
    "Batches",
    "Config",
    "Label",
    "LayerReport",
    "Linear",
    "Report",
    "Tokenizer",
    "Transformer",
    "calibrate",
    "calibration_batches",
    "dense",
    "dither",
    "generate",
    "grid_study",
    "imatrix",
    "linears",
    "load",
    "map_linears",
    "quantize_model",
    "scale_channels",
    "with_outliers",
]
