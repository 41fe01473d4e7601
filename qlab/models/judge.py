"""One layer: the method runs on it, and what it did is measured, beside RTN on the same inputs.

    error = ‖W − Ŵ‖ / ‖W‖,   loss = √(E‖(W − Ŵ)x‖² / E‖W x‖²)

The loss is taken on the inputs the method saw and on held-out ones: only the second cannot be had
by fitting the text. Where input channels were scaled first, RTN's is that of the unscaled layer.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qlab.methods import METHODS
from qlab.methods.method import facts_of
from qlab.models.plan import Task, method_name, taken
from qlab.models.report import LayerReport
from qlab.models.transformer import Linear, as_array
from qlab.qtensor import QTensor, Spec, bits_per_weight, dequantize
from qlab.specs import name_of
from qlab.stats import Stats, output_error
from qlab.suggest import counted

# A clipping threshold is judged on a linear's own output, and attention multiplies q by k: AWQ's
# program leaves both as they are.
UNCLIPPED = ("q_proj", "k_proj")


class Seen(NamedTuple):
    """What a layer reads: the inputs its method gets, and others to judge it by."""

    calibration: Stats | None = None
    held_out: Stats | None = None


def quantize_layer(
    path: str, layer: Linear, task: Task, seen: Seen, folded: Any = None
) -> tuple[QTensor, LayerReport]:
    """Runs a method on one linear.

    Args:
        path: of the layer.
        layer: its weights, scaled already where it is folded.
        task: what it gets.
        seen: the Stats of what it reads now.
        folded: how its input channels were scaled (`fold.Folded`), or None.

    Raises:
        ValueError: the method's own, with the path before it; or what it returned is no QTensor,
            of another shape, or holds NaN or Inf.
    """
    w, step = as_array(layer.weight), facts_of(task.run)
    hyper = dict(task.hyper)
    fold = getattr(task.run, "fold", None)
    if fold is not None and (folded is not None or fold.feeders == "norms"):
        step, hyper = fold.finish, taken(fold.finish, hyper)
        if path.endswith(UNCLIPPED) and "clip" in inspect.signature(step).parameters:
            hyper["clip"] = False
    start = time.perf_counter()
    try:
        q, facts = step(w, seen.calibration, task.spec, **hyper)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    _check_result(path, task, q, w)
    jax.block_until_ready(q)
    seconds = time.perf_counter() - start
    found = {key: float(value) for key, value in _measure(w, q).items()}
    return q, LayerReport(
        path=path,
        shape=tuple(w.shape),
        spec=name_of(q.spec),
        bits_per_weight=bits_per_weight(q),
        error=found["error"],
        max_error=found["max_error"],
        clipped=found["clipped"],
        **_losses(w, q, task, seen, folded),
        **_of_inputs(seen, facts),
        **_scaled(w, task, seen, folded),
        scale=_scale_range(q),
        seconds=seconds,
        notes=_notes(found, facts, q.spec, task.spec),
    )


def _check_result(path: str, task: Task, q: Any, w: jax.Array) -> None:
    who = f"method {method_name(task.run)!r} returned"
    if not isinstance(q, QTensor):
        raise ValueError(f"{who} {type(q).__name__}, not a QTensor ({path})")
    if q.shape != w.shape:
        raise ValueError(f"{who} a QTensor of shape {q.shape} for weights {w.shape} ({path})")
    wrong = int(jnp.sum(~jnp.isfinite(dequantize(q))))
    if wrong:
        raise ValueError(f"{who} NaN or Inf in {counted(wrong, 'weight')} ({path})")


def _losses(
    w: jax.Array, q: QTensor, task: Task, seen: Seen, folded: Any
) -> dict[str, float | None]:
    """Both losses, the method's and RTN's of the layer before its channels were scaled."""
    if seen.calibration is None:
        return {}
    rtn = METHODS["rtn"]
    w_hat = dequantize(q)
    plain, plainly = _unscaled(w, seen, folded)
    same = task.run is rtn and folded is None
    rounded = w_hat if same else dequantize(rtn(plain, None, task.spec))

    def both(stats: Stats | None, before: Stats | None) -> tuple[float | None, float | None]:
        if stats is None or before is None:
            return None, None
        mine = float(_loss(w, w_hat, stats))
        return mine, mine if same else float(_loss(plain, rounded, before))

    loss, rtn_loss = both(seen.calibration, plainly.calibration)
    held_out, held_out_rtn = both(seen.held_out, plainly.held_out)
    return {
        "loss": loss,
        "rtn_loss": rtn_loss,
        "held_out_loss": held_out,
        "held_out_rtn_loss": held_out_rtn,
    }


def _unscaled(w: jax.Array, seen: Seen, folded: Any) -> tuple[jax.Array, Seen]:
    """Weights and Stats before the columns were multiplied and the inputs divided."""
    if folded is None:
        return w, seen
    return w / folded.scale, rescaled(seen, 1 / folded.scale)


def rescaled(seen: Seen, c: jax.Array) -> Seen:
    """Stats of x / c, of both texts."""
    return Seen(*(None if stats is None else stats.divided(c) for stats in seen))


def _scaled(w: jax.Array, task: Task, seen: Seen, folded: Any) -> dict[str, Any]:
    """What the report says of scaled channels; with a quantizer other than RTN, also what that
    would have lost alone.
    """
    if folded is None:
        return {}
    found: dict[str, Any] = {"scaled": (folded.ratio, folded.feeder)}
    inner = task.hyper.get("quantizer")
    if inner is None or inner is METHODS["rtn"] or getattr(task.run, "fold", None) is None:
        return found
    plain, plainly = _unscaled(w, seen, folded)
    judged = plainly.held_out or plainly.calibration
    if judged is not None:
        alone = dequantize(inner(plain, plainly.calibration, task.spec))
        found["unscaled_loss"] = float(_loss(plain, alone, judged))
    return found


_loss = jax.jit(output_error)


def _of_inputs(seen: Seen, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens and dead channels of the inputs, and what the method said of its damping and of
    importances.
    """
    stats = seen.calibration
    dead = facts.get("dead", 0 if stats is None else stats.dead.sum())
    return {
        "tokens": 0 if stats is None else int(stats.tokens),
        "dead": int(dead),
        "floored": int(facts["floored"]) if "floored" in facts else None,
        "damp": float(facts["damp"]) if "damp" in facts else None,
        "rung": int(facts.get("rung", 0)),
    }


def _scale_range(q: QTensor) -> tuple[float, float] | None:
    """Smallest and largest magnitude of the scales, zeros left out."""
    if q.scale is None:
        return None
    scale = dequantize(q.scale) if isinstance(q.scale, QTensor) else q.scale
    low, high = _ends(scale)
    return (float(low), float(high)) if float(high) > 0 else None


@jax.jit
def _ends(scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    size = jnp.abs(scale.astype(jnp.float32))
    return jnp.where(size > 0, size, jnp.inf).min(), size.max()


def _notes(
    found: Mapping[str, float], facts: Mapping[str, Any], used: Spec, asked: Spec
) -> tuple[str, ...]:
    notes = [f"{int(found[key])} {what}" for key, what in _ODDITIES.items() if found[key]]
    if float(facts.get("static", 0)):
        notes.append(STATIC)
    if used != asked:
        notes.append(f"the method used {name_of(used)}, not {name_of(asked)}")
    return tuple(notes)


_ODDITIES = {"zero": "input columns are all zero", "constant": "rows are constant"}
STATIC = "ranges are those of the original weights, not refitted to the corrected ones"


@jax.jit
def _measure(w: jax.Array, q: QTensor) -> dict[str, jax.Array]:
    """The numbers of a report: relative and largest error, share of clipped weights, zero columns,
    constant rows.
    """
    w_hat = dequantize(q)
    energy = jnp.sum(w * w)
    return {
        "error": jnp.sqrt(jnp.sum((w - w_hat) ** 2) / jnp.where(energy == 0, 1.0, energy)),
        "max_error": jnp.max(jnp.abs(w - w_hat)),
        "clipped": jnp.mean(_clipped(w, q)),
        "zero": jnp.sum(jnp.all(w == 0, axis=0)),
        "constant": jnp.sum(jnp.all(w == w[:, :1], axis=1)),
    }


def _clipped(w: jax.Array, q: QTensor) -> jax.Array:
    """Whether each weight lies more than half a step beyond the ends of its block's range, (out,
    in) bool.
    """
    values = q.spec.format.values
    first, last = _value_of(q, 0), _value_of(q, -1)
    unit = (last - first) / (values[-1] - values[0])  # a block's values are affine in the grid's
    below = first - unit * (values[1] - values[0]) / 2
    above = last + unit * (values[-1] - values[-2]) / 2
    # A negative scale turns the range round.
    return (w < jnp.minimum(below, above)) | (w > jnp.maximum(below, above))


def _value_of(q: QTensor, index: int) -> jax.Array:
    """What every weight would be with the code of the grid's `index`-th value, (out, in)."""
    code = q.spec.format.encode(jnp.float32(q.spec.format.values[index]))
    return dequantize(q.replace(codes=jnp.broadcast_to(code, q.shape)))
