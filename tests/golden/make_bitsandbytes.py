"""bitsandbytes: NF4 and FP4 in blocks of 64, double quantization, the dynamic 8-bit map.

Needs torch (CPU build) and bitsandbytes. Codes are unpacked here: the first element of a byte is
its high nibble.
"""

import bitsandbytes.functional as F
import numpy as np
import torch
from common import SEED, extremes, matrix, save


def unpack(packed: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
    flat = packed.numpy().reshape(-1)
    return np.stack([flat >> 4, flat & 15], axis=1).reshape(shape)


def quantize(w: np.ndarray, kind: str, double: bool) -> dict[str, np.ndarray]:
    packed, state = F.quantize_4bit(
        torch.from_numpy(w), blocksize=64, quant_type=kind, compress_statistics=double
    )
    found = {"w": w, "codes": unpack(packed, w.shape), "absmax": state.absmax.numpy()}
    if double:
        found["nested_absmax"] = state.state2.absmax.numpy()
        found["offset"] = state.offset.numpy().reshape(())
    found["out"] = F.dequantize_4bit(packed, state).numpy()
    return found


def main() -> None:
    torch.set_num_threads(1)
    arrays = {"dynamic_map": F.create_dynamic_map().numpy()}
    for kind in ("nf4", "fp4"):
        levels = F.get_4bit_type(kind, device="cpu").numpy()
        arrays[f"{kind}_levels"] = levels
        found = quantize(matrix(512, levels), kind, double=False)
        arrays |= {f"{kind}_{k}": a for k, a in found.items()}
        edge = extremes([1, 0.5, 448, 1e-20], 64)
        arrays |= {f"extremes_{kind}_{k}": a for k, a in quantize(edge, kind, double=False).items()}
    rng = np.random.default_rng(SEED + 1)
    # 64 scales, 9 scales (one short block of the 256), 512 scales (two blocks of 256).
    for name, shape in {"row4096": (1, 4096), "row576": (1, 576), "square": (32, 1024)}.items():
        w = rng.standard_t(4, shape) * 0.02 * np.exp(rng.normal(size=(shape[0], 1)))
        if name == "square":
            w[3], w[7, :128], w[9] = 0.0, 0.0, 0.05
        found = quantize(w.astype(np.float32), "nf4", double=True)
        arrays |= {f"double_{name}_{k}": a for k, a in found.items()}
    save("bitsandbytes", arrays, ["bitsandbytes", "torch"], {"blocksize": 64, "threads": 1})


if __name__ == "__main__":
    main()
