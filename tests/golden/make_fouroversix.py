"""fouroversix: NVFP4 whose blocks end at 6 or at 4, by its reference in torch, rule "mse".

Needs torch (CPU build) and fouroversix; `pip install --no-deps --no-build-isolation fouroversix`
with SKIP_CUDA_BUILD=1 is enough: the package's own imports, which want transformers, are left out.
Kept are the values in units of the scale, not codes: where E4M3's scales are coarse the reference
does not stop at 6, and a code could not hold what it computed with.
"""

import importlib.util
import sys
import types

import numpy as np
import torch
from common import SEED, matrix, save

FP4 = [0, 0.5, 1, 1.5, 2, 3, 4, 6]


def reference():
    """fouroversix.quantize.pytorch.reference, without what its parents import."""
    place = importlib.util.find_spec("fouroversix").submodule_search_locations[0]
    for name in ("fouroversix", "fouroversix.quantize", "fouroversix.quantize.pytorch"):
        package = types.ModuleType(name)
        package.__path__ = [place + name.removeprefix("fouroversix").replace(".", "/")]
        sys.modules[name] = package
    return importlib.import_module("fouroversix.quantize.pytorch.reference")


def quantize(module, w: np.ndarray) -> dict[str, np.ndarray]:
    values, scale, amax = module.quantize_to_fp4(
        torch.from_numpy(w), pack_values=False, use_blackwell_scale_layout=False
    )
    return {
        "w": w,
        "values": values.to(torch.float16).numpy(),
        "scale": scale.view(torch.uint8).numpy(),
        "amax": amax.numpy().reshape(()),
    }


def main() -> None:
    torch.set_num_threads(1)
    module, rng = reference(), np.random.default_rng(SEED)
    bad = matrix(256, FP4)
    cases = {
        "normal": rng.standard_normal((16, 512)),
        "heavy": rng.standard_t(4, (16, 512)) * 0.05,
        "bad": bad[[0, 1, 3, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17]],
        "large": bad[[6, 7, 3, 4]],  # 1e-30 beside 1e4: most scales become 0
        "zeros": np.zeros((1, 32)),
    }
    arrays = {}
    for name, w in cases.items():
        found = quantize(module, np.ascontiguousarray(w, dtype=np.float32))
        arrays |= {f"{name}_{k}": a for k, a in found.items()}
    save("fouroversix", arrays, ["fouroversix", "torch"], {"rule": "mse", "threads": 1})


if __name__ == "__main__":
    main()
