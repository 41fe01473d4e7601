"""From a text to windows: which tokens are seen, which are scored, how many bytes they spell.

Two protocols, never comparable with each other:
  "gptq"       windows of `context` tokens side by side; every token but a window's first is scored.
  "llama.cpp"  the same windows, a BOS in place of the first token if the tokenizer adds one; only
               the second half is scored.
Sources: IST-DASLab/gptq `llama.py`; llama.cpp `tools/perplexity/perplexity.cpp`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np

from qlab.suggest import counted, near

PROTOCOLS = ("gptq", "llama.cpp")
DEFAULT_CONTEXT = {"gptq": 2048, "llama.cpp": 512}


@dataclasses.dataclass(frozen=True)
class Windows:
    """One text cut up.

    Attributes:
        tokens: (windows, context) int32, what the model reads.
        first: position in a window whose state predicts the first scored token; states first …
            context−2 are scored.
        bytes: (windows,) int64, UTF-8 bytes of the scored tokens.
        text_hash: sha256 of the whole text.
    """

    tokens: np.ndarray
    first: int
    bytes: np.ndarray
    text_hash: str

    @property
    def targets(self) -> np.ndarray:
        """The scored tokens, (windows, scored)."""
        return self.tokens[:, self.first + 1 :]

    @property
    def hash(self) -> str:
        """sha256 of what the model reads and what of it is scored."""
        shape = np.array([*self.tokens.shape, self.first], np.int64)
        return hashlib.sha256(shape.tobytes() + self.tokens.tobytes()).hexdigest()


def check_protocol(protocol: str) -> None:
    """Raises ValueError unless `protocol` is one of PROTOCOLS."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: {near(protocol, PROTOCOLS)}")


def token_bytes(tokenizer: Any, ids: list[int]) -> np.ndarray:
    """How many UTF-8 bytes each token stands for, (len(ids),) float64; they add up to the text's.

    Tokens are gathered until together they spell whole characters. Where a character is spread over
    several tokens its bytes are shared out evenly (one byte each in byte-level alphabets, so exact
    there).

    Example:
        >>> token_bytes(tokenizer, tokenizer.encode("한글")).sum()   # doctest: +SKIP
        6.0
    """
    sizes = np.zeros(len(ids))
    before: list[int] = []  # the last whole group: some decoders drop a space at the very start
    start = 0
    for end in range(1, len(ids) + 1):
        group = ids[start:end]
        said = tokenizer.decode(before + group)
        if said.endswith("\ufffd") and end - start < 8 and end < len(ids):
            continue
        old = tokenizer.decode(before) if before else ""
        sizes[start:end] = (len(said.encode()) - len(old.encode())) / len(group)
        before, start = group, end
    return sizes


def cut(
    text: str,
    tokenizer: Any,
    *,
    protocol: str = "gptq",
    context: int = 256,
    tokens: int | None = None,
    name: str = "text",
) -> Windows:
    """Cuts the first `tokens` tokens of `text` into windows; a last, shorter piece is left out.

    Args:
        text: any string.
        tokenizer: has `encode(text) -> list[int]` and `decode(ids) -> str`, maybe `bos_id`.
        protocol: "gptq" or "llama.cpp".
        context: tokens in a window.
        tokens: how many tokens of the text to use; None: all.
        name: what to call the text in errors.

    Raises:
        ValueError: the text is empty, shorter than a window, or shorter than `tokens`.
    """
    check_protocol(protocol)
    if not text.strip():
        raise ValueError(f"the text {name!r} is empty")
    if tokens is not None and tokens < 1:
        raise ValueError(f"tokens={tokens} is less than 1")
    if context < 4:
        raise ValueError(f"a context of {counted(context, 'token')} is too short: at least 4")
    ids = list(tokenizer.encode(text))
    if tokens is not None and tokens > len(ids):
        raise ValueError(
            f"the text {name!r} has {counted(len(ids), 'token')}, fewer than tokens={tokens}"
        )
    wanted = len(ids) if tokens is None else tokens
    count = wanted // context
    if count == 0:
        raise ValueError(
            f"the text {name!r} gives {counted(wanted, 'token')}, shorter than one window of "
            f"{context}"
        )
    used = count * context
    table = np.array(ids[:used], np.int32).reshape(count, context)
    first = context // 2 if protocol == "llama.cpp" else 0
    sizes = token_bytes(tokenizer, ids[: used + 8])[:used]  # 8 more: the last character may be cut
    sizes = sizes.reshape(count, context)[:, first + 1 :].sum(axis=1)
    bos = _added_bos(tokenizer)
    if protocol == "llama.cpp" and bos is not None:
        table[:, 0] = bos  # in place of the first token, as llama.cpp does; it is never scored
    text_hash = hashlib.sha256(text.encode()).hexdigest()
    return Windows(table, first, np.rint(sizes).astype(np.int64), text_hash)


def _added_bos(tokenizer: Any) -> int | None:
    """The token the tokenizer itself puts before a text, if it does; having one is not enough."""
    bos = getattr(tokenizer, "bos_id", None)
    if bos is None or list(tokenizer.encode("", special=True))[:1] != [bos]:
        return None
    return bos
