"""Surgery: linears by hub path, new models that leave the old one alone, channels rescaled for
nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from qlab.models.channels import dither, feeders, grid_study, scale_channels, with_outliers
from qlab.models.surgery import dense, linears, map_linears
from qlab.models.transformer import Linear
from qlab.qtensor import QTensor, dequantize, quantize
from qlab.specs import SPECS
from tests.models_for_tests import CONFIG, random_model, tokens_for, with_biases


def largest_change(a, b) -> float:
    """Largest difference of logits in units of their standard deviation."""
    tokens = tokens_for(a, 2, 32)
    x, y = np.asarray(a(tokens)), np.asarray(b(tokens))
    return float(np.abs(x - y).max() / x.std())


def test_linears_in_forward_order():
    paths = list(linears(random_model()))
    assert paths[:7] == [
        "layers.0.self_attn.q_proj",
        "layers.0.self_attn.k_proj",
        "layers.0.self_attn.v_proj",
        "layers.0.self_attn.o_proj",
        "layers.0.mlp.gate_proj",
        "layers.0.mlp.up_proj",
        "layers.0.mlp.down_proj",
    ]
    assert len(paths) == 14


def test_map_linears_makes_a_new_model_and_meets_every_path_once():
    model, seen = random_model(dataclasses.replace(CONFIG, tie_word_embeddings=False)), []

    def halve(path, layer):
        seen.append(path)
        return Linear(layer.weight / 2, layer.bias)

    new = map_linears(model, halve)
    assert sorted(seen) == sorted(linears(model))  # the head is not among them
    for path, layer in linears(model).items():
        np.testing.assert_array_equal(layer.weight / 2, linears(new)[path].weight)
    assert largest_change(model, new) > 0.01


def test_dense_keeps_the_function_bit_for_bit():
    model = random_model()
    spec = SPECS["int4_g64"]
    q = map_linears(model, lambda _, layer: Linear(quantize(layer.weight, spec), layer.bias))
    d = dense(q)
    assert not any(isinstance(layer.weight, QTensor) for layer in linears(d).values())
    assert any(isinstance(layer.weight, QTensor) for layer in linears(q).values())
    for path, layer in linears(q).items():
        np.testing.assert_array_equal(dequantize(layer.weight), linears(d)[path].weight)
    np.testing.assert_array_equal(q(tokens_for(q)), d(tokens_for(q)))
    assert jax.tree.structure(d) == jax.tree.structure(model)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("biases", [False, True])
def test_dither_keeps_the_function_and_moves_every_weight(kv_heads, biases):
    model = random_model(dataclasses.replace(CONFIG, num_key_value_heads=kv_heads))
    model = with_biases(model) if biases else model
    new = dither(model, seed=1)
    assert largest_change(model, new) < 3e-5
    for path, layer in linears(model).items():
        ratio = np.asarray(linears(new)[path].weight) / np.asarray(layer.weight)
        assert (ratio != 1).mean() > 0.99
        assert 0.05 < np.log(ratio).std() < 0.2  # σ 0.1 of few channels; rows of v, up too
    assert new.label is model.label


def test_dither_is_seeded():
    weight = lambda seed: linears(dither(random_model(), seed))["layers.1.mlp.up_proj"].weight  # noqa: E731
    np.testing.assert_array_equal(weight(3), weight(3))
    assert (np.asarray(weight(3)) != np.asarray(weight(4))).mean() > 0.99


def test_a_wrong_fold_would_be_seen():
    """The function test can fail: dividing v's rows in the order of query heads is no fold."""
    model = random_model()
    path = "layers.0.self_attn.v_proj"
    c = np.exp(np.random.default_rng(0).normal(0, 0.1, feeders(model)[path]))
    broken = scale_channels(model, {path: c})
    v = broken.layers[0].self_attn.v_proj
    v.weight = v.weight * c[:, None] / c[::-1, None]
    assert largest_change(model, broken) > 1e-3


def test_outliers_keep_the_function_and_show_in_activations():
    model = random_model()
    new = with_outliers(model, seed=0)
    assert largest_change(model, new) < 3e-5
    for block, old in zip(new.layers, model.layers, strict=True):
        gain = np.asarray(block.input_layernorm.weight) / np.asarray(old.input_layernorm.weight)
        assert sorted(gain.round(3))[-2:] == [1.0, 50.0]
        column = int(gain.argmax())
        w, before = (np.asarray(b.self_attn.q_proj.weight)[:, column] for b in (block, old))
        np.testing.assert_allclose(w, before / 50, rtol=1e-6)


def test_scale_channels_says_what_is_wrong():
    model = random_model()
    with pytest.raises(ValueError, match="'layers.0.self_attn.q_proj' feeds no linear"):
        scale_channels(model, {"layers.0.self_attn.q_proj": np.ones(64)})
    with pytest.raises(ValueError, match=r"has 64 channels, its factor \(3,\)"):
        scale_channels(model, {"layers.0.input_layernorm": np.ones(3)})


def test_grid_study_sees_a_grid():
    """Weights on a 4-bit grid: rounding them to 4 bits costs nothing, to 5 bits something; the
    dither takes that away."""
    spec = SPECS["q4_1"]
    on_grid = map_linears(
        random_model(), lambda _, x: Linear(dequantize(quantize(x.weight, spec)), x.bias)
    )
    rows = grid_study(on_grid, dither(on_grid), bits=[4, 5], every=1)
    four, five = rows
    assert four["as stored"] < 1e-3 < 0.03 < five["as stored"]
    for row in rows:
        assert row["dithered"] == pytest.approx(row["gaussian"], rel=0.1)
