"""torchao: MXFP4 in four scale modes, MXFP6, MXFP8, NVFP4 under a tensor's scale, scaled FP8.

Needs torch (CPU build) and torchao. FP4 codes are unpacked here: the first element of a byte is
its low nibble. FP8 blocks are 128 × 128. The 1 × 128 tiles of DeepSeek-V3 have no peer on a CPU:
the three steps of its inference/kernel.py are written in torch, whose cast is the independent part.
"""

import ml_dtypes
import numpy as np
import torch
from common import extremes, matrix, save, ties
from torchao.prototype.mx_formats.mx_tensor import DTYPE_FP6_E2M3, DTYPE_FP6_E3M2, MXTensor
from torchao.prototype.mx_formats.mx_tensor import ScaleCalculationMode as Mode
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
from torchao.quantization.quant_primitives import (
    _choose_scale_float8,
    _dequantize_affine_float8,
    _quantize_affine_float8,
)

FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
MX_ELEMENTS = {
    "mxfp4": torch.float4_e2m1fn_x2,
    "mxfp8": torch.float8_e4m3fn,
    "mxfp8_e5m2": torch.float8_e5m2,
    "mxfp6_e2m3": DTYPE_FP6_E2M3,
    "mxfp6_e3m2": DTYPE_FP6_E3M2,
}


ML_DTYPES = {
    "mxfp8": ml_dtypes.float8_e4m3fn,
    "mxfp8_e5m2": ml_dtypes.float8_e5m2,
    "mxfp6_e2m3": ml_dtypes.float6_e2m3fn,
    "mxfp6_e3m2": ml_dtypes.float6_e3m2fn,
}


def levels(name: str) -> np.ndarray:
    """The positive finite values of an MX element."""
    dtype = ML_DTYPES[name]
    codes = np.arange(2 ** (ml_dtypes.finfo(dtype).bits - 1), dtype=np.uint8)
    values = codes.view(dtype).astype(np.float32)
    return values[np.isfinite(values)]


def codes_of(data: torch.Tensor, columns: int) -> np.ndarray:
    raw = data.view(torch.uint8).numpy()
    if raw.shape[-1] == columns:
        return raw
    return np.stack([raw & 15, raw >> 4], axis=-1).reshape(*raw.shape[:-1], columns)


def mx(w: torch.Tensor, element, mode: Mode) -> dict[str, np.ndarray]:
    t = MXTensor.to_mx(w, element, 32, scaling_mode=mode)
    return {
        "codes": codes_of(t.qdata, w.shape[-1]),
        "scale": t.scale.view(torch.uint8).numpy(),
        "out": t.dequantize(torch.float32).numpy(),
    }


def nvfp4(w: torch.Tensor) -> dict[str, np.ndarray]:
    tensor_scale = per_tensor_amax_to_scale(w.abs().max())
    t = NVFP4Tensor.to_nvfp4(w, 16, per_tensor_scale=tensor_scale)
    return {
        "w": w.numpy(),
        "codes": codes_of(t.qdata, w.shape[-1]),
        "scale": t.scale.view(torch.uint8).numpy(),
        "tensor_scale": tensor_scale.numpy().reshape(()),
        "out": t.dequantize(torch.float32).numpy(),
    }


def fp8(w: torch.Tensor, block: list[int], dtype=torch.float8_e4m3fn) -> dict[str, np.ndarray]:
    scale = _choose_scale_float8(w, block, dtype)
    q = _quantize_affine_float8(w, scale, dtype)
    return {
        "codes": q.view(torch.uint8).numpy(),
        "scale": scale.numpy(),
        "out": _dequantize_affine_float8(q, scale, torch.float32).numpy(),
    }


def tiles(x: torch.Tensor) -> dict[str, np.ndarray]:
    """Activations as DeepSeek-V3 casts them: every 128 of a token by max(amax, 1e-4) / 448."""
    parts = x.reshape(len(x), -1, 128)
    scale = parts.abs().amax(dim=-1).clamp(min=1e-4) / 448.0
    q = (parts / scale[..., None]).to(torch.float8_e4m3fn)
    return {
        "codes": q.view(torch.uint8).reshape(x.shape).numpy(),
        "scale": scale.numpy(),
        "out": (q.float() * scale[..., None]).reshape(x.shape).numpy(),
    }


def edges(cases: dict) -> dict[str, np.ndarray]:
    """Where scales change, ties of every element, rows of their own maxima, tiles."""
    # Where a mode's scale changes: the powers of two, 6 · 2^k, and where "even" rounds up, 7 · 2^k.
    edge = torch.from_numpy(extremes([4, 6, 7, 8, 14, 1.75, 0.875, 6 * 2.0**-100], 32))
    arrays = {"extremes_w": edge.numpy()}
    for name, (element, mode) in cases.items():
        found = mx(edge, MX_ELEMENTS[element], mode)
        arrays |= {f"extremes_{name}_{k}": a for k, a in found.items()}
    for name in ML_DTYPES:
        w = torch.from_numpy(ties(levels(name), 32))
        arrays[f"ties_{name}_w"] = w.numpy()
        arrays |= {f"ties_{name}_{k}": a for k, a in mx(w, MX_ELEMENTS[name], Mode.FLOOR).items()}
    # Rows of their own maxima, ties of E4M3 among them.
    w = torch.from_numpy(ties(levels("mxfp8"), 130, rows=3))
    arrays["fp8_ties_w"] = w.numpy()
    found = fp8(w, [1, w.shape[1]])
    arrays |= {f"fp8_ties_{k}": a for k, a in found.items()}
    x = torch.from_numpy(matrix(256, FP4))
    arrays |= {f"fp8_tile_{k}": a for k, a in tiles(x).items()}
    return arrays


def main() -> None:
    torch.set_num_threads(1)
    w = torch.from_numpy(matrix(256, FP4))
    arrays = {"w": w.numpy()}
    cases = {f"mxfp4_{m.value}": ("mxfp4", m) for m in (Mode.RCEIL, Mode.CEIL, Mode.EVEN)}
    cases |= {name: (name, Mode.FLOOR) for name in MX_ELEMENTS}
    for name, (element, mode) in cases.items():
        arrays |= {f"{name}_{k}": a for k, a in mx(w, MX_ELEMENTS[element], mode).items()}
    # Rows of very different size under one scale: in the first case most blocks are clamped. In
    # "ties" every scale is a power of two, so numbers halfway between levels stay there.
    level = w[12:15].clone()
    level[0, :16] = 2688 / 256
    rows = {"nvfp4_clamped": w, "nvfp4": w[[0, 1, 3, 10, 11, 15, 16, 17]], "nvfp4_ties": level}
    for name, x in rows.items():
        arrays |= {f"{name}_{k}": a for k, a in nvfp4(x.contiguous()).items()}
    even = torch.from_numpy(matrix(256, FP4)[[0, 1, 3, 5, 8, 11, 15, 17]])
    arrays["fp8_w"] = even.numpy()
    for name, block in {"fp8_tensor": [8, 256], "fp8_channel": [1, 256]}.items():
        arrays |= {f"{name}_{k}": a for k, a in fp8(even, block).items()}
    found = fp8(even, [8, 256], torch.float8_e5m2)
    arrays |= {f"fp8_e5m2_tensor_{k}": a for k, a in found.items()}
    # fp8_w over and over, each row in its own size: 256 × 256 without storing it.
    factors = np.exp(np.arange(256) / 99).astype(np.float32)
    arrays["fp8_block_factors"] = factors
    tall = torch.from_numpy(np.tile(even.numpy(), (32, 1)) * factors[:, None])
    found = fp8(tall, [128, 128])
    arrays |= {f"fp8_block_{k}": found[k] for k in ("codes", "scale")}
    arrays |= edges(cases)
    save("torchao", arrays, ["torchao", "torch", "ml_dtypes"], {"threads": 1, "mx_block": 32})


if __name__ == "__main__":
    main()
