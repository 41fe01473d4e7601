"""The model against its equations written out in numpy, and what jit, caches and labels promise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlab.models.architectures import half_split_rows
from qlab.models.transformer import Label, Linear, Transformer, attend, rotate
from tests.models_for_tests import CONFIG, random_model, tokens_for, with_biases

UNTIED = dataclasses.replace(CONFIG, tie_word_embeddings=False)
ONE_KV = dataclasses.replace(CONFIG, num_key_value_heads=1)
ALL_KV = dataclasses.replace(CONFIG, num_key_value_heads=4)
WIDE = dataclasses.replace(CONFIG, head_dim=32)  # heads · head_dim is not hidden_size
DOUBLE = dataclasses.replace(CONFIG, rms_norm_eps=1e-3, rope_theta=500.0)


def numpy_logits(model: Transformer, tokens) -> np.ndarray:
    """The Llama equations one position and one head at a time, in float64."""
    c = model.config

    def norm(part, x):
        w = np.asarray(part.weight, np.float64)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + c.rms_norm_eps) * w

    def linear(part, x):
        y = x @ np.asarray(part.weight, np.float64).T
        return y if part.bias is None else y + np.asarray(part.bias, np.float64)

    def turn(x, position):  # pair (i, i + d/2) as one complex number
        half = c.head_dim // 2
        angle = position * c.rope_theta ** (-np.arange(half) / half)
        z = (x[:half] + 1j * x[half:]) * np.exp(1j * angle)
        return np.concatenate([z.real, z.imag])

    def attention(part, x):
        time, group = len(x), c.num_attention_heads // c.num_key_value_heads
        q, k, v = (
            linear(getattr(part, name), x).reshape(time, -1, c.head_dim)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        out = np.zeros((time, c.num_attention_heads, c.head_dim))
        for t in range(time):
            for h in range(c.num_attention_heads):
                keys = [turn(k[s, h // group], s) for s in range(t + 1)]
                score = np.array(keys) @ turn(q[t, h], t) / np.sqrt(c.head_dim)
                weight = np.exp(score - score.max())
                out[t, h] = weight / weight.sum() @ v[: t + 1, h // group]
        return linear(part.o_proj, out.reshape(time, -1))

    def mlp(part, x):
        gate = linear(part.gate_proj, x)
        return linear(part.down_proj, gate / (1 + np.exp(-gate)) * linear(part.up_proj, x))

    table = np.asarray(model.embed_tokens.weight, np.float64)
    head = table if model.lm_head is None else np.asarray(model.lm_head.weight, np.float64)
    found = []
    for row in np.asarray(tokens):
        x = table[row]
        for block in model.layers:
            x = x + attention(block.self_attn, norm(block.input_layernorm, x))
            x = x + mlp(block.mlp, norm(block.post_attention_layernorm, x))
        found.append(norm(model.norm, x) @ head.T)
    return np.stack(found)


@pytest.mark.parametrize("config", [CONFIG, UNTIED, ONE_KV, ALL_KV, WIDE, DOUBLE])
def test_equals_the_equations(config):
    model = random_model(config)
    tokens = tokens_for(model, batch=2, time=13)
    ours, expected = np.asarray(model(tokens)), numpy_logits(model, tokens)
    # 40 products of float32 against float64: a few units of 6e-8 each, relative to the spread.
    assert np.abs(ours - expected).max() < 2e-5 * expected.std()


def test_equals_the_equations_with_biases():
    model = with_biases(random_model())
    tokens = tokens_for(model, batch=1, time=9)
    expected = numpy_logits(model, tokens)
    assert np.abs(np.asarray(model(tokens)) - expected).max() < 2e-5 * expected.std()
    without = numpy_logits(random_model(), tokens)
    assert np.abs(expected - without).max() > 0.1 * expected.std()  # biases do matter


def test_causal():
    model = random_model()
    tokens = tokens_for(model, batch=1, time=20)
    changed = tokens.at[0, 12].set((tokens[0, 12] + 1) % model.config.vocab_size)
    a, b = np.asarray(model(tokens)), np.asarray(model(changed))
    np.testing.assert_array_equal(a[:, :12], b[:, :12])
    assert np.abs(a[:, 12:] - b[:, 12:]).max() > 1e-3


def test_cached_steps_equal_the_whole():
    model = random_model()
    tokens = tokens_for(model, batch=2, time=21)
    whole = np.asarray(model.hidden(tokens))
    caches, found = model.caches(2, 32), []
    for start, end in [(0, 8), (8, 9), (9, 10), (10, 21)]:
        hidden, caches = model.step(tokens[:, start:end], jnp.int32(start), caches)
        found.append(np.asarray(hidden))
    np.testing.assert_allclose(np.concatenate(found, 1), whole, rtol=0, atol=2e-5)


@pytest.mark.parametrize("time", [1, 130, 300, 600])
def test_attention_piece_by_piece(time):
    """Long texts go a few queries at a time, without the keys that none of them may see."""
    q, k, v = (
        jax.random.normal(jax.random.key(i), (2, time, n, 8)) for i, n in enumerate((4, 2, 2))
    )
    position = jnp.arange(time)
    allowed = position <= position[:, None]
    found, whole = attend(q, k, v, allowed, causal=True), attend(q, k, v, allowed)
    np.testing.assert_allclose(found, whole, rtol=0, atol=2e-6)
    score = np.einsum("btd,bsd->bts", q[:, :, 3], k[:, :, 1]) / np.sqrt(8)
    weight = np.where(allowed, np.exp(score), 0)
    expected = weight / weight.sum(-1, keepdims=True) @ np.asarray(v[:, :, 1])
    np.testing.assert_allclose(found[:, :, 3], expected, rtol=0, atol=2e-5)


def test_rotation_keeps_lengths_and_sees_only_distance():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def score(i, j):
        a, b = rotate(q, jnp.array([i]), 1e4), rotate(k, jnp.array([j]), 1e4)
        return float(jnp.vdot(a, b)), float(jnp.vdot(a, a))

    assert score(7, 3)[0] == pytest.approx(score(104, 100)[0], abs=1e-4)
    assert score(7, 3)[0] != pytest.approx(score(7, 5)[0], abs=1e-3)
    assert score(7, 3)[1] == pytest.approx(float(jnp.vdot(q, q)), rel=1e-5)


def test_half_split_rows_turns_interleaved_pairs_into_halves():
    """Rotating interleaved rows pairwise, then un-permuting, is rotating the un-permuted rows."""
    heads, d = 3, 8
    x = np.random.default_rng(0).normal(size=(heads * d,))
    order = half_split_rows(heads, heads * d)
    theta = 10_000.0 ** (-np.arange(d // 2) / (d // 2)) * 5  # position 5

    pairs = x.reshape(heads, d // 2, 2)
    z = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * theta)
    interleaved = np.stack([z.real, z.imag], -1).reshape(-1)
    halves = rotate(jnp.asarray(x[order], jnp.float32).reshape(1, 1, heads, d), jnp.array([5]), 1e4)
    np.testing.assert_allclose(interleaved[order], np.asarray(halves).reshape(-1), atol=1e-5)
    assert sorted(order) == list(range(heads * d))


def test_jit_of_the_whole_model_and_gradients():
    model, tokens = random_model(), tokens_for(random_model(), 1, 8)
    jitted = jax.jit(lambda m, t: m(t))(model, tokens)
    np.testing.assert_allclose(np.asarray(jitted), np.asarray(model(tokens)), atol=1e-4)
    grad = jax.grad(lambda m: jnp.mean(m(tokens) ** 2))(model)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grad))


def test_labels_do_not_recompile():
    count = 0

    def run(model, tokens):
        nonlocal count
        count += 1
        return model(tokens)

    jitted, model, tokens = jax.jit(run), random_model(), tokens_for(random_model(), 1, 4)
    jitted(model, tokens)
    other = jax.tree.map(lambda leaf: leaf, model)
    other.label = Label("another name", notes=("a note",))
    jitted(other, tokens)
    assert count == 1 and model.name == "random"


def test_linear_is_where_the_transpose_is():
    layer = Linear(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([10.0]))
    assert layer(jnp.array([[1.0, 0.0, 1.0]])).tolist() == [[14.0]]
