"""The blocks of `block_scale(model)` under float scales: the powers of two of MX by four rules, the
two levels of NVFP4, and the two ends that Four over Six chooses from.
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from qlab.arithmetic import divide, multiply
from qlab.formats import E8M0, FP4, FP6_E2M3, FP8, Format
from qlab.methods.four_over_six import ENDS, LARGEST
from qlab.plots.widget_block_scale import Row, Variant
from qlab.qtensor import QTensor, Spec, fit
from qlab.rules import RULES
from qlab.widgets.quantized import Quantized, open_tensor

MX = {"MXFP4": FP4, "MXFP6": FP6_E2M3, "MXFP8": FP8}
POWERS = {  # rule -> its formula, t = ⌊log2 hi⌋
    "pow2_floor": "floor: 2^⌊log₂ amax⌋ / {t:g}",
    "pow2_rceil": "rceil: 2^⌈log₂ (amax / {hi:g})⌉",
    "pow2_ceil": "ceil: 2^⌈log₂ amax⌉ / {t:g}",
    "pow2_even": "even: 2^⌊log₂ round(amax)⌋ / {t:g}",
}
TWO_LEVELS = {  # name -> (its formula, the end, whether α leaves room for ends at 4)
    "nvfp4": ("NVFP4: amax / 6", 6.0, False),
    "six": ("Four over Six: amax / 6", ENDS[0], True),
    "four": ("Four over Six: amax / 4", ENDS[1], True),
}
WHERE = {"nvfp4": "plain", "six": "6", "four": "4"}  # in short, for the control


@lru_cache(maxsize=256)
def mx_sweeps(weights: bytes, kind: str, ranges: tuple[float, ...]) -> list[list[Variant]]:
    """The block by every rule at every range: `weights` are float32, `ranges` parts of max|w|."""
    w, format = np.frombuffer(weights, np.float32), MX[kind]
    top = 2.0 ** np.floor(np.log2(format.max))
    stretched = jnp.asarray(np.array(ranges, np.float32)[:, None] * w)
    found = []
    for rule, words in POWERS.items():
        with jax.disable_jit():
            how = fit(stretched, Spec(format, "row", E8M0, rule=RULES[rule]))
        found.append(_sweep(w, how, rule, words.format(t=top, hi=format.max)))
    return found


@lru_cache(maxsize=256)
def nvfp4_sweeps(weights: bytes, largest: float, ranges: tuple[float, ...]) -> list[list[Variant]]:
    """The block by NVFP4 and by both ends of Four over Six, the better of which is marked.

    Args:
        weights: float32.
        largest: max|W| of the layer, which sets α.
        ranges: parts of max|w|.
    """
    w = np.frombuffer(weights, np.float32)
    amax = np.array(ranges, np.float32) * np.abs(w).max()
    found = []
    for name, (words, end, room) in TWO_LEVELS.items():
        how = _ranges(_scales(amax, largest, end, room))
        found.append(_sweep(w, how, name, words))
    for six, four in zip(found[1], found[2]):
        (four if four.sqnr(w) > six.sqnr(w) else six).taken = True
    return found


def row_of_blocks(row: np.ndarray, length: int, largest: float, here: int, part: float) -> Row:
    """Signal to noise of all blocks of a row, `part` of their range ended at 6 and at 4."""
    blocks = row.reshape(-1, length)
    amax, both = np.float32(part) * np.abs(blocks).max(-1), []
    for _, end, room in list(TWO_LEVELS.values())[1:]:
        values = open_tensor(blocks, _ranges(_scales(amax, largest, end, room))).values
        both.append(_ratio(blocks, values))
    return Row(both[0], both[1], here)


def _scales(amax: np.ndarray, largest: float, end: float, room: bool) -> jax.Array:
    """αΔ of every block (n, 1), Δ = E4M3(amax / (end · α)): `nvfp4`'s, or Four over Six's."""
    with jax.disable_jit():
        top = divide(jnp.float32(largest), jnp.float32(ENDS[0]))
        alpha = divide(top, jnp.float32(LARGEST if room else FP8.max))
        wanted = divide(jnp.asarray(amax), jnp.float32(end))
        if not room:  # no scale below E4M3's smallest normal number
            wanted = jnp.maximum(wanted, top * (2.0**-6 / 448))
        codes = FP8.encode(divide(wanted, jnp.where(alpha == 0, 1.0, alpha)))
        return multiply(FP8.decode(codes), alpha)[:, None]


def _ranges(scales: jax.Array) -> QTensor:
    return QTensor(None, scales, None, None, spec=Spec(FP4, "row"))


def _sweep(w: np.ndarray, how: QTensor, rule: str, words: str) -> list[Variant]:
    """A Variant for each row of ranges in `how`."""
    count = _count(how)
    q = open_tensor(np.broadcast_to(w, (count, len(w))), how)
    sweep = _ratio(w, q.values)
    return [_variant(q, i, rule, words, sweep) for i in range(count)]


def _count(how: QTensor) -> int:
    scale = how.scale
    return len(scale.codes if isinstance(scale, QTensor) else scale)  # type: ignore[arg-type]


def _variant(q: Quantized, i: int, rule: str, words: str, sweep: np.ndarray) -> Variant:
    return Variant(rule, words, q.at("scale", i, 0), None, q.levels(i, 0), q.values[i], sweep)


def _ratio(w: np.ndarray, values: np.ndarray) -> np.ndarray:
    return (w**2).sum(-1) / np.maximum(((values - w) ** 2).sum(-1), 1e-30)


def bits(kind: str, length: int) -> float:
    """Bits per weight: a scale of eight bits for every block."""
    format: Format = MX.get(kind, FP4)
    return format.bits + 8 / length
