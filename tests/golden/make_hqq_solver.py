"""hqq with its optimizer: codes and zero points after the half-quadratic search.

Needs torch (CPU build) and hqq. `out` is (codes - zero) * scale.
"""

import itertools

import numpy as np
import torch
from common import SEED, save
from hqq.core.quantize import Quantizer

SETTINGS = list(itertools.product((2, 3, 4, 8), (32, 64, None), (False, True)))


def weights() -> np.ndarray:
    """(24, 128): gaussian rows, heavy tails, one spike, one sign, zeros, a constant, extremes."""
    rng = np.random.default_rng(SEED)
    w = rng.standard_normal((24, 128)) * 0.05
    w[8:16] = rng.standard_t(3, (8, 128)) * 0.05
    w[16, 70] = 4.0
    w[17] = np.abs(w[17])
    w[18] = -np.abs(w[18])
    w[19] = 0.0
    w[20] = 0.3
    w[21] *= 1e-6
    w[22] *= 1e4
    w[23, ::3] = 0.0
    return w.astype(np.float32)


def main() -> None:
    torch.set_num_threads(1)
    w = weights()
    arrays = {"w": w}
    for bits, group, round_zero in SETTINGS:
        q, meta = Quantizer.quantize(
            torch.from_numpy(w), nbits=bits, group_size=group, axis=1, round_zero=round_zero,
            bitpack=False, compute_dtype=torch.float32, device="cpu",
        )  # fmt: skip
        key = f"b{bits}_g{group}_{'round' if round_zero else 'real'}"
        arrays[f"{key}_codes"] = q.numpy().astype(np.uint8).reshape(w.shape)
        arrays[f"{key}_zero"] = meta["zero"].numpy().reshape(len(w), -1)
    save("hqq_solver", arrays, ["hqq", "torch"], {"axis": 1, "settings": SETTINGS})


if __name__ == "__main__":
    main()
