"""Models: the Llama family and OPT, where weights come from, what is done to a model as a whole."""

from qlab.models.calibrate import Batches, calibrate, calibration_batches
from qlab.models.channels import dither, grid_study, scale_channels, with_outliers
from qlab.models.export_gguf import gguf_metadata, to_gguf
from qlab.models.generate import generate
from qlab.models.importance import imatrix
from qlab.models.kv import KV, KVS, cache_size, kivi, quantize_kv
from qlab.models.load import load
from qlab.models.mixtures import MIXTURES
from qlab.models.prepare import convert, prepare
from qlab.models.qat import Progress, qat, qat_steps
from qlab.models.quantize import quantize_model
from qlab.models.report import LayerReport, Report
from qlab.models.save import save
from qlab.models.surgery import dense, linears, map_linears
from qlab.models.tokenizer import Tokenizer
from qlab.models.transformer import Config, Label, Linear, Transformer
from qlab.models.with_kernels import with_kernels

__all__ = [
    "KV",
    "KVS",
    "MIXTURES",
    "Batches",
    "Config",
    "Label",
    "LayerReport",
    "Linear",
    "Progress",
    "Report",
    "Tokenizer",
    "Transformer",
    "cache_size",
    "calibrate",
    "calibration_batches",
    "convert",
    "dense",
    "dither",
    "generate",
    "gguf_metadata",
    "grid_study",
    "imatrix",
    "kivi",
    "linears",
    "load",
    "map_linears",
    "quantize_kv",
    "prepare",
    "qat",
    "qat_steps",
    "quantize_model",
    "save",
    "scale_channels",
    "to_gguf",
    "with_kernels",
    "with_outliers",
]
