"""qlab: a laboratory for LLM quantization in JAX. Learn it by hand, prototype a method, reproduce
the experiments.

Formats, Specs, QTensors, Stats and the methods load at once; models, files, evaluation, plots and
widgets when first used.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING

from qlab import specs
from qlab.activations import ACTS, Act
from qlab.formats import FORMATS, Format
from qlab.methods import METHODS, awq, four_over_six, gptq, hqq, kquants, rtn, smoothquant
from qlab.methods.smoothquant import smoothquant_scales
from qlab.packing import pack, unpack
from qlab.qtensor import (
    QTensor,
    Spec,
    bits_per_weight,
    dequantize,
    fake_quantize,
    fit,
    quantize,
)
from qlab.rules import RULES
from qlab.specs import SPECS, explain
from qlab.stats import Stats, output_error

if _TYPE_CHECKING:
    from qlab import evaluation, exercises, io, kernels, models, plots, widgets
    from qlab.data import texts
    from qlab.evaluation import advise, bench, compare, evaluate
    from qlab.models import (
        calibrate,
        calibration_batches,
        generate,
        imatrix,
        load,
        qat,
        quantize_kv,
        quantize_model,
        save,
        with_kernels,
    )

__version__ = "0.1.0"

# name -> the module that has it; None: the name is a module itself
_LAZY = {
    "load": "qlab.models",  # a model by name, hub id, folder or file
    "calibrate": "qlab.models",  # what every layer reads of a text
    "calibration_batches": "qlab.models",  # sequences of the calibration texts
    "quantize_model": "qlab.models",  # a method on every linear layer
    "quantize_kv": "qlab.models",  # keys and values in few bits
    "qat": "qlab.models",  # training while quantized
    "generate": "qlab.models",  # text from a model
    "save": "qlab.models",  # a model to a folder or a GGUF file
    "imatrix": "qlab.models",  # the importance of every column, for GGUF's encoders
    "with_kernels": "qlab.models",  # linears packed for the kernels
    "kernels": None,
    "texts": "qlab.data",  # the bundled texts
    "evaluate": "qlab.evaluation",  # perplexity, divergence, bars
    "advise": "qlab.evaluation",  # which file for which memory
    "bench": "qlab.evaluation",  # speed of prompts and decode, beside the machine's own
    "compare": "qlab.evaluation",  # one table of what is comparable
    "models": None,
    "io": None,
    "evaluation": None,
    "plots": None,
    "widgets": None,
    "exercises": None,
}

__all__ = [
    "ACTS",
    "FORMATS",
    "METHODS",
    "RULES",
    "SPECS",
    "Act",
    "Format",
    "QTensor",
    "Spec",
    "Stats",
    "advise",
    "awq",
    "bench",
    "bits_per_weight",
    "calibrate",
    "calibration_batches",
    "compare",
    "dequantize",
    "evaluate",
    "evaluation",
    "exercises",
    "explain",
    "fake_quantize",
    "fit",
    "four_over_six",
    "generate",
    "gptq",
    "hqq",
    "imatrix",
    "io",
    "kernels",
    "kquants",
    "load",
    "models",
    "output_error",
    "pack",
    "plots",
    "qat",
    "quantize",
    "quantize_kv",
    "quantize_model",
    "rtn",
    "save",
    "smoothquant",
    "smoothquant_scales",
    "specs",
    "texts",
    "unpack",
    "widgets",
    "with_kernels",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'qlab' has no attribute {name!r}")
    home = _LAZY[name]
    value = _import_module(f"qlab.{name}") if home is None else getattr(_import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
