"""llm-compressor's SmoothQuantModifier: its scales, and a tiny random Llama before and after.

Needs torch (CPU build), transformers and llmcompressor. It measures inputs by max x - min x and
weights by 2 max|w|: if max|x| is half the range, its scales are the paper's times 2^(2 alpha - 1).
"""

from types import SimpleNamespace

import numpy as np
import torch
from common import SEED, save
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from transformers import LlamaConfig, LlamaForCausalLM

ALPHAS = (0.0, 0.25, 0.5, 0.75, 0.85, 1.0)
LOWEST = 1e-5  # the floor that the modifier puts under its scales
CONFIG = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True,
}  # fmt: skip


def functions() -> dict[str, np.ndarray]:
    """The scales alone: outliers, a dead channel, tiny and huge ones, a weight column of zeros."""
    rng = np.random.default_rng(SEED)
    amax = np.abs(rng.standard_normal(64)).astype(np.float32) + np.float32(0.1)
    amax[[5, 40]] *= 80
    amax[9], amax[10], amax[11] = 0.0, 1e-6, 3e4
    weights = [(rng.standard_normal((n, 64)) * 0.05).astype(np.float32) for n in (48, 16, 16)]
    for w in weights:
        w[:, 20] = 0.0
    layers = []
    for w in weights:
        layer = torch.nn.Linear(64, len(w), bias=False)
        layer.weight.data = torch.from_numpy(w)
        layers.append(layer)
    arrays = {"amax": amax, **{f"w{i}": w for i, w in enumerate(weights)}}
    for alpha in ALPHAS:
        modifier = SmoothQuantModifier(smoothing_strength=alpha)
        with torch.no_grad():
            found = modifier._calculate_smoothing_scales(layers, 2 * torch.from_numpy(amax))
        arrays[f"scales_{alpha}"] = torch.clamp(found, min=LOWEST).numpy()
    return arrays


def model() -> dict[str, np.ndarray]:
    """A whole Llama smoothed at alpha 0.8, with norm gains that make outliers."""
    torch.manual_seed(SEED)
    llama = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    for name, p in llama.named_parameters():
        if name.endswith("layernorm.weight"):
            p.data = 1 + 0.2 * torch.randn_like(p)
            p.data[7] *= 30
        elif p.ndim == 2:
            p.data = 0.1 * torch.randn_like(p)
    tokens = torch.randint(0, CONFIG["vocab_size"], (3, 24))
    arrays = {f"before.{k}": v.numpy().copy() for k, v in llama.state_dict().items()}
    modifier = SmoothQuantModifier(smoothing_strength=0.8)
    state = SimpleNamespace(model=llama, data=SimpleNamespace(calib=tokens))
    with torch.no_grad():
        modifier.on_initialize(state)
        modifier.on_calibration_start(state, None)
        logits = llama(tokens).logits
        modifier.on_sequential_epoch_end(state, None)
        modifier.on_calibration_end(state, None)
        smoothed = llama(tokens).logits
    print("logits moved by", float((smoothed - logits).abs().max() / logits.abs().max()))
    changed = {f"after.{k}": v.numpy() for k, v in llama.state_dict().items()}
    changed = {
        k: v for k, v in changed.items() if (v != arrays[k.replace("after", "before")]).any()
    }
    arrays = {k: v for k, v in arrays.items() if k != "before.lm_head.weight"}
    return arrays | changed | {"tokens": tokens.numpy().astype(np.int32), "logits": logits.numpy()}


def main() -> None:
    torch.set_num_threads(1)
    notes = {"alphas": ALPHAS, "model_alpha": 0.8, "config": CONFIG}
    save("smoothquant", functions() | model(), ["llmcompressor", "torch", "transformers"], notes)


if __name__ == "__main__":
    main()
