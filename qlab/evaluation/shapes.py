"""The shapes of published models: what memory and speed follow from.

Parameters, active parameters and the bytes of a token in the KV cache are computed from the shape;
`SHAPES` says where each was published, and which copy of that its numbers were compared with. Not
here: bits (`mixtures`), machines (`machines`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from qlab.models.transformer import Config, Transformer
from qlab.suggest import near


@dataclasses.dataclass(frozen=True)
class Shape:
    """A decoder's shape.

    Attributes:
        name: as it is asked for.
        layers, hidden, ffn, heads, kv_heads, head_dim, vocab: as a hub's `config.json` has them;
            `ffn` is one expert's where there are `experts`.
        tied: one table is embedding and head. bias: q, k and v add a vector.
        experts, used: in all, and by one token, of a mixture of experts.
        mla: (kv_lora_rank, qk_rope_head_dim) of latent attention, which keeps only these.
        total, active_total: parameters where the shape does not tell them; 0: it does.
        longest: tokens it was made for.
        like: another's name, whose bits per weight are taken where this one's tensors are not
            known; "": they are.
        source: where it was published, and with which public copy it was compared.
    """

    name: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    longest: int
    tied: bool = False
    bias: bool = False
    experts: int = 1
    used: int = 1
    mla: tuple[int, int] | None = None
    total: float = 0
    active_total: float = 0
    like: str = ""
    source: str = ""

    @property
    def table(self) -> int:
        """Weights of one embedding table."""
        return self.vocab * self.hidden

    @property
    def attention(self) -> dict[str, tuple[int, int]]:
        """kind -> (weights, columns) of a layer's attention matrices."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        q, kv = (self.hidden * wide, self.hidden), (self.hidden * narrow, self.hidden)
        return {"q": q, "k": kv, "v": kv, "o": (self.hidden * wide, wide)}

    @property
    def mlp(self) -> dict[str, tuple[int, int]]:
        """kind -> (weights, columns) of a layer's MLP matrices, all experts together."""
        one = self.experts * self.hidden * self.ffn
        return {"gate": (one, self.hidden), "up": (one, self.hidden), "down": (one, self.ffn)}

    @property
    def vectors(self) -> int:
        """Weights that stay float32: norms, biases, routers."""
        layer = 2 * self.hidden
        layer += (self.heads + 2 * self.kv_heads) * self.head_dim if self.bias else 0
        layer += self.hidden * self.experts if self.experts > 1 else 0
        return self.layers * layer + self.hidden

    @property
    def linears(self) -> int:
        """Weights in the matrices of the blocks."""
        parts = (*self.attention.values(), *self.mlp.values())
        return self.layers * sum(count for count, _ in parts)

    @property
    def params(self) -> float:
        """All parameters."""
        tables = self.table * (1 if self.tied else 2)
        return self.total or self.linears + tables + self.vectors

    @property
    def active(self) -> float:
        """Parameters that one token meets."""
        if self.active_total or self.experts == 1:
            return self.active_total or self.params
        idle = sum(count for count, _ in self.mlp.values()) * (1 - self.used / self.experts)
        return self.params - self.layers * idle

    @property
    def cached(self) -> int:
        """Numbers that one token keeps in the KV cache."""
        if self.mla:
            return self.layers * sum(self.mla)
        return 2 * self.layers * self.kv_heads * self.head_dim


def _llama(
    name: str, layers: int, hidden: int, ffn: int, heads: int, copy: str, **more: Any
) -> Shape:
    """Llama 3: 8 key-value heads, 128,256 tokens, made for 131,072."""
    source = f"meta-llama config.json; arXiv 2407.21783; compared with {copy}"
    more = {"head_dim": 128, "source": source, **more}
    return Shape(name, layers, hidden, ffn, heads, 8, vocab=128_256, longest=131_072, **more)


def _qwen(
    name: str, layers: int, hidden: int, ffn: int, heads: int, copy: str, **more: Any
) -> Shape:
    """Qwen 2.5 of 7 billion and more: biases, 152,064 tokens; made for 32,768 without YaRN, as the
    config.json of the Instruct models says (those of the base models say 131,072).
    """
    more = {"kv_heads": 8, "vocab": 152_064, "longest": 32_768, "bias": True, **more}
    source = f"Qwen config.json; arXiv 2412.15115; compared with {copy}"
    return Shape(name, layers, hidden, ffn, heads, head_dim=128, source=source, **more)


# Copies of config.json files that others keep in public; `hf` is huggingface.co.
_PROF = "github.com/citsjtu2020/LLM-Prof, sglang/Model_Config.md"
_THUNDER = "github.com/kevinstephano/thunder_model_blocks, hf_llama/llama_config.py"

_DEEPSEEK: dict[str, Any] = {
    "layers": 61,
    "hidden": 7168,
    "ffn": 18_432,
    "heads": 128,
    "kv_heads": 128,
    "head_dim": 128,
    "vocab": 129_280,
    "longest": 163_840,
    "mla": (512, 64),
    "total": 671e9,
    "active_total": 37e9,
    "like": "llama-3.1-405b",
}  # the sums of parameters: README_WEIGHTS.md of DeepSeek-V3 (its 37 billion are 36.6)
_R1 = "compared with hf OPEA/DeepSeek-R1-int4-gptq-sym-inc"  # fmt: skip
_ALL = (
    Shape("smollm2-135m", 30, 576, 1536, 9, 3, 64, 49_152, 8192, tied=True,
          source="HuggingFaceTB/SmolLM2-135M config.json; compared with "
          "hf rajrin/SmolLM2-FT-MyDataset"),
    _llama("llama-3.2-1b", 16, 2048, 8192, 32, _THUNDER, head_dim=64, tied=True),
    _llama("llama-3.2-3b", 28, 3072, 8192, 24, _PROF, tied=True),
    _qwen("qwen2.5-3b", 36, 2048, 11_008, 16, _PROF, kv_heads=2, vocab=151_936, tied=True),
    Shape("llama-2-7b", 32, 4096, 11_008, 32, 32, 128, 32_000, 4096,
          source="meta-llama config.json; arXiv 2307.09288; compared with "
          "hf TheBloke/Llama-2-7B-fp16"),
    Shape("mistral-7b", 32, 4096, 14_336, 32, 8, 128, 32_768, 32_768,
          source="mistralai/Mistral-7B-v0.3 config.json; compared with hf unsloth/mistral-7b-v0.3"),
    _qwen("qwen2.5-7b", 28, 3584, 18_944, 28, _PROF + "; hf osllmai-community/Qwen2.5-7B-Instruct",
          kv_heads=4),
    _llama("llama-3.1-8b", 32, 4096, 14_336, 32, _PROF),
    Shape("qwen3-8b", 36, 4096, 12_288, 32, 8, 128, 151_936, 40_960,
          source="Qwen/Qwen3-8B config.json; compared with " + _PROF),
    _qwen("qwen2.5-14b", 48, 5120, 13_824, 40, _PROF + " (but for its 32,768)"),
    Shape("qwen3-30b-a3b", 48, 2048, 768, 32, 4, 128, 151_936, 40_960, experts=128, used=8,
          source="Qwen/Qwen3-30B-A3B config.json; compared with " + _PROF),
    _qwen("qwen2.5-32b", 64, 5120, 27_648, 40, _PROF + " (but for its 32,768)"),
    _llama("llama-3.1-70b", 80, 8192, 28_672, 64, "hf mlabonne/Llama-3.1-70B-Instruct-lorablated"),
    _qwen("qwen2.5-72b", 80, 8192, 29_568, 64, "hf OPEA/Qwen2.5-72B-Instruct-int4-sym-inc"),
    # It was first published with 16 key-value heads, each of 8 twice; so say older copies.
    _llama("llama-3.1-405b", 126, 16_384, 53_248, 128, "hf uiuc-convai/CoALM-405B"),
    Shape("deepseek-v3", **_DEEPSEEK, source=f"deepseek-ai config.json; arXiv 2412.19437; {_R1}"),
    Shape("deepseek-r1", **_DEEPSEEK, source=f"deepseek-ai config.json; arXiv 2501.12948; {_R1}"),
)  # fmt: skip
SHAPES = {shape.name: shape for shape in _ALL}
# Whose shape a mere size is given: grouped-query attention, one model for each size.
TYPICAL = (
    "smollm2-135m", "llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b", "qwen2.5-14b", "qwen2.5-32b",
    "llama-3.1-70b", "llama-3.1-405b",
)  # fmt: skip
_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
LEAST, MOST = 1e6, 1e14  # parameters that a size may name


def shape_of(model: Any) -> Shape:
    """The shape of a loaded model, of a known name, or of a size such as "70B" or 70e9.

    A size gets the layers and heads of the published model nearest to it; `like` names it.

    Raises:
        ValueError: an unknown name, a size that is none, or a model that llama.cpp's mixtures do
            not know.

    Example:
        >>> f"{shape_of('llama-3.1-8b').params:,}", shape_of("13B").like
        ('8,030,261,248', 'qwen2.5-14b')
    """
    if isinstance(model, Shape):
        return model
    if isinstance(model, Transformer):
        return _of_config(model)
    if isinstance(model, str) and model.lower() in SHAPES:
        return SHAPES[model.lower()]
    return _of_size(_size(model))


def _size(model: Any) -> float:
    if isinstance(model, (int, float)) and not isinstance(model, bool):
        size = float(model)
    else:
        found = re.fullmatch(r"\s*([\d.,_]+)\s*([kmbt]?)\s*", str(model).lower())
        digits = found[1].replace(",", "").replace("_", "") if found else ""
        if not found or digits.count(".") > 1 or not digits.strip("."):
            raise ValueError(
                f"no model is called {str(model)!r:.60} (a size such as '70B' and a loaded model "
                f"will do too): {near(model, SHAPES)}"
            )
        size = float(digits) * _UNITS[found[2]]
    if not LEAST <= size <= MOST:
        raise ValueError(f"a model of {size:g} parameters: give {LEAST:g} to {MOST:g}, or '70B'")
    return size


def _of_size(size: float) -> Shape:
    kin = min((SHAPES[name] for name in TYPICAL), key=lambda s: abs(math.log(s.params / size)))
    name = f"{size / 1e9:g}B" if size >= 1e9 else f"{size / 1e6:g}M"
    return dataclasses.replace(kin, name=name, total=size, active_total=size, like=kin.name)


def _of_config(model: Transformer) -> Shape:
    c = model.config
    if not isinstance(c, Config):
        raise ValueError(f"the model's type is {c.model_type!r}; advice is for the Llama family")
    return Shape(
        model.name or "the model", c.num_hidden_layers, c.hidden_size, c.intermediate_size,
        c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.vocab_size,
        c.max_position_embeddings, c.tie_word_embeddings, c.attention_bias,
        source="its own config",
    )  # fmt: skip
