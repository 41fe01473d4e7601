"""The section "Arithmetic that bit-exactness needs" of the design, as tests."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlab.arithmetic import (
    bits_of,
    cast,
    divide,
    exponent,
    multiply,
    order_key,
    ordered_mean,
    ordered_sum,
    power_of_two,
    reciprocal,
)

RNG = np.random.default_rng(0)
A, B, C = (RNG.standard_normal((64, 1024)).astype(np.float32) for _ in range(3))


def both(function, *args):
    """The results compiled and eager, which must agree bit for bit."""
    with jax.disable_jit():
        eager = np.asarray(function(*args))
    compiled = np.asarray(jax.jit(function)(*args))
    np.testing.assert_array_equal(eager, compiled)
    return compiled


@pytest.mark.parametrize("divisor", [448.0, 7.0, 7.5, 127.0, 3.0])
def test_divide_is_ieee(divisor):
    np.testing.assert_array_equal(both(lambda a: divide(a, divisor), A), A / np.float32(divisor))
    column = np.full((64, 1), divisor, np.float32)
    np.testing.assert_array_equal(both(divide, A, column), A / column)


def test_a_reciprocal_of_a_quotient_rounds_twice():
    """1 / (n / x) is two roundings; a constant numerator lets XLA see through `divide`'s zero."""
    n = np.float32(15.0)
    expected = np.float32(1) / (n / A)
    found = both(lambda x: reciprocal(divide(jnp.full_like(x, n), x)), A)
    np.testing.assert_array_equal(found, expected)
    assert (expected != A / n).mean() > 0.1  # what it would be in one


def test_plain_division_is_not():
    """The reason for `divide`: if XLA ever keeps division by a broadcast constant exact, drop
    it.
    """
    plain = np.asarray(jax.jit(lambda a: a / 448.0)(A))
    assert (plain != A / np.float32(448)).mean() > 0.1


def test_divide_of_a_scalar():
    for a in A[0, :200]:
        assert float(both(lambda a: divide(a, 448.0), a)) == a / np.float32(448)


def test_multiply_then_add_rounds_twice():
    got = both(lambda a, b, c: multiply(a, b) + c, A, B, C)
    np.testing.assert_array_equal(got, A * B + C)
    product = both(lambda a, b: multiply(a, b) - b, A, B)
    np.testing.assert_array_equal(product, A * B - B)


def test_plain_multiply_add_is_contracted():
    fused = np.asarray(jax.jit(lambda a, b, c: a * b + c)(A, B, C))
    assert (fused != A * B + C).mean() > 0.05


def test_sequential_sum_in_a_loop_is_exact():
    def dot(a, b):
        step = lambda i, total: total + multiply(a[:, i], b[:, i])  # noqa: E731
        return jax.lax.fori_loop(0, a.shape[1], step, jnp.zeros(a.shape[0]))

    want = np.zeros(64, np.float32)
    for i in range(A.shape[1]):
        want += A[:, i] * B[:, i]
    np.testing.assert_array_equal(both(dot, A, B), want)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000])
def test_ordered_sum(n):
    x = A[:, :n]
    got = both(ordered_sum, x)
    np.testing.assert_allclose(got, x.astype(np.float64).sum(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(both(jax.vmap(ordered_sum), x), got)
    assert both(ordered_mean, x).shape == (64,)


def test_ordered_sum_order_is_by_halves():
    x = np.array([1e8, 1.0, -1e8, 1.0], np.float32)
    assert float(ordered_sum(jnp.asarray(x))) == (x[0] + x[2]) + (x[1] + x[3])


def test_casts_saturate_and_round_to_even():
    x = np.array([1e6, -1e6, 1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 0.1], np.float32)
    half = both(lambda x: cast(x, "float16"), x)
    np.testing.assert_array_equal(half[2:], x[2:].astype(np.float16))
    assert half[0] == 65504 and half[1] == -65504
    wide = np.concatenate([A.ravel(), 1e30 * A.ravel()])
    brain = both(lambda x: cast(x, "bfloat16").astype(jnp.float32), wide)
    np.testing.assert_array_equal(brain, wide.astype(jnp.bfloat16).astype(np.float32))


def test_order_key_sorts_as_floats_do():
    x = np.array([-np.inf, -1e30, -1.0, -1e-40, -1e-45, 0.0, 1e-45, 1e-40, 1.0, np.inf], np.float32)
    key = np.asarray(order_key(jnp.asarray(x)))
    assert (np.diff(key.astype(np.int64)) > 0).all()


def test_exponents():
    x = np.array([1, 1.99, 2, 0.5, 6, 448, 2.0**-126, 1e30], np.float32)
    np.testing.assert_array_equal(exponent(jnp.asarray(x)), np.floor(np.log2(x.astype(np.float64))))
    e = jnp.arange(-127, 128)
    two = np.asarray(bits_of(power_of_two(e))).view(np.float32)
    np.testing.assert_array_equal(two, np.exp2(np.arange(-127, 128, dtype=np.float64)))
