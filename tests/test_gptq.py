"""GPTQ's mathematics: W − Q = E U, the loss is ‖E‖², and what must not change the result. That it
gives what other implementations give is in test_gptq_golden.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qlab
from qlab.methods.gptq import FLOORS, RUNGS, factor
from qlab.qtensor import dequantize
from qlab.ranges import fit_mse, period
from qlab.specs import SPECS
from qlab.stats import Stats, output_error

OUT, IN = 24, 256


def layer(seed: int = 0, spread: float = 1.0, tokens: int = 2048) -> tuple[jax.Array, Stats]:
    """Heavy-tailed weights, and inputs that are correlated and differ in size by exp(spread)."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((IN, IN)) * np.exp(rng.normal(0, spread, IN)) / 16
    x = (rng.standard_normal((tokens, IN)) @ mix).astype(np.float32)
    return jnp.asarray(rng.standard_t(4, (OUT, IN)), jnp.float32), Stats.from_inputs(jnp.asarray(x))


def with_hessian(stats: Stats, hessian) -> Stats:
    return dataclasses.replace(stats, hessian=jnp.asarray(hessian, jnp.float32))


W, STATS = layer()


# ---- the invariants ------------------------------------------------------------------------------


def test_the_papers_integers_factor_as_by_hand():
    m = np.array([[4, 2, 6], [2, 5, 7], [6, 7, 22]], float)
    u, facts = factor(jnp.asarray(np.linalg.inv(m), jnp.float32), 0.0)
    np.testing.assert_allclose(u, [[2, 1, 3], [0, 2, 2], [0, 0, 3]], atol=1e-4)
    assert facts["rung"] == 0 and facts["damp"] == 0


@pytest.mark.parametrize("spec", ["int4_g64", "uint3_g64", "int2_channel", "nf4", "q4_k", "mxfp4"])
@pytest.mark.parametrize("act_order", [False, True])
def test_the_errors_are_the_pushed_ones_and_their_squares_the_loss(spec, act_order):
    q = qlab.gptq(W, STATS, SPECS[spec], act_order=act_order)
    h = np.asarray(STATS.hessian, np.float64)
    damped = h + 0.01 * np.diag(h).mean() * np.eye(IN)
    order = np.argsort(-np.diag(h), kind="stable") if act_order else np.arange(IN)
    u = np.linalg.cholesky(np.linalg.inv(damped[order][:, order])).T
    off = np.asarray(W - dequantize(q), np.float64)[:, order]
    errors = off @ np.linalg.inv(u)
    loss = np.trace(off @ damped[order][:, order] @ off.T)
    np.testing.assert_allclose((errors**2).sum(), loss, rtol=1e-9)
    # What tells this rounding from every other: each weight, corrected by the errors before, went
    # to its nearest code on the range that is stored.
    corrected = (np.asarray(W)[:, order] - errors @ np.triu(u, 1))[:, np.argsort(order)]
    again = qlab.quantize(jnp.asarray(corrected, jnp.float32), q)
    assert (np.asarray(again.codes) == np.asarray(q.codes)).mean() > 0.999


def test_without_correlations_it_rounds_to_nearest():
    h = np.diag(np.random.default_rng(1).uniform(0.5, 2, IN))
    for name in ("int4_g64", "uint2_g64", "int3_channel", "nf4_double", "q2_k", "nvfp4"):
        q = qlab.gptq(W, with_hessian(STATS, h), SPECS[name])
        np.testing.assert_array_equal(q.codes, qlab.rtn(W, None, SPECS[name]).codes)


@pytest.mark.parametrize("spec", ["int4_g64", "int3_channel", "q4_k"])
@pytest.mark.parametrize("group_scale", ["fresh", "static"])
def test_the_lazy_block_changes_nothing(spec, group_scale):
    first, *rest = [
        qlab.gptq(W, STATS, SPECS[spec], group_scale=group_scale, lazy_block=size)
        for size in (128, 1, 100, IN)
    ]
    for q in rest:
        assert (np.asarray(q.codes) == np.asarray(first.codes)).mean() > 0.999


def test_a_range_sees_what_group_scale_says():
    """The original program fits a group before the errors of its lazy block arrive: with blocks of
    one column that is "fresh", with one block "static".
    """
    run = lambda scale, block: qlab.gptq(  # noqa: E731
        W, STATS, SPECS["int3_g64"], group_scale=scale, lazy_block=block
    )
    for reference, same in ((run("reference", 1), "fresh"), (run("reference", IN), "static")):
        assert (np.asarray(reference.codes) == np.asarray(run(same, 128).codes)).mean() > 0.999
    assert (np.asarray(run("reference", 128).codes) != np.asarray(run("fresh", 128).codes)).any()


@pytest.mark.parametrize("act_order", [False, True])
def test_the_scale_of_h_changes_nothing(act_order):
    first = qlab.gptq(W, STATS, SPECS["int4_g64"], act_order=act_order)
    for factor_of in (2.0**10, 2.0**-20):
        scaled = with_hessian(STATS, STATS.hessian * factor_of)
        q = qlab.gptq(W, scaled, SPECS["int4_g64"], act_order=act_order)
        np.testing.assert_array_equal(q.codes, first.codes)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(8)))
def test_the_order_of_batches_changes_nothing(order):
    rng = np.random.default_rng(3)
    parts = [
        Stats.from_inputs(jnp.asarray(x)) for x in rng.standard_normal((8, 96, IN), np.float32)
    ]
    merged = parts[order[0]]
    for i in order[1:]:
        merged = merged.merge(parts[i])
    straight = parts[0]
    for part in parts[1:]:
        straight = straight.merge(part)
    a, b = (qlab.gptq(W, s, SPECS["int4_g64"]).codes for s in (merged, straight))
    assert (np.asarray(a) == np.asarray(b)).mean() > 0.999


def test_dequantize_puts_the_columns_back():
    q = qlab.gptq(W, STATS, SPECS["int8_g128"], act_order=True)
    assert q.perm is not None and not np.array_equal(q.perm, np.arange(IN))
    static = qlab.gptq(W, STATS, SPECS["int8_g128"], act_order=True, group_scale="static")
    assert static.perm is None
    for found in (q, static):
        assert jnp.linalg.norm(dequantize(found) - W) < 0.05 * jnp.linalg.norm(W)


# ---- it is worth it ------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["int4_g64", "uint3_g64", "int2_channel", "q2_k", "nf4_double"])
def test_the_output_is_closer_than_with_rounding_and_act_order_helps(spec):
    rtn = output_error(W, dequantize(qlab.rtn(W, None, SPECS[spec])), STATS)
    plain = output_error(W, dequantize(qlab.gptq(W, STATS, SPECS[spec])), STATS)
    ordered = output_error(W, dequantize(qlab.gptq(W, STATS, SPECS[spec], act_order=True)), STATS)
    assert ordered < plain < rtn


def test_the_search_of_ranges_clips_where_few_bits_are_left():
    two, four = SPECS["int2_g64"], SPECS["int4_g64"]
    for spec in (two, four):
        searched, plain = fit_mse(W, spec), qlab.fit(W, spec)
        p = np.abs(np.asarray(searched.scale, float) / np.asarray(plain.scale, float))
        off = [
            (np.abs(np.asarray(dequantize(qlab.quantize(W, r)) - W)) ** 2.4).sum()
            for r in (searched, plain)
        ]
        assert p.max() < 1.01 and p.min() > 0.2 and off[0] < off[1]
    assert output_error(W, dequantize(qlab.gptq(W, STATS, two, mse=True)), STATS) < output_error(
        W, dequantize(qlab.gptq(W, STATS, two)), STATS
    )


def test_periods():
    found = {name: period(SPECS[name], 512) for name in SPECS}
    assert found["int4_g64"] == 64 and found["mxfp4"] == 32
    for name in ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "tq1_0"):
        assert found[name] == 256
    for name in ("int4_channel", "int4_tensor", "fp8_block", "nf4_double", "nvfp4", "bitnet"):
        assert found[name] is None


# ---- what may go wrong ---------------------------------------------------------------------------


def test_channels_never_seen_become_zero_and_are_counted():
    h = np.array(STATS.hessian)
    h[[3, 70]] = h[:, [3, 70]] = 0
    q, facts = qlab.METHODS["gptq"].with_facts(W, with_hessian(STATS, h), SPECS["int4_g64"])
    w_hat = np.asarray(dequantize(q))
    assert facts["dead"] == 2 and not w_hat[:, [3, 70]].any() and np.isfinite(w_hat).all()


def test_a_layer_that_saw_nothing_is_zero():
    q, facts = qlab.METHODS["gptq"].with_facts(
        W, with_hessian(STATS, np.zeros((IN, IN))), SPECS["int4_g64"]
    )
    assert facts["dead"] == IN and not np.asarray(dequantize(q)).any()


def test_too_little_text_is_held_up_by_damping():
    w, few = layer(tokens=40)  # 40 inputs for 256 channels: H has rank 40
    q, facts = qlab.METHODS["gptq"].with_facts(w, few, SPECS["int4_g64"])
    rtn = output_error(w, dequantize(qlab.rtn(w, None, SPECS["int4_g64"])), few)
    assert facts["rung"] == 0 and output_error(w, dequantize(q), few) < rtn


def test_a_failing_cholesky_climbs_and_says_so():
    h = np.array(STATS.hessian)
    low = np.linalg.eigvalsh(h)[0]
    lifted = with_hessian(STATS, h - (low + 0.03 * np.diag(h).mean()) * np.eye(IN))
    q, facts = qlab.METHODS["gptq"].with_facts(W, lifted, SPECS["int4_g64"])
    assert facts["rung"] == 1 and facts["damp"] == pytest.approx(0.1)
    assert np.isfinite(dequantize(q)).all()
    without = qlab.METHODS["gptq"].with_facts(W, lifted, SPECS["int4_g64"], damp=0.0)[1]
    assert without["rung"] >= len(RUNGS)


@pytest.mark.parametrize("h", [np.full((IN, IN), np.nan), -np.eye(IN)], ids=["nan", "negative"])
def test_a_hopeless_h_is_refused(h):
    with pytest.raises(ValueError, match="positive semidefinite"):
        qlab.gptq(W, with_hessian(STATS, h), SPECS["int4_g64"])
    assert factor(jnp.asarray(h, jnp.float32), 0.01)[1]["rung"] == len(RUNGS + FLOORS)


def test_wrong_arguments_are_refused_in_one_sentence():
    spec = SPECS["int4_g64"]
    for arguments, hyper, sentence in (
        ((W, None, spec), {}, "needs Stats"),
        ((W[:, :128], STATS, spec), {}, "128 columns but Stats of 256 channels"),
        ((W[:, :100], STATS, spec), {}, "100 is not a multiple of block 64"),
        ((W.at[0, 0].set(jnp.nan), STATS, spec), {}, "1 NaN"),
        ((W, STATS, spec), {"group_scale": "stale"}, "'stale'"),
        ((W, STATS, spec), {"lazy_block": 0}, "lazy_block 0"),
        ((W, STATS, spec), {"damp": -1.0}, "damp -1.0"),
        ((W, STATS, spec), {"damp": float("nan")}, "damp nan"),
        ((W, STATS, spec), {"damp": "0.1"}, "damp is a number, not '0.1'"),
        ((W, STATS, spec), {"act_order": "false"}, "act_order is True or False, not 'false'"),
        ((W, STATS, spec), {"mse": 1}, "mse is True or False, not 1"),
        ((W, STATS, spec), {"lazy_block": 64.0}, "lazy_block is a whole number, not 64.0"),
        ((W, STATS, spec), {"lazy_block": True}, "lazy_block is a whole number, not True"),
        ((W, STATS, "int4_g64"), {}, "a Spec is needed, not 'int4_g64'"),
        ((W[0], STATS, spec), {}, "not of shape"),
        ((W, STATS.hessian, spec), {}, "needs Stats"),
        ((W, Stats.empty(IN), spec), {}, "0 tokens"),
        ((W, with_hessian(STATS, jnp.triu(STATS.hessian)), spec), {}, "symmetric"),
        ((W, with_hessian(STATS, jnp.eye(4)), spec), {}, r"\(4, 4\)"),
    ):
        with pytest.raises(ValueError, match=sentence):
            qlab.gptq(*arguments, **hyper)
