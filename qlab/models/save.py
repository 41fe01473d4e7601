"""`save(model, where)`: a folder of ours, or a GGUF file; `load` reads both."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from qlab.io import safetensors
from qlab.kernels import Packed
from qlab.methods.trained import Trained
from qlab.models.checks import check_model
from qlab.models.export_gguf import to_gguf
from qlab.models.kv import check_no_recipe
from qlab.models.surgery import linears
from qlab.models.transformer import Transformer


def save(
    model: Transformer,
    path: str | os.PathLike,
    *,
    mixture: str | None = None,
    imatrix: Any = None,
    overwrite: bool = False,
) -> Path:
    """Writes a model to a folder, or to a GGUF file that llama.cpp runs too. Either appears whole
    or not at all.

    Args:
        model: a Transformer, quantized or not.
        path: a folder, which must not exist or be empty unless `overwrite`; or a file that ends in
            `.gguf`.
        mixture: of a GGUF file only: what to store it as, such as "F16", "Q8_0" or "Q4_K_M" (keys
            of `qlab.models.MIXTURES`). None: as the model is, floats as F32.
        imatrix: of a mixture only: what `qlab.imatrix` found, or a file of it.
        overwrite: replace what is there.

    Returns:
        the path.

    Raises:
        ValueError: something is there already, or the model has what the file cannot hold, such as
            weights packed for the kernels.

    Example:
        >>> model = qlab.load("tiny")                                       # doctest: +SKIP
        >>> qlab.save(qlab.quantize_model(model, "rtn", "int4_g64"), "tiny-int4")   # doctest: +SKIP
        >>> qlab.save(model, "tiny.gguf", mixture="Q4_K_M")                 # doctest: +SKIP
        >>> qlab.load("tiny.gguf").notes                                    # doctest: +SKIP
    """
    check_model(model)
    check_no_recipe(model)
    if any(isinstance(layer.weight, Packed) for layer in linears(model).values()):
        raise ValueError("packed weights are not stored: save the model that was packed")
    if any(isinstance(layer.weight, Trained) for layer in linears(model).values()):
        raise ValueError("a model in training is not stored: save qlab.models.convert(model)")
    target = Path(path).expanduser()
    if target.suffix != ".gguf":
        for name, given in (("mixture", mixture), ("imatrix", imatrix)):
            if given is not None:
                raise ValueError(f"{name}= is of GGUF files; {target.name!r} does not end in .gguf")
        return safetensors.save(model, target, overwrite=overwrite)
    if imatrix is not None and mixture is None:
        raise ValueError("imatrix= needs a mixture: without one nothing is rounded")
    to_gguf(model, target, mixture, imatrix=imatrix, overwrite=overwrite)
    return target
