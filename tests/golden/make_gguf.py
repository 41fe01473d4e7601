"""gguf: the numbers of random blocks of every type, and blocks of the types it can write.

Needs gguf (numpy only). Its `dequantize` equals ggml's C functions bit for bit. Random bytes are
any bytes, except that half-precision fields are finite and of ordinary size, NVFP4's scales are
numbers, and TQ2_0 holds trits.
"""

import gguf
import numpy as np
from common import SEED, matrix, save
from gguf.quants import dequantize, quantize

BLOCKS = 16
# Where a block keeps its half-precision numbers: byte offsets.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "IQ4_NL": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_XS": [0], "TQ1_0": [52], "TQ2_0": [64], "MXFP4": [], "NVFP4": [],
}  # fmt: skip
WRITTEN = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4"]


def random_blocks(name: str, rng: np.random.Generator) -> np.ndarray:
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    raw = rng.integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    for at in HALVES[name]:
        half = rng.normal(size=(BLOCKS, 1)).astype(np.float16)
        half[0], half[1], half[2] = 0.0, 6e-8, -60000.0  # zero, smallest subnormal, very large
        raw[:, at : at + 2] = half.view(np.uint8)
    if name == "MXFP4":
        raw[:, 0] = rng.integers(1, 250, BLOCKS)
        raw[0, 0] = 0  # 2^-127 for the halved values: subnormal, and zero to XLA
    if name == "NVFP4":
        raw[:, :4] = rng.integers(0, 0x7F, (BLOCKS, 4))
    if name == "TQ2_0":
        raw[:, :64] = rng.integers(0, 3, (BLOCKS, 64, 4)) @ np.array([1, 4, 16, 64])
    return raw


def main() -> None:
    rng = np.random.default_rng(SEED + 2)
    arrays = {}
    for name in HALVES:
        raw = random_blocks(name, rng)
        arrays[f"{name}_raw"] = raw
        with np.errstate(over="ignore"):
            arrays[f"{name}_out"] = dequantize(raw, gguf.GGMLQuantizationType[name])
    w = matrix(256, range(-8, 8), tiny=1e-3)
    w[7] /= 1e3  # within half precision
    arrays["w"] = w
    for name in WRITTEN:
        kind = gguf.GGMLQuantizationType[name]
        arrays[f"{name}_written"] = quantize(w, kind)
        arrays[f"{name}_written_out"] = dequantize(arrays[f"{name}_written"], kind)
    save("gguf", arrays, ["gguf"], {"blocks": BLOCKS})


if __name__ == "__main__":
    main()
