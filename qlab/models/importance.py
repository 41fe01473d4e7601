"""`imatrix(model, text)`: E[x²] of every column that a linear layer reads, as llama.cpp's encoders
want it: the diagonal of H, without the rest of it.

Not here: the files (`io.imatrix`), and what an encoder does with it.
"""

from __future__ import annotations

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
from tqdm.auto import tqdm

from qlab.io.imatrix import Imatrix
from qlab.models.architectures import gguf_name
from qlab.models.calibrate import as_batches, rows_at_once
from qlab.models.checks import check_model
from qlab.models.taps import squares
from qlab.models.transformer import Transformer


def imatrix(model: Transformer, batches: Any = "english", progress: bool = True) -> Imatrix:
    """The importance of every column, in one pass; the model is untouched.

    Args:
        model: of the Llama family, quantized or not.
        batches: as for `quantize_model`: a bundled domain, texts, or token ids.
        progress: show a bar.

    Returns:
        an Imatrix under GGUF's names; a sequence of the batches is a chunk.

    Raises:
        ValueError: a model that has no names in a GGUF file, batches that say nothing, or inputs
            that are not finite.

    Example:
        >>> found = qlab.imatrix(qlab.load("tiny"), "english")   # doctest: +SKIP
        >>> found.means()["blk.0.ffn_down.weight"].shape         # doctest: +SKIP
        (768,)
    """
    check_model(model)
    names = {
        (i, stage[0]): [gguf_name(f"layers.{i}.{path}.weight") for path in stage]
        for i, block in enumerate(model.layers)
        for stage in block.STAGES
    }
    batches = as_batches(model, batches)
    at_once = rows_at_once(batches)
    totals: dict[tuple[int, str], np.ndarray] = {}
    steps = -(-len(batches) // at_once) * len(model.layers)
    with tqdm(total=steps, disable=not progress, file=sys.stderr, unit=" blocks") as bar:
        for tokens, mask in batches.pieces(at_once):
            x, seen = model.embed(jnp.asarray(tokens)), jnp.asarray(mask)
            for i, block in enumerate(model.layers):
                x, found = squares(block, x, seen)
                for path, sums in found.items():
                    totals[i, path] = totals.get((i, path), 0) + np.asarray(sums, np.float64)
                bar.update()
    count, length = int(batches.mask.sum()), batches.tokens.shape[1]
    sums = {}
    for key, listed in names.items():
        if not np.isfinite(totals[key]).all():
            raise ValueError(f"{listed[0]}: its inputs on the calibration text hold NaN or Inf")
        sums |= {name: totals[key].astype(np.float32)[None] for name in listed}
    counts = {name: np.array([count], np.int64) for name in sums}
    text = tuple(batches.provenance.get("domains") or ("token ids",))
    return Imatrix(sums, counts, length, -(-count // length), text)
