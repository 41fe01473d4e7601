"""Quantized activations: integers are multiplied exactly, sequences stay apart, and the errors come
in the order that theory gives them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlab.activations import ACTS, Act, act_matmul, find, integer, quantized_inputs
from qlab.arithmetic import divide
from qlab.formats import FP8, INT4, INT8, UINT8
from qlab.qtensor import QTensor, Spec, dequantize, fit, quantize
from qlab.rules import gptq_asym
from qlab.specs import SPECS
from tests.test_golden import Vectors

RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 20, 96)).astype(np.float32)
W = (RNG.standard_normal((40, 96)) / 10).astype(np.float32)
DYNAMIC = [name for name, act in ACTS.items() if not act.static]
INTEGER = [name for name in DYNAMIC if integer(SPECS["int8_channel"], ACTS[name])]


def with_outliers(x=X, channels=(5, 40), gain=40.0):
    """A few channels far larger than the others, as large language models have them."""
    y = x.copy()
    y[..., list(channels)] *= gain
    return y


def q(spec="int8_channel", w=W) -> QTensor:
    return quantize(jnp.asarray(w), SPECS[spec])


def exact(x, w: QTensor, act: Act) -> np.ndarray:
    """One sequence in numpy: integers in int64, scales in float64 (time, out)."""
    codes = quantize(jnp.asarray(x), act.spec if act.ranges is None else act.ranges)
    spec, numbers = codes.spec, np.asarray(codes.codes, np.int64)
    whole = numbers + int(spec.format.min)
    if codes.zero is not None:
        whole = whole - np.asarray(dequantize(codes.zero), np.int64).reshape(-1, 1)
    weights = np.asarray(w.codes, np.int64) + int(w.spec.format.min)
    scales = np.asarray(codes.scale, np.float64) * np.asarray(w.scale, np.float64).T
    return (whole @ weights.T) * scales


def relative(y, y_hat) -> float:
    return float(np.linalg.norm(np.asarray(y_hat) - y) / np.linalg.norm(y))


# ---- the arithmetic ------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["int8_channel", "int8_tensor", "int4_channel"])
@pytest.mark.parametrize("name", [n for n in INTEGER if ACTS[n].threshold is None])
def test_integers_are_multiplied_exactly(name, weights):
    """The float result is the exact integer sum times the scales, rounded three times: no sum of
    floats of this length is that close."""
    act, w = ACTS[name], q(weights)
    x = with_outliers()
    y = np.asarray(act_matmul(jnp.asarray(x), w, act))
    for one, got in zip(x, y, strict=True):
        want = exact(one, w, act)
        assert np.all(np.abs(got - want) <= 3 * 2.0**-24 * np.abs(want) + 1e-30)


def test_the_product_is_of_int8_and_int32():
    """What is compiled multiplies int8 by int8 into int32, and no float matrices."""
    for name in ("int8_token", "uint8_token"):
        run = jax.jit(lambda x, w, name=name: act_matmul(x, w, ACTS[name]))
        text = run.lower(jnp.asarray(X), q()).as_text()
        (dot,) = [line for line in text.splitlines() if "dot_general" in line]
        assert "xi8>" in dot and "xi32>" in dot and "xf32>" not in dot
    run = jax.jit(lambda x, w: act_matmul(x, w, ACTS["fp8_token"]))
    assert "xi8>" not in "".join(
        line for line in run.lower(jnp.asarray(X), q()).as_text().splitlines() if "dot_gen" in line
    )


def test_the_widest_sums_fit_int32():
    """All codes at their ends over 8192 channels, zero points at theirs."""
    x, w = np.full((2, 8192), 255.0, np.float32), np.full((3, 8192), -127.0, np.float32)
    x[1] = -255.0
    for name in ("uint8_token", "uint8_tensor", "int8_token"):
        y = act_matmul(jnp.asarray(x), quantize(jnp.asarray(w), SPECS["int8_channel"]), ACTS[name])
        np.testing.assert_allclose(y, x.astype(np.float64) @ w.T.astype(np.float64), rtol=5e-3)


def test_which_arithmetic():
    act = ACTS["int8_token"]
    for name in ("int8_channel", "int8_tensor", "int4_channel", "gptq4_sym_channel"):
        assert integer(SPECS[name], act) and integer(q(name), act)
    for name in ("int8_g128", "q8_0", "fp8_channel", "uint8_channel", "bitnet", "q4_k", "nf4"):
        assert not integer(SPECS[name], act)
    assert not integer(SPECS["int8_channel"], ACTS["fp8_token"])
    assert not integer(SPECS["int8_channel"], Act(Spec(INT8, 32)))
    assert not integer(SPECS["int8_channel"], Act(Spec(UINT8, zero="float32", rule=gptq_asym)))
    assert not integer(jnp.asarray(W), act)
    assert not integer(q().replace(perm=jnp.arange(96)), act)


@pytest.mark.parametrize("name", DYNAMIC)
@pytest.mark.parametrize("weights", ["int8_channel", "int4_g32", "float"])
def test_equals_the_float_product_of_the_quantized_values(name, weights):
    act = ACTS[name]
    w = jnp.asarray(W) if weights == "float" else q(weights)
    x = jnp.asarray(with_outliers())
    dense = np.asarray(w if weights == "float" else dequantize(w), np.float64)
    want = np.stack([np.asarray(quantized_inputs(one, act), np.float64) @ dense.T for one in x])
    got = act_matmul(x, w, act)
    assert got.dtype == jnp.float32 and got.shape == (3, 20, 40)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", DYNAMIC)
def test_jit_is_eager_and_sequences_stay_apart(name):
    """Bit for bit: compiled or not, alone or in a batch, with one leading axis or two."""
    act, w, x = ACTS[name], q(), jnp.asarray(with_outliers())
    run = jax.jit(lambda x, w, act: act_matmul(x, w, act))
    with jax.numpy_dtype_promotion("strict"):
        y = act_matmul(x, w, act)
        compiled = run(x, w, act)
    alone = jnp.stack([act_matmul(one, w, act) for one in x])
    nested = act_matmul(x[None], w, act)[0]
    mapped = jax.vmap(lambda one: act_matmul(one, w, act))(x)
    with jax.disable_jit():
        eager = act_matmul(x, w, act)
    others = [compiled, alone, nested, mapped, eager]
    for other in others:
        if integer(w, act) and act.threshold is None:
            np.testing.assert_array_equal(other, y)
        else:  # float sums may be taken in another order
            np.testing.assert_allclose(other, y, rtol=1e-5, atol=1e-4)


def test_half_precision_inputs_give_float32():
    x = jnp.asarray(X, jnp.bfloat16)
    y = act_matmul(x, q(), ACTS["int8_token"])
    np.testing.assert_array_equal(y, act_matmul(x.astype(jnp.float32), q(), ACTS["int8_token"]))


def test_a_stack_of_layers_under_vmap():
    w = quantize(jnp.asarray(W), SPECS["int8_channel"])
    stack = jax.tree.map(lambda a: jnp.stack([a, a[::-1]]), w)
    y = jax.vmap(lambda w: act_matmul(jnp.asarray(X), w, ACTS["uint8_tensor"]))(stack)
    np.testing.assert_array_equal(y[1], y[0][..., ::-1])


# ---- ranges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["int8", "uint8"])
def test_static_is_dynamic_when_the_ranges_are_the_same(name):
    x, w = jnp.asarray(X[0]), q()
    dynamic, static = ACTS[f"{name}_tensor"], ACTS[f"{name}_static"]
    ranges = fit(x, static.spec)
    assert ranges.codes is None
    y = act_matmul(x, w, static.with_ranges(ranges))
    np.testing.assert_array_equal(y, act_matmul(x, w, dynamic))
    # and on other inputs they are not: the ranges stay where they were
    other = jnp.asarray(10 * X[1])
    assert not np.array_equal(
        act_matmul(other, w, static.with_ranges(ranges)), act_matmul(other, w, dynamic)
    )


def test_static_clips_what_is_outside():
    ranges = fit(jnp.array([[-1.0, 1.0]]), ACTS["int8_static"].spec)
    seen = quantized_inputs(jnp.array([[0.5, 7.0, -7.0]]), Act(ranges.spec, ranges))
    np.testing.assert_allclose(seen, [[0.5, 1.0, -128 / 127]], atol=0.5 / 127)


def test_an_act_is_a_pytree_with_static_ranges_as_its_only_data():
    act = ACTS["uint8_static"].with_ranges(fit(jnp.asarray(X[0]), ACTS["uint8_static"].spec))
    assert len(jax.tree.leaves(act)) == 2 and not jax.tree.leaves(ACTS["llm_int8"])
    again = jax.tree.map(lambda leaf: leaf, act)
    assert again.spec == act.spec and again.static and again.threshold is None
    assert isinstance(hash(jax.tree.structure(ACTS["llm_int8"])), int)


def test_a_channel_scale_divides_the_inputs_first():
    """Unfolded SmoothQuant: (x / s) quantized, times the weights that hold s."""
    s = np.linspace(0.25, 4, 96).astype(np.float32)
    w = quantize(jnp.asarray(W * s), SPECS["int8_channel"])
    y = act_matmul(jnp.asarray(X), w.replace(channel_scale=jnp.asarray(s)), ACTS["int8_token"])
    np.testing.assert_array_equal(
        y, act_matmul(divide(jnp.asarray(X), jnp.asarray(s)), w, ACTS["int8_token"])
    )


def test_dead_inputs():
    zeros = jnp.zeros((4, 96))
    for name in DYNAMIC:
        assert not np.asarray(act_matmul(zeros, q(), ACTS[name])).any()


# ---- what theory says of the errors --------------------------------------------------------------


def test_outliers_cost_least_where_they_are_kept_apart():
    """W8A8 with outlier channels: one scale a sequence is worse than one a token, that worse than
    LLM.int8(), whose rest is the rounding of the weights; without outliers all three are close."""
    w = q()

    def errors(x):
        y = x.astype(np.float64) @ np.asarray(W, np.float64).T
        names = ("int8_tensor", "int8_token", "llm_int8")
        return [relative(y, act_matmul(jnp.asarray(x), w, ACTS[name])) for name in names]

    tensor, token, mixed = errors(with_outliers())
    assert tensor > 1.5 * token and token > 2.5 * mixed
    tensor, token, mixed = errors(X)
    assert mixed == token and tensor < 2.5 * token


def test_two_ends_are_better_on_one_sided_inputs():
    """An asymmetric range spends no codes below the least input: twice as fine after a ReLU."""
    x, w = np.maximum(X, 0), jnp.asarray(W)
    y = x.astype(np.float64) @ W.T.astype(np.float64)
    for block in ("token", "tensor"):
        sym, asym = (
            relative(y, act_matmul(jnp.asarray(x), w, ACTS[f"{kind}_{block}"]))
            for kind in ("int8", "uint8")
        )
        assert 1.7 < sym / asym < 2.3


def test_llm_int8_is_equation_8():
    """The outlier channels' exact product, plus the integer product of the others with scales that
    never saw an outlier."""
    x, w, act = with_outliers()[0], q(), ACTS["llm_int8"]
    outlying = (np.abs(x) >= 6.0).any(axis=0)
    assert sorted(np.flatnonzero(outlying)) == [5, 40]
    dense = np.asarray(dequantize(w), np.float64)
    want = x[:, outlying].astype(np.float64) @ dense[:, outlying].T
    want += exact(np.where(outlying, 0, x), w, Act(act.spec))
    np.testing.assert_allclose(act_matmul(jnp.asarray(x), w, act), want, rtol=1e-5, atol=1e-5)
    at = x.copy()
    at[:, 7] = np.clip(at[:, 7], -5.9, 5.9)
    at[0, 7] = 6.0  # "any |x| ≥ the threshold" counts the threshold itself
    seen = np.asarray(quantized_inputs(jnp.asarray(at), act))
    np.testing.assert_array_equal(seen[:, 7], at[:, 7])


# ---- bitsandbytes --------------------------------------------------------------------------------


def signed(q: QTensor) -> np.ndarray:
    """INT8 codes as bitsandbytes stores them."""
    return (np.asarray(q.codes) ^ 128).view(np.int8)


@pytest.mark.parametrize("case", ["plain", "apart", "mixed"])
def test_llm_int8_is_bitsandbytes(case):
    """Codes of weights and inputs are equal. Of the products the integer part is not quite: theirs
    is times 6.200124e-05, where 1/127² is 6.200012e-05, so 1.8e-5 larger. In `mixed` a number below
    the threshold in an outlier channel sets the scale of its token, there and not here."""
    golden = Vectors("llm_int8")
    w = quantize(jnp.asarray(golden["w"]), SPECS["int8_channel"])
    np.testing.assert_array_equal(signed(w), golden["w_codes"])
    np.testing.assert_allclose(np.asarray(w.scale)[:, 0] * 127, golden["w_amax"], rtol=1e-6)
    x, act = jnp.asarray(golden[f"{case}_x"]), ACTS["llm_int8"]
    assert act.threshold == golden.meta["threshold"]
    outlying = np.zeros(96, bool)
    outlying[golden[f"{case}_columns"]] = True
    inside = quantize(jnp.where(outlying, 0, x), act.spec)
    theirs = golden[f"{case}_codes"]
    same = np.ones(len(x), bool)
    if case == "mixed":
        same[1] = False
        assert golden["mixed_amax"][1] == np.float32(np.float16(5.9))
    np.testing.assert_array_equal(signed(inside)[same], theirs[same])
    y, want = np.asarray(act_matmul(x, w, act)), golden[f"{case}_out"]
    integers = act_matmul(jnp.where(outlying, 0, x), w, ACTS["int8_token"])
    excess = np.asarray(integers) * (6.200124e-05 * 127**2 - 1)
    np.testing.assert_allclose((y + excess)[same], want[same], rtol=1e-6, atol=2e-6)
    if case == "mixed":
        true = np.asarray(x, np.float64)[1] @ np.asarray(dequantize(w), np.float64).T
        assert np.abs(y[1] - true).max() < np.abs(want[1] - true).max()


# ---- names and refusals --------------------------------------------------------------------------


def test_find():
    assert find("int8_token") is ACTS["int8_token"] and find(ACTS["llm_int8"]) is ACTS["llm_int8"]
    assert find(Spec(FP8, "row")) == ACTS["fp8_token"]
    assert find(Spec(INT4)) == ACTS["int4_token"]  # "row" is a Spec's default block


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: act_matmul(jnp.asarray(X), q(), ACTS["int8_static"]), "static but has no ranges"),
        (lambda: act_matmul(jnp.ones(96), q(), ACTS["int8_token"]), r"\(96,\).*\(40, 96\)"),
        (lambda: act_matmul(jnp.ones((3, 95)), q(), ACTS["int8_token"]), r"\(3, 95\).*\(40, 96\)"),
        (lambda: find("int8_tokens"), "did you mean 'int8_token'"),
        (lambda: Act("int8"), "needs a Spec, not 'int8'"),
        (lambda: Act(Spec(INT8), threshold=0.0), "threshold 0.0 is not positive"),
    ],
)
def test_bad_input(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize("name", ["int8_g128", "nf4_double", "fp8_block", "q4_k", "awq_g128"])
def test_acts_take_weights_of_any_spec(name):
    w = jnp.asarray(RNG.standard_normal((4, 512)), jnp.float32)
    x = RNG.standard_normal((6, 512)).astype(np.float32)
    q = quantize(w, SPECS[name])
    got = act_matmul(jnp.asarray(x), q, ACTS["int8_token"])
    want = x @ np.asarray(dequantize(q)).T
    np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())
