"""Which file to download: the largest quality that fits with its context, and why.

Memory is arithmetic (`fits`), quality is evidence (`evidence`), and the choice between them is the
few rules here. Not here: how an answer is worded and shown (`advice`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from qlab.evaluation.advice import Advice
from qlab.evaluation.evidence import TASKS, WORN
from qlab.evaluation.fits import Fit, Question, fit
from qlab.evaluation.machines import machine_of
from qlab.evaluation.memory import size
from qlab.evaluation.mixtures import FILES
from qlab.evaluation.shapes import SHAPES, TYPICAL, Shape, shape_of
from qlab.models.kv import KV, find, name_of
from qlab.models.transformer import Transformer
from qlab.suggest import near

# What is tried for when a task asks for so many bits: the smallest file that has them.
TARGETS = {16: "BF16", 8: "Q8_0", 5: "Q5_K_M", 0: "Q4_K_M"}


def advise(
    model_or_size: Any,
    memory: float | str | None = None,
    hardware: str | None = None,
    context: int | None = None,
    batch: int = 1,
    task: str = "general",
    kv_bits: float = 16,
    kv: str | KV | None = None,
) -> Advice:
    """Which file of a model to take for a memory, with the arithmetic and the evidence.

    weights = parameters · bits / 8; KV cache = 2 · layers · KV heads · head dim · context · bytes;
    the first of the files, best first, that fits with both and a reserve is recommended.

    Args:
        model_or_size: a loaded model, a name ("llama-3.1-70b"), or a size ("70B", 70e9), which gets
            the layers and heads of the published model nearest to it.
        memory: 24 or "24 GB" (10⁹ bytes), "24 GiB", "2x24 GB"; None: the hardware's.
        hardware: "RTX 4090", "2x RTX 3090", "Apple M4 Max", "CPU DDR5" …; None: no speed is told.
        context: tokens of each sequence; None: 8,192, or fewer where the model was made for fewer.
        batch: sequences at once.
        task: "general", "high stakes", "benchmark", "math" or "multilingual".
        kv_bits: of a number in the KV cache: 16, 8.5 (q8_0), 4.5 (q4_0).
        kv: instead, a recipe (`qlab.models.KVS`: "kivi4", "kivi2"), scales, minima and the float
            window counted; None: a loaded model's own, if it has one.

    Returns:
        an `Advice`; print it, or let a notebook show it.

    Raises:
        ValueError: an unknown model, hardware or task, a memory that is none, a context or batch
            below 1, KV bits outside 1 … 32; an unknown recipe, one beside KV bits, one whose block
            the head's channels are no multiple of, or one for latent attention.

    Example:
        >>> answer = advise("llama-3.1-70b", memory="2x24 GB")
        >>> answer.best.file, round(answer.best.weights / 1e9, 2), answer.best.room
        ('Q4_K_M', 42.51, 12893)

    Source: llama.cpp's mixtures (`mixtures`), the roofline (Williams et al. 2009), `evidence`.
    """
    if task not in TASKS:
        raise ValueError(f"no task is called {task!r}: {near(task, TASKS)}")
    shape, machine = shape_of(model_or_size), machine_of(memory, hardware)
    context = min(8192, shape.longest) if context is None else context
    for name, value in (("context", context), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} {value!r} is not a whole number of at least 1")
    if not 1 <= kv_bits <= 32:
        raise ValueError(f"kv_bits {kv_bits!r} is not between 1 and 32")
    if kv is None and isinstance(model_or_size, Transformer):
        kv = model_or_size.kv
    recipe = _recipe(kv, kv_bits, shape)
    question = Question(shape, machine, context, batch, float(kv_bits), task, recipe)
    return answer(question, loaded(model_or_size, question))


def _recipe(kv: str | KV | None, kv_bits: float, shape: Shape) -> KV | None:
    """A KV recipe, if it goes with the bits and the shape."""
    recipe = find(kv)
    if recipe is None:
        return None
    if kv_bits != 16:
        raise ValueError(f"kv_bits {kv_bits:g} and kv {name_of(recipe)!r} exclude each other")
    if shape.mla:
        raise ValueError(
            f"{shape.name} keeps {sum(shape.mla)} latent numbers a token and no heads, so "
            f"{name_of(recipe)!r} does not fit it: give kv_bits"
        )
    recipe.check_head(shape.head_dim)
    return recipe


def loaded(model: Any, question: Question) -> tuple[Fit, ...]:
    """A loaded model as it is, by its own tensors; nothing for a name or a size."""
    if not isinstance(model, Transformer):
        return ()
    found = size(model)
    parts = (found.linears, found.embedding)
    bits = 8 * sum(p.bytes_packed for p in parts) / sum(p.weights for p in parts)
    return (Fit("as loaded", bits, question.shape.params * bits / 8, question),)


def answer(question: Question, others: tuple[Fit, ...] = ()) -> Advice:
    """The rules: every file, the first that fits, what to do where none does.

    Args:
        question: what is asked.
        others: what is shown with the files but never recommended.
    """
    task, device = TASKS[question.task], question.machine.device
    offered = (*FILES, *(device.formats if device else ()))
    fits = (*(fit(file, question) for file in offered), *others)
    best = first([f for f in fits if f.gguf], task.floor if task.hard else 0)
    served = first([f for f in fits if f.served], task.floor if task.hard else 0)
    target = fit(TARGETS[task.floor], question)
    worn = best is None or best.bits < WORN
    return Advice(
        question, fits, best, served, target, smaller(question) if worn else None, roomy(fits, best)
    )


def first(fits: list[Fit], floor: int) -> Fit | None:
    """The first, best first, that fits and has at least `floor` bits; None: there is none."""
    return next((f for f in fits if f.fits and f.nominal >= floor), None)


def roomy(fits: tuple[Fit, ...], best: Fit | None) -> Fit | None:
    """The 4-bit file, where the best has not room for all that the model was made for."""
    if best is None or best.nominal <= 4 or best.room >= best.question.shape.longest:
        return None
    return next(f for f in fits if f.file == "Q4_K_M")


def smaller(question: Question) -> Fit | None:
    """The largest well-known model below the one asked for whose target file fits."""
    file, shape = TARGETS[TASKS[question.task].floor], question.shape
    below = [SHAPES[n] for n in TYPICAL if SHAPES[n].params < 0.95 * shape.params]
    tried = (fit(file, dataclasses.replace(question, shape=s)) for s in sorted(below, key=_size))
    return next((f for f in tried if f.fits), None)


def _size(shape: Shape) -> float:
    return -math.log(shape.params)
