"""AWQ's invariants: what scaling can and cannot do, on one layer; and what composes with what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qlab
from qlab.methods import METHODS
from qlab.methods.awq import awq_candidates, clipped, scaled_losses
from qlab.specs import SPECS
from qlab.stats import Stats

RNG = np.random.default_rng(0)
SPEC = SPECS["int3_g64"]
W = jnp.asarray(RNG.standard_normal((48, 128)), jnp.float32)


def inputs(outliers=True) -> jax.Array:
    x = RNG.standard_normal((512, 128))
    if outliers:
        x[:, [3, 70]] *= 40
    return jnp.asarray(x, jnp.float32)


X = inputs()
STATS = Stats.from_inputs(X)


def loss(q, w=W, stats=STATS) -> float:
    return float(qlab.output_error(w, qlab.dequantize(q), stats))


def test_where_all_channels_are_alike_there_is_nothing_to_protect():
    signs = jnp.asarray(RNG.choice([-1.0, 1.0], (512, 128)), jnp.float32)  # E|x| = 1 everywhere
    stats = Stats.from_inputs(signs)
    _, scales = awq_candidates([W], stats, [SPEC])
    np.testing.assert_allclose(scales, 1.0, rtol=1e-6)
    q = qlab.awq(W, stats, SPEC, clip=False)
    np.testing.assert_array_equal(q.codes, qlab.rtn(W, None, SPEC).codes)


def test_the_loss_from_h_is_the_loss_on_the_inputs():
    _, scales = awq_candidates([W], STATS, [SPEC], n_grid=5)
    for found, s in zip(scaled_losses((W,), STATS, (SPEC,), scales), scales, strict=True):
        w_hat = qlab.dequantize(qlab.quantize(W * s, SPEC)) / s
        y = np.asarray(X, np.float64) @ np.asarray(W - w_hat, np.float64).T
        assert float(found) == pytest.approx((y**2).sum(1).mean(), rel=1e-4)


def test_the_choice_is_never_worse_than_no_scaling_on_its_own_text():
    for seed in range(5):
        w = jax.random.normal(jax.random.key(seed), W.shape)
        q, facts = qlab.METHODS["awq"].with_facts(w, STATS, SPEC, clip=False)
        assert loss(q, w) <= loss(qlab.rtn(w, None, SPEC), w) * (1 + 1e-5)
        assert 0 <= float(facts["ratio"]) < 1
    assert loss(qlab.awq(W, STATS, SPEC)) < 0.7 * loss(qlab.rtn(W, None, SPEC))


def test_with_duo_scaling_the_first_candidate_is_not_the_identity():
    ratios, scales = awq_candidates([W], STATS, [SPEC], duo_scaling=True)
    assert float(ratios[0]) == 0 and float(jnp.abs(jnp.log(scales[0])).max()) > 0.05
    _, plain = awq_candidates([W], STATS, [SPEC])
    np.testing.assert_array_equal(plain[0], 1.0)


def test_scales_are_centred():
    _, scales = awq_candidates([W], STATS, [SPEC])
    np.testing.assert_allclose(scales.max(1) * scales.min(1), 1.0, rtol=1e-5)
    assert (scales[10].argsort()[-2:].sort() == jnp.array([3, 70])).all()


@pytest.mark.parametrize("duo", [False, True])
def test_dead_channels_and_empty_columns(duo):
    x, w = X.at[:, 5].set(0.0), W.at[:, 5].set(0.0).at[:, 64:].set(0.0)
    q = qlab.awq(w, Stats.from_inputs(x), SPEC, duo_scaling=duo)
    back = np.asarray(qlab.dequantize(q))
    assert np.isfinite(back).all() and np.isfinite(np.asarray(q.channel_scale)).all()
    assert (back[:, 64:] == 0).all()


def test_clipping_never_raises_the_loss_of_a_group():
    """Of the part of the output that a group alone makes, for every row and group."""
    w = W.at[:, 11].multiply(6.0)
    cut = clipped(w, STATS.hessian, SPEC)
    assert float(jnp.abs(cut - w).max()) > 0
    h = np.asarray(STATS.hessian, np.float64)

    def losses(v):
        d = np.asarray(w - qlab.dequantize(qlab.quantize(v, SPEC)), np.float64)
        return [((d[:, g] @ h[g, g]) * d[:, g]).sum(1) for g in (slice(0, 64), slice(64, 128))]

    for after, before in zip(losses(cut), losses(w), strict=True):
        assert (after <= before * (1 + 1e-5)).all()
    shares = jnp.abs(cut).max(1) / jnp.abs(w).max(1)
    assert float(shares.min()) >= 0.55 - 1e-6


def test_groups_that_reach_across_rows_are_not_clipped():
    for name in ("int4_tensor", "fp8_block"):
        assert (clipped(W, STATS.hessian, SPECS[name]) == W).all()


# Which method may round the weights that another has scaled, on every kind of Spec it can fill.
OUTER = ("awq", "smoothquant")
INNER = ("rtn", "gptq", "hqq", "awq", "smoothquant")
KINDS = ("int4_g64", "uint4_g64", "int8_channel", "int4_tensor", "nf4", "mxfp4", "hqq4_g64")


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", INNER)
def test_what_composes_with_what(outer, inner):
    done = []
    for name in KINDS:
        spec = SPECS[name]
        if not METHODS[inner].supports(spec):
            with pytest.raises(ValueError, match="(?i)hqq moves a real zero point"):
                METHODS[outer](W, STATS, spec, quantizer=METHODS[inner])
            continue
        q = METHODS[outer](W, STATS, spec, quantizer=METHODS[inner])
        assert q.spec == spec and q.channel_scale is not None
        assert loss(q) < 0.5, name
        done.append(name)
    assert done == (["hqq4_g64"] if inner == "hqq" else list(KINDS))


def test_gptq_after_scaling_is_gptq_of_the_scaled_problem():
    q = qlab.awq(W, STATS, SPEC, quantizer=qlab.gptq, clip=False)
    s = q.channel_scale
    alone = qlab.gptq(W * s, STATS.divided(s), SPEC)
    np.testing.assert_array_equal(q.codes, alone.codes)
    assert loss(q) < loss(qlab.awq(W, STATS, SPEC, clip=False))


def test_what_is_refused():
    with pytest.raises(ValueError, match="needs Stats"):
        qlab.awq(W, None, SPEC)
    with pytest.raises(ValueError, match="n_grid 0 is below 1"):
        qlab.awq(W, STATS, SPEC, n_grid=0)
    with pytest.raises(ValueError, match="'gptq' is no method"):
        qlab.awq(W, STATS, SPEC, quantizer="gptq")
    with pytest.raises(ValueError, match="n_grid is a whole number"):
        qlab.awq(W, STATS, SPEC, n_grid=2.5)
    with pytest.raises(ValueError, match="128 columns but Stats of 64"):
        qlab.awq(W, Stats.from_inputs(X[:, :64]), SPEC)
