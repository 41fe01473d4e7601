"""The quantizers inside the original GPTQ and AWQ programs, which no package index carries.

These are transcriptions, in numpy float32, of the arithmetic of IST-DASLab/gptq (`quant.py`:
find_params and quantize) and mit-han-lab/llm-awq (`quantizer.py`: pseudo_quantize_tensor), line by
line and independent of qlab; not outputs of the programs themselves. numpy's and torch's float32
division, multiplication and half-to-even rounding are the same IEEE operations.
"""

import numpy as np
from common import matrix, save

ONE, TWO = np.float32(1), np.float32(2)


def gptq(w: np.ndarray, bits: int, sym: bool) -> dict[str, np.ndarray]:
    """(rows, n), one range a row. Codes 0 … 2^bits - 1."""
    maxq = np.float32(2**bits - 1)
    zeros = np.zeros(len(w), np.float32)
    xmin = np.minimum(w.min(axis=1), zeros)
    xmax = np.maximum(w.max(axis=1), zeros)
    if sym:
        xmax = np.maximum(np.abs(xmin), xmax)
        negative = xmin < 0
        xmin = np.where(negative, -xmax, xmin)
    empty = (xmin == 0) & (xmax == 0)
    xmin, xmax = np.where(empty, -ONE, xmin), np.where(empty, ONE, xmax)
    scale = (xmax - xmin) / maxq
    zero = np.full_like(scale, (maxq + ONE) / TWO) if sym else np.round(-xmin / scale)
    q = np.clip(np.round(w / scale[:, None]) + zero[:, None], 0, maxq)
    return {"codes": q, "scale": scale, "zero": zero, "out": scale[:, None] * (q - zero[:, None])}


def awq(w: np.ndarray, bits: int, sym: bool) -> dict[str, np.ndarray]:
    """(rows, n), one range a row. Codes min_int … max_int, shifted to begin at 0."""
    if sym:
        max_int, min_int = np.float32(2 ** (bits - 1) - 1), np.float32(-(2 ** (bits - 1)))
        amax = np.maximum(np.abs(w).max(axis=1), np.float32(1e-5))
        scale = amax / max_int
        zero = np.zeros_like(scale)
    else:
        max_int, min_int = np.float32(2**bits - 1), np.float32(0)
        high, low = w.max(axis=1), w.min(axis=1)
        scale = np.maximum(high - low, np.float32(1e-5)) / max_int
        zero = np.clip(-np.round(low / scale), min_int, max_int)
    q = np.clip(np.round(w / scale[:, None]) + zero[:, None], min_int, max_int)
    out = (q - zero[:, None]) * scale[:, None]
    return {"codes": q - min_int, "scale": scale, "zero": zero, "out": out}


def main() -> None:
    arrays = {}
    for bits in (2, 3, 4, 8):
        w = matrix(256, range(2**bits))
        arrays[f"w{bits}"] = w
        for name, quantizer in {"gptq": gptq, "awq": awq}.items():
            for sym in (True, False):
                for group in (256, 64):
                    found = quantizer(w.reshape(-1, group), bits, sym)
                    key = f"{name}_b{bits}_{'sym' if sym else 'asym'}_g{group}"
                    found["codes"] = found["codes"].astype(np.uint8)
                    shapes = {"codes": w.shape, "out": w.shape}
                    for k, a in found.items():
                        arrays[f"{key}_{k}"] = a.reshape(shapes.get(k, (len(w), -1)))
    for key, a in arrays.items():
        assert a.dtype in (np.float32, np.uint8), (key, a.dtype)
    # `out` is scale * (codes - zero) by definition: not stored twice.
    arrays = {k: a for k, a in arrays.items() if not k.endswith("_out") or "g64" in k}
    save("originals", arrays, [], {"transcribed": "IST-DASLab/gptq 2d65066, llm-awq d6e797a"})


if __name__ == "__main__":
    main()
