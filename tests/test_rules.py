"""Range rules on hand-made blocks: every number here can be checked on paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlab.formats import FP4, FP8, INT4, TERNARY, UINT4
from qlab.rules import RULES


def run(name, block, format):
    scale, zero, offset = RULES[name](jnp.asarray([block], jnp.float32), format)
    number = lambda x: None if x is None else float(x[0])  # noqa: E731
    return number(scale), number(zero), number(offset)


@pytest.mark.parametrize(
    "name, block, format, want",
    [
        ("absmax", [-3.5, 1], INT4, (0.5, None, None)),
        ("absmax", [-3, -1], UINT4, (-0.2, None, None)),  # the sign of the minima of k-quants
        ("absmax", [3, -1], UINT4, (0.2, None, None)),
        ("absmax_mid", [-7.5, 1], INT4, (1, None, None)),
        ("absmax_full", [8, 1], INT4, (1, None, None)),
        ("signed_absmax", [4, -1], INT4, (-0.5, None, None)),  # 4 becomes code −8
        ("signed_absmax", [-4, 1], INT4, (0.5, None, None)),
        ("absmean", [1, -2, 3, 0], TERNARY, (1.5, None, None)),
        ("absmean", [0, 0], TERNARY, (np.float32(1e-5), None, None)),
        ("minmax", [2, 17], UINT4, (1, None, 2)),
        ("minmax", [-8, 7], INT4, (1, None, 0)),
        ("minmax0", [3, 15], UINT4, (1, None, 0)),
        ("minmax0", [-15, -3], UINT4, (1, None, -15)),
        ("gptq_asym", [3, 15], UINT4, (1, 0, None)),
        ("gptq_asym", [-5, 10], UINT4, (1, 5, None)),
        ("gptq_asym", [0, 0], UINT4, (np.float32(2 / 15), 7, None)),  # 1 / (2/15) is 7.4999995
        ("gptq_sym", [-7.5, 3], INT4, (1, None, None)),
        ("gptq_sym", [15, 3], INT4, (1, None, None)),  # all positive: max / 15, and 15 clips at 7
        ("gptq_sym", [0, 0], INT4, (np.float32(2 / 15), None, None)),
        ("awq_asym", [5, 20], UINT4, (1, 0, None)),  # the zero of a one-signed group saturates
        ("awq_asym", [-5, 10], UINT4, (1, 5, None)),
        ("awq_asym", [2, 2], UINT4, (np.float32(np.float32(1e-5) / np.float32(15)), 0, None)),
        ("awq_sym", [-14, 3], INT4, (2, None, None)),
        ("hqq_minmax", [-5, 10], UINT4, (1, 5, None)),
        ("hqq_minmax", [0, 15e-4], UINT4, (np.float32(1e-4), 0, None)),
        ("hqq_minmax", [1, 1.00005], UINT4, (1, -1, None)),
        ("pow2_floor", [7.9], FP4, (1, None, None)),  # 2^(2 − 2); 7.9 saturates at 6
        ("pow2_rceil", [7.9], FP4, (2, None, None)),
        ("pow2_rceil", [6], FP4, (1, None, None)),
        ("pow2_ceil", [4], FP4, (1, None, None)),
        ("pow2_ceil", [4.1], FP4, (2, None, None)),
        ("pow2_even", [7], FP4, (2, None, None)),  # 7 rounds to 8 with one mantissa bit
        ("pow2_even", [6.9], FP4, (1, None, None)),
        ("pow2_floor", [500], FP8, (1, None, None)),
        ("pow2_floor", [0], FP4, (2.0**-127, None, None)),
    ],
)
def test_by_hand(name, block, format, want):
    got = run(name, block, format)
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None)
        assert g is None or np.float32(g) == np.float32(w), (got, want)


def test_nvfp4_clamps_at_the_smallest_normal_scale():
    blocks = jnp.asarray([[6.0 * 448], [6e-3], [0.0]], jnp.float32)
    scale, _, _ = RULES["nvfp4"](blocks, FP4)
    assert np.asarray(scale).tolist() == [448.0, 2.0**-6, 2.0**-6]


@pytest.mark.parametrize("name", RULES)
def test_nan_and_inf_reach_the_scale(name):
    """A rule may not launder bad numbers into a plausible scale."""
    for bad in (np.nan, np.inf):
        block = jnp.asarray([[1.0, bad, 2.0, -1.0]], jnp.float32)
        scale = float(RULES[name](block, INT4)[0][0])
        assert not np.isfinite(scale) or scale >= 2.0**120 or name == "hqq_minmax", (name, scale)


@pytest.mark.parametrize("name", RULES)
def test_compiled_equals_eager(name):
    blocks = jnp.asarray(np.random.default_rng(0).standard_normal((16, 8, 32)), jnp.float32)
    format = UINT4 if name in ("gptq_asym", "awq_asym", "hqq_minmax") else INT4
    rule = lambda b: [x for x in RULES[name](b, format) if x is not None]  # noqa: E731
    with jax.disable_jit():
        eager = rule(blocks)
    for a, b in zip(eager, jax.jit(rule)(blocks), strict=True):
        assert a.shape == (16, 8)
        np.testing.assert_array_equal(a, b)
