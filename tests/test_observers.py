"""Observers: ranges read from Stats against the same ranges found on the raw numbers."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlab.activations import ACTS, act_matmul, quantized_inputs
from qlab.formats import FP8, INT4, INT8, NF4, UINT4, UINT8
from qlab.observers import SHRINK, ema, minmax, mse, mse_curve, percentile, static
from qlab.qtensor import Spec, dequantize, fit, quantize
from qlab.rules import gptq_asym
from qlab.specs import SPECS
from qlab.stats import Stats

RNG = np.random.default_rng(0)
SHAPE = (800, 16)
INPUTS = {
    "normal": RNG.standard_normal(SHAPE),
    "uniform": RNG.uniform(-1, 1, SHAPE),
    "laplace": RNG.laplace(size=SHAPE),
    "heavy": RNG.standard_t(2, SHAPE),
    "one-sided": np.abs(RNG.laplace(size=SHAPE)),
    "negative": -np.abs(RNG.laplace(size=SHAPE)),
    "lopsided": RNG.standard_normal(SHAPE) + 2.0,
    "outlier channel": RNG.standard_normal(SHAPE) * np.where(np.arange(16) == 3, 60, 1),
}
INPUTS = {name: x.astype(np.float32) for name, x in INPUTS.items()}
SPECS_SEEN = {
    "int8": Spec(INT8, "tensor"),
    "int4": Spec(INT4, "tensor"),
    "uint8": Spec(UINT8, "tensor", zero=UINT8, rule=gptq_asym),
    "uint4": Spec(UINT4, "tensor", zero=UINT4, rule=gptq_asym),
    "nf4": Spec(NF4, "tensor"),
    "fp8": Spec(FP8, "tensor"),
}


def stats_of(name) -> Stats:
    return Stats.from_inputs(jnp.asarray(INPUTS[name]))


@partial(jax.jit, static_argnames="spec")
def errors_on(x, ranges, spec) -> jax.Array:
    """E(x − x̂)² measured: the numbers themselves, rounded in each of the ranges (n, 2)."""

    def one(ends):
        return jnp.mean((x - dequantize(quantize(x, fit(ends[None], spec)))) ** 2)

    return jax.lax.map(one, ranges)


def error_on(x, ends, spec) -> float:
    return float(errors_on(jnp.asarray(x), jnp.stack(ends)[None], spec)[0])


@pytest.mark.parametrize("name", INPUTS)
def test_minmax(name):
    low, high = minmax(stats_of(name))
    assert (low, high) == (INPUTS[name].min(), INPUTS[name].max())


@pytest.mark.parametrize("q", [50.0, 90.0, 99.0, 99.9, 99.99, 100.0])
@pytest.mark.parametrize("name", INPUTS)
def test_percentile_is_numpys_within_a_bin(name, q):
    x = INPUTS[name]
    p = np.percentile(np.abs(x), q)
    low, high = percentile(stats_of(name), q)
    assert max(-float(low), float(high)) == pytest.approx(p, rel=1 / 8)
    assert low >= x.min() and high <= x.max()
    if q == 100.0:
        assert (low, high) == (x.min(), x.max())


def test_percentile_counts_rare_numbers_exactly():
    """Among 2²⁵ numbers, as an afternoon's text has them, the eight largest are still counted."""
    x = np.ones((1024, 64), np.float32)
    x[:8, 0] = 100.0
    stats = Stats.from_inputs(jnp.asarray(x))
    for _ in range(9):
        stats = stats.merge(stats)
    share = 8 * 512 / (x.size * 512)
    assert percentile(stats, 100 * (1 - 0.9 * share))[1] > 95
    assert percentile(stats, 100 * (1 - 1.1 * share))[1] < 1.2


@pytest.mark.parametrize("spec", SPECS_SEEN)
@pytest.mark.parametrize("name", INPUTS)
def test_mse_is_as_good_as_a_search_on_the_raw_numbers(name, spec):
    """The range from 512 counts costs at most 5 % more than the best of its candidates on the
    numbers themselves, and the error expected is the one measured, as far as bins know: at 8 bits
    a few numbers of the last bin weigh as much as all others' rounding."""
    x, spec = INPUTS[name], SPECS_SEEN[spec]
    ranges, expected = mse_curve(stats_of(name), spec)
    measured = np.asarray(errors_on(jnp.asarray(x), ranges, spec))
    assert measured[np.argmin(expected)] <= 1.05 * measured.min()
    worth = measured < 2 * measured.min()
    ratio = np.asarray(expected)[worth] / measured[worth]
    bound = 1.15 if spec.format.bits == 4 else 1.4
    assert ratio.min() > 1 / bound and ratio.max() < bound
    np.testing.assert_array_equal(mse(stats_of(name), spec), ranges[np.argmin(expected)])


def test_clipping_helps_on_heavy_tails_and_not_on_uniform_numbers():
    """At 4 bits. Of uniform numbers only the half step beyond the last value is given up: the step
    is 1 / 7.5 and not 1 / 7. The optimum for Laplace, by Banner et al. 2018, is c = 5.03 b."""
    spec = SPECS_SEEN["int4"]
    gains = {}
    for name in ("uniform", "normal", "laplace", "heavy"):
        x, stats = INPUTS[name], stats_of(name)
        gains[name] = error_on(x, minmax(stats), spec) / error_on(x, mse(stats, spec), spec)
    assert 1 <= gains["uniform"] < 1.02 * (7.5 / 7) ** 2
    assert gains["normal"] > 2 and gains["laplace"] > 2.5
    assert gains["heavy"] > 1.2  # Student's t with ν = 2: its few extremes cost much either way
    b, c = np.abs(INPUTS["laplace"]).mean(), float(mse(stats_of("laplace"), spec)[1])
    assert 7.5 / 7 * c == pytest.approx(5.03 * b, rel=0.08)  # c is the last value, not its edge


def test_numbers_at_the_end_of_the_range_are_not_free_to_clip():
    """Inputs that saturate at exactly 1.0, the first number of a bin."""
    x = np.where(RNG.random(SHAPE) < 0.1, 1.0, RNG.normal(0, 0.01, SHAPE)).astype(np.float32)
    x[0, 0] = 1.0
    stats = Stats.from_inputs(jnp.asarray(x))
    assert mse(stats, SPECS_SEEN["int8"])[1] > 0.95


def test_ema_follows_the_batches():
    batches = [Stats.from_inputs(jnp.asarray(INPUTS["normal"][i : i + 100])) for i in (0, 100, 200)]
    mins, maxs = ([float(end) for end in ends] for ends in zip(*map(minmax, batches)))
    want = 0.81 * mins[0] + 0.09 * mins[1] + 0.1 * mins[2]
    low, high = ema(batches, 0.9)
    assert float(low) == pytest.approx(want, rel=1e-6)
    assert float(ema(batches, 0.0)[1]) == pytest.approx(maxs[2], rel=1e-6)
    assert ema(batches[:1]) == minmax(batches[0])


@pytest.mark.parametrize("kind", ["int8", "uint8"])
def test_static_ranges_serve_an_act(kind):
    """minmax: what dynamic ranges of the whole text would be, whatever is read later."""
    x, act = jnp.asarray(INPUTS["lopsided"]), ACTS[f"{kind}_static"]
    ranges = static(Stats.from_inputs(x), act.spec)
    assert ranges.codes is None and ranges.spec == act.spec
    whole = fit(x, act.spec)
    for a, b in zip(jax.tree.leaves(ranges), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
    w = quantize(jnp.asarray(INPUTS["normal"][:8]), SPECS["int8_channel"])
    act = act.with_ranges(ranges)
    y = jax.jit(lambda x, w, act: act_matmul(x, w, act))(x[:50], w, act)
    np.testing.assert_array_equal(y, act_matmul(x, w, act)[:50])


def test_every_observer_gives_ranges_and_merging_gives_those_of_both_texts():
    x = INPUTS["heavy"]
    parts = [Stats.from_inputs(jnp.asarray(x[i::2])) for i in (0, 1)]
    spec = SPECS_SEEN["int8"]
    for observer in (minmax, percentile, mse):
        merged = static(parts[0].merge(parts[1]), spec, observer)
        np.testing.assert_array_equal(merged.scale, static(stats_of("heavy"), spec, observer).scale)
    found = {
        "minmax": static(stats_of("heavy"), spec),
        "ema": static(parts, spec, ema, momentum=0.5),
        "percentile": static(stats_of("heavy"), spec, percentile, q=99.0),
        "mse": static(stats_of("heavy"), spec, mse),
    }
    scales = {name: float(r.scale[0, 0]) for name, r in found.items()}
    assert (
        scales["minmax"] > scales["mse"] > scales["percentile"] and len(set(scales.values())) == 4
    )
    act = ACTS["int8_static"].with_ranges(found["percentile"])
    seen = np.asarray(quantized_inputs(jnp.asarray(x), act))
    assert np.abs(seen).max() <= 128 * scales["percentile"] * (1 + 1e-6)


def test_compiled():
    spec = SPECS_SEEN["uint8"]
    find = jax.jit(lambda s: [mse(s, spec), percentile(s, 99.0), minmax(s)])
    with jax.numpy_dtype_promotion("strict"):
        compiled = find(stats_of("laplace"))
    eager = [
        f(stats_of("laplace")) for f in (lambda s: mse(s, spec), lambda s: percentile(s, 99.0))
    ]
    np.testing.assert_allclose(compiled[:2], eager, rtol=1e-6)


def test_inputs_that_are_all_zeros():
    zeros = Stats.from_inputs(jnp.zeros((4, 3)))
    for observer in (minmax, percentile, mse):
        ranges = static(zeros, SPECS_SEEN["uint8"], observer)
        x = quantized_inputs(jnp.zeros((2, 3)), ACTS["uint8_static"].with_ranges(ranges))
        assert not np.asarray(x).any()


DIVIDED = Stats.from_inputs(jnp.ones((2, 3))).divided(jnp.full(3, 2.0))


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: percentile(DIVIDED), "no histogram"),
        (lambda: mse(DIVIDED, Spec(INT8, "tensor")), "no histogram"),
        (lambda: percentile(stats_of("normal"), 0.0), "percentile 0.0"),
        (lambda: minmax(Stats.empty(3)), "0 tokens"),
        (lambda: ema(stats_of("normal")), "a list of Stats"),
        (lambda: ema([]), "a list of Stats"),
        (lambda: ema([stats_of("normal")], 1.0), "momentum 1.0"),
        (lambda: static(stats_of("normal"), Spec(INT8)), "not 'row'"),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_minmax_needs_no_histogram():
    assert minmax(DIVIDED) == (0.5, 0.5) and SHRINK[0] == 1
