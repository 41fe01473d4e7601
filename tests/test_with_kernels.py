"""A model with packed weights computes what the model it was made of computes."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qlab
from qlab.evaluation.memory import size
from qlab.kernels import Packed
from qlab.models import linears, quantize_model, with_kernels
from qlab.models.generate import generate_tokens
from qlab.qtensor import quantize
from qlab.specs import SPECS
from tests.models_for_tests import CONFIG, random_model

MODEL = random_model()
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 320, (2, 9)), jnp.int32)


def quantized(spec, **how):
    return quantize_model(MODEL, "rtn", spec, progress=False, **how)


@pytest.mark.parametrize("spec", ["int4_g64", "awq_g32", "int8_channel", "nf4"])
def test_logits_are_those_of_the_dense_model(spec):
    spec = qlab.specs.awq(4, 32) if spec == "awq_g32" else SPECS[spec]
    q = quantized(spec)
    packed = with_kernels(q)
    assert all(isinstance(layer.weight, Packed) for layer in linears(packed).values())
    np.testing.assert_allclose(packed(TOKENS), q(TOKENS), rtol=2e-4, atol=2e-4)
    assert packed.report is q.report and packed.notes == q.notes
    close = with_kernels(q, "bfloat16")(TOKENS)
    off = jnp.linalg.norm(close - q(TOKENS)) / jnp.linalg.norm(q(TOKENS))
    assert 1e-5 < float(off) < 0.1  # rounded, and not by much


def test_integers_stay_exact():
    q = quantized("int8_channel", act="int8_token")
    np.testing.assert_allclose(with_kernels(q)(TOKENS), q(TOKENS), rtol=2e-4, atol=2e-4)
    for_gpu = with_kernels(q, target="cuda")
    assert all(layer.weight.turned for layer in linears(for_gpu).values())
    np.testing.assert_array_equal(for_gpu(TOKENS), with_kernels(q)(TOKENS))
    weight_only = with_kernels(quantized("int8_channel"), target="cuda")
    assert not any(layer.weight.turned for layer in linears(weight_only).values())
    with pytest.raises(ValueError, match="weights are packed for any or cuda"):
        with_kernels(q, target="tpu")


def test_deepseeks_tiles_are_packed():
    """128×128 blocks of weights, 1×128 floored tiles of inputs."""
    config = dataclasses.replace(CONFIG, hidden_size=128, intermediate_size=128, head_dim=32)
    q = quantize_model(random_model(config), "rtn", "fp8_block", act="fp8_tile", progress=False)
    packed = with_kernels(q)
    assert all(isinstance(layer.weight, Packed) for layer in linears(packed).values())
    np.testing.assert_allclose(packed(TOKENS), q(TOKENS), rtol=2e-4, atol=2e-4)


def test_generates_the_same_text_and_fills_less_memory():
    q = quantized("int4_g64")
    packed = with_kernels(q)
    ids = MODEL.tokenizer.encode("the cat")
    assert list(generate_tokens(packed, ids, 8)) == list(generate_tokens(q, ids, 8))
    assert size(packed).linears.bytes_memory < 0.6 * size(q).linears.bytes_memory
    assert size(packed).linears.bits_per_weight == pytest.approx(4.25)


def test_a_quantized_embedding_becomes_a_packed_head():
    q = quantized("int8_channel")
    q.embed_tokens.weight = quantize(q.embed_tokens.weight, SPECS["q8_0"])
    packed = with_kernels(q)
    assert isinstance(packed.lm_head.weight, Packed) and q.lm_head is None
    np.testing.assert_allclose(packed(TOKENS), q(TOKENS), rtol=2e-4, atol=2e-4)
    ids = MODEL.tokenizer.encode("the")
    assert list(generate_tokens(packed, ids, 4)) == list(generate_tokens(q, ids, 4))


def test_what_stays_is_said():
    q = quantized({"*.q_proj": "mxfp6_e2m3", "*": "int4_g64"})
    with pytest.warns(UserWarning, match="2 linears stay as they are"):
        packed = with_kernels(q)
    assert [note for note in packed.notes if "layers.1.self_attn.q_proj (no kernel reads" in note]
    np.testing.assert_allclose(packed(TOKENS), q(TOKENS), rtol=2e-4, atol=2e-4)
    with pytest.raises(ValueError, match="no linear can be packed; layers.0.self_attn.q_proj"):
        with_kernels(MODEL)


def test_packed_models_are_not_saved(tmp_path):
    with pytest.raises(ValueError, match="save the model that was packed"):
        qlab.save(with_kernels(quantized("int4_g64")), tmp_path / "folder")


def test_runs_under_jit_without_a_warning():
    packed = with_kernels(quantized("int4_g64"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = jax.jit(lambda model, tokens: model(tokens))(packed, TOKENS)
    np.testing.assert_allclose(y, packed(TOKENS), rtol=1e-4, atol=1e-4)


def test_the_whole_model_has_the_bits_of_its_qtensors():
    q = quantized("int4_g64")
    bits = [size(model).whole.bits_per_weight for model in (with_kernels(q), q)]
    assert bits[0] == pytest.approx(bits[1], rel=1e-6)


def test_a_model_in_training_is_converted_first(tmp_path):
    prepared = qlab.models.prepare(MODEL, "int4_g64")
    with pytest.raises(ValueError, match=r"convert\(model\)"):
        with_kernels(prepared)
    with pytest.raises(ValueError, match=r"convert\(model\)"):
        qlab.save(prepared, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_bits_that_grow_are_told():
    q = quantized("int2_g64")
    (note,) = set(with_kernels(q).notes) - set(q.notes)
    assert note.startswith("packed in 4.25 bits a weight, not 2.25")
