"""What an evaluation found, and everything that says what it was: frozen, and JSON as it stands."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from qlab.evaluation.bars import Estimate, bootstrap, paired_error, standard_error
from qlab.evaluation.divergence import TokenScores
from qlab.evaluation.memory import Size
from qlab.evaluation.windows import Windows

LN2 = float(np.log(2))


@dataclasses.dataclass(frozen=True)
class TextScore:
    """One model on one text. Nats throughout; None where there was no reference.

    Attributes:
        name, text_hash: the text; windows, tokens, bytes: how much of it was scored.
        ppl: e^(mean NLL). bits_per_byte: NLL in bits over UTF-8 bytes, comparable across tokenizers
            and languages.
        dlnppl: mean NLL − the reference's on the same tokens; its bar is paired.
        kl: mean Kullback–Leibler divergence from the reference. kl_999, kl_max: its 99.9th
            percentile and largest.
        same_top1: how often both rank the same token first.
        dp, dp_rms: change of the right token's probability, mean and root mean square.
        window_nll, window_nll_reference: mean NLL of every window, for pairing any two rows later.
        window_kl: mean divergence of every window; None in rows that older versions wrote.
    """

    name: str
    text_hash: str
    windows: int
    tokens: int
    bytes: int
    ppl: Estimate
    bits_per_byte: Estimate
    dlnppl: Estimate | None
    kl: Estimate | None
    kl_999: float | None
    kl_max: float | None
    same_top1: Estimate | None
    dp: Estimate | None
    dp_rms: Estimate | None
    window_nll: tuple[float, ...]
    window_nll_reference: tuple[float, ...] | None
    window_kl: tuple[float, ...] | None = None


def summarize(name: str, windows: Windows, found: TokenScores, seed: int) -> TextScore:
    """Token scores (windows · scored,) to one TextScore; every bar draws the same windows."""
    shape = windows.targets.shape
    s = TokenScores(*(np.asarray(x, np.float64) for x in found))
    w = TokenScores(*(x.reshape(shape).mean(axis=1) for x in s))  # means over each window
    size = windows.bytes.astype(np.float64)
    ppl = float(np.exp(s.nll.mean()))
    alone = standard_error(s.nll)
    per_byte = float(s.nll.sum() / LN2 / size.sum())
    bar = bootstrap(lambda n, b: n * shape[1] / LN2 / b, w.nll, size, seed=seed)
    known: dict[str, Any] = dict.fromkeys(
        ("dlnppl", "kl", "kl_999", "kl_max", "same_top1", "dp", "dp_rms")
        + ("window_nll_reference", "window_kl")
    )
    if not np.isnan(s.kl).any():
        known = _against_reference(s, w, seed)
    return TextScore(
        name=name,
        text_hash=windows.text_hash,
        windows=shape[0],
        tokens=shape[0] * shape[1],
        bytes=int(size.sum()),
        ppl=Estimate(ppl, bootstrap(np.exp, w.nll, seed=seed), ppl * alone),
        bits_per_byte=Estimate(per_byte, bar, per_byte * alone / s.nll.mean()),
        window_nll=tuple(w.nll.tolist()),
        **known,
    )


def _against_reference(s: TokenScores, w: TokenScores, seed: int) -> dict[str, Any]:
    """The fields that compare with the reference."""

    def mean(x: np.ndarray, by_window: np.ndarray) -> Estimate:
        bar = bootstrap(lambda m: m, by_window, seed=seed)
        return Estimate(float(x.mean()), bar, standard_error(x))

    difference = w.nll - w.nll_reference
    squares = s.dp**2
    rms = float(np.sqrt(squares.mean()))
    by_window = squares.reshape(len(w.dp), -1).mean(axis=1)
    k = s.same.mean()
    return {
        "dlnppl": Estimate(
            float(s.nll.mean() - s.nll_reference.mean()),
            bootstrap(lambda m: m, difference, seed=seed),
            paired_error(s.nll, s.nll_reference),
        ),
        "kl": mean(s.kl, w.kl),
        "kl_999": float(np.quantile(s.kl, 0.999)),
        "kl_max": float(s.kl.max()),
        "same_top1": dataclasses.replace(
            mean(s.same, w.same), naive=float(np.sqrt(k * (1 - k) / (s.same.size - 1)))
        ),
        "dp": mean(s.dp, w.dp),
        "dp_rms": Estimate(
            rms,
            bootstrap(np.sqrt, by_window, seed=seed),
            0.5 / rms * standard_error(squares) if rms > 0 else 0.0,
        ),
        "window_nll_reference": tuple(w.nll_reference.tolist()),
        "window_kl": tuple(w.kl.tolist()),
    }


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What must be equal before two rows may stand in one table, and what else is worth knowing.

    Attributes:
        name: "gptq" or "llama.cpp". context: tokens a window.
        tokenizer: fingerprint. reference, reference_hash: the model compared with, and its weights.
        precision: arithmetic and device. batch: windows at a time. seed: of the bootstrap.
        versions: of qlab, jax, numpy and Python.
    """

    name: str
    context: int
    tokenizer: str
    reference: str | None
    reference_hash: str | None
    precision: str
    batch: int
    seed: int
    versions: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One row of a table: a model's name, size and notes, its score on every text, the protocol.

    Example:
        >>> row = qlab.evaluate(q, reference=model, texts="english", tokens=4096)   # doctest: +SKIP
        >>> row["english"].kl.value                                                 # doctest: +SKIP
        0.0204
    """

    name: str
    texts: tuple[TextScore, ...]
    size: Size
    protocol: Protocol
    weights_hash: str
    notes: tuple[str, ...]
    seconds: float

    def __getitem__(self, text: str) -> TextScore:
        for score in self.texts:
            if score.name == text:
                return score
        raise KeyError(f"no text {text!r} here; there is {', '.join(t.name for t in self.texts)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, numbers and strings: what `json.dumps` takes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, d: dict[str, Any]) -> Evaluation:
        """The reverse of `to_dict`, also after JSON."""
        return _revive(cls, d)

    def to_pandas(self) -> Any:
        """One line a text, one column a number; bars in columns of their own."""
        import pandas as pd

        return pd.DataFrame(records(self))

    def __repr__(self) -> str:
        scores = "; ".join(f"{t.name} ppl {t.ppl}" for t in self.texts)
        return f"<Evaluation {self.name}: {self.size.words}; {scores}>"

    def _repr_html_(self) -> str:
        from qlab.evaluation.tables import Comparison

        return Comparison((self,))._repr_html_()


def records(row: Evaluation) -> list[dict[str, Any]]:
    """One flat dict for each text of a row."""
    flat = []
    for score in row.texts:
        line: dict[str, Any] = {
            "model": row.name,
            "bits_per_weight": row.size.linears.bits_per_weight,
            "bits_per_weight_whole": row.size.whole and row.size.whole.bits_per_weight,
            "text": score.name,
            "windows": score.windows,
            "tokens": score.tokens,
            "bytes": score.bytes,
        }
        for field in dataclasses.fields(score):
            value = getattr(score, field.name)
            if isinstance(value, Estimate):
                line |= {
                    field.name: value.value,
                    f"{field.name}_bar": value.bar,
                    f"{field.name}_naive": value.naive,
                }
            elif field.name in ("kl_999", "kl_max"):
                line[field.name] = value
        flat.append(line)
    return flat


def _revive(kind: Any, value: Any) -> Any:
    """Rebuilds a dataclass from its dict, following the field types above."""
    from qlab.evaluation.memory import Cost

    if value is None:
        return None
    built = {}
    for field in dataclasses.fields(kind):
        newer = field.name in ("window_kl", "whole")  # not in what older versions wrote
        raw = value.get(field.name) if newer else value[field.name]
        name = str(field.type).removesuffix(" | None")
        if name.startswith("Estimate"):
            raw = _revive(Estimate, raw)
        elif name in ("Size", "Protocol", "Cost"):
            raw = _revive({"Size": Size, "Protocol": Protocol, "Cost": Cost}[name], raw)
        elif name == "tuple[TextScore, ...]":
            raw = tuple(_revive(TextScore, x) for x in raw)
        elif name.startswith("tuple") and raw is not None:
            raw = tuple(raw)
        built[field.name] = raw
    return kind(**built)
