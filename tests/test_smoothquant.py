"""SmoothQuant: llm-compressor's scales and its smoothed model, the paper's balance at α = ½, and a
predicted error that finds the α which the measured error finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlab.activations import ACTS, act_matmul
from qlab.methods import METHODS, gptq
from qlab.methods.smoothquant import (
    ALPHAS,
    LEVELS,
    losses,
    search_losses,
    smoothquant,
    smoothquant_scales,
)
from qlab.models.calibrate import calibrate
from qlab.models.load import load
from qlab.models.surgery import get, linears
from qlab.models.taps import layer_inputs
from qlab.models.transformer import Config, Transformer
from qlab.observers import static
from qlab.qtensor import dequantize, quantize
from qlab.specs import SPECS
from qlab.stats import Stats
from tests.test_golden import Vectors

RNG = np.random.default_rng(0)
X = RNG.standard_normal((400, 64)).astype(np.float32)
X[:, [5, 40]] *= 60
W = (RNG.standard_normal((48, 64)) / 8).astype(np.float32)
STATS = Stats.from_inputs(jnp.asarray(X))


@pytest.fixture(scope="module")
def golden() -> Vectors:
    return Vectors("smoothquant")


# ---- llm-compressor ------------------------------------------------------------------------------


def test_scales_are_llm_compressors(golden):
    """Theirs are of ranges, twice ours for inputs and weights alike: 2^(2α − 1) times, one factor
    for all channels. `pow` of two libraries differs in the last bits. A column of zero weights has
    no scale in the paper; there theirs is the range, ours as if max|w| were 10⁻⁵ (as the authors'
    program), and nothing depends on it."""
    weights = [jnp.asarray(golden[f"w{i}"]) for i in range(3)]
    nothing = np.flatnonzero((np.concatenate(weights) == 0).all(0))
    assert nothing.tolist() == [20]
    for alpha in golden.meta["alphas"]:
        ours = np.asarray(smoothquant_scales(jnp.asarray(golden["amax"]), weights, alpha))
        assert np.isfinite(ours).all() and ours.min() >= np.float32(1e-5)
        theirs = golden[f"scales_{alpha}"]
        floor = (theirs <= 1e-5) | (ours <= np.float32(1e-5))
        # the dead channel, and at α = 1 one of max|x| = 10⁻⁶
        assert np.flatnonzero(floor).tolist() == ([9] if alpha else []) + [10] * (alpha == 1)
        same = np.setdiff1d(np.arange(64), [*nothing, *np.flatnonzero(floor)])
        np.testing.assert_allclose(ours[same] * 2 ** (2 * alpha - 1), theirs[same], rtol=3e-6)


def theirs(golden: Vectors, when: str) -> Transformer:
    """The golden file's Llama: every tensor of `when` that it holds, the others from before."""
    config = dict(golden.meta["config"])
    model = Transformer.init(Config(**config), jax.random.key(0))

    def leaf(keys, old):
        path = "model." + jax.tree_util.keystr(keys, simple=True, separator=".")
        name = f"{when}.{path}"
        new = golden[name if name in golden else f"before.{path}"]
        assert new.shape == old.shape
        return jnp.asarray(new)

    return jax.tree_util.tree_map_with_path(leaf, model)


def test_a_smoothed_model_is_llm_compressors(golden):
    """From tokens to folded weights: what calibration saw, eq. 4, gains / s and columns · s."""
    before, after = theirs(golden, "before"), theirs(golden, "after")
    logits = before(jnp.asarray(golden["tokens"]))
    np.testing.assert_allclose(logits, golden["logits"], rtol=1e-3, atol=1e-4)
    stats, alpha = calibrate(before, golden["tokens"]), golden.meta["model_alpha"]
    for i, (block, smoothed) in enumerate(zip(before.layers, after.layers)):
        for feed in block.FEEDS:
            if "layernorm" not in feed.feeder:  # v -> o and up -> down are not smoothed
                for path in feed.consumers:
                    old = get(block, path).weight
                    np.testing.assert_array_equal(get(smoothed, path).weight, old)
                continue
            seen = stats[f"layers.{i}.{feed.consumers[0]}"]
            weights = [get(block, path).weight for path in feed.consumers]
            s = smoothquant_scales((seen.max - seen.min) / 2, weights, alpha) * 2 ** (2 * alpha - 1)
            gain = get(block, feed.feeder).weight / s
            np.testing.assert_allclose(get(smoothed, feed.feeder).weight, gain, rtol=2e-4)
            for path, w in zip(feed.consumers, weights):
                np.testing.assert_allclose(get(smoothed, path).weight, w * s, rtol=2e-4)


# ---- the mathematics -----------------------------------------------------------------------------


def test_at_one_half_inputs_and_weights_are_equally_large():
    others = (RNG.standard_normal((16, 64)) / 4).astype(np.float32)
    s = np.asarray(smoothquant_scales(STATS.amax, [jnp.asarray(W), jnp.asarray(others)]))
    of_x = np.abs(X / s).max(0)
    of_w = np.maximum(np.abs(W * s).max(0), np.abs(others * s).max(0))
    np.testing.assert_allclose(of_x, of_w, rtol=1e-5)


def test_the_ends_of_alpha():
    at_one = smoothquant_scales(STATS.amax, jnp.asarray(W), 1.0)
    np.testing.assert_allclose(at_one, STATS.amax, rtol=1e-6)
    at_zero = smoothquant_scales(STATS.amax, jnp.asarray(W), 0.0)
    np.testing.assert_allclose(at_zero, 1 / np.abs(W).max(0), rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.85, 1.0, "search"])
def test_without_a_quantizer_nothing_changes(alpha):
    """The QTensor of weights that are not rounded stands for the weights themselves: (W s) / s."""
    seen = {}

    def keep(w, stats, spec):
        seen["w"], seen["stats"] = w, stats
        return quantize(w, spec)

    q = smoothquant(jnp.asarray(W), STATS, SPECS["int8_channel"], alpha=alpha, quantizer=keep)
    s = np.asarray(q.channel_scale)
    np.testing.assert_allclose(seen["w"], W * s, rtol=1e-6)
    y = (X / s) @ np.asarray(seen["w"]).T
    np.testing.assert_allclose(y, X @ W.T, rtol=1e-5, atol=1e-5 * np.abs(X @ W.T).max())
    # and the quantizer was given the Stats of the divided inputs
    want = Stats.from_inputs(jnp.asarray(X / s))
    np.testing.assert_allclose(seen["stats"].hessian, want.hessian, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(seen["stats"].amax, want.amax, rtol=1e-5)
    # weights are those of W again after `dequantize`
    np.testing.assert_allclose(dequantize(q), W, atol=np.abs(W * s).max() / 127 / s.min())


def test_dead_channels_and_zero_weights():
    x, w = X.copy(), W.copy()
    x[:, 3], w[:, 7] = 0.0, 0.0
    x[:, 9], w[:, 9] = 0.0, 0.0
    stats = Stats.from_inputs(jnp.asarray(x))
    for spec in ("int8_tensor", "int4_g64", "mxfp4", "nf4"):
        for alpha in (0.0, 0.5, 1.0, "search"):
            q, facts = smoothquant.with_facts(jnp.asarray(w), stats, SPECS[spec], alpha=alpha)
            assert np.isfinite(dequantize(q)).all() and np.isfinite(q.channel_scale).all()
            assert facts["dead"] == 2


def test_composition_with_gptq():
    """SmoothQuant, then GPTQ on the Stats of x / s: less error than rounding the same weights."""
    spec = SPECS["int4_channel"]
    x = X @ (np.eye(64) + 0.3 * RNG.standard_normal((64, 64))).astype(np.float32)
    stats = Stats.from_inputs(jnp.asarray(x))

    def error(q):
        return np.linalg.norm(x @ (np.asarray(dequantize(q)) - W).T)

    rounded = smoothquant(jnp.asarray(W), stats, spec)
    corrected = smoothquant(jnp.asarray(W), stats, spec, quantizer=gptq)
    np.testing.assert_array_equal(rounded.channel_scale, corrected.channel_scale)
    assert error(corrected) < 0.8 * error(rounded)


def test_outliers_no_longer_hurt_int8_inputs():
    """W8A8 with one scale for all inputs: the paper's point, and its levels in their order."""
    y = X.astype(np.float64) @ W.T

    def error(level, smooth):
        weights, inputs = LEVELS[level]
        w = jnp.asarray(W)
        q = smoothquant(w, STATS, SPECS[weights]) if smooth else quantize(w, SPECS[weights])
        act = ACTS[inputs]
        if act.static:
            seen = STATS.divided(q.channel_scale) if smooth else STATS
            act = act.with_ranges(static(seen, act.spec))
        got = act_matmul(jnp.asarray(X), q, act)
        return np.linalg.norm(np.asarray(got) - y) / np.linalg.norm(y)

    naive = {level: error(level, False) for level in LEVELS}
    smooth = {level: error(level, True) for level in LEVELS}
    assert all(smooth[level] < naive[level] / 2 for level in ("O2", "O3"))
    assert smooth["O1"] < smooth["O2"] <= smooth["O3"] * 1.01


# ---- the search ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layers():
    """Inputs and weights of some linears of the bundled model."""
    model = load("tiny")
    tokens = np.asarray(model.tokenizer.encode("The quick brown fox, and a lazy dog. " * 60))
    inputs = layer_inputs(model, tokens[: 4 * 128].reshape(4, 128))
    found = list(linears(model).items())
    return {path: (inputs[path], layer.weight) for path, layer in found[:: len(found) // 6]}


def measured(x, w, stats, spec, alpha) -> float:
    """E‖x̂ Ŵᵀ − x Wᵀ‖² with static int8 inputs: real integer arithmetic on the inputs themselves."""
    s = smoothquant_scales(stats.amax, w, alpha)
    q = quantize(w * s, spec).replace(channel_scale=s)
    act = ACTS["int8_static"]
    act = act.with_ranges(static(stats.divided(s), act.spec))
    y = jnp.matmul(x, w.T, precision=jax.lax.Precision.HIGHEST)
    return float(((act_matmul(x, q, act) - y) ** 2).sum(-1).mean())


@pytest.mark.parametrize("spec", ["int8_tensor", "int8_channel", "int4_channel"])
def test_the_alpha_found_is_the_best_measured(layers, spec):
    """On real inputs: within a step of the grid of the α of least measured error, or within 5 % of
    that error."""
    spec = SPECS[spec]
    assert len(layers) >= 6
    for path, (x, w) in layers.items():
        stats = Stats.from_inputs(x)
        alphas, parts = search_losses([w], stats, [spec])
        predicted = np.asarray(parts.sum(1))
        real = np.array([measured(x, w, stats, spec, a) for a in alphas])
        found, best = int(predicted.argmin()), int(real.argmin())
        assert abs(found - best) <= 1 or real[found] <= 1.05 * real[best], path
        assert 0.8 < np.min(predicted / real) and np.max(predicted / real) < 1.3, path
        q, facts = smoothquant.with_facts(w, stats, spec, alpha="search")
        assert facts["ratio"] == alphas[found]
        np.testing.assert_array_equal(
            q.channel_scale, smoothquant_scales(stats.amax, w, alphas[found])
        )


def test_many_consumers_share_one_curve():
    """Their errors add: the curve of two linears is the sum of the curves at the shared scales."""
    a, b, spec = jnp.asarray(W), jnp.asarray(W[::-1] * 3), SPECS["int8_channel"]
    alphas, together = search_losses([a, b], STATS, [spec, spec])
    np.testing.assert_array_equal(alphas, ALPHAS)
    scales = jnp.stack([smoothquant_scales(STATS.amax, [a, b], x) for x in alphas])
    apart = losses((a,), STATS, (spec,), scales) + losses((b,), STATS, (spec,), scales)
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-9)


def test_compiled_and_strict():
    run = lambda w, stats: smoothquant(w, stats, SPECS["int8_channel"], alpha=0.7)  # noqa: E731
    with jax.numpy_dtype_promotion("strict"):
        eager = run(jnp.asarray(W), STATS)
        searched = smoothquant(jnp.asarray(W), STATS, SPECS["int8_channel"], alpha="search")
    for a, b in zip(jax.tree.leaves(eager), jax.tree.leaves(jax.jit(run)(jnp.asarray(W), STATS))):
        np.testing.assert_array_equal(a, b)
    assert searched.shape == W.shape
    half = smoothquant(jnp.asarray(W, jnp.bfloat16), STATS, SPECS["int8_channel"])
    assert half.channel_scale.dtype == jnp.float32


def test_levels_name_what_exists():
    assert list(LEVELS) == ["O1", "O2", "O3"]
    for weights, inputs in LEVELS.values():
        assert weights in SPECS and inputs in ACTS
    assert METHODS.get("smoothquant", smoothquant) is smoothquant


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: smoothquant(jnp.asarray(W), None, SPECS["int8_channel"]), "needs Stats"),
        (lambda: smoothquant(jnp.asarray(W[:, :60]), STATS, SPECS["int8_channel"]), "60 columns"),
        (
            lambda: smoothquant(jnp.asarray(W), STATS, SPECS["int8_channel"], alpha="best"),
            "'best' is no number",
        ),
        (lambda: smoothquant(jnp.asarray(W), STATS, SPECS["int8_channel"], alpha=1.5), "alpha 1.5"),
        (lambda: smoothquant_scales(STATS.amax, jnp.asarray(W), -0.1), "alpha -0.1"),
        (lambda: smoothquant_scales(STATS.amax[:60], jnp.asarray(W)), r"\(60,\).*\(48, 64\)"),
        (
            lambda: smoothquant(jnp.asarray(W), STATS, SPECS["int8_channel"], quantizer="gptq"),
            "quantizer 'gptq' is no method",
        ),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
