"""The searches of ggml's quantizers: for one block of weights the scale, and the minimum, that
lose least.

    make_qx, make_q3   argmin_{s, q ∈ [−n, n)}   Σ w (x − s q)²           given q: s = Σwxq / Σwq²
    make_qp            the same with q ∈ [0, n], for the scales and minima of sub-blocks
    make_qkx           argmin_{s, m, q ∈ [0, n]} Σ w (x − s q − m)²,  m ≤ 0, by least squares
    make_iq4           as make_qx over sixteen uneven levels

x, weights · (elements, blocks …): the elements of a block lie along the first axis, one block is
one column. Source of candidates and constants: ggml, ggml-quants.c (I. Kawrakow); the names are
its own.
A file's bytes depend on every rounding, so sums run over the elements in order, as the C loop does,
and no product is fused with a sum (`arithmetic.multiply`). Each candidate is one step of a loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qlab.arithmetic import bits_of, divide, multiply, reciprocal

EPS = 1e-15  # a block whose largest magnitude is below counts as zeros
_F = np.float32


class Tried(NamedTuple):
    """What a search has just tried: x ≈ scale·q + minimum. `tell=` of a search is called with each,
    the one to beat first, as its loop is traced: `jax.debug.callback` brings the numbers out.

    Attributes:
        at: (blocks …), where among the candidates: inverse scale · (max − min), or · −far, so that
            n is plain rounding; in a descent how many codes were visited.
        inverse: (blocks …), the inverse scale that rounded.
        q: (elements, blocks …), the codes as numbers.
        scale, minimum: (blocks …), fitted to q.
        better: (blocks …) bool, whether it is kept.
        x, weights: (elements, blocks …), as given.
        power: the loss is Σ weights·|x − scale·q − minimum|^power.
    """

    at: jax.Array
    inverse: jax.Array
    q: jax.Array
    scale: jax.Array
    minimum: jax.Array
    better: jax.Array
    x: jax.Array
    weights: jax.Array
    power: int = 2


Tell = Callable[[Tried], None]


def nearest_int(x: jax.Array) -> jax.Array:
    """The int32 nearest to each number, ties to even, by adding 1.5 · 2²³ and reading the mantissa.

    Beyond ±2²² the bits wrap and NaN gives 0, as in C: such numbers reach a file's bytes.

    Example:
        >>> nearest_int(jnp.array([0.5, 1.5, -2.5, jnp.nan])).tolist()
        [0, 2, -2, 0]
    """
    return (bits_of(x + 12582912.0) & 0x7FFFFF) - 0x400000


def round_away(x: jax.Array) -> jax.Array:
    """The nearest whole number, halves away from zero: C's roundf.

    Example:
        >>> round_away(jnp.array([0.49999997, 0.5, -2.5])).tolist()
        [0.0, 1.0, -3.0]
    """
    whole = jnp.trunc(x)
    return whole + jnp.where(jnp.abs(x - whole) >= 0.5, jnp.sign(x), 0.0)


def sum_in_order(*terms: jax.Array) -> tuple[jax.Array, ...]:
    """The sums over the first axis from the first element to the last, as a C loop adds.

    Example:
        >>> float(sum_in_order(jnp.array([1e8, -1e8, 1.0]))[0])
        1.0
    """
    add = lambda i, sums: tuple(s + t[i] for s, t in zip(sums, terms, strict=True))  # noqa: E731
    return jax.lax.fori_loop(1, terms[0].shape[0], add, tuple(t[0] for t in terms))


def ends(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """min, max, and the number of largest magnitude with its sign; of equal ones the first."""

    def look(i: jax.Array, found: tuple) -> tuple:
        low, high, far = found
        far = jnp.where(jnp.abs(x[i]) > jnp.abs(far), x[i], far)
        return jnp.where(x[i] < low, x[i], low), jnp.where(x[i] > high, x[i], high), far

    return jax.lax.fori_loop(0, x.shape[0], look, (x[0], x[0], jnp.zeros_like(x[0])))


def _or_zero(holds: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.where(holds, values, jnp.zeros_like(values))


def inverse(x: jax.Array) -> jax.Array:
    """1 / x, and 0 for 0."""
    return _or_zero(x != 0, reciprocal(jnp.where(x == 0, 1.0, x)))


def _best_scale(
    moments: Callable[[jax.Array], tuple[jax.Array, ...]],
    inverses: Callable[[jax.Array], jax.Array], count: int, first: jax.Array,
    told: Callable[[jax.Array, jax.Array, jax.Array], None] | None = None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """The inverse scale whose codes make (Σwxq)² / Σwq² largest, and the scale that fits them.

    Args:
        moments: inverse scale (blocks …) -> Σwxq, Σwq² of the codes it gives.
        inverses: number of a candidate -> its inverse scale (blocks …).
        count: of the candidates.
        first: (blocks …), the inverse scale to beat.
        told: called with each inverse scale, its scale and whether it is better.

    Returns:
        scale = Σwxq / Σwq² and the inverse scale that chose q, (blocks …).
    """

    def step(i: jax.Array, best: tuple) -> tuple:
        value, scale, chosen = best
        inv = inverses(i)
        xq, qq = moments(inv)
        better = (qq > 0) & (xq * xq > value * qq)
        new = divide(xq, qq)
        if told:
            told(inv, new, better)
        return (
            jnp.where(better, new * xq, value),
            jnp.where(better, new, scale),
            jnp.where(better, inv, chosen),
        )

    xq, qq = moments(first)
    scale = _or_zero(qq != 0, divide(xq, qq))
    if told:
        told(first, scale, jnp.ones_like(scale, bool))
    _, scale, chosen = jax.lax.fori_loop(0, count, step, (scale * xq, scale, first))
    return scale, chosen


def _told(
    tell: Tell, x: jax.Array, weights: jax.Array, far: jax.Array, q: Callable
) -> Callable[..., None]:
    """`tell` in the words of `_best_scale`."""

    def told(inv: jax.Array, scale: jax.Array, better: jax.Array) -> None:
        tell(Tried(inv * -far, inv, q(inv), scale, scale * 0, better, x, weights))

    return told


def _moments(x: jax.Array, weights: jax.Array, q: jax.Array) -> tuple[jax.Array, ...]:
    """Σ(wx)q, Σ(wq)q."""
    q = q.astype(jnp.float32)
    return sum_in_order(multiply(multiply(weights, x), q), multiply(multiply(weights, q), q))


def make_qx(
    x: jax.Array, weights: jax.Array, n: int, tell: Tell | None = None
) -> tuple[jax.Array, jax.Array]:
    """Codes q + n with q ∈ [−n, n): 19 inverse scales −(n + i/10) / far, i = −9 … 9.

    Args:
        x: (elements, blocks …) float32.
        weights: shape as x.
        n: 4, 8, 16 or 32; of x of largest magnitude `far` becomes about −n.
        tell: see `Tried`.

    Returns:
        scale (blocks …) and codes (elements, blocks …) int32; zeros for a block of zeros.

    Example:
        >>> scale, codes = make_qx(jnp.array([[-4.0], [3.0], [1.0]]), jnp.ones((3, 1)), 4)
        >>> scale.tolist(), codes[:, 0].tolist()
        ([1.0], [0, 7, 5])
    """
    far = ends(x)[2]
    empty = jnp.abs(far) < EPS
    far = jnp.where(empty, 1.0, far)
    tries = np.array([i for i in range(-9, 10) if i], _F)
    tries = jnp.asarray(-(_F(n) + _F(0.1) * tries))
    codes = lambda inv: jnp.clip(nearest_int(multiply(x, inv)), -n, n - 1)  # noqa: E731
    scale, chosen = _best_scale(
        lambda inv: _moments(x, weights, codes(inv)),
        lambda i: divide(tries[i], far), len(tries), divide(jnp.float32(-n), far),
        tell and _told(tell, x, weights, far, codes),
    )  # fmt: skip
    return _or_zero(~empty, scale), _or_zero(~empty, codes(chosen) + n)


def _descend(
    x: jax.Array, weights: jax.Array, q: jax.Array, low: int, high: int, positive: bool,
    told: Callable[..., None] | None = None,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
    """Five rounds of coordinate descent: each code in turn moves to what the others make best, if
    (Σwxq)² / Σwq² grows. The scale that fits the codes, and the codes.

    `positive`: only where the sum without the code is positive, as make_qp asks. `told`: called
    with the number of codes visited, the codes, Σwxq, Σwq² and whether a code has moved.
    """
    shape = x.shape
    x, weights, q = (a.reshape(len(a), -1).astype(jnp.float32) for a in (x, weights, q))

    def tell(k: jax.Array, q: jax.Array, *sums: jax.Array) -> None:
        if told:
            told(k, q.reshape(shape), *(a.reshape(shape[1:]) for a in sums))

    # The codes come and go as rows of the scan: a state of all codes, one row of which is replaced,
    # took twice as long. Only `told` needs them together.
    def visit(state: tuple, element: tuple) -> tuple:
        xq, qq, k, seen = state
        i, x, wx, weight, old = element
        rest_x = xq - multiply(wx, old)
        rest_q = qq - multiply(multiply(weight, old), old)
        new = jnp.clip(nearest_int(divide(x * rest_q, rest_x)), low, high).astype(jnp.float32)
        new_x = rest_x + multiply(wx, new)
        new_q = rest_q + multiply(multiply(weight, new), new)
        better = (rest_x > 0) & (new != old) & (new_q > 0)
        better &= new_x * new_x * qq > xq * xq * new_q
        if positive:
            better &= rest_q > 0
        new = jnp.where(better, new, old)
        xq, qq = jnp.where(better, new_x, xq), jnp.where(better, new_q, qq)
        seen = None if seen is None else seen.at[i].set(new)
        if seen is not None:
            tell(k + 1, seen, xq, qq, better)
        return (xq, qq, k + 1, seen), new

    def visit_all(_: jax.Array, state: tuple) -> tuple:
        q, *sums = state
        sums, q = jax.lax.scan(visit, tuple(sums), (jnp.arange(len(x)), x, wx, weights, q))
        return q, *sums

    wx = multiply(weights, x)
    xq, qq = _moments(x, weights, q)
    tell(jnp.int32(0), q, xq, qq, qq > 0)
    start = q, xq, qq, jnp.int32(0), q if told else None
    q, xq, qq, *_ = jax.lax.fori_loop(0, 5, visit_all, start)
    scale = _or_zero(qq > 0, divide(xq, qq))
    return scale.reshape(shape[1:]), q.astype(jnp.int32).reshape(shape)


def make_q3(x: jax.Array, n: int, tell: Tell | None = None) -> tuple[jax.Array, jax.Array]:
    """Codes q + n with q ∈ [−n, n) and weights x²: one rounding, then coordinate descent.

    Args:
        x: (elements, blocks …) float32.
        n: 4.
        tell: see `Tried`.

    Returns:
        scale (blocks …) and codes (elements, blocks …) int32, as `make_qx`.

    Example:
        >>> scale, codes = make_q3(jnp.array([[-4.0], [3.0], [1.0]]), 4)
        >>> scale.tolist(), codes[:, 0].tolist()
        ([1.0], [0, 7, 5])
    """
    far = ends(x)[2]
    empty = jnp.abs(far) < EPS
    inv = divide(jnp.float32(-n), jnp.where(empty, 1.0, far))
    q = jnp.clip(nearest_int(multiply(x, inv)), -n, n - 1)
    weights = multiply(x, x)

    def told(k, q, xq, qq, better) -> None:
        if tell:
            scale = divide(xq, qq)
            at = jnp.full_like(scale, k)
            tell(Tried(at, inv, q, scale, scale * 0, better, x, weights))

    scale, q = _descend(x, weights, q, -n, n - 1, False, told)
    return _or_zero(~empty, scale), _or_zero(~empty, q + n)


def make_qp(x: jax.Array, weights: jax.Array, n: int) -> tuple[jax.Array, jax.Array]:
    """Codes q ∈ [0, n] of numbers ≥ 0: nine inverse scales (n + i/10) / max, i = −4 … 4, then
    coordinate descent.

    Args:
        x: (elements, blocks …) float32 ≥ 0; here the elements are the scales or the minima of
            sub-blocks.
        weights: shape as x.
        n: 15 or 63.

    Returns:
        scale (blocks …) and codes (elements, blocks …) int32.

    Example:
        >>> scale, codes = make_qp(jnp.array([[15.0], [3.0]]), jnp.ones((2, 1)), 15)
        >>> scale.tolist(), codes[:, 0].tolist()
        ([1.0], [15, 3])
    """
    top = jnp.maximum(ends(x)[1], 0.0)
    empty = top < EPS
    top = jnp.where(empty, 1.0, top)
    tries = jnp.asarray(_F(0.1) * np.array([i for i in range(-4, 5) if i], _F) + _F(n))

    def loss(inv: jax.Array, q: jax.Array) -> jax.Array:
        scale = reciprocal(inv)
        wrong = x - multiply(scale, q.astype(jnp.float32))
        return sum_in_order(multiply(multiply(weights, wrong), wrong))[0]

    def step(i: jax.Array, best: tuple) -> tuple:
        inv = divide(tries[i], top)
        new = loss(inv, jnp.minimum(nearest_int(multiply(x, inv)), n))
        better = new < best[0]
        return jnp.where(better, new, best[0]), jnp.where(better, inv, best[1])

    inv = divide(jnp.float32(n), top)
    first = loss(inv, nearest_int(multiply(x, inv))), inv
    inv = jax.lax.fori_loop(0, len(tries), step, first)[1]
    q = jnp.minimum(nearest_int(multiply(x, inv)), n)
    scale, q = _descend(x, weights, q, 0, n, positive=True)
    return _or_zero(~empty, scale), _or_zero(~empty, q)


def make_qkx(
    x: jax.Array, weights: jax.Array, n: int, tries: tuple[float, float, int],
    absolute: bool = False, tell: Tell | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # fmt: skip
    """Codes q ∈ [0, n], scale and minimum ≤ 0: for each inverse scale (first + step·i + n) /
    (max − min) round, fit both by weighted least squares, keep what loses least.

        D = Σw Σwq² − (Σwq)²,  s = (Σw Σwxq − Σwx Σwq) / D,  m = (Σwq² Σwx − Σwq Σwxq) / D

    Args:
        x: (elements, blocks …) float32.
        weights: shape as x.
        n: largest code.
        tries: (first, step, count); count + 1 candidates. A better one also replaces the minimum
            from which the next rounds.
        absolute: the loss is Σw|x − sq − m|, as Q2_K's without importance.
        tell: see `Tried`.

    Returns:
        scale (blocks …), −minimum (blocks …) ≥ 0, codes (elements, blocks …) int32.

    Example:
        >>> scale, minimum, codes = make_qkx(
        ...     jnp.array([[-1.0], [2.0], [0.0]]), jnp.ones((3, 1)), 3, (-0.5, 0.1, 15))
        >>> scale.tolist(), minimum.tolist(), codes[:, 0].tolist()
        ([1.0], [1.0], [0, 3, 1])
    """
    low, high, _ = ends(x)
    low = jnp.where(low > 0, 0.0, low)
    flat = high == low
    sum_w, sum_wx = sum_in_order(weights, multiply(weights, x))
    first, step, count = tries
    power = 1 if absolute else 2
    numerators = jnp.asarray(_F(first) + _F(step) * np.arange(count + 1, dtype=_F) + _F(n))

    def codes(inv: jax.Array, low: jax.Array) -> jax.Array:
        return jnp.clip(nearest_int(multiply(x - low, inv)), 0, n)

    def loss(q: jax.Array, scale: jax.Array, low: jax.Array) -> jax.Array:
        wrong = multiply(scale, q) + low - x
        wrong = jnp.abs(wrong) if absolute else multiply(wrong, wrong)
        return sum_in_order(multiply(weights, wrong))[0]

    def attempt(i: jax.Array, best: tuple) -> tuple:
        least, scale, low, *_ = best
        inv = divide(numerators[i], high - low)
        q = codes(inv, low).astype(jnp.float32)
        wq = multiply(weights, q)
        sum_q, sum_qq, sum_xq = sum_in_order(wq, multiply(wq, q), multiply(wq, x))
        det = multiply(sum_w, sum_qq) - multiply(sum_q, sum_q)
        s = divide(multiply(sum_w, sum_xq) - multiply(sum_wx, sum_q), det)
        m = divide(multiply(sum_qq, sum_wx) - multiply(sum_q, sum_xq), det)
        s, m = jnp.where(m > 0, divide(sum_xq, sum_qq), s), jnp.where(m > 0, 0.0, m)
        new = loss(q, s, m)
        better = (det > 0) & (new < least)
        if tell:
            at = jnp.full_like(inv, numerators[i])
            tell(Tried(at, inv, q, s, m, better, x, weights, power))
        kept = zip((new, s, m, inv, low), best, strict=True)
        return tuple(jnp.where(better, a, b) for a, b in kept)

    inv = divide(jnp.float32(n), high - low)
    scale = reciprocal(inv)
    q = codes(inv, low).astype(jnp.float32)
    least = loss(q, scale, low)
    if tell:
        tell(Tried(jnp.full_like(inv, n), inv, q, scale, low, ~flat, x, weights, power))
    best = jax.lax.fori_loop(0, count + 1, attempt, (least, scale, low, inv, low))
    _, scale, minimum, inv, low = best
    return _or_zero(~flat, scale), -minimum, _or_zero(~flat, codes(inv, low))


def nearest_level(x: jax.Array, levels: np.ndarray) -> jax.Array:
    """The index of the nearest of ascending levels; of two equally near the upper.

    Example:
        >>> nearest_level(jnp.array([-9.0, 0.5, 3.0]), np.array([-1.0, 0.0, 1.0])).tolist()
        [0, 2, 2]
    """
    cuts = (levels[1:] + levels[:-1]) / 2  # exact for whole levels
    below = (jnp.where(x < float(c), 1, 0).astype(jnp.int32) for c in cuts)
    return len(cuts) - sum(below, jnp.zeros(x.shape, jnp.int32))


def make_iq4(
    x: jax.Array, weights: jax.Array, levels: np.ndarray, tell: Tell | None = None
) -> jax.Array:
    """The scale for uneven levels: 15 inverse scales (levels[0] + i) / far, i = −7 … 7.

    Args:
        x: (elements, blocks …) float32.
        weights: shape as x.
        levels: (16,) ascending whole numbers.
        tell: see `Tried`.

    Returns:
        scale (blocks …); 0 for a block of zeros.

    Example:
        >>> from qlab.formats import IQ4NL
        >>> float(make_iq4(jnp.array([[-127.0], [113.0]]), jnp.ones((2, 1)), IQ4NL.grid)[0])
        1.0
    """
    far = ends(x)[2]
    empty = jnp.abs(far) < EPS
    far = jnp.where(empty, 1.0, far)
    tries = jnp.asarray(np.arange(-7, 8, dtype=_F) + _F(levels[0]))
    table = jnp.asarray(levels, jnp.float32)
    first = divide(-far, float(levels[0]))

    def rounded(inv: jax.Array) -> jax.Array:
        return table[nearest_level(multiply(x, inv), levels)]

    def moments(inv: jax.Array) -> tuple[jax.Array, ...]:
        q = rounded(inv)
        wq = multiply(weights, q)  # here C multiplies by the level first
        return sum_in_order(multiply(wq, x), multiply(wq, q))

    inv = reciprocal(first)
    told = tell and _told(tell, x, weights, far, rounded)
    scale, _ = _best_scale(moments, lambda i: divide(tries[i], far), len(tries), inv, told)
    return _or_zero(~empty, scale)
