"""Stats: moments, merging in any order, padding, and the output error they imply."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlab.qtensor import dequantize, quantize
from qlab.specs import SPECS
from qlab.stats import EDGES, Stats, output_error

X = np.random.default_rng(0).standard_normal((6, 20, 16)).astype(np.float32)


def close(a: Stats, b: Stats) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=1e-6)


def test_moments():
    s, flat = Stats.from_inputs(jnp.asarray(X)), X.reshape(-1, 16)
    assert (s.tokens, s.sequences) == (120, 6)
    np.testing.assert_allclose(s.hessian, flat.T @ flat / 120, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(s.mean_abs, np.abs(flat).mean(0), rtol=1e-5)
    np.testing.assert_array_equal(s.min, flat.min(0))
    np.testing.assert_array_equal(s.amax, np.abs(flat).max(0))


def test_histogram_counts_magnitudes_of_all_channels():
    x = X * np.exp2(np.linspace(-40, 40, 16)).astype(np.float32)  # some below and above all bins
    x[0, 0] = 0
    want, _ = np.histogram(np.abs(x), np.append(EDGES[:-1], np.inf).astype(np.float64))
    stats = Stats.from_inputs(jnp.asarray(x))
    np.testing.assert_array_equal(stats.histogram, want)
    assert stats.histogram.shape == (512,) and stats.histogram.sum() == x.size
    assert EDGES[0] == 0 and EDGES[8] == 2.0**-31 and EDGES[-1] == 2.0**32
    assert (np.diff(EDGES[9:]) / EDGES[9:-1] <= 1 / 8).all()  # 8 bins an octave


def test_divided_is_the_stats_of_the_divided_inputs():
    """All but the histogram, which cannot be known."""
    c = np.linspace(0.2, 5, 16).astype(np.float32)
    divided = Stats.from_inputs(jnp.asarray(X)).divided(jnp.asarray(c))
    want = Stats.from_inputs(jnp.asarray(X / c))
    assert not divided.histogram.any() and want.histogram.any()
    close(dataclasses.replace(divided, histogram=want.histogram), want)
    np.testing.assert_array_equal(divided.hessian, divided.hessian.T)
    assert np.isinf(Stats.empty(16).divided(jnp.asarray(c)).min).all()


def test_merge_equals_one_pass_in_any_order_and_size():
    whole = Stats.from_inputs(jnp.asarray(X))
    a, b, c = (
        Stats.from_inputs(jnp.asarray(X[i])) for i in (slice(0, 1), slice(1, 4), slice(4, 6))
    )
    close(a.merge(b).merge(c), whole)
    close(c.merge(a.merge(b)), whole)


def test_padding_is_not_seen():
    padded = np.concatenate([X, np.full((6, 5, 16), 99.0, np.float32)], axis=1)
    mask = np.concatenate([np.ones((6, 20), bool), np.zeros((6, 5), bool)], axis=1)
    close(
        Stats.from_inputs(jnp.asarray(padded), jnp.asarray(mask)), Stats.from_inputs(jnp.asarray(X))
    )
    empty = Stats.from_inputs(jnp.asarray(X), jnp.zeros((6, 20), bool))
    assert empty.tokens == 0 and np.isfinite(empty.hessian).all()
    merged = empty.merge(Stats.from_inputs(jnp.asarray(X)))
    np.testing.assert_allclose(merged.hessian, Stats.from_inputs(jnp.asarray(X)).hessian, rtol=1e-5)


def test_dead_channels():
    x = X.copy()
    x[..., 3] = 0
    assert np.flatnonzero(Stats.from_inputs(jnp.asarray(x)).dead).tolist() == [3]


def test_output_error_is_the_error_of_the_output():
    w = jnp.asarray(np.random.default_rng(1).standard_normal((8, 64)), jnp.float32)
    x = np.random.default_rng(2).standard_normal((300, 64)).astype(np.float32) * np.linspace(
        0.1, 3, 64
    )
    w_hat = dequantize(quantize(w, SPECS["int4_g64"]))
    y, y_hat = x @ np.asarray(w).T, x @ np.asarray(w_hat).T
    want = np.linalg.norm(y - y_hat) / np.linalg.norm(y)
    stats = Stats.from_inputs(jnp.asarray(x, jnp.float32))
    assert float(output_error(w, w_hat, stats)) == pytest.approx(want, rel=1e-3)
    assert float(output_error(w, w, stats)) == 0
    assert float(output_error(jnp.zeros_like(w), jnp.zeros_like(w), stats)) == 0


def test_stats_shard():
    """Merging under `lax.scan`, as a sharded or streamed calibration does."""
    parts = jax.vmap(Stats.from_inputs)(jnp.asarray(X))
    first = jax.tree.map(lambda leaf: leaf[0], parts)
    rest = jax.tree.map(lambda leaf: leaf[1:], parts)
    total, _ = jax.lax.scan(lambda a, b: (a.merge(b), None), first, rest)
    close(total, Stats.from_inputs(jnp.asarray(X)))


def narrow():
    return Stats.from_inputs(jnp.ones((2, 5)))


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: Stats.from_inputs(jnp.zeros(4)), "not .4,"),
        (lambda: Stats.from_inputs(jnp.zeros((0, 4))), "not .0, 4"),
        (lambda: Stats.from_inputs(jnp.zeros((2, 4)), jnp.ones((3,))), "mask of shape .3,"),
        (lambda: Stats.from_inputs(jnp.ones((2, 4))).merge(narrow()), "4 channels .* 5"),
        (lambda: narrow().divided(jnp.ones(4)), "5 channels .* .4,"),
        (lambda: output_error(jnp.ones((2, 4)), jnp.ones((2, 4)), narrow()), "5 channels"),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_nothing_seen_yet():
    """What others are merged to; sequences that are all padding do not count."""
    once = Stats.from_inputs(jnp.asarray(X))
    for a, b in zip(
        jax.tree.leaves(Stats.empty(16).merge(once)), jax.tree.leaves(once), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    mask = np.ones((6, 20), bool)
    mask[4:] = False
    mask[3, 10:] = False
    partly = Stats.from_inputs(jnp.asarray(X), jnp.asarray(mask))
    assert (partly.sequences, partly.tokens) == (4, 70)
