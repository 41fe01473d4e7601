"""Calibration: which sequences a model reads, and what each linear layer then sees of them.

    text -> tokens (sequences, time), padding masked -> blocks -> {path: Stats},  H = E[x xᵀ]

A few sequences run at a time and only moments are kept, so memory does not grow with the text.
Padding is on the right: behind a causal mask no token sees it, and Stats leave it out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from qlab.data import DOMAINS, text_hash
from qlab.data import texts as bundled
from qlab.models.checks import check_model
from qlab.models.surgery import get
from qlab.models.taps import through
from qlab.models.transformer import Transformer
from qlab.stats import Stats
from qlab.suggest import counted

CONTEXT = 512  # tokens in a sequence, where nothing else is asked for
SHOWN = 40  # characters of a wrong argument in an error
AT_ONCE = 2048  # tokens that run together: enough to keep a CPU busy, few to hold


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """Sequences to calibrate on.

    Attributes:
        tokens: (sequences, time) int32, padded on the right.
        mask: (sequences, time) bool, False at padding.
        provenance: where they come from, as JSON values.
    """

    tokens: np.ndarray
    mask: np.ndarray
    provenance: dict[str, Any]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def count(self) -> int:
        """Tokens, padding left out."""
        return int(self.mask.sum())

    @property
    def hash(self) -> str:
        """sha256 of tokens and mask."""
        shape = np.array(self.tokens.shape, np.int64)
        data = shape.tobytes() + self.tokens.tobytes() + self.mask.tobytes()
        return hashlib.sha256(data).hexdigest()

    def split(self, share: float) -> tuple[Batches, Batches | None]:
        """Those to calibrate on, and the last ones, kept out of it: `share` of all, rounded down,
        but at least one of eight or more; None where that is none.

        Raises:
            ValueError: a share that is not in [0, 1).
        """
        if not (isinstance(share, numbers.Real) and 0 <= share < 1):
            raise ValueError(f"held_out={_short(share)} is not a share: 0 ≤ held_out < 1")
        held = int(share * len(self))
        if share > 0 and len(self) >= 8:
            held = max(held, 1)
        if not held:
            return self, None
        return self._part(slice(None, -held)), self._part(slice(-held, None))

    def _part(self, rows: slice) -> Batches:
        tokens, mask = self.tokens[rows], self.mask[rows]
        return Batches(tokens, mask, dict(self.provenance, tokens=int(mask.sum())))

    def pieces(self, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """`rows` sequences at a time: tokens and mask, the last piece filled up with padding, so
        that one compiled program serves all.
        """
        for start in range(0, len(self), rows):
            tokens, mask = self.tokens[start : start + rows], self.mask[start : start + rows]
            missing = ((0, rows - len(tokens)), (0, 0))
            yield np.pad(tokens, missing), np.pad(mask, missing)


def rows_at_once(batches: Batches) -> int:
    """How many sequences run together."""
    return min(len(batches), max(1, AT_ONCE // batches.tokens.shape[1]))


# ---- where sequences come from -------------------------------------------------------------------


def calibration_batches(
    model: Transformer,
    texts: str | Iterable[str] | Mapping[str, str] = "english",
    tokens: int = 16_384,
    context: int | None = None,
    seed: int = 0,
) -> Batches:
    """Windows of the calibration texts at random places, none of them twice.

    Args:
        model: whose tokenizer is used.
        texts: a bundled domain ("english", "code", "math", "korean"), several, or {name: text}.
            Several share the tokens evenly and take turns.
        tokens: how many in all, rounded down to whole sequences.
        context: tokens in a sequence; None: 512, at most what the model allows.
        seed: of the places.

    Returns:
        Batches without padding.

    Raises:
        ValueError: an unknown domain, a model without tokenizer, too long a context, or a text too
            short for its share, both numbers named; a text, size or seed of another type.

    Example:
        >>> model = qlab.load("tiny")                                          # doctest: +SKIP
        >>> qlab.calibration_batches(model, ["english", "korean"]).tokens.shape  # doctest: +SKIP
        (64, 256)
    """
    check_model(model)
    if model.tokenizer is None:
        raise ValueError(f"the model {model.name!r} has no tokenizer: give token ids as batches")
    named = _named(texts)
    tokens, seed = _integer("tokens", tokens), _integer("seed", seed)
    if seed < 0:
        raise ValueError(f"seed={seed} is negative: seeds begin at 0")
    length = _context(model, context)
    wanted = tokens // length
    if wanted < len(named):
        raise ValueError(
            f"tokens={tokens} make {counted(max(wanted, 0), 'sequence')} of {length}, "
            f"fewer than one for each of {counted(len(named), 'text')}"
        )
    windows = []
    for i, (name, text) in enumerate(named.items()):
        count = wanted // len(named) + (i < wanted % len(named))
        ids = model.tokenizer.encode(text)
        windows.append(_windows(name, ids, count, length, np.random.default_rng([seed, i])))
    turns = [found[k] for k in range(len(windows[0])) for found in windows if k < len(found)]
    table = np.array(turns, np.int32)
    provenance = {
        "domains": list(named),
        "text_sha256": {name: text_hash(text) for name, text in named.items()},
        "tokens": table.size,
        "context": length,
        "seed": seed,
    }
    return Batches(table, np.ones(table.shape, bool), provenance)


def whole_texts(model: Transformer, texts: Any, context: int | None = None) -> Batches:
    """All of the calibration texts side by side in windows, for training: the last token of each is
    the first of the next, so that every token but the first is predicted once.

    Args:
        model: whose tokenizer is used.
        texts: as for `calibration_batches`.
        context: tokens that a window reads; None: 512, at most what the model allows.

    Returns:
        Batches of (windows, context + 1) tokens.

    Raises:
        ValueError: as `calibration_batches`; a text shorter than one window.
    """
    if model.tokenizer is None:
        raise ValueError(f"the model {model.name!r} has no tokenizer: give token ids as batches")
    named, length = _named(texts), _context(model, context)
    windows = []
    for name, text in named.items():
        ids = np.array(model.tokenizer.encode(text), np.int32)
        count = (len(ids) - 1) // length
        if count < 1:
            raise ValueError(
                f"the text {name!r} has {counted(len(ids), 'token')}, fewer than the {length + 1} "
                "of one window: context=… makes them shorter"
            )
        windows += [ids[i * length : (i + 1) * length + 1] for i in range(count)]
    table = np.stack(windows)
    provenance = {
        "domains": list(named),
        "text_sha256": {name: text_hash(text) for name, text in named.items()},
        "tokens": len(table) * length,
        "context": length,
    }
    return Batches(table, np.ones(table.shape, bool), provenance)


def _named(texts: str | Iterable[str] | Mapping[str, str]) -> dict[str, str]:
    """Names to texts: bundled ones are read, others taken as they are."""
    if isinstance(texts, Mapping):
        named = dict(texts)
        for name, text in named.items():
            if not (isinstance(name, str) and isinstance(text, str)):
                raise ValueError(
                    f"{{name: text}} takes two strings, not {_short(name)}: {_short(text)}"
                )
    else:
        names = [texts] if isinstance(texts, str) else _listed("texts", texts, TEXTS)
        named = {_domain(name): bundled(name, "calibration") for name in names}
    if not named:
        raise ValueError("no texts to calibrate on")
    return named


def _domain(name: Any) -> str:
    """A name as it is, unless it is no name at all but a text, or not even that."""
    if not isinstance(name, str):
        raise ValueError(f"a domain has a name, such as 'english', not {_short(name)}")
    if name not in DOMAINS and (len(name) > SHOWN or len(name.split()) > 1):
        raise ValueError(
            f"no domain is called {_short(name)}: a text of your own is given as {{'name': text}}"
        )
    return name


TEXTS = "a domain such as 'english', a list of domains, or {name: text}"


def _listed(argument: str, given: Any, wanted: str) -> list:
    """What was given for an argument, one by one."""
    try:
        return list(given)
    except TypeError:
        raise ValueError(f"{argument}={_short(given)} is not {wanted}") from None


def _integer(argument: str, given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, numbers.Integral):
        raise ValueError(f"{argument}={_short(given)} is not an integer")
    return int(given)


def _short(given: Any) -> str:
    """How something reads in an error: a long text is cut before it fills the screen."""
    if isinstance(given, str):
        return repr(given) if len(given) <= SHOWN else f"{given[:SHOWN]!r}…"
    said = repr(given)
    return said if len(said) <= SHOWN else f"{said[:SHOWN]}…"


def _context(model: Transformer, context: int | None) -> int:
    """Tokens in a sequence: what was not asked for is capped, what was asked for is checked."""
    most = model.config.max_position_embeddings
    if context is None:
        return min(CONTEXT, most)
    context = _integer("context", context)
    if not 0 < context <= most:
        raise ValueError(f"context {context} is not between 1 and the model's {most} positions")
    return context


def _windows(
    name: str, ids: Sequence[int], count: int, length: int, rng: np.random.Generator
) -> np.ndarray:
    """(count, length): windows side by side from a random start, `count` of them at random."""
    have = len(ids) // length
    if have < count:
        raise ValueError(
            f"the text {name!r} has {counted(have, 'sequence')} of {length} tokens, fewer than its "
            f"share of {count}: calibration_batches(model, …, tokens=…) takes fewer"
            + ("" if have else ", and context=… shorter ones")
        )
    start = int(rng.integers(len(ids) % length + 1))
    table = np.array(ids[start : start + have * length], np.int32).reshape(have, length)
    return table[rng.permutation(have)[:count]]


def as_batches(model: Transformer, given: Any) -> Batches:
    """Batches from all that `quantize_model` and `calibrate` take.

    Args:
        model: checks the ids, or reads a text.
        given: Batches; a domain or several; {name: text}; {"input_ids", "attention_mask"}; a
            (sequences, time) array of ids; or lists of ids of any lengths.

    Raises:
        ValueError: something else, no sequences, an empty one, padding that is not on the right,
            ids that the model does not have, or more tokens in a sequence than it has positions.
    """
    check_model(model)
    if isinstance(given, Batches):
        found = given
    elif isinstance(given, Mapping) and "input_ids" in given:
        found = _from_ids(model, given["input_ids"], given.get("attention_mask"))
    elif is_text(given):
        found = calibration_batches(model, given)
    else:
        found = _from_ids(model, given, None)
    _check(model, found)
    return found


def is_text(given: Any) -> bool:
    """Whether this is text to be cut into sequences: a domain, several, or {name: text}."""
    if isinstance(given, Mapping):
        return "input_ids" not in given
    return isinstance(given, str) or _all_strings(given)


def _all_strings(given: Any) -> bool:
    return isinstance(given, (list, tuple)) and len(given) > 0 and isinstance(given[0], str)


def _from_ids(model: Transformer, ids: Any, mask: Any) -> Batches:
    rows = [np.asarray(row) for row in _listed("batches", ids, f"{TEXTS}, or lists of token ids")]
    if not rows:
        raise ValueError("calibration needs at least one sequence, there are 0")
    if any(row.ndim != 1 for row in rows):
        raise ValueError("token ids are (sequences, time), or one list of ids for each sequence")
    masks = [np.ones(len(row), bool) for row in rows] if mask is None else _masks(mask, rows)
    time = max(len(row) for row in rows)
    tokens, seen = np.zeros((len(rows), time), np.int32), np.zeros((len(rows), time), bool)
    for i, (row, real) in enumerate(zip(rows, masks, strict=True)):
        if len(row) and not np.issubdtype(row.dtype, np.integer):
            raise ValueError(f"token ids are integers, not {row.dtype}")
        # What stands at padding is nobody's business, the hash's included.
        row = np.where(real, row, row.dtype.type(0))
        _check_known(model, row)  # before int32, where 2³² + 5 would be 5
        tokens[i, : len(row)], seen[i, : len(row)] = row, real
    provenance = {"domains": [], "tokens": int(seen.sum()), "context": time}
    return Batches(tokens, seen, provenance)


def _masks(mask: Any, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One mask for each sequence, as long as it is."""
    masks = [np.asarray(row) for row in _listed("attention_mask", mask, "a mask for each sequence")]
    if len(masks) != len(rows):
        raise ValueError(
            f"attention_mask has {counted(len(masks), 'sequence')}, input_ids has {len(rows)}"
        )
    for i, (real, row) in enumerate(zip(masks, rows, strict=True)):
        if real.shape != row.shape:
            raise ValueError(
                f"attention_mask of shape {real.shape} for ids of shape {row.shape} in sequence {i}"
            )
    return [real.astype(bool) for real in masks]


def _check_known(model: Transformer, ids: np.ndarray) -> None:
    """Raises ValueError for an id that the model does not have."""
    vocabulary = model.config.vocab_size
    wrong = ids[(ids < 0) | (ids >= vocabulary)]
    if wrong.size:
        raise ValueError(f"token id {wrong[0]} is not among the model's {vocabulary}")


def _check(model: Transformer, batches: Batches) -> None:
    tokens, mask = batches.tokens, batches.mask
    if tokens.ndim != 2 or tokens.shape != mask.shape or len(tokens) == 0:
        raise ValueError(
            f"calibration needs at least one sequence: tokens {tokens.shape}, mask {mask.shape}"
        )
    wrong = np.flatnonzero((mask[:, 1:] & ~mask[:, :-1]).any(axis=1))
    if len(wrong):
        raise ValueError(
            f"sequence {wrong[0]} is padded on the left or in the middle: pad on the right, so "
            "that every token keeps its position"
        )
    empty = np.flatnonzero(~mask.any(axis=1))
    if len(empty):
        raise ValueError(f"sequence {empty[0]} has 0 tokens")
    _check_known(model, tokens)
    most = model.config.max_position_embeddings
    if tokens.shape[1] > most:
        raise ValueError(
            f"sequences of {tokens.shape[1]} tokens are longer than the model's {most} positions"
        )


# ---- what layers see -----------------------------------------------------------------------------


def empty_stats(block: Any, stages: Iterable[Sequence[str]]) -> dict[str, Stats]:
    """Stats of nothing for stages of a block, under each stage's first path: its linears read the
    same input.
    """
    return {stage[0]: Stats.empty(get(block, stage[0]).weight.shape[-1]) for stage in stages}


def calibrate(model: Transformer, batches: Any = "english") -> dict[str, Stats]:
    """What every linear layer reads of a text, in one pass; the model is untouched.

    Args:
        model: a Transformer, quantized or not.
        batches: as for `quantize_model`.

    Returns:
        {path: Stats} in forward order; layers that read the same input share one. Stats of two
        texts merge.

    Raises:
        ValueError: batches that say nothing, or inputs that are not finite.

    Example:
        >>> model = qlab.load("tiny")                                  # doctest: +SKIP
        >>> stats = qlab.calibrate(model, "english")                   # doctest: +SKIP
        >>> stats["layers.0.mlp.down_proj"].tokens                     # doctest: +SKIP
        Array(16384., dtype=float32)
    """
    batches = as_batches(model, batches)
    totals = [empty_stats(block, block.STAGES) for block in model.layers]
    for tokens, mask in batches.pieces(rows_at_once(batches)):
        x, seen = model.embed(jnp.asarray(tokens)), jnp.asarray(mask)
        for i, block in enumerate(model.layers):
            x, totals[i] = through(block, x, seen, totals[i])
    found = {}
    for i, block in enumerate(model.layers):
        for stage in block.STAGES:
            check_finite(f"layers.{i}.{stage[0]}", totals[i][stage[0]])
            found |= {f"layers.{i}.{path}": totals[i][stage[0]] for path in stage}
    return found


def check_finite(path: str, stats: Stats) -> None:
    """Raises ValueError if a layer's inputs held NaN or Inf."""
    if not bool(jnp.isfinite(stats.hessian).all()):
        raise ValueError(f"{path}: its inputs on the calibration text hold NaN or Inf")
