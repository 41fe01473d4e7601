"""GPTQ by GPTQModel, the maintained descendant of the original program: codes, scales and zeros of
one small layer in 160 settings.

Needs torch==2.13.0 (CPU build) and gptqmodel==7.4.0. Its `GPTQ` class is called as optimum calls
it: a Linear, `add_batch`, `quantize`. What differs from IST-DASLab/gptq, and what is done about it:

* Its range search tries a second zero point at 2 bits without symmetry: switched off.
* It divides H by tokens, not sequences: a factor, which cancels (damping is relative).
* Like the original it sets H[d, d] = 1 for a dead channel. The inputs here are large, so that 1 is
  less than any live channel's and sorts last.

The inputs are small integers and their number a power of two: H is exact in float32, so that every
program starts from the same bits.
"""

import itertools
import sys
from unittest.mock import MagicMock

import numpy as np
import torch
import transformers  # noqa: F401  (before the next lines: it asks whether torchvision is there)
from common import SEED, save

# gptqmodel imports torchvision for picture models, and its builds do not fit a CPU torch.
for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
    sys.modules[name] = MagicMock()

from gptqmodel.quantization.config import QuantizeConfig  # noqa: E402
from gptqmodel.quantization.gptq import GPTQ  # noqa: E402
from gptqmodel.quantization.quantizer import Quantizer  # noqa: E402

ROWS, COLUMNS, TOKENS = 48, 256, 512
DEAD = (5, 100, 101)
DAMP, MSE = 0.01, 2.4
BITS, GROUPS = (2, 3, 4, 8), (None, 32, 128)


class OriginalQuantizer(Quantizer):
    """Without the second zero point."""

    def _search_adjacent_zero_points(self) -> bool:
        return False


def weights() -> np.ndarray:
    """(48, 256) float32: heavy-tailed rows, and seven that GPTQ programs trip over."""
    rng = np.random.default_rng(SEED)
    w = rng.standard_t(4, (ROWS, COLUMNS)) * 0.02
    w[0] = 0.0
    w[1] = 0.3
    w[2], w[3] = np.abs(w[2]), -np.abs(w[3])
    w[4] *= 1e-4
    w[5] *= 3
    w[6, 77] = -3.0
    return w.astype(np.float32)


def inputs() -> np.ndarray:
    """(512, 256) int8: correlated channels, loud ones, quiet ones, dead ones, one nearly twice."""
    rng = np.random.default_rng(SEED + 1)
    shared = rng.standard_normal((TOKENS, 24)) @ rng.standard_normal((24, COLUMNS)) / np.sqrt(24)
    x = shared + 0.5 * rng.standard_normal((TOKENS, COLUMNS))
    scale = np.exp(rng.normal(np.log(6), 0.5, COLUMNS))
    scale[[17, 60, 200]] = 60  # loud
    scale[[33, 34]] = 1.5  # quiet
    x[:, 131] = x[:, 130] + 0.05 * rng.standard_normal(TOKENS)
    scale[131] = scale[130]
    x = np.clip(np.round(x * scale), -127, 127)
    x[:, list(DEAD)] = 0
    diagonal = np.sort((x**2).sum(0))
    assert (np.diff(diagonal[len(DEAD) - 1 :]) > 0).all(), "act-order must not depend on ties"
    assert (x**2).sum(0).max() < 2**24 and diagonal[len(DEAD)] * 2 / TOKENS > 1
    return x.astype(np.int8)


def settings() -> list[tuple[int, int | None, bool, bool, bool, bool]]:
    """(bits, group, sym, act_order, static, mse); rows as groups are static already."""
    flags = itertools.product(BITS, GROUPS, *[(True, False)] * 4)
    return [s for s in flags if s[1] or not s[4]]


def key(bits, group, sym, act_order, static, mse) -> str:
    words = [f"b{bits}", f"g{group or 'none'}", "sym" if sym else "asym"]
    flags = {"act": act_order, "static": static, "mse": mse}
    return "_".join(words + [k for k, on in flags.items() if on])


def quantize(w: np.ndarray, x: np.ndarray, setting: tuple) -> dict[str, np.ndarray]:
    bits, group, sym, act_order, static, mse = setting
    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    linear.weight.data = torch.from_numpy(w.copy())
    config = QuantizeConfig(
        bits=bits, group_size=group or -1, sym=sym, desc_act=act_order, act_group_aware=False,
        static_groups=static, mse=MSE if mse else 0.0, damp_percent=DAMP, offload_to_disk=False,
    )  # fmt: skip
    task = GPTQ(linear, config)
    task.quantizer = OriginalQuantizer(config)
    task.quantizer.configure(perchannel=True)
    task.add_batch(torch.from_numpy(x.astype(np.float32))[None], None)
    out, scale, zero, group_of, _, _, damp, seen = task.quantize(blocksize=128)
    assert (damp, seen) == (DAMP, TOKENS)
    out, scale, zero, group_of = (a.numpy() for a in (out, scale, zero, group_of))
    each = (slice(None), group_of if group else [0] * COLUMNS)
    codes = np.round(out / scale[each]) + zero[each]
    assert ((codes >= 0) & (codes < 2**bits)).all()
    assert (scale[each] * (codes - zero[each]) == out).all(), setting
    return {"codes": codes.astype(np.uint8), "scale": scale, "zero": zero.astype(np.uint8)}


def main() -> None:
    torch.set_num_threads(1)
    w, x = weights(), inputs()
    arrays, keys = {"w": w, "x": x}, {}
    for group in GROUPS:
        chosen = [s for s in settings() if s[1] == group]
        name = f"g{group or 'none'}"
        keys[name] = [key(*s) for s in chosen]
        found = [quantize(w, x, s) for s in chosen]
        for what in ("codes", "scale", "zero"):
            arrays[f"{name}_{what}"] = np.stack([f[what] for f in found])
    flags = {
        "keys": keys,  # arrays[f"{group}_codes"][i] is of setting keys[group][i]
        "damp": DAMP,
        "mse": "norm 2.4, grid 100, maxshrink 0.8",
        "threads": 1,
        "off": "adjacent zero points, act_group_aware",
    }
    save("gptq", arrays, ["gptqmodel", "torch", "transformers"], flags)


if __name__ == "__main__":
    main()
