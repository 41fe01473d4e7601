"""Scaling a block's input channels before its linears are quantized, the inverse folded into what
feeds them: AWQ and SmoothQuant inside a whole model.

    (W diag c)(x / c) = W x      c divides a norm's gain, or the rows of the linear before

The linears that read the same input share c. The block's function stays the same, so everything
is searched on the float block, and nothing is left to do when the model runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlab.methods.method import Fold
from qlab.models.channels import input_channels, scale_block
from qlab.models.plan import Job, Task, taken
from qlab.models.propagate import Source
from qlab.models.surgery import get, put
from qlab.models.taps import calls
from qlab.models.transformer import Feed, Linear
from qlab.qtensor import dequantize, quantize
from qlab.suggest import near

OBJECTIVES = ("linear", "block")


class Folded(NamedTuple):
    """What became of one linear's input channels."""

    scale: jax.Array  # (in,), c: the weights' columns are times c, the inputs divided by it
    ratio: float  # the setting that was chosen
    feeder: str  # what took 1 / c


def check_objective(job: Job) -> None:
    """Raises ValueError for an objective that does not exist or that no method asks for."""
    if job.objective not in OBJECTIVES:
        raise ValueError(f"objective={job.objective!r}: {near(job.objective, OBJECTIVES)}")
    if job.objective == "block" and not any(fold_of(task) for task in job.tasks):
        raise ValueError(f"method {job.method!r} searches no scales: objective='block' is unused")


def fold_of(task: Task | None) -> Fold | None:
    """How a linear's method scales input channels, if it does."""
    return None if task is None else getattr(task.run, "fold", None)


def fold_block(job: Job, index: int, block: Any, source: Source) -> dict[str, Folded]:
    """Scales the channels of a dense block in place.

    Args:
        job: says which linears' methods want it.
        index: of the block.
        block: dense; nothing in it is quantized yet.
        source: what its stages read.

    Returns:
        path inside the block -> what happened, for every linear whose columns changed.
    """
    tasks = {p: job.plan[f"layers.{index}.{p}"] for stage in block.STAGES for p in stage}
    found: dict[str, tuple[np.ndarray, float]] = {}  # by feeder: all searched before any is applied
    for feed in block.FEEDS:
        mine = {path: task for path in feed.consumers if (task := tasks[path]) is not None}
        takers = {path: task for path, task in mine.items() if fold_of(task)}
        if not takers:
            continue
        fold = _shared_fold(takers)
        if fold.feeders == "norms" and isinstance(get(block, feed.feeder), Linear):
            continue
        found[feed.feeder] = _search(job, index, block, source, feed, takers, fold)
    scale_block(block, {path: c for path, (c, _) in found.items()}, job.model.config)
    done = {}
    for feed in block.FEEDS:
        if feed.feeder in found:
            c, ratio = found[feed.feeder]
            scale = jnp.asarray(input_channels(feed, c, job.model.config), jnp.float32)
            done |= dict.fromkeys(feed.consumers, Folded(scale, ratio, feed.feeder))
    return done


def _shared_fold(takers: Mapping[str, Task]) -> Fold:
    """The one way in which linears that read the same input scale it."""
    folds = dict.fromkeys(fold_of(task) for task in takers.values())
    if len(folds) > 1:
        raise ValueError(
            f"{' and '.join(takers)} read the same input, which two methods would scale: give "
            "them the same method"
        )
    found = next(iter(folds))
    assert found is not None
    return found


def _search(
    job: Job, index: int, block: Any, source: Source, feed: Feed, takers: Mapping[str, Task],
    fold: Fold,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """The factor of one feeder (channels,), and the setting that gave it."""
    stage = next(stage for stage in block.STAGES if feed.consumers[0] in stage)
    stats = source.seen(index, block, stage)[feed.consumers[0]].calibration
    if stats is None:
        raise ValueError(f"layers.{index}.{feed.consumers[0]} has no Stats to find its scales from")
    weights = tuple(get(block, path).weight for path in takers)
    specs = tuple(task.spec for task in takers.values())
    hyper = taken(fold.candidates, next(iter(takers.values())).hyper)
    ratios, scales = fold.candidates(weights, stats, specs, **hyper)
    if feed.by_kv_head:
        scales = _shared_by_heads(scales, job.model.config)
    if len(ratios) == 1:
        best = 0
    elif job.objective == "block":
        losses = _block_losses(index, block, source, feed, tuple(takers), specs, scales)
        best = int(jnp.argmin(losses))
    else:
        best = int(jnp.argmin(fold.losses(weights, stats, specs, scales)))
    c = np.asarray(scales[best], np.float64)
    if feed.by_kv_head:
        kv = job.model.config.num_key_value_heads
        heads = job.model.config.num_attention_heads
        c = c.reshape(kv, heads // kv, -1)[:, 0].reshape(-1)
    return c, float(ratios[best])


def _shared_by_heads(scales: jax.Array, config: Any) -> jax.Array:
    """(n, heads · d): the geometric mean over the query heads that share a value channel."""
    kv = config.num_key_value_heads
    split = scales.reshape(len(scales), kv, config.num_attention_heads // kv, -1)
    mean = jnp.exp(jnp.log(split).mean(2, keepdims=True))
    return jnp.broadcast_to(mean, split.shape).reshape(scales.shape)


# ---- the real output -----------------------------------------------------------------------------


def _block_losses(
    index: int, block: Any, source: Source, feed: Feed, takers: tuple[str, ...],
    specs: tuple, scales: jax.Array,
) -> jax.Array:  # fmt: skip
    """What each candidate changes in the output of the module around the linears: ‖y − ŷ‖² over
    the first 2,048 tokens or so.
    """
    x, mask = source.sample(index)
    return _whole_losses(block, x, mask, scales, feed.whole, takers, specs)


@partial(jax.jit, static_argnames=("whole", "takers", "specs"))
def _whole_losses(block, x, mask, scales, whole, takers, specs) -> jax.Array:
    arguments, y = calls(block, x, whole)
    module = get(block, whole)

    def loss(s: jax.Array) -> jax.Array:
        changed = jax.tree.map(lambda leaf: leaf, module)  # modules of its own, shared arrays
        for path, spec in zip(takers, specs, strict=True):
            layer = get(block, path)
            new = Linear(dequantize(quantize(layer.weight * s, spec)) / s, layer.bias)
            if path == whole:
                changed = new
            else:
                put(changed, path.removeprefix(f"{whole}."), new)
        found = changed(*arguments)
        difference = (found[0] if isinstance(found, tuple) else found) - y
        return jnp.sum(jnp.where(mask[..., None], difference, 0.0) ** 2)

    return jax.lax.map(loss, scales)
