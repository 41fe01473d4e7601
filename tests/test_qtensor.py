"""Spec and QTensor: one path for every format; what later methods lean on is tested here
already.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.formats import DYNAMIC8, E8M0, FP4, FP8, INT4, INT8, NF4, TERNARY, TERNARY2, UINT4, UINT6
from qlab.qtensor import (
    QTensor,
    Spec,
    bits_per_weight,
    block_sizes,
    dequantize,
    fake_quantize,
    fit,
    quantize,
    spread,
    to_blocks,
)
from qlab.rules import absmax, gptq_asym, gptq_sym, hqq_minmax, minmax0
from qlab.specs import SPECS

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


# ---- blocks ----


@settings(max_examples=12)  # every shape is compiled anew
@given(st.integers(1, 9), st.integers(1, 12), st.integers(1, 5), st.integers(1, 7))
def test_blocks_and_spread_are_inverse(rows, cols, r, c):
    w = np.arange(rows * cols, dtype=np.float32).reshape(rows, cols)
    sizes = block_sizes((r, c), w.shape)
    blocks = np.asarray(to_blocks(jnp.asarray(w), sizes))
    for i in range(-(-rows // r)):
        for j in range(-(-cols // c)):
            tile = w[i * r : (i + 1) * r, j * c : (j + 1) * c]
            assert set(tile.ravel()) == set(blocks[i, j])  # edges repeat, nothing else appears
    ids = np.asarray(
        spread(jnp.arange(blocks[..., 0].size).reshape(blocks.shape[:2]), sizes, w.shape)
    )
    want = (np.arange(rows)[:, None] // r) * (-(-cols // c)) + np.arange(cols) // c
    np.testing.assert_array_equal(ids, want)


def test_block_words():
    assert block_sizes("tensor", (4, 6)) == (4, 6)
    assert block_sizes("row", (4, 6)) == (1, 6)
    assert block_sizes(3, (4, 6)) == (1, 3)
    assert block_sizes((2, 3), (4, 6)) == (2, 3)
    assert block_sizes(3, (6,)) == (3,)


# ---- formula, by plain numpy ----


def test_symmetric_groups_by_hand():
    w = np.asarray(normal(8, 64))
    q = quantize(jnp.asarray(w), Spec(INT4, 16, "float32"))
    groups = w.reshape(8, 4, 16)
    scale = np.abs(groups).max(-1) / np.float32(7)
    codes = np.clip(np.round(groups / scale[..., None]), -8, 7)
    np.testing.assert_array_equal(q.scale, scale)
    np.testing.assert_array_equal(np.asarray(q.codes).astype(int) - 8, codes.reshape(8, 64))
    np.testing.assert_array_equal(dequantize(q), (codes * scale[..., None]).reshape(8, 64))


def test_integer_zero_rounds_before_it_adds_and_real_zero_after():
    w = normal(4, 32)
    integer = quantize(w, Spec(UINT4, 32, zero=UINT4, rule=gptq_asym))
    z = np.asarray(UINT4.decode(integer.zero.codes)).reshape(4, 1)
    want = np.clip(np.round(np.asarray(w) / np.asarray(integer.scale)) + z, 0, 15)
    np.testing.assert_array_equal(integer.codes, want)
    real = quantize(w, Spec(UINT4, 32, zero="float32", rule=hqq_minmax))
    want = np.clip(np.round(np.asarray(w) / np.asarray(real.scale) + np.asarray(real.zero)), 0, 15)
    np.testing.assert_array_equal(real.codes, want)
    want = (want - np.asarray(real.zero)) * np.asarray(real.scale)
    np.testing.assert_array_equal(dequantize(real), want.astype(np.float32))


def test_gptq_symmetric_rule_on_an_all_positive_row():
    """s = max / 15 and z = 8: the row clips at 7/15 of its maximum, as the original does."""
    w = jnp.linspace(0.1, 1.5, 128)[None]
    q = quantize(w, SPECS["gptq4_sym"])
    assert float(q.scale[0, 0]) == np.float32(1.5) / np.float32(15)
    assert int(q.codes.max()) == 15 and float(dequantize(q).max()) == pytest.approx(0.7)
    mirrored = quantize(w.at[0, 0].set(-0.1), SPECS["gptq4_sym"])
    assert float(mirrored.scale[0, 0]) == np.float32(3.0) / np.float32(15)


def test_minima_of_k_quants_carry_their_sign_in_the_super_scale():
    w = normal(2, 512) + 0.5
    q = quantize(w, SPECS["q4_k"])
    assert isinstance(q.offset, QTensor) and q.offset.codes.shape == (2 * 512 // 32,)
    assert (np.asarray(q.offset.scale) <= 0).all() and (np.asarray(q.scale.scale) > 0).all()
    assert (np.asarray(dequantize(q.offset)) <= 0).all()
    assert q.offset.codes.max() == 63  # the largest minimum uses the last code


@pytest.mark.parametrize("columns", [4096, 576])
def test_double_quantization_of_a_row(columns):
    """bitsandbytes' nested absmax: 64 scales, or 9 (a block shorter than 256), less their mean, in
    8 bits.
    """
    w = normal(1, columns)
    q = quantize(w, SPECS["nf4_double"])
    absmax_ = np.abs(np.asarray(w)).reshape(-1, 64).max(-1)
    mean = absmax_.mean()
    np.testing.assert_allclose(q.scale.offset, mean, rtol=1e-6)
    np.testing.assert_allclose(q.scale.scale, [np.abs(absmax_ - mean).max()], rtol=1e-5)
    error = np.abs(np.asarray(dequantize(q.scale)) - absmax_)
    assert error.max() < 0.01 * absmax_.max()
    assert bits_per_weight(q) == pytest.approx(4 + 8 / 64 + 64 / columns)


@pytest.mark.parametrize("shape", [(256, 384), (200, 300), (1, 130), (129, 1)])
def test_fp8_tiles_on_ragged_shapes(shape):
    w = normal(*shape)
    q = quantize(w, SPECS["fp8_block"])
    assert q.scale.shape == (-(-shape[0] // 128), -(-shape[1] // 128))
    for i in range(q.scale.shape[0]):
        for j in range(q.scale.shape[1]):
            tile = np.asarray(w)[i * 128 : (i + 1) * 128, j * 128 : (j + 1) * 128]
            assert float(q.scale[i, j]) == np.abs(tile).max() / np.float32(448)
    error = np.abs(np.asarray(dequantize(q)) - np.asarray(w))
    assert (error <= np.abs(np.asarray(w)) / 16 + 1e-5).all()  # 3 bits; subnormals below 2⁻⁶


def test_ternary_packings_share_a_grid_and_differ_in_bits():
    w = normal(2, 256)
    one, two = quantize(w, SPECS["tq1_0"]), quantize(w, SPECS["tq2_0"])
    np.testing.assert_array_equal(dequantize(one), dequantize(two))
    assert (TERNARY.bits, TERNARY2.bits) == (1.625, 2)
    assert (bits_per_weight(one), bits_per_weight(two)) == (1.6875, 2.0625)


# ---- perm, channel_scale, the three forms ----


@pytest.mark.parametrize("name", ["int4_g64", "q4_k", "nf4_double", "uint4_g64", "fp8_block"])
def test_a_column_order_makes_the_round_trip(name):
    w = normal(4, 512)
    perm = jnp.asarray(RNG.permutation(512))
    q = quantize(w, fit(w[:, perm], SPECS[name]).replace(perm=perm))
    plain = quantize(w[:, perm], SPECS[name])
    np.testing.assert_array_equal(q.codes, plain.codes)  # codes[:, j] is column perm[j]
    np.testing.assert_array_equal(dequantize(q)[:, perm], dequantize(plain))
    assert bits_per_weight(q) == pytest.approx(bits_per_weight(plain) + 32 / 4)


def test_a_channel_scale_is_divided_out_in_the_original_order():
    w = normal(4, 64)
    factor = jnp.exp(normal(64))
    perm = jnp.asarray(RNG.permutation(64))
    ranges = fit((w * factor)[:, perm], SPECS["int8_g128"].replace(block=32))
    q = quantize(w, ranges.replace(perm=perm, channel_scale=factor))
    scaled = quantize((w * factor)[:, perm], ranges)
    np.testing.assert_array_equal(q.codes, scaled.codes)
    want = np.asarray(dequantize(scaled))[:, np.argsort(perm)] / np.asarray(factor)
    np.testing.assert_array_equal(dequantize(q), want)
    error = np.abs(np.asarray(dequantize(q) - w) * np.asarray(factor))
    assert error.max() <= float(q.scale.max()) * 0.501


def test_three_forms_of_the_verb():
    w = normal(4, 64)
    spec = SPECS["int4_g64"]
    by_spec, by_ranges = quantize(w, spec), quantize(w, fit(w, spec))
    np.testing.assert_array_equal(by_spec.codes, by_ranges.codes)
    x = jnp.array([300.0, -300.0, 2.5, 1e9])
    assert quantize(x, jnp.int8).tolist() == [127, -128, 2, 127]
    assert quantize(x, jnp.float16)[3] == 65504
    assert float(quantize(x, jnp.float8_e4m3fn)[3]) == 448
    assert dequantize(quantize(x, FP4)).tolist() == [6, -6, 2, 6]


def test_a_stack_of_qtensors_is_a_qtensor():
    stack = normal(3, 4, 512)
    for name in ("q4_k", "nf4_double", "nvfp4", "fp8_block", "int4_channel"):
        many = jax.vmap(lambda w, name=name: quantize(w, SPECS[name]))(stack)
        one = jax.tree.map(lambda leaf: leaf[1], many)
        np.testing.assert_array_equal(dequantize(one), dequantize(quantize(stack[1], SPECS[name])))
        _, scanned = jax.lax.scan(lambda c, q: (c, dequantize(q)), 0, many)
        np.testing.assert_array_equal(scanned[1], dequantize(one))


def test_fake_quantize_is_the_quantized_value_and_passes_the_gradient():
    w, g = normal(4, 64), normal(4, 64)
    for how in (SPECS["int4_g64"], fit(w, SPECS["nf4"])):
        value, pull = jax.vjp(lambda w, how=how: fake_quantize(w, how), w)
        np.testing.assert_array_equal(value, dequantize(quantize(w, how)))
        np.testing.assert_array_equal(pull(g)[0], g)
    assert jax.grad(lambda w: fake_quantize(w, SPECS["nf4"]).sum())(
        w.astype(jnp.bfloat16)
    ).dtype == (jnp.bfloat16)


def test_gradients_reach_the_ranges():
    q = quantize(normal(4, 64), SPECS["int4_g64"].replace(scale="float32"))
    g = jax.grad(lambda s: dequantize(q.replace(scale=s)).sum())(q.scale)
    want = (np.asarray(q.codes).astype(int) - 8).reshape(4, 1, 64).sum(-1)
    np.testing.assert_allclose(g, want)


# ---- what it costs ----


def test_bits_of_a_tensor_count_everything():
    q = quantize(normal(16, 64), Spec(INT8, "row", "float32"))
    assert bits_per_weight(q) == 8 + 32 / 64
    q = quantize(normal(16, 64), Spec(FP4, 16, Spec(FP8, "tensor", "float32")))
    assert bits_per_weight(q) == 4 + 8 / 16 + 32 / 1024
    assert (
        bits_per_weight(Spec(NF4, 64, Spec(DYNAMIC8, 256, offset="mean")))
        == 4 + 8 / 64 + 32 / 16384
    )
    k = Spec(UINT6, 8, "float16")
    assert bits_per_weight(Spec(UINT4, 32, k, offset=k, rule=minmax0)) == 4.5
    assert bits_per_weight(Spec(FP4, 32, E8M0)) == 4.25


# ---- bad input ----


@pytest.mark.parametrize(
    "call, sentence",
    [
        (
            lambda: quantize(normal(4, 100), SPECS["q8_0"]),
            "last axis 100 is not a multiple of block 32",
        ),
        (lambda: quantize(jnp.ones((4, 64), int), SPECS["nf4"]), "not int32"),
        (lambda: quantize(jnp.ones((0, 64)), SPECS["nf4"]), "holds no weights"),
        (lambda: quantize(jnp.float32(1), SPECS["nf4"]), "0 axes"),
        (lambda: quantize(normal(4), SPECS["fp8_block"]), "1 axes"),
        (lambda: quantize(normal(4, 64).at[1, 2].set(jnp.nan), SPECS["mxfp4"]), "1 NaN and 0 Inf"),
        (lambda: fit(normal(4, 64).at[0, :2].set(-jnp.inf), SPECS["nf4"]), "0 NaN and 2 Inf"),
        (lambda: dequantize(fit(normal(4, 64), SPECS["nf4"])), "no codes"),
        (
            lambda: quantize(normal(4, 64), Spec(INT4, zero="float32", rule=absmax)),
            "'absmax' finds none",
        ),
        (lambda: Spec(INT4, 0), "block 0"),
        (lambda: Spec(INT4, "column"), "'column'"),
        (lambda: Spec(INT4, scale="float64"), "'float64'"),
        (lambda: Spec(INT4, zero=INT4, offset="float32"), "exclude each other"),
        (lambda: Spec(NF4, zero=UINT4), "integer format"),
        (lambda: Spec(UINT4, zero=Spec(UINT4)), "not as a Spec"),
        (lambda: qlab.explain("int4_g46"), "did you mean 'int4_g64'"),
        (lambda: qlab.specs.gptq(9), "not 9"),
        (lambda: Spec("int44"), "FORMATS..INT4.."),
        (lambda: quantize(normal(4, 64), "int4_g64"), "a named Spec is SPECS"),
        (lambda: dequantize(normal(4, 64)), "takes a QTensor"),
        (lambda: bits_per_weight("nf4"), "not str"),
        (lambda: qlab.explain(5), "not int"),
    ],
)
def test_bad_input_gets_one_clear_sentence(call, sentence):
    with pytest.raises(ValueError, match="(?s)" + sentence.replace("(", r"\(")) as error:
        call()
    assert "\n" not in str(error.value)


def test_specs_are_static_hashable_and_equal_by_value():
    assert Spec(INT4, 128, "float16") == SPECS["int4_g128"]
    assert Spec(INT4, 128, jnp.float16) == SPECS["int4_g128"]
    assert hash(Spec(INT4, 128, "float16")) == hash(SPECS["int4_g128"])
    assert SPECS["int4_g128"].replace(rule=gptq_sym) != SPECS["int4_g128"]
    leaves, tree = jax.tree.flatten(quantize(normal(4, 64), SPECS["nf4"]))
    assert len(leaves) == 2 and isinstance(jax.tree.unflatten(tree, leaves), QTensor)
