"""FP8: values that are multiplied as FP8, scales that are known a step late, and a linear that
trains in it."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import qlab
from qlab import fp8
from qlab.activations import ACTS, Act, act_matmul, product, quantized_inputs
from qlab.formats import FP8, FP8_E5M2
from qlab.qtensor import Spec, dequantize, quantize
from qlab.specs import SPECS
from tests.models_for_tests import random_model

RNG = np.random.default_rng(0)
X = (RNG.standard_t(4, (2, 10, 320)) * 3).astype(np.float32)
W = (RNG.standard_normal((200, 320)) / 10).astype(np.float32)
PAIRS = [
    ("fp8_channel", "fp8_token"),
    ("fp8_tensor", "fp8_tensor"),
    ("fp8_block", "fp8_tile"),  # 320 = 2 · 128 + 64: the last block is short
    ("fp8_channel", "fp8_tile"),
    ("fp8_block", "fp8_token"),
    ("fp8_e5m2_tensor", "fp8_tile"),
    ("mxfp8", "mxfp8"),
]
FLOATS = [("fp8_block", "mxfp8"), ("mxfp4", "mxfp4"), ("nvfp4", "nvfp4"), ("fp8_channel", None)]


def q(name, w=W):
    return quantize(jnp.asarray(w), SPECS[name])


# ---- products ------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights, act", PAIRS)
def test_fp8_values_are_multiplied(weights, act):
    """What is compiled multiplies float8 by float8 into float32, and the result is the product of
    the numbers that the codes stand for."""
    w, how = q(weights), ACTS[act]
    assert product(w, how) == "fp8"
    run = jax.jit(lambda x, w: act_matmul(x, w, how))
    (dot,) = [s for s in run.lower(X, w).as_text().splitlines() if "dot_general" in s]
    kind = "f8E5M2" if "e5m2" in weights else "f8E4M3FN"
    assert f"x{kind}>" in dot and "xf8E4M3FN>" in dot and dot.rstrip().endswith("xf32>")
    got = np.asarray(run(X, w))
    dense = np.asarray(dequantize(w), np.float64)
    want = np.stack([np.asarray(quantized_inputs(x, how), np.float64) @ dense.T for x in X])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    np.testing.assert_allclose(act_matmul(X[1:], w, how)[0], got[1], rtol=1e-5, atol=1e-4)


def test_tiles_are_summed_as_the_kernel_does():
    """DeepSeek-V3: each 128 channels' product of FP8 values, times a_s · b_s, added in float32."""
    x, w = X[0], q("fp8_block")
    y = np.zeros((10, 200), np.float32)
    codes = np.asarray(w.codes).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    for k in range(3):
        part = x[:, 128 * k : 128 * (k + 1)]
        a = np.maximum(np.abs(part).max(axis=1, keepdims=True), np.float32(1e-4)) / np.float32(448)
        a8 = (part / a).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        b = np.repeat(np.asarray(w.scale)[:, k], 128)[:200]
        y += a8 @ codes[:, 128 * k : 128 * (k + 1)].T * (a * b)
    np.testing.assert_allclose(act_matmul(x, w, ACTS["fp8_tile"]), y, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("weights, act", FLOATS)
def test_what_is_multiplied_in_float(weights, act):
    assert product(SPECS[weights], Act(Spec(FP8, 32)) if act is None else ACTS[act]) == (
        "fp8" if act is None else "float"
    )


def test_what_is_no_fp8_product():
    act = ACTS["fp8_token"]
    assert product(jnp.asarray(W), act) == product(SPECS["int8_channel"], act) == "float"
    assert product(q("fp8_channel").replace(perm=jnp.arange(320)), act) == "float"
    assert product(SPECS["fp8_channel"], Act(Spec(FP8), threshold=6.0)) == "float"
    assert product(SPECS["fp8_channel"], Act(Spec(FP8, scale=None))) == "float"
    assert product(SPECS["int8_channel"], ACTS["int8_token"]) == "int"


def test_static_ranges_saturate():
    """The cast itself makes NaN of what is too large; quantization clips before."""
    assert np.isnan(np.float32(1e4).astype(ml_dtypes.float8_e4m3fn))
    assert np.isnan(jnp.float32(465.0).astype(jnp.float8_e4m3fn))
    ranges = qlab.fit(jnp.array([[-1.0, 1.0]]), ACTS["fp8_static"].spec)
    x = jnp.asarray(np.resize([0.5, 7.0, -1e30, 1.0], (4, 320)), jnp.float32)
    y = act_matmul(x, q("fp8_channel", np.eye(320, dtype=np.float32)), ACTS["fp8_static"]
                   .with_ranges(ranges))  # fmt: skip
    np.testing.assert_allclose(y[0, :4], [0.5, 1.0, -1.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
    "spec, act", [("fp8_channel", "fp8_token"), ("fp8_block", "fp8_tile"),
                  ("fp8_tensor", "fp8_static"), ("mxfp8", "mxfp8")],
)  # fmt: skip
def test_whole_models(spec, act):
    model = random_model(scale=2.0)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 320, (2, 24)), jnp.int32)
    q = qlab.quantize_model(model, "rtn", spec, tokens, act=act, progress=False, held_out=0)
    assert any("products of FP8 values" in note for note in q.report.notes)
    got, want = np.asarray(q(tokens)), np.asarray(model(tokens))
    assert 0 < np.linalg.norm(got - want) < 0.15 * np.linalg.norm(want)


# ---- delayed scaling -----------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["max", "most_recent"])
@pytest.mark.parametrize("format", [FP8, FP8_E5M2], ids=str)
def test_delayed_scaling_remembers(algorithm, format):
    """Against a plain list: the scale of a step is of the steps before it."""
    state, seen, scale = fp8.Delayed.begin(3), [], np.float32(1)
    for amax in np.float32([3.0, 8.0, 0.5, 0.25, 0.125, 0.0, np.inf, np.nan, 2.0]):
        assert float(state.scale) == scale
        state = state.advance(amax, format, margin=1, algorithm=algorithm)
        seen = [amax, *seen][:3]
        m = np.max(seen) if algorithm == "max" else seen[0]
        scale = scale if m == 0 or not np.isfinite(m) else np.float32(m) / np.float32(
            format.max) * np.float32(2)  # fmt: skip
    np.testing.assert_array_equal(state.history, np.float32([2.0, np.nan, np.inf]))


def test_delayed_scales_never_vanish():
    state = fp8.Delayed.begin(1).advance(jnp.float32(1e-37))
    assert float(state.scale) == 2.0**-126
    assert np.isfinite(np.asarray(fp8.to_fp8(jnp.float32(1e-37), state.scale), np.float32))


def test_what_outgrows_the_history_is_clipped():
    state = fp8.Delayed.begin(4).advance(jnp.float32(1.0))
    t = fp8.to_fp8(jnp.array([0.5, 3.0, -9.0]), state.scale).astype(jnp.float32) * state.scale
    np.testing.assert_allclose(t, [0.5, 1.0, -1.0], rtol=1e-6)


def test_bad_settings():
    with pytest.raises(ValueError, match="0 steps"):
        fp8.Delayed.begin(0)
    with pytest.raises(ValueError, match="'most_recent'"):
        fp8.Delayed.begin().advance(jnp.float32(1), algorithm="most-recent")


# ---- the linear that trains ----------------------------------------------------------------------


@pytest.mark.parametrize("delayed", [False, True])
def test_linear_is_its_equations(delayed):
    x, w, g = X[0], W, RNG.standard_normal((10, 200)).astype(np.float32) * 1e-4
    own = [np.float32(np.abs(t).max()) / np.float32(role.max)
           for t, role in zip((x, w, g), fp8.ROLES)]  # fmt: skip
    s = np.float32([own[0] * 0.5, own[1] * 2, own[2] * 4]) if delayed else np.float32(own)
    cast = [
        np.clip(t / scale, role.min, role.max).astype(role.dtype).astype(np.float64) * scale
        for t, scale, role in zip((x, w, g), s, fp8.ROLES)
    ]
    y, pull = jax.vjp(lambda *a: fp8.linear(*a), x, w, jnp.asarray(s) if delayed else None)
    dx, dw, seen = pull(jnp.asarray(g))
    for got, want in zip(
        (y, dx, dw), (cast[0] @ cast[1].T, cast[2] @ cast[1], cast[2].T @ cast[0])
    ):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())
    if delayed:
        np.testing.assert_array_equal(seen, [np.abs(t).max() for t in (x, w, g)])


def test_linear_multiplies_fp8_three_times():
    run = jax.jit(jax.grad(lambda x, w: fp8.linear(x, w, None).sum(), (0, 1)))
    dots = [s for s in run.lower(X[0], W).as_text().splitlines() if "dot_general" in s]
    assert len(dots) >= 2 and all("f8E" in s for s in dots)
    assert any("f8E5M2" in s for s in dots)


def test_zeros_and_half_precision():
    zeros, w = jnp.zeros((2, 4), jnp.bfloat16), jnp.ones((3, 4), jnp.bfloat16)
    y, pull = jax.vjp(lambda x, w: fp8.linear(x, w, None), zeros, w)
    dx, dw = pull(jnp.zeros((2, 3)))
    assert y.dtype == jnp.float32 and dx.dtype == dw.dtype == jnp.bfloat16
    assert not np.asarray(y).any() and not np.asarray(dx).any() and not np.asarray(dw).any()
