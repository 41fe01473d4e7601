"""hqq: its starting grid, a real zero point from minimum and maximum, without the optimizer.

Needs torch (CPU build) and hqq. `out` is (codes - zero) * scale.
"""

import numpy as np
import torch
from common import matrix, save
from hqq.core.quantize import Quantizer


def main() -> None:
    torch.set_num_threads(1)
    arrays = {}
    for bits in (2, 3, 4, 8):
        w = matrix(256, range(2**bits))
        q, meta = Quantizer.quantize(
            torch.from_numpy(w), nbits=bits, group_size=64, axis=1, round_zero=False,
            bitpack=False, optimize=False, compute_dtype=torch.float32, device="cpu",
        )  # fmt: skip
        arrays |= {
            f"b{bits}_w": w,
            f"b{bits}_codes": q.numpy().astype(np.uint8).reshape(w.shape),
            f"b{bits}_scale": meta["scale"].numpy().reshape(len(w), -1),
            f"b{bits}_zero": meta["zero"].numpy().reshape(len(w), -1),
            f"b{bits}_out": ((q - meta["zero"]) * meta["scale"]).numpy().reshape(w.shape),
        }
    flags = {"axis": 1, "group_size": 64, "optimize": False, "round_zero": False}
    save("hqq", arrays, ["hqq", "torch"], flags)


if __name__ == "__main__":
    main()
