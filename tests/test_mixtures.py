"""Mixtures: every tensor gets the type that llama.cpp's own quantizer gave it."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from qlab.io.gguf import TYPES
from qlab.models import mixtures
from qlab.models.mixtures import (
    MIXTURES,
    WRITTEN,
    Layer,
    bits_per_weight,
    fitting,
    more_bits,
    plan,
)

GOLDEN = np.load(Path(__file__).parent / "golden" / "mixtures.npz")
META = json.loads(str(GOLDEN["meta"]))
NUMBERS = {number: name for name, (number, _, _) in TYPES.items()}


def tensors(model: str):
    """[(name, shape, type)] of a golden model."""
    names, shapes, before = (GOLDEN[f"{model}/{key}"] for key in ("names", "shapes", "before"))
    return [
        (str(name), tuple(int(n) for n in shape if n), NUMBERS[int(kind)])
        for name, shape, kind in zip(names, shapes, before, strict=True)
    ]


@pytest.mark.parametrize("model", list(META["configs"]))
def test_types_are_llama_cpps(model):
    config, listed = SimpleNamespace(**META["configs"][model]), tensors(model)
    golden = GOLDEN[f"{model}/types"]
    assert len(golden) >= 18
    for mixture, types in zip(META["mixtures"], golden):
        name, _, imatrix = mixture.partition(" ")
        rows = plan(name, listed, config, importance=bool(imatrix))
        wrong = [
            f"{row.name}: {row.type}, llama.cpp {NUMBERS[int(kind)]}"
            for row, kind in zip(rows, types, strict=True)
            if row.type != NUMBERS[int(kind)]
        ]
        assert not wrong, f"{mixture} of {model}: {wrong[:5]}"


# Planned, not written: llama.cpp's bits for Llama-3.1-8B hold these two (test_advise.py).
PLANNED = ("IQ2_XXS", "IQ2_XS")


def test_every_rule_was_reached():
    """The golden models reach every type that a mixture names, and every kind of fallback."""
    reached, fallbacks = set(), set()
    for model, config in META["configs"].items():
        for mixture in META["mixtures"]:
            name, _, imatrix = mixture.partition(" ")
            rows = plan(name, tensors(model), SimpleNamespace(**config), bool(imatrix))
            reached |= {(name, row.wanted) for row in rows}
            fallbacks |= {(row.wanted, row.type) for row in rows if row.fell_back}
    for name, rules in MIXTURES.items():
        if name in PLANNED:
            continue
        kinds = [*rules.attn_v, *rules.ffn_down, *rules.attn_output]
        for kind in {rules.base, *(kind for _, kind in kinds)} if name != "F32" else ():
            assert (name, kind) in reached
    known = {(a, b) for a, b in mixtures.FALLBACK.items() if a not in PLANNED}
    assert known <= fallbacks and ("Q8_0", "F16") in fallbacks


def test_numbers_are_llama_cpps():
    import gguf as peer

    for name, one in MIXTURES.items():
        enum = peer.LlamaFileType(one.number).name
        assert enum == ("ALL_F32" if name == "F32" else f"MOSTLY_{name}")


def test_smollm2_is_as_known():
    """166 Q5_0, 16 Q4_K, 14 Q6_K, 15 Q8_0: 576 is no multiple of 256."""
    rows = plan("Q4_K_M", tensors("smollm2"), SimpleNamespace(**META["configs"]["smollm2"]))
    counts = {kind: sum(row.type == kind for row in rows) for kind in {row.type for row in rows}}
    assert counts == {"Q5_0": 166, "Q4_K": 16, "Q6_K": 14, "Q8_0": 15, "F32": 61}
    assert bits_per_weight(rows) == pytest.approx(6.17, abs=0.01)
    assert sum(row.fell_back for row in rows) == 180  # what llama.cpp warns of, too


# Real bits a weight of Llama-3.1-8B, tools/quantize/README.md of llama.cpp; with its head of
# 128,256 tokens and its rope_freqs.
PUBLISHED = {"Q2_K": 3.1593, "IQ4_XS": 4.4597, "Q4_K_S": 4.6672, "Q4_K_M": 4.8944,
             "Q5_K_M": 5.7036, "Q6_K": 6.5633, "Q8_0": 8.5008, "F16": 16.0005}  # fmt: skip


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_published_bits_of_llama_8b(name):
    config = SimpleNamespace(num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
    d, ffn, kv, vocab = 4096, 14336, 1024, 128_256
    shapes = {"token_embd.weight": (vocab, d), "output.weight": (vocab, d)}
    shapes |= {"output_norm.weight": (d,), "rope_freqs.weight": (64,)}
    for i in range(32):
        shapes |= {f"blk.{i}.{kind}.weight": shape for kind, shape in (
            ("attn_q", (d, d)), ("attn_k", (kv, d)), ("attn_v", (kv, d)), ("attn_output", (d, d)),
            ("ffn_gate", (ffn, d)), ("ffn_up", (ffn, d)), ("ffn_down", (d, ffn)),
            ("attn_norm", (d,)), ("ffn_norm", (d,)))}  # fmt: skip
    rows = plan(name, [(one, shape, "F32") for one, shape in shapes.items()], config)
    assert bits_per_weight(rows) == pytest.approx(PUBLISHED[name], abs=0.002)


@pytest.mark.parametrize("n", [1, 7, 8, 22, 30, 32, 80])
def test_more_bits(n):
    """The first and last eighth and every third between: about half of all layers."""
    chosen = [i for i in range(n) if more_bits(Layer(i, n, 1, False))]
    expected = [i for i in range(n) if i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2]
    assert chosen == expected and len(chosen) >= n // 3


def test_a_type_that_fits_is_kept():
    assert fitting("IQ4_XS", 288) == "IQ4_NL" and fitting("Q8_0", 48) == "F16"
    assert fitting("F16", 7) == "F16"


def test_refusals():
    config = SimpleNamespace(num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
    with pytest.raises(ValueError, match="'Q4_K_X'; did you mean 'Q4_K"):
        plan("Q4_K_X", [], config)
    for wrong in ("IQ2_XXL", "IQ2_S", "IQ2", "?"):  # what is suggested can be written
        with pytest.raises(ValueError, match=wrong.replace("?", r"\?")) as refused:
            plan(wrong, [], config)
        assert "IQ2_X" not in str(refused.value).split(";")[1]
    assert set(MIXTURES) - set(WRITTEN) == {"IQ2_XXS", "IQ2_XS"}
    with pytest.raises(ValueError, match="'blk.0.ffn_up_exps.weight' belongs to experts"):
        plan("Q4_K_M", [("blk.0.ffn_up_exps.weight", (2, 256, 256), "F32")], config)
