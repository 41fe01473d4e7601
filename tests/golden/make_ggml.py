"""ggml: the bytes that its C quantizers write for every type, with and without importance.

Needs llama-cpp-python built for plain x86-64, whose libggml-base.so is compiled without -mfma:
CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON". Codebook types are only
decoded: random bytes, with a half-precision scale of ordinary size where the block has one.
"""

import numpy as np
from common import SEED, matrix, save
from libggml import GGML, TYPES, find

COLUMNS = 1024
# Codebook type -> bytes of a block; its scale is the first two, IQ1_M's is spread over the last 8.
CODEBOOKS = {
    "IQ1_S": 50, "IQ1_M": 56, "IQ2_XXS": 66, "IQ2_XS": 74, "IQ2_S": 82, "IQ3_XXS": 98, "IQ3_S": 110,
}  # fmt: skip


def weights() -> np.ndarray:
    """(24, COLUMNS): `matrix`, numbers whose squares overflow, and two ordinary rows more."""
    rng = np.random.default_rng(SEED + 3)
    more = np.stack([
        1e30 * rng.standard_normal(COLUMNS),
        rng.standard_t(4, COLUMNS),
        np.where(np.arange(COLUMNS) % 16 == 3, 1.0, 0.0),  # one spike a sub-block
        rng.integers(-8, 8, COLUMNS) / 2,  # scales fit exactly: many candidates tie
    ])  # fmt: skip
    return np.concatenate([matrix(COLUMNS, range(-8, 8)), more.astype(np.float32)])


def importances() -> dict[str, np.ndarray | None]:
    """Of every kind; "holes" has a whole super-block of zeros, and sums exactly in any order."""
    rng = np.random.default_rng(SEED + 4)
    holes = 2.0 ** rng.integers(0, 4, COLUMNS)
    holes[::7], holes[256:512] = 0.0, 0.0
    usual = np.exp(1.5 * rng.standard_normal(COLUMNS))
    return {"none": None, "usual": usual.astype(np.float32), "holes": holes.astype(np.float32)}


def main() -> None:
    path = find()
    if path is None:
        raise SystemExit("no libggml-base.so: install llama-cpp-python or set QLAB_GGML")
    ggml, w = GGML(path), weights()
    arrays = {"w": w}
    for kind, importance in importances().items():
        given = importance
        if importance is not None:
            arrays[f"importance_{kind}"] = importance
        if kind == "holes":  # ggml zeroes such super-blocks; qlab raises what is below 10⁻⁶ · mean
            given = np.maximum(importance, importance.mean() * np.float32(1e-6))
        for name in TYPES:
            arrays[f"{name}_{kind}"] = ggml.quantize(w, name, given)
    rng = np.random.default_rng(SEED + 5)
    for name, size in CODEBOOKS.items():
        raw = rng.integers(0, 256, (8, size), dtype=np.uint8)
        if name == "IQ1_M":  # the high nibbles of four 16-bit words: a scale with exponent below 16
            raw[:, 55] = 0x20 | raw[:, 55] & 0x0F
        else:
            raw[:, :2] = rng.normal(size=(8, 1)).astype(np.float16).view(np.uint8)
        arrays[f"{name}_raw"], arrays[f"{name}_out"] = raw, ggml.dequantize(raw, name, 256)
    save("ggml", arrays, ["llama-cpp-python"], {"library": path.name, "columns": COLUMNS})


if __name__ == "__main__":
    main()
