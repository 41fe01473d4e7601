"""`bench`: how fast a model reads a prompt and writes tokens, beside what its machine could do.

Timed is what `generate` runs: blocks one after another, a cache, the likeliest token. Prompt and
decode are timed apart. Rounds go through all rows in turn, forwards and backwards, and through the
machine's own memory and multiplication, so that whatever else it does meets all of them.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlab.data import texts
from qlab.evaluation.latency import Bench, Speed, Speeds
from qlab.evaluation.roofline import Load
from qlab.evaluation.scoring import versions
from qlab.evaluation.steps import load_of, multiplied, read_bytes, shape_of
from qlab.kernels import Packed, support
from qlab.models.checks import check_model
from qlab.models.kv import name_of, quantize_kv
from qlab.models.surgery import dense, linears
from qlab.models.transformer import Transformer
from qlab.qtensor import QTensor, bits_per_weight
from qlab.suggest import counted

Clock = Callable[[], float]
CONTEXT = 128  # tokens of a prompt, unless said or too many for a model
PROBES = 3  # of memory and of products in a round
COPIED = {"cpu": 2**28, "": 2**31}  # bytes of the array that is scaled: beyond any cache
SQUARE = {"cpu": 1536, "": 8192}  # rows of the matrices that are multiplied


def bench(
    models: Transformer | Sequence[Transformer] | Mapping[str, Transformer],
    batch: int | Iterable[int] = 1,
    context: int | None = None,
    *,
    new_tokens: int = 16,
    prompt: str | None = None,
    rounds: int = 8,
    progress: bool = True,
    clock: Clock = time.perf_counter,
) -> Bench:
    """Times prompts and decode of models, and says how near they come to the machine's limits.

    A step must read its weights and cache, and multiply: `bytes / bandwidth` and `operations /
    peak`, whichever is longer, is the roof. Both speeds of the machine are measured in the same
    rounds. A sweep over batches shows from where on fewer bits no longer help.

    Args:
        models: one, several, or names with models; the first is what the others are compared with.
            Any that qlab runs: float, quantized (its QTensors are dequantized once, as `generate`
            does, and the notes say what is then read), `with_kernels`, quantized KV caches.
        batch: sequences at once, one number or several.
        context: tokens of every prompt; None: the prompt's, or 128, or what a model has room for.
        new_tokens: decode steps of a round.
        prompt: a text whose tokens are repeated, or cut, to `context`; None: a bundled text.
        rounds: how often everything is timed, after one that compiles; eight can tell six
            comparisons from chance.
        progress: show a bar.
        clock: seconds; tests have their own.

    Returns:
        a table with `.figure()`, `.to_json()` and `.save(path)`; `found[name, batch]` is a row.

    Raises:
        ValueError: something in place of a model, or of its name; context and new tokens beyond a
            model's positions; a batch, context, round or step that is no whole number or below 1;
            a prompt that is no text, or for a model without tokenizer.

    Example:
        >>> model = qlab.load("tiny")                                        # doctest: +SKIP
        >>> q = qlab.quantize_model(model, "rtn", "int4_g64")                # doctest: +SKIP
        >>> qlab.bench([model, qlab.with_kernels(q)], batch=[1, 4, 16, 64])  # doctest: +SKIP

    Source: the roofline, Williams et al. 2009, doi 10.1145/1498765.1498785.
    """
    named = _named(models)
    batches = _several(batch)
    if prompt is not None and not isinstance(prompt, str):
        raise ValueError(f"prompt {prompt!r:.40} is no text")
    counts = {"new_tokens": [new_tokens], "rounds": [rounds], "batch": batches}
    for what, values in counts.items():
        _check(what, values)
    context = _context(named, context, prompt, new_tokens)
    running = {name: dense(model) for name, model in named.items()}
    runs = {
        (name, n): partial(_once, running[name], _prompt(model, prompt, n, context), new_tokens)
        for name, model in named.items()
        for n in batches
    }
    kinds = [dtype for model in running.values() for dtype in multiplied(model)]
    machine = _machine(list(dict.fromkeys(kinds)))
    found = _measure({**machine, **runs}, rounds, clock, progress)
    rows = [
        _row(named[name], running[name], name, n, context, new_tokens, found[name, n])
        for name, n in runs
    ]
    peaks = {dtype: tuple(found[dtype]) for dtype in machine if dtype != "memory"}
    return Bench(
        tuple(rows),
        Speeds(tuple(found["memory"]), peaks),
        context,
        new_tokens,
        rounds,
        _device(),
        _cores(),
        os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
        versions(),
    )


# ---- what is asked -------------------------------------------------------------------------------


def _named(models: Any) -> dict[str, Transformer]:
    """Models by the names of their rows, which differ."""
    named: dict[str, Any]
    if isinstance(models, Mapping):
        named = dict(models)
    else:
        several = _several(models)
        names = [_called(model) for model in several]
        again = [names[:i].count(name) for i, name in enumerate(names)]
        names = [f"{name} ({n + 1})" if n else name for name, n in zip(names, again)]
        named = dict(zip(names, several))
    for name, model in named.items():
        check_model(model, "models")
        if not isinstance(model, Transformer):
            raise ValueError(f"models= takes models, as qlab.load gives them, not {model!r:.60}")
        if not isinstance(name, str):
            raise ValueError(f"a row's name is text, not {name!r:.40}")
    if not named:
        raise ValueError("no models to time")
    return named


def _several(given: Any) -> list[Any]:
    """What was given, one or several; a text is one."""
    return list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]


def _called(model: Any) -> str:
    """A model's name, with what the name does not say: packed weights, a quantized cache."""
    if not isinstance(model, Transformer):
        return str(model)
    weights = [layer.weight for layer in linears(model).values()]
    packed = {f"kernels {w.dtype or ''}".strip() for w in weights if isinstance(w, Packed)}
    cache = [] if model.kv is None else [name_of(model.kv)]
    return ", ".join([model.name or "model", *sorted(packed), *cache])


def _check(what: str, values: Sequence[Any]) -> None:
    if not values:
        raise ValueError(f"no {what} to time")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise ValueError(f"{what} {value!r:.40} is no whole number")
        if value < 1:
            raise ValueError(f"{what} {value} is less than 1")


def _context(
    named: Mapping[str, Transformer], context: int | None, prompt: str | None, new_tokens: int
) -> int:
    """Tokens of every prompt: as asked, the prompt's own, or what there is room for."""
    most = {name: model.config.max_position_embeddings for name, model in named.items()}
    if context is None and prompt is not None:
        context = max(len(_ids(model, prompt)) for model in named.values())
    elif context is None:
        context = max(1, min(CONTEXT, min(most.values()) - new_tokens))
    _check("context", [context])
    for name, positions in most.items():
        if context + new_tokens > positions:
            raise ValueError(
                f"a context of {context} and {counted(new_tokens, 'new token')} are more than the "
                f"{positions} positions of {name!r}"
            )
    return context


def _ids(model: Transformer, prompt: str) -> list[int]:
    if model.tokenizer is None:
        raise ValueError(f"{model.name!r} has no tokenizer, so a prompt means nothing to it")
    ids = model.tokenizer.encode(prompt, special=True)
    if not ids:
        raise ValueError("the prompt is empty")
    return ids


def _prompt(model: Transformer, prompt: str | None, batch: int, context: int) -> jax.Array:
    """The same (batch, context) tokens for every sequence, repeated or cut."""
    if prompt is None and model.tokenizer is None:
        ids = list(range(model.config.vocab_size))
    else:
        ids = _ids(model, texts("english")[: 8 * context] if prompt is None else prompt)
    return jnp.tile(jnp.asarray(np.resize(ids, context), jnp.int32), (batch, 1))


# ---- what is timed -------------------------------------------------------------------------------


def _once(
    model: Transformer, tokens: jax.Array, new_tokens: int, clock: Clock
) -> tuple[float, float]:
    """Seconds to the first token, and of a decode step."""
    batch, context = tokens.shape
    caches = jax.block_until_ready(model.caches(batch, context + new_tokens))
    begin = clock()
    last, caches = _step(model, tokens, 0, caches)
    first = clock() - begin
    begin = clock()
    for i in range(new_tokens):
        last, caches = _step(model, last, context + i, caches)
    return first, (clock() - begin) / new_tokens


def _step(model: Transformer, tokens: jax.Array, start: int, caches: list[Any]):
    """The likeliest next tokens, (batch, 1), and the new caches."""
    hidden, caches = model.step(tokens, jnp.int32(start), caches)
    return jax.block_until_ready(jnp.argmax(model.logits(hidden[:, -1:]), axis=-1)), caches


def _machine(dtypes: Sequence[str]) -> dict[str, Callable[..., float]]:
    """What the machine itself is asked in every round: its memory, its products by dtype."""
    backend = jax.default_backend()
    size = COPIED.get(backend, COPIED[""]) // 4
    held = [jnp.ones(size, jnp.float32)]
    negated = jax.jit(lambda x: -x, donate_argnums=0)  # in place: no new pages are asked for

    def scaled() -> None:
        held[0] = jax.block_until_ready(negated(held[0]))

    n = SQUARE.get(backend, SQUARE[""])
    found = {dtype: _best(_product(dtype, n), 2 * n**3) for dtype in dtypes}
    return {"memory": _best(scaled, 2 * 4 * size), **found}


def _best(work: Callable[[], object], amount: float) -> Callable[..., float]:
    """How much a second, the best of PROBES: one may meet what else the machine does."""

    def timed(clock: Clock) -> float:
        seconds = []
        for _ in range(PROBES):
            begin = clock()
            work()
            seconds.append(clock() - begin)
        return amount / min(seconds)

    return timed


def _product(dtype: str, n: int) -> Callable[[], object]:
    """A product of (n, n) matrices, as the models ask for it."""
    numbers = jax.random.normal(jax.random.key(0), (n, n))
    square = (40 * numbers if dtype == "int8" else numbers).astype(dtype)
    summed = jnp.int32 if dtype == "int8" else jnp.float32
    exact = jax.lax.Precision.HIGHEST if dtype == "float32" else None
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=exact, preferred_element_type=summed))
    return lambda: jax.block_until_ready(product(square))


def _measure(cells: Mapping[Any, Callable], rounds: int, clock: Clock, progress: bool) -> dict:
    """What every cell gave in every round; one more comes first, to compile."""
    from tqdm.auto import tqdm

    found: dict[Any, list] = {key: [] for key in cells}
    total = (rounds + 1) * len(cells)
    with tqdm(total=total, desc="bench", disable=not progress, leave=False) as bar:
        for i in range(-1, rounds):
            for key in list(cells)[:: 1 if i % 2 else -1]:
                value = cells[key](clock=clock)
                if i >= 0:
                    found[key].append(value)
                bar.update()
    return found


# ---- what is told --------------------------------------------------------------------------------


def _row(
    model: Transformer,
    running: Transformer,
    name: str,
    batch: int,
    context: int,
    new_tokens: int,
    timed: list[tuple[float, float]],
) -> Speed:
    caches = jax.eval_shape(lambda: running.caches(batch, context + new_tokens))
    first, step = zip(*timed)
    prompt, decode = (load_of(running, caches, tokens) for tokens in (context, 1))
    kinds, weights = multiplied(running), read_bytes(running)
    return Speed(
        model=name,
        batch=batch,
        context=context,
        first=first,
        step=step,
        prompt=prompt,
        decode=decode,
        products=next(iter(kinds)),
        shape=shape_of(running),
        weight_bytes=weights,
        cache_bytes=round(decode.bytes) - weights,
        notes=(
            *_notes(name, model, running, kinds),
            *_cache_notes(name, running, decode, (batch, context + new_tokens)),
        ),
    )


def _cache_notes(
    name: str, running: Transformer, decode: Load, room: tuple[int, int]
) -> Iterator[str]:
    """What a quantized cache reads, beside a float one of the same room."""
    if running.kv is None:
        return
    yield f"{name}: a step decodes the whole quantized cache to float32, seen or not."
    plain = quantize_kv(running, None)
    weights = read_bytes(running)
    floats = load_of(plain, jax.eval_shape(lambda: plain.caches(*room)), 1).bytes - weights
    times = (decode.bytes - weights) / floats
    if times >= 1:
        yield (
            f"{name}: for {counted(room[1], 'token')} its cache is {times:.2g} times a float one, "
            f"since {running.kv.window} of them have room in float beside the codes; a longer "
            "context is where it saves."
        )


def _notes(
    name: str, model: Transformer, running: Transformer, kinds: dict[str, int]
) -> Iterator[str]:
    """What the numbers of a model do not say themselves."""
    unpacked = [
        old.weight
        for old, new in zip(linears(model).values(), linears(running).values())
        if isinstance(old.weight, QTensor) and isinstance(new.weight, jax.Array)
    ]
    if unpacked:
        bits = bits_per_weight(unpacked[0])
        yield (
            f"{name}: QTensors ({bits:.4g} bits a weight in {counted(len(unpacked), 'linear')}) "
            "are dequantized once, so a step reads float32; qlab.with_kernels keeps them packed."
        )
    yield from _kernel_notes(name, running)
    if len(kinds) > 1:
        parts = ", ".join(f"{dtype} {n / sum(kinds.values()):.0%}" for dtype, n in kinds.items())
        yield f"{name}: products by weights: {parts}; its roof is that of the first."


def _kernel_notes(name: str, running: Transformer) -> Iterator[str]:
    """What packed weights run as here, and what was not packed."""
    layers = [one for one in linears(running).values() if isinstance(one.weight, Packed)]
    plain = [one.weight for one in layers if one.act is None and isinstance(one.weight, Packed)]
    kinds = {("q4_k" if w.layout == "q4_k" else "w4a16", w.dtype or "float32") for w in plain}
    for op, dtype in sorted(kinds):
        words = support()[op]
        if words.startswith("reference"):
            yield (
                f"{name}: packed weights are unpacked by XLA before each product on this "
                f"{jax.default_backend()}; what that moves is not counted."
            )
        elif "bfloat16" in words and dtype != "bfloat16":
            yield (
                f"{name}: {op} in {dtype} takes the reference here, compiled by XLA; "
                'qlab.with_kernels(model, "bfloat16") takes the kernel.'
            )
        elif "reference" in words:
            yield f"{name}: {op} runs here as {words}."
    head = running.lm_head.weight if running.lm_head is not None else running.embed_tokens.weight
    if layers and isinstance(head, jax.Array):
        share = head.nbytes / read_bytes(running)
        yield f"{name}: the head is {head.dtype} and {share:.0%} of the weights' bytes."


def _device() -> str:
    """What the models ran on."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        return f"{device.platform} ({device.device_kind})"
    info = Path("/proc/cpuinfo")
    lines = info.read_text(errors="ignore").splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"cpu ({named[0] if named else platform.processor() or platform.machine()})"


def _cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
