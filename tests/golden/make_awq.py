"""AWQ by GPTQModel, the maintained descendant of AutoAWQ: scales, losses, thresholds.

Needs torch==2.13.0 (CPU build) and gptqmodel==7.4.0. The searches of its `AWQProcessor`
are called by themselves, on linears that share an input, and on the attention and MLP of a small
random Llama with shared key-value heads. Its symmetric grids and zero points are AWQ's own.

It keeps the weights by `.cpu()`, which on a CPU is the very tensor it then changes in place: every
ratio after the first would start from rounded weights. Here `.cpu()` makes a copy.
"""

import itertools
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import torch
import transformers
from common import SEED, save

# gptqmodel imports torchvision for picture models, and its builds do not fit a CPU torch.
for name in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional"):
    sys.modules[name] = MagicMock()

from gptqmodel.looper.awq_processor import AWQProcessor  # noqa: E402

moved = torch.Tensor.cpu
torch.Tensor.cpu = lambda tensor, *how: moved(tensor, *how).clone()

ROWS, COLUMNS, TOKENS = (128, 64), 128, 256
SETTINGS = list(itertools.product((4, 3, 2), (32, 128), (False, True), (False, True)))
LLAMA = {
    "vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "tie_word_embeddings": True,
}  # fmt: skip


class Search(AWQProcessor):
    """The searches of a processor without a model to load, remembering every loss."""

    def __init__(self, bits, group, sym, duo, rotary=None):
        self.qcfg = SimpleNamespace(
            bits=bits, group_size=group, sym=sym, scale_search_chunked_activations=False
        )
        self.duo_scaling, self.max_chunk_memory = duo, 2**30
        self._scale_context, self.gptq_model = SimpleNamespace(), SimpleNamespace()
        self._quant_batch_size, self.rotary, self.losses = None, rotary, []

    def _get_root_rotary(self):
        return self.rotary

    def _get_rotary_for_device(self, target_device):
        return self.rotary

    def _compute_loss(self, *given):
        self.losses.append(super()._compute_loss(*given))
        return self.losses[-1]


class Together(torch.nn.Module):
    """Linears that read the same input, their outputs side by side."""

    def __init__(self, layers):
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)

    def forward(self, x):
        return torch.cat([layer(x) for layer in self.layers], dim=-1)


def linear(w: np.ndarray) -> torch.nn.Linear:
    layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(w.copy())
    return layer


def inputs() -> tuple[np.ndarray, list[np.ndarray]]:
    """x with a few loud channels and one that is dead; weights of two linears."""
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((TOKENS, COLUMNS)) * np.exp(rng.standard_normal(COLUMNS))
    x[:, [5, 77]] *= 30
    x[:, 9] = 0.0
    weights = [rng.standard_t(5, (n, COLUMNS)) * 0.05 for n in ROWS]
    return x.astype(np.float32), [w.astype(np.float32) for w in weights]


def layers() -> dict[str, np.ndarray]:
    """Every setting on the two linears; thresholds of the first, on its scaled weights."""
    x, weights = inputs()
    arrays = {"x": x, **{f"w{i}": w for i, w in enumerate(weights)}}
    for bits, group, sym, duo in SETTINGS:
        found = [linear(w) for w in weights]
        whole = Together(found)
        search = Search(bits, group, sym, duo)
        _, _, scale, _ = search._search_best_scale(
            whole, found[0], found, torch.from_numpy(x), module2inspect=whole
        )
        key = f"b{bits}_g{group}_{'sym' if sym else 'asym'}_{'duo' if duo else 'plain'}"
        arrays[f"{key}_losses"] = np.array(search.losses, np.float64)
        arrays[f"{key}_scale"] = scale.numpy()
        scaled = torch.from_numpy(weights[0]) * scale
        thresholds = search._compute_best_clip(scaled, torch.from_numpy(x) / scale)
        arrays[f"{key}_clip"] = thresholds.squeeze(-1).numpy()
    return arrays


def blocks() -> dict[str, np.ndarray]:
    """The real objective: attention for q, k, v and the MLP for gate, up."""
    torch.manual_seed(SEED)
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)).eval()
    for name, p in llama.named_parameters():
        p.data = 1 + 0.2 * torch.randn_like(p) if "norm" in name else 0.15 * torch.randn_like(p)
        if "layernorm" in name:
            p.data[[3, 40]] *= 20
    tokens = torch.randint(0, LLAMA["vocab_size"], (3, 24))
    block, read = llama.model.layers[0], {}
    attention, mlp = block.self_attn, block.mlp
    for name, module in {"attention": attention.q_proj, "mlp": mlp.gate_proj}.items():
        module.register_forward_pre_hook(lambda _, given, name=name: read.update({name: given[0]}))
    with torch.no_grad():
        llama(tokens)
    arrays = {k: v.numpy() for k, v in llama.state_dict().items() if k != "lm_head.weight"}
    arrays["tokens"] = tokens.numpy().astype(np.int32)
    wanted = {
        "attention": (attention, [attention.q_proj, attention.k_proj, attention.v_proj]),
        "mlp": (mlp, [mlp.gate_proj, mlp.up_proj]),
    }
    for name, (whole, found) in wanted.items():
        search = Search(3, 32, False, False, llama.model.rotary_emb)
        kwargs = {"attention_mask": None} if name == "attention" else {}
        _, _, scale, _ = search._search_best_scale(
            whole, found[0], found, read[name], module2inspect=whole, kwargs=kwargs
        )
        arrays[f"{name}_losses"] = np.array(search.losses, np.float64)
        arrays[f"{name}_scale"] = scale.numpy()
    return arrays


def main() -> None:
    torch.set_num_threads(1)
    flags = {"n_grid": 20, "max_shrink": 0.5, "settings": SETTINGS, "llama": LLAMA}
    with torch.no_grad():
        arrays = layers() | blocks()
    save("awq", arrays, ["gptqmodel", "torch", "transformers"], flags)


if __name__ == "__main__":
    main()
