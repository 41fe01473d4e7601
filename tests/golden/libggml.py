"""ggml's own C functions through ctypes: `libggml-base.so` of llama-cpp-python needs no model.

The library is found in the installed package llama_cpp, or at the path in QLAB_GGML: an x86-64
build without -mfma, since fused multiply-adds change bytes.
"""

import ctypes
import importlib.util
import os
from pathlib import Path

import numpy as np

# Numbers of the types: enum ggml_type of ggml.h.
TYPES = {
    "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11,
    "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "BF16": 30, "TQ1_0": 34,
    "TQ2_0": 35, "MXFP4": 39, "NVFP4": 40,
}  # fmt: skip


def find(path: str | None = None) -> Path | None:
    """The library at `path`, at QLAB_GGML, or in llama_cpp; None where there is none."""
    path = path or os.environ.get("QLAB_GGML")
    if path is None:
        spec = importlib.util.find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            return None
        path = str(Path(spec.origin).parent / "lib" / "libggml-base.so")
    return Path(path) if Path(path).is_file() else None


class GGML:
    """The two functions that are compared."""

    def __init__(self, path: Path):
        self.lib, pointer, size = ctypes.CDLL(str(path)), ctypes.c_void_p, ctypes.c_int64
        self.lib.ggml_row_size.restype = self.lib.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.lib.ggml_row_size.argtypes = [ctypes.c_int, size]
        arguments = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
        self.lib.ggml_quantize_chunk.argtypes = arguments

    def quantize(self, w: np.ndarray, name: str, importance: np.ndarray | None = None):
        """float32 (rows, cols) -> uint8 (rows, bytes)."""
        w = np.ascontiguousarray(w, np.float32)
        out = np.zeros((len(w), self.lib.ggml_row_size(TYPES[name], w.shape[1])), np.uint8)
        weights = None
        if importance is not None:
            importance = np.ascontiguousarray(importance, np.float32)
            assert importance.shape == w.shape[1:]
            weights = importance.ctypes.data
        self.lib.ggml_quantize_chunk(
            TYPES[name], w.ctypes.data, out.ctypes.data, 0, *w.shape, weights
        )
        return out

    def dequantize(self, raw: np.ndarray, name: str, size: int) -> np.ndarray:
        """uint8 (blocks, bytes) -> float32 (blocks, size)."""
        function = getattr(self.lib, f"dequantize_row_{name.lower().replace('_k', '_K')}")
        function.argtypes, function.restype = [ctypes.c_void_p] * 2 + [ctypes.c_int64], None
        raw, out = np.ascontiguousarray(raw), np.empty((len(raw), size), np.float32)
        function(raw.ctypes.data, out.ctypes.data, out.size)
        return out
