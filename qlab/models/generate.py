"""`generate`: text from a model, token by token, with a key-value cache.

The prompt is padded to a power of two, so prompts of all lengths share a few compiled programs;
what the padding wrote into the cache lies in the future of every query and is overwritten before it
becomes the past. A quantized cache (`kv`) is told how many tokens are real. Greedy at temperature
0, else nucleus sampling (Holtzman et al. 2019, arXiv 1904.09751). Not here: scoring (`evaluation`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from qlab.models.checks import check_model
from qlab.models.surgery import dense
from qlab.models.transformer import Transformer
from qlab.suggest import counted

CHAT = "<|im_start|>{role}\n{text}<|im_end|>\n"  # ChatML
SYSTEM = (
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # in SmolLM2's template
)


def generate(
    model: Transformer,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
    stream: bool | Callable[[str], object] = False,
    chat: bool = False,
    stop: str | Sequence[str] = (),
) -> str:
    """The text a model writes after a prompt.

    Args:
        model: any Transformer with a tokenizer; QTensors are dequantized once, before the first
            token.
        prompt: what comes before; what is returned comes after it.
        max_new_tokens: at most so many tokens; the end token and `stop` end it sooner.
        temperature: 0 takes the likeliest token, 1 samples from the model's own distribution.
        top_p: sample only among the likeliest tokens that together have this probability.
        key: randomness, needed when temperature > 0.
        stream: True prints the pieces as they come; a function is called with each.
        chat: wrap the prompt as a user's turn in ChatML, which instruction-tuned SmolLM2 expects.
        stop: texts that end the answer and are not part of it.

    Returns:
        the new text, without prompt and end token.

    Raises:
        ValueError: no tokenizer, an empty prompt, a prompt longer than the model's context,
        temperature without
            a key, or chat for a tokenizer without ChatML's tokens.

    Example:
        >>> generate(qlab.load("tiny"), "The United States", max_new_tokens=8)   # doctest: +SKIP
    """
    check_model(model)
    ids = _prompt_ids(model, prompt, chat)
    _check(temperature, top_p, key, max_new_tokens)
    stops = (stop,) if isinstance(stop, str) else tuple(stop)
    out = print_piece if stream is True else stream or (lambda piece: None)
    if temperature == 0:
        key = None
    tokens = generate_tokens(model, ids, max_new_tokens, temperature or 1.0, top_p, key)
    pieces = _until_stop(model.tokenizer.stream(tokens), stops)
    text = []
    for piece in pieces:
        out(piece)
        text.append(piece)
    return "".join(text)


def print_piece(piece: str) -> None:
    print(piece, end="", flush=True)


def generate_tokens(
    model: Transformer,
    ids: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    key: jax.Array | None = None,
) -> Iterator[int]:
    """The new token ids one by one, up to and without the tokenizer's end token.

    Args:
        model: a Transformer.
        ids: the prompt, not empty; together with the new tokens at most the model's context.
        max_new_tokens: as in `generate`.
        temperature: as in `generate`.
        top_p: as in `generate`.
        key: randomness; None takes the likeliest token.
    """
    model = dense(model)
    ends = set(model.tokenizer.eos_ids) if model.tokenizer is not None else set()
    most = model.config.max_position_embeddings
    room = min(len(ids) + max_new_tokens, most)
    padded = np.zeros((1, min(bucket(len(ids)), most)), np.int32)
    padded[0, : len(ids)] = ids
    caches, count = model.caches(1, bucket(room)), jnp.int32(len(ids))
    hidden, caches = model.step(jnp.asarray(padded), jnp.int32(0), caches, count)
    last = jax.lax.dynamic_index_in_dim(hidden, len(ids) - 1, axis=1)  # the padding is behind it
    for position in range(len(ids), room):
        logits = model.logits(last)[0, 0]
        if key is None:
            token = int(jnp.argmax(logits))
        else:
            key, now = jax.random.split(key)
            token = int(_sample(logits, now, temperature, top_p))
        if token in ends:
            return
        yield token
        if position + 1 < room:
            last, caches = model.step(jnp.array([[token]]), jnp.int32(position), caches)


def bucket(length: int, smallest: int = 16) -> int:
    """The power of two that holds `length`.

    Example:
        >>> bucket(5), bucket(17)
        (16, 32)
    """
    return max(smallest, 1 << (length - 1).bit_length())


@jax.jit
def _sample(logits: jax.Array, key: jax.Array, temperature: float, top_p: float) -> jax.Array:
    """A token from the nucleus of (vocab,) logits."""
    order = jnp.argsort(-logits)
    ranked = logits[order] / temperature
    p = jax.nn.softmax(ranked)
    before = jnp.cumsum(p) - p  # probability of all likelier tokens: the first is always in
    return order[jax.random.categorical(key, jnp.where(before < top_p, ranked, -jnp.inf))]


def _prompt_ids(model: Transformer, prompt: str, chat: bool) -> list[int]:
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError("the model has no tokenizer, so a text prompt means nothing to it")
    if chat and None in (tokenizer.token_id("<|im_start|>"), tokenizer.token_id("<|im_end|>")):
        raise ValueError(
            f"chat=True needs ChatML's tokens, which the tokenizer of {model.name!r} lacks"
        )
    if chat:
        turns = (("system", SYSTEM), ("user", prompt))
        prompt = "".join(CHAT.format(role=role, text=text) for role, text in turns)
        prompt += "<|im_start|>assistant\n"
    ids = tokenizer.encode(prompt, special=True)
    if not ids:
        raise ValueError("the prompt is empty")
    context = model.config.max_position_embeddings
    if len(ids) >= context:
        raise ValueError(
            f"the prompt has {counted(len(ids), 'token')}, the model's context {context}"
        )
    return ids


def _check(temperature: float, top_p: float, key: jax.Array | None, max_new_tokens: int) -> None:
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} must be ≥ 0 and top_p {top_p} in (0, 1]")
    if temperature > 0 and key is None:
        raise ValueError("temperature > 0 samples: give key=jax.random.key(seed)")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens {max_new_tokens} is less than 1")


def _until_stop(pieces: Iterator[str], stops: tuple[str, ...]) -> Iterator[str]:
    """The pieces up to the first stop text; the last characters wait while a stop text may have
    begun there.
    """
    held = ""
    for piece in pieces:
        held += piece
        at = min((held.find(stop) for stop in stops if stop in held), default=-1)
        if at >= 0:
            if held[:at]:
                yield held[:at]
            return
        keep = max(
            (n for stop in stops for n in range(len(stop)) if held.endswith(stop[:n])), default=0
        )
        if len(held) > keep:
            yield held[: len(held) - keep]
            held = held[len(held) - keep :]
    if held:
        yield held
