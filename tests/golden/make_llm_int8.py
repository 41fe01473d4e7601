"""bitsandbytes' LLM.int8(): codes and scales of inputs and weights, and the mixed product.

Needs torch (CPU build) and bitsandbytes. Numbers are float16's, because it casts to that. `apart`
has outlier channels that lie beyond the threshold in every token; in `mixed` they do so in some
tokens only, and the scales of the others count them.
"""

import numpy as np
import torch
from bitsandbytes import functional
from common import SEED, save

THRESHOLD = 6.0


def inputs() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(SEED)
    plain = np.clip(rng.standard_normal((24, 96)), -5.5, 5.5).astype(np.float16)
    plain[3] = 0.0
    apart, mixed = plain.copy(), plain.copy()
    sign = np.where(rng.random((24, 2)) < 0.5, -1, 1)
    apart[:, [5, 40]] = (sign * rng.uniform(6, 60, (24, 2))).astype(np.float16)
    apart[0, 5] = THRESHOLD  # at it, not beyond
    mixed[::2, 5] = 30.0
    mixed[1, 5] = 5.9  # no outlier itself, and the largest of its token
    return {"plain": plain, "apart": apart, "mixed": mixed}


def main() -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(SEED + 1)
    w = (rng.standard_normal((40, 96)) * 0.05).astype(np.float16)
    w[7] = np.float16(0.25)
    codes, stats, _ = functional.int8_vectorwise_quant(torch.from_numpy(w.copy()))
    arrays = {"w": w, "w_codes": codes.numpy(), "w_amax": stats.numpy()}
    for name, x in inputs().items():
        a = torch.from_numpy(x.copy())
        q, amax, columns = functional.int8_vectorwise_quant(a, threshold=THRESHOLD)
        columns = torch.empty(0, dtype=torch.int64) if columns is None else columns
        mixed, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(
            a.float(), q, codes, amax, stats, columns
        )
        arrays |= {
            f"{name}_x": x, f"{name}_codes": q.numpy(), f"{name}_amax": amax.numpy(),
            f"{name}_columns": columns.numpy(), f"{name}_out": mixed.numpy(),
        }  # fmt: skip
    save("llm_int8", arrays, ["bitsandbytes", "torch"], {"threshold": THRESHOLD})


if __name__ == "__main__":
    main()
