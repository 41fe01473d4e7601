"""What the picture of `qat_live` shows of a Snapshot: a layer's weights on the levels of its grid,
and the slopes of an estimator, by the library's own gradients.
"""

from __future__ import annotations

import dataclasses
import json
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qlab.methods import qat as estimators
from qlab.methods.trained import Trained
from qlab.models.surgery import linears
from qlab.plots.widget_qat_live import RECORDED, Levels, Phase, QatLiveData, Slopes
from qlab.qtensor import QTensor, Spec, bits_per_weight, dequantize, quantize, spread_ranges
from qlab.specs import SPECS
from qlab.widgets.qat_training import STEPS, Choice, Snapshot
from qlab.widgets.source import Source

LAYER = "layers.1.self_attn.q_proj"
BLOCK = 64  # weights that stand on the stairs
TERNARY = "ternary"
BITS: dict[str, Spec] = {
    TERNARY: SPECS["bitnet"],
    "2 bits": SPECS["uint2_g64"],
    "3 bits": SPECS["uint3_g64"],
    "4 bits": SPECS["uint4_g64"],
}
METHODS = ("ste", "clipped", "lsq", "bitnet")
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
FILE = "qat_live.json"


@dataclasses.dataclass(frozen=True)
class QatLiveState:
    """What is chosen: `channel` is the row whose first block stands on the stairs."""

    layer: str = LAYER
    bits: str = "2 bits"
    method: str = "lsq"
    rate: float = 1e-3
    teacher: bool = True
    channel: int = 7

    @property
    def choice(self) -> Choice:
        """What of it training has to know."""
        return Choice(self.bits, BITS[self.bits], self.method, self.rate, self.teacher)


# ---- a layer's weights ---------------------------------------------------------------------------


@jax.jit
def _codes(weight: Trained) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of every weight: w / s + z, its level c − z, and z."""
    q = weight.quantized()
    scale, zero, _ = spread_ranges(q, weight.shape)
    assert q.codes is not None and scale is not None
    zero = jnp.zeros(weight.shape) if zero is None else jnp.broadcast_to(zero, weight.shape)
    at = weight.w / jnp.where(scale == 0, 1.0, scale) + zero
    return at, q.spec.format.decode(q.codes) - zero, zero


@lru_cache(maxsize=32)
def _untrained(source: Source, layer: str, spec: Spec) -> tuple[np.ndarray, np.ndarray]:
    at, levels, _ = _codes(Trained(jnp.asarray(source.weight(layer)), {}, spec, "ste"))
    return np.asarray(at), np.asarray(levels)


def levels_of(source: Source, snapshot: Snapshot, state: QatLiveState) -> Levels:
    """The weights of the chosen layer on the chosen grid."""
    spec = BITS[state.bits]
    at0, levels0 = _untrained(source, state.layer, spec)
    at, levels, zero = map(np.asarray, _codes(_weight(source, snapshot.model, state)))
    _, before, _ = map(np.asarray, _codes(_weight(source, snapshot.before, state)))
    values = spec.format.values
    step = max(float(values[-1] - values[0] + 2) / 90, 0.05)
    edges = np.arange(float(values[0]) - 1, float(values[-1]) + 1 + step / 2, step)

    def shares(x: np.ndarray) -> np.ndarray:
        return np.histogram(x, edges)[0] / x.size

    block = at[state.channel, :BLOCK]
    moved, last = ((levels != other).mean() for other in (levels0, before))
    return Levels(edges, shares(at0), shares(at), block, float(zero[state.channel, 0]),
                  float(moved), float(last))  # fmt: skip


def _weight(source: Source, model: Any, state: QatLiveState) -> Trained:
    """The layer in training, on the chosen grid: of another one only the weights are taken."""
    spec, method = BITS[state.bits], state.method
    if model is None:
        return Trained(jnp.asarray(source.weight(state.layer)), {}, spec, "ste")
    weight = linears(model)[state.layer].weight
    assert isinstance(weight, Trained)
    if weight.spec == spec and weight.method == method:
        return weight
    return Trained(weight.w, {}, spec, "ste")


# ---- slopes --------------------------------------------------------------------------------------


@cache
def slopes_of(spec: Spec, method: str, zero: float) -> Slopes:
    """∂ŵ/∂w, and ∂ŵ/∂s for "lsq", over w in codes: the gradients that training gets, at s = 1,
    without the gradient scale of LSQ.
    """
    values = spec.format.values
    at = np.linspace(float(values[0]) - 1, float(values[-1]) + 1, 481)
    at += 1e-4  # beside the cuts, not on them
    w = jnp.asarray(at - zero, jnp.float32)[:, None]  # every weight a row of its own
    own = spec.replace(block="row")
    learned = {"step": jnp.ones_like(w)}
    if spec.zero is not None:
        learned["zero"] = jnp.full_like(w, zero)
    with jax.disable_jit():
        q = quantize(w, estimators.stored(learned, own))
        dw, ds = _gradients(method, w, learned, q)
    code = np.asarray(dequantize(q))[:, 0] + zero
    return Slopes(at, code, np.asarray(dw)[:, 0], None if ds is None else np.asarray(ds)[:, 0])


def _gradients(method: str, w: jax.Array, learned: dict[str, jax.Array], q: QTensor) -> tuple:
    if method != "lsq":
        how = estimators.clipped if method == "clipped" else estimators.ste
        return jax.grad(lambda w: how(w, q).sum())(w), None
    dw, found = jax.grad(lambda w, s: estimators.lsq(w, s, q).sum(), (0, 1))(w, learned)
    return dw, found["step"] * np.sqrt(q.spec.format.max)


# ---- the whole picture ---------------------------------------------------------------------------


def qat_live_data(source: Source, snapshot: Snapshot, state: QatLiveState) -> QatLiveData:
    """Everything that the picture shows.

    Example:
        >>> data = qat_live_data(source, Snapshot(), QatLiveState())   # doctest: +SKIP
        >>> data.weights.moved                                         # doctest: +SKIP
        0.0
    """
    spec = BITS[state.bits]
    weights = levels_of(source, snapshot, state)
    error = snapshot.error
    said = "" if error is None else f"{type(error).__name__}: {error}"
    return QatLiveData(
        state.layer, state.bits, state.method, state.teacher, bits_per_weight(spec),
        tuple(map(float, spec.format.values)), snapshot.start, snapshot.phases, weights,
        slopes_of(spec, state.method, weights.zero), STEPS, snapshot.status, said,
    )  # fmt: skip


# ---- a recorded run ------------------------------------------------------------------------------


def to_json(data: QatLiveData, state: QatLiveState) -> dict[str, Any]:
    """A run to keep: what `recorded` reads."""
    kept = dataclasses.replace(data, status=RECORDED)
    found = dataclasses.asdict(kept)
    found.pop("slopes")  # a function of the state

    def plain(x: Any) -> Any:
        return np.round(np.asarray(x, float), 6).tolist() if isinstance(x, np.ndarray) else x

    found["weights"] = {name: plain(x) for name, x in found["weights"].items()}
    return {"state": dataclasses.asdict(state), "data": found}


@cache
def recorded() -> tuple[QatLiveState, QatLiveData]:
    """The run that `benchmarks/qat_live.py` has recorded, and with which settings."""
    table = json.loads(files("qlab.data").joinpath(FILE).read_text("utf-8"))
    state, found = QatLiveState(**table["state"]), dict(table["data"])
    weights: dict[str, Any] = {
        name: np.array(x) if isinstance(x, list) else x for name, x in found["weights"].items()
    }
    phases = tuple(Phase(**{**p, "losses": tuple(p["losses"])}) for p in found["phases"])
    slopes = slopes_of(BITS[state.bits], state.method, weights["zero"])
    found.update(weights=Levels(**weights), phases=phases, slopes=slopes,
                 levels=tuple(found["levels"]))  # fmt: skip
    return state, QatLiveData(**found)
