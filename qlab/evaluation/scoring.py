"""`evaluate`: how much a model lost against its reference, on real text, with error bars.

Both models see the same windows; the reference's hidden states are computed once and kept
(`reference`), logits are compared chunk by chunk (`divergence`), and bars come from drawing windows
(`bars`). Not here: tasks, speed.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from qlab.evaluation import memory
from qlab.evaluation import reference as kept
from qlab.evaluation.divergence import TokenScores, score
from qlab.evaluation.result import Evaluation, Protocol, TextScore, summarize
from qlab.evaluation.windows import DEFAULT_CONTEXT, Windows, check_protocol, cut
from qlab.methods.trained import Trained
from qlab.models.checks import check_model
from qlab.models.surgery import dense
from qlab.qtensor import QTensor
from qlab.suggest import near

DOMAINS = ("english", "code", "math", "korean")
REFERENCE_BATCH = 4


def evaluate(
    model: Any,
    *,
    reference: Any = None,
    texts: str | Iterable[str] | Mapping[str, str] = "english",
    protocol: str = "gptq",
    tokens: int | None = None,
    context: int | None = None,
    batch: int = 4,
    seed: int = 0,
    name: str | None = None,
    progress: bool = True,
) -> Evaluation:
    """Scores a model on texts, and against a reference if there is one.

    Perplexity is e^(mean NLL) over the scored tokens. The original GPTQ code multiplies each
    window's mean (over context − 1 targets) by context and divides the sum by windows · context:
    the two factors cancel, so its number is this one; only scripts that keep one of the two are off
    by (context − 1) / context in log-perplexity.

    Args:
        model: any qlab model; QTensors are dequantized first, so all variants share one compiled
            program.
        reference: the model to compare with, usually the float one; None: perplexity and bits per
            byte only.
        texts: a bundled domain, several, or `{name: text}`.
        protocol: "gptq" (every token of every window) or "llama.cpp" (second halves only); see
            `windows`.
        tokens: how many tokens of each text; None: all.
        context: tokens in a window; None: 2048 ("gptq") or 512 ("llama.cpp"), at most what the
            model and `tokens` allow.
        batch: windows run at one time; the reference always runs 4.
        seed: of the bootstrap.
        name: of the row; None: the model's.
        progress: show a bar with the time left.

    Returns:
        An `Evaluation`: per text, estimates with bars; sizes; the whole protocol.

    Raises:
        ValueError: an empty text, one shorter than a window, an unknown name, no tokenizer, or a
            reference with another tokenizer.

    Example:
        >>> model = qlab.load("tiny")                                             # doctest: +SKIP
        >>> q = qlab.quantize_model(model, qlab.rtn, "int4_g64")                  # doctest: +SKIP
        >>> qlab.evaluate(q, reference=model, texts="english", tokens=4096)       # doctest: +SKIP
    """
    began = time.perf_counter()
    check_model(model)
    if reference is not None:
        check_model(reference, "reference")
    check_protocol(protocol)
    tokenizer = _tokenizer(model, reference)
    named = _texts(texts)
    length = _context(protocol, context, tokens, model)
    windows = {
        key: cut(text, tokenizer, protocol=protocol, context=length, tokens=tokens, name=key)
        for key, text in named.items()
    }
    weights = kept.weights_hash(model)
    reference_weights = None if reference is None else kept.weights_hash(reference)
    label = name or model.name or "model"
    pair = _Pair(model, weights, reference, reference_weights, batch)
    total = sum(len(w.tokens) for w in windows.values()) * (1 if reference is None else 2)
    with _bar(total, f"evaluate {label}", progress) as bar:
        scores = tuple(pair.run(key, w, seed, bar.update) for key, w in windows.items())
    return Evaluation(
        name=label,
        texts=scores,
        size=memory.size(model),
        protocol=Protocol(
            protocol,
            length,
            tokenizer.fingerprint,
            None if reference is None else reference.name or "model",
            reference_weights,
            kept.arithmetic(),
            batch,
            seed,
            versions(),
        ),
        weights_hash=weights,
        notes=tuple(model.notes),
        seconds=round(time.perf_counter() - began, 3),
    )


class _Pair:
    """A candidate and its reference, dense and ready to run on one text after another."""

    def __init__(self, model, weights, reference, reference_weights, batch):
        self.model, self.weights, self.batch = _dense(model), weights, batch
        self.reference, self.reference_weights = None, reference_weights
        if reference is not None:
            self.reference = self.model if weights == reference_weights else _dense(reference)

    def run(self, name: str, windows: Windows, seed: int, step) -> TextScore:
        """One text: the reference's states, then the candidate's, batch by batch, to scores."""
        states = None
        if self.reference is not None:
            states = kept.states(
                self.reference, self.reference_weights, windows, REFERENCE_BATCH, step
            )
        same = self.weights == self.reference_weights and self.batch == REFERENCE_BATCH
        own = None if states is None or not same else _slices(states, self.batch)
        parts = []
        for start, stop, hidden in own or kept.batches(self.model, windows, self.batch):
            goal = windows.targets[start:stop].reshape(-1)
            there = None if states is None else _flat(states[start:stop])
            parts.append(score(self.model, _flat(hidden), goal, self.reference, there))
            step(stop - start)
        return summarize(name, windows, TokenScores(*map(np.concatenate, zip(*parts))), seed)


def _dense(model: Any) -> Any:
    """`dense`, without copying a model that is float already."""

    def quantized(node: Any) -> bool:
        return isinstance(node, QTensor | Trained)

    return dense(model) if any(map(quantized, jax.tree.leaves(model, is_leaf=quantized))) else model


def _flat(hidden: np.ndarray) -> np.ndarray:
    return np.asarray(hidden).reshape(-1, hidden.shape[-1])


def _slices(states: np.ndarray, batch: int):
    """As `batches`, but read: the same weights ran in the same batches before."""
    for a in range(0, len(states), batch):
        yield a, min(a + batch, len(states)), states[a : a + batch]


def _tokenizer(model: Any, reference: Any) -> Any:
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(f"the model {model.name or 'without a name'!r} has no tokenizer")
    if reference is not None:
        other = reference.tokenizer
        if other is None or other.fingerprint != tokenizer.fingerprint:
            found = "none" if other is None else other.fingerprint[:12]
            raise ValueError(
                "model and reference have different tokenizers, so their tokens cannot be paired: "
                f"{tokenizer.fingerprint[:12]} and {found}"
            )
    return tokenizer


def _texts(texts: str | Iterable[str] | Mapping[str, str]) -> dict[str, str]:
    """Names to texts: bundled ones are read, others taken as they are."""
    if isinstance(texts, Mapping):
        named = dict(texts)
    else:
        names = [texts] if isinstance(texts, str) else list(texts)
        for name in names:
            if name not in DOMAINS:
                raise ValueError(
                    f"unknown text {name!r} (your own goes in as {{name: text}}): "
                    f"{near(name, DOMAINS)}"
                )
        from qlab.data import texts as bundled

        named = {name: bundled(name, "evaluation") for name in names}
    if not named:
        raise ValueError("no texts to score")
    return named


def _context(protocol: str, context: int | None, tokens: int | None, model: Any) -> int:
    """The window's length; what was not asked for is capped, what was asked for is checked."""
    most = model.config.max_position_embeddings
    if context is None:
        return min(DEFAULT_CONTEXT[protocol], most, tokens or most)
    if context > most:
        raise ValueError(f"context {context} is longer than the model's {most} positions")
    return context


def versions() -> dict[str, str]:
    """Versions of what computed the numbers."""
    return {
        "qlab": sys.modules["qlab"].__version__,  # loaded, as every parent package is
        "jax": jax.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _bar(total: int, label: str, show: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=label, unit="window", disable=not show, leave=False)
