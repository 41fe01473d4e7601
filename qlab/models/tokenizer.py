"""Text to token ids and back: a thin wrapper over the `tokenizers` library that adds what a
laboratory needs.

A fingerprint (two perplexities compare only under one tokenizer), ids that end a text, and decoding
piece by piece. Built from a `tokenizer.json`, from GPT-2's `vocab.json` and `merges.txt`, or from
the vocabulary and merges inside a GGUF file. Not here: training a tokenizer (`training/`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from qlab.io.safetensors import read_json


class Tokenizer:
    """A `tokenizers.Tokenizer` with its ids of end and begin.

    Args:
        definition: the library's tokenizer.
        eos_ids: ids that end a generated text.
        bos_id: the id that begins one, or None.

    Example:
        >>> tokenizer = from_json("tokenizer.json")            # doctest: +SKIP
        >>> tokenizer.decode(tokenizer.encode("안녕, world"))   # doctest: +SKIP
        '안녕, world'
    """

    def __init__(
        self,
        definition: tokenizers.Tokenizer,
        eos_ids: Sequence[int] = (),
        bos_id: int | None = None,
    ):
        self.definition = definition
        self.eos_ids = tuple(eos_ids)
        self.bos_id = bos_id

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of a text.

        Args:
            text: any string.
            special: add what the tokenizer's own post-processor adds (Llama's begin token);
                perplexity wants it off.
        """
        return self.definition.encode(text, add_special_tokens=special).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, special tokens spelt out; bytes that are no UTF-8 become U+FFFD."""
        return self.definition.decode([int(i) for i in ids], skip_special_tokens=False)

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Pieces of `decode(ids)` as the ids arrive; an unfinished UTF-8 character waits for its
        other bytes.

        The pieces joined are `decode(all ids)`.

        Example:
            >>> for piece in tokenizer.stream(ids):            # doctest: +SKIP
            ...     print(piece, end="", flush=True)
        """
        seen: list[int] = []
        sent = ""
        for i in ids:
            seen.append(i)
            text = self.decode(seen)
            whole = text.rstrip("\ufffd")  # the last character may still be incomplete
            if whole.startswith(sent) and len(whole) > len(sent):
                yield whole[len(sent) :]
                sent = whole
        rest = self.decode(seen)[len(sent) :]
        if rest:
            yield rest

    def token_id(self, token: str) -> int | None:
        """The id of one token's spelling, or None."""
        return self.definition.token_to_id(token)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, added ones included."""
        return self.definition.get_vocab_size(with_added_tokens=True)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the whole definition, in hexadecimal: equal means equal ids for every text."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def to_json(self) -> str:
        """The definition as the text of a `tokenizer.json`."""
        return self.definition.to_str(pretty=True)

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocab_size} tokens, {self.fingerprint[:12]})"


def from_json(
    path: str | os.PathLike, eos_ids: Sequence[int] = (), bos_id: int | None = None
) -> Tokenizer:
    """Reads a hub's `tokenizer.json`.

    Raises:
        ValueError: the file is not a tokenizer's definition.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        definition = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{path} is no tokenizer.json: {error}") from None
    definition.no_padding()
    definition.no_truncation()
    return Tokenizer(definition, eos_ids, bos_id)


def from_vocabulary(
    folder: str | os.PathLike, eos_ids: Sequence[int] = (), bos_id: int | None = None
) -> Tokenizer:
    """Builds GPT-2's byte-level BPE out of `vocab.json` and `merges.txt`, as OPT's folders have it.

    Special tokens, and whether one begins every text (OPT: `</s>`, `encode(text, special=True)`),
    are read from tokenizer_config.json and special_tokens_map.json.

    Args:
        folder: holds both files.
        eos_ids: ids that end a generated text.
        bos_id: the id that begins one; where the settings add a token, it is that one.

    Raises:
        ValueError: a file is missing or damaged.
    """
    folder, settings = Path(folder), {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the later one decides
        if (folder / name).exists():
            settings |= read_json(folder / name)
    try:
        files = (str(folder / name) for name in ("vocab.json", "merges.txt"))
        vocab, merges = models.BPE.read_file(*files)
        definition = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"vocab.json, merges.txt in {folder} are no BPE: {error}") from None
    space = bool(settings.get("add_prefix_space"))
    definition.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=space)
    definition.decoder = decoders.ByteLevel()
    named = [_content(settings.get(f"{role}_token")) for role in ("bos", "eos", "unk", "pad")]
    special = [AddedToken(t, normalized=False) for t in dict.fromkeys(named) if t in vocab]
    definition.add_special_tokens(special)
    if settings.get("add_bos_token") and named[0] in vocab:
        begin, bos_id = named[0], vocab[named[0]]
        definition.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, bos_id)]
        )
    return Tokenizer(definition, eos_ids, bos_id)


def _content(token: Any) -> Any:
    """A special token's spelling: settings hold it plainly or in a dictionary of flags."""
    return token.get("content") if isinstance(token, dict) else token


# How a text is cut before merging, by the file's `tokenizer.ggml.pre`. "default" is GPT-2's.
PRE_TOKENIZERS = {
    "smollm": lambda: pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
}
# token_type of a token (llama.h, llama_token_type).
_NORMAL, _CONTROL, _USER, _UNUSED = 1, 3, 4, 5


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """Rebuilds a byte-level BPE tokenizer from the header of a GGUF file.

    Args:
        metadata: `io.gguf.read(path).metadata`.

    Raises:
        ValueError: the file's tokenizer is of another kind, named in the sentence.
    """

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    kind, pre = get("model"), get("pre")
    if kind != "gpt2" or not isinstance(pre, str) or pre not in PRE_TOKENIZERS:
        raise ValueError(
            f"the file's tokenizer is {kind!r:.40} with pre-tokenizer {pre!r:.40}; "
            f"read are 'gpt2' with {', '.join(map(repr, PRE_TOKENIZERS))}"
        )
    try:
        definition = _byte_level(get("tokens", []), get("merges", []), get("token_type"), pre)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"the file's tokens and merges are no BPE: {error}") from None
    ids = [get(f"{role}_token_id") for role in ("eos", "bos")]
    for i in ids:
        if not (i is None or isinstance(i, int)):
            raise ValueError(f"the file has {i!r:.40} as the id of a token")
    eos, bos = ids
    return Tokenizer(
        definition, () if eos is None else (eos,), bos if get("add_bos_token") else None
    )


def _byte_level(
    tokens: list[str], merges: list[str], kinds: list[int] | None, pre: str
) -> tokenizers.Tokenizer:
    """The library's tokenizer of a file's lists; unused tokens keep their ids and are left out."""
    kinds = [_NORMAL] * len(tokens) if kinds is None else kinds
    listed = list(zip(tokens, kinds, strict=True))
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    definition = tokenizers.Tokenizer(
        models.BPE(
            vocab={token: i for i, (token, kind) in enumerate(listed) if kind != _UNUSED},
            merges=pairs,
        )
    )
    definition.pre_tokenizer = PRE_TOKENIZERS[pre]()
    definition.decoder = decoders.ByteLevel()
    for wanted, add in (
        (_CONTROL, definition.add_special_tokens),
        (_USER, definition.add_tokens),
    ):
        add([AddedToken(token, normalized=False) for token, kind in listed if kind == wanted])
    return definition


def to_gguf(tokenizer: Tokenizer, vocab_size: int) -> dict[str, tuple[str, Any]]:
    """What a GGUF header says of a byte-level BPE tokenizer: {key: (kind, value)}.

    Args:
        tokenizer: of the model.
        vocab_size: rows of the embedding; those beyond the tokens become unused ones.

    Raises:
        ValueError: another kind of tokenizer, cut otherwise than llama.cpp can, or more tokens than
            rows.

    Example:
        >>> facts = to_gguf(load("tiny").tokenizer, 4096)   # doctest: +SKIP
        >>> facts["tokenizer.ggml.pre"]                     # doctest: +SKIP
        ('str', 'smollm')
    """
    facts = json.loads(tokenizer.definition.to_str())
    added = {token["id"]: token for token in facts["added_tokens"]}
    by_id = {i: token for token, i in tokenizer.definition.get_vocab(True).items()}
    if max(by_id, default=-1) >= vocab_size:
        raise ValueError(f"the tokenizer has id {max(by_id)}, the embedding {vocab_size} rows")
    tokens = [by_id.get(i, f"[PAD{i}]") for i in range(vocab_size)]
    kinds = [
        _UNUSED if i not in by_id
        else _NORMAL if i not in added
        else _CONTROL if added[i]["special"] else _USER
        for i in range(vocab_size)
    ]  # fmt: skip
    merges = [" ".join(pair) for pair in _pairs(facts["model"])]
    found: dict[str, tuple[str, Any]] = {
        "model": ("str", "gpt2"),
        "pre": ("str", _pre(facts)),
        "tokens": ("[str]", tokens),
        "token_type": ("[i32]", kinds),
        "merges": ("[str]", merges),
    }
    plain, whole = (tokenizer.encode("a", special=special) for special in (False, True))
    begin = whole[0] if whole[1:] == plain else None
    # Where a file names no begin or end, llama.cpp takes token 11, whatever that is.
    eos = next(iter(tokenizer.eos_ids), None)
    for role, i in (("bos", begin if begin is not None else tokenizer.bos_id), ("eos", eos)):
        i = eos if i is None else i
        if i is not None:
            found[f"{role}_token_id"] = ("u32", i)
    found["add_bos_token"] = ("bool", begin is not None)
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()}


def _pairs(model: dict[str, Any]) -> list[list[str]]:
    """The merges of a tokenizer.json: lists of two, or texts with a space in older ones."""
    if model.get("type") != "BPE":
        raise ValueError(f"the tokenizer is {model.get('type')!r}; GGUF files are written of BPE")
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]


def _pre(facts: dict[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer cuts a text."""
    for name, make in PRE_TOKENIZERS.items():
        bare = tokenizers.Tokenizer(models.BPE())
        bare.pre_tokenizer = make()
        wanted = json.loads(bare.to_str())
        if facts["pre_tokenizer"] == wanted["pre_tokenizer"] and not facts["normalizer"]:
            return name
    raise ValueError(
        "the tokenizer cuts a text as none of llama.cpp's that are known here: "
        f"{', '.join(PRE_TOKENIZERS)}"
    )
