"""`with_kernels`: a model whose linears hold packed weights and multiply by them as they are.

Nothing else changes: `generate`, `evaluate` and `jit` take the model as any other, and what it
computes is what the model it was made of computes, in another order of sums. Not here: the layout
and the ops (`kernels`).
"""

from __future__ import annotations

import dataclasses
import math
import warnings

from qlab.activations import Act
from qlab.kernels import Packed, prepack, unsupported, unsupported_act
from qlab.methods.trained import Trained
from qlab.models.checks import check_model
from qlab.models.surgery import linears, map_linears
from qlab.models.transformer import Linear, Transformer
from qlab.qtensor import QTensor, bits_per_weight
from qlab.suggest import counted

WIDER = 1.1  # from here on a note says so


def with_kernels(model: Transformer, dtype: str | None = None, target: str = "any") -> Transformer:
    """A new model whose quantized linears are packed for the kernels; `model` stays as it was.

    A quantized embedding that also reads the logits out is packed as a head of its own, and stays
    for looking tokens up.

    Args:
        model: as `quantize_model` gives it: linears hold QTensors.
        dtype: what products are computed in, "bfloat16" or "float32"; None: the dtype of the
            activations, float32. The kernels of a GPU are for "bfloat16".
        target: as `kernels.prepack` takes it, for linears whose inputs are quantized too: "cuda"
            packs their weights as a GPU multiplies bytes.

    Returns:
        the model. Linears that stayed as they were are listed in its notes with the reason, and in
        a warning; so are bits that grew, because kernels read nibbles and bytes.

    Raises:
        ValueError: no linear can be packed, naming the first and why; another dtype or target.

    Example:
        >>> q = qlab.quantize_model(qlab.load("tiny"), "rtn", "int4_g64")   # doctest: +SKIP
        >>> qlab.generate(qlab.with_kernels(q), "The United States")        # doctest: +SKIP
    """
    check_model(model)
    stayed: dict[str, str] = {}

    def change(path: str, layer: Linear) -> Linear:
        new = _packed(layer, dtype, target)
        if isinstance(new, str):
            stayed[path] = new
            return layer
        return new

    new = map_linears(model, change)
    stayed = {path: stayed[path] for path in linears(model) if path in stayed}  # forward order
    if len(stayed) == len(linears(model)):
        path, why = next(iter(stayed.items()))
        raise ValueError(f"no linear can be packed; {path}: {why}")
    table = model.lm_head or Linear(model.embed_tokens.weight)
    head = _packed(table, dtype, target)
    if isinstance(head, Linear):
        new.lm_head = head
    elif isinstance(table.weight, QTensor):
        stayed["lm_head"] = head
    new.label = dataclasses.replace(new.label, notes=(*model.notes, *_wider(model, new)))
    if stayed:
        notes = [f"without a kernel: {path} ({why})" for path, why in stayed.items()]
        new.label = dataclasses.replace(new.label, notes=(*new.notes, *notes))
        first = f"{counted(len(stayed), 'linear')} stay as they are (see .notes); {notes[0]}"
        warnings.warn(first, stacklevel=2)
    return new


def _wider(model: Transformer, new: Transformer) -> list[str]:
    """A line where kernels read clearly more bits than the QTensors need: they know nibbles and
    bytes, and unpacked ranges.
    """
    before, stored, held, count = linears(model), 0.0, 0.0, 0
    for path, layer in linears(new).items():
        q, p = before[path].weight, layer.weight
        if isinstance(q, QTensor) and isinstance(p, Packed):
            size = math.prod(p.shape)
            stored, held = stored + size * bits_per_weight(q), held + size * p.bits_per_weight
            count += size
    if held < WIDER * stored:
        return []
    why = "kernels read nibbles, bytes and unpacked ranges"
    return [f"packed in {held / count:.4g} bits a weight, not {stored / count:.4g}: {why}"]


def _packed(layer: Linear, dtype: str | None, target: str) -> Linear | str:
    """The same linear with packed weights, or why not."""
    if not isinstance(layer.weight, QTensor):
        if isinstance(layer.weight, Trained):
            return "it is in training: qlab.models.convert(model) first"
        return "it is packed already" if isinstance(layer.weight, Packed) else "it is not quantized"
    reason = unsupported(layer.weight)
    if reason:
        return reason
    packed = prepack(layer.weight, dtype, target)
    if layer.act is None:
        packed = packed.turn(False)
    if isinstance(layer.act, Act):
        reason = unsupported_act(packed, layer.act)
        if reason:
            return reason
    return Linear(packed, layer.bias, layer.act)
