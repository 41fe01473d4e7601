"""Formats against ml_dtypes, and against brute force in float64 for every bfloat16 number."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlab.formats import E8M0, FORMATS, FP4, FP8, FP8_E5M2, INT4, INT8, Format

BFLOAT16 = np.arange(65536, dtype=np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
FINITE = BFLOAT16[np.isfinite(BFLOAT16)]
ML_DTYPES = {
    "FP8": ml_dtypes.float8_e4m3fn,
    "FP8_E5M2": ml_dtypes.float8_e5m2,
    "FP6_E2M3": ml_dtypes.float6_e2m3fn,
    "FP6_E3M2": ml_dtypes.float6_e3m2fn,
    "FP4": ml_dtypes.float4_e2m1fn,
}


def nearest(format: Format, x: np.ndarray) -> np.ndarray:
    """The definition, slowly: nearest finite value in float64, ties by the code's parity or as
    the format says.
    """
    codes = np.flatnonzero(np.isfinite(format.grid))
    values = format.grid[codes].astype(np.float64)
    keep = ~((values == 0) & np.signbit(values))
    order = np.argsort(values[keep], kind="stable")
    codes, values = codes[keep][order], values[keep][order]
    high = np.clip(np.searchsorted(values, x.astype(np.float64)), 1, len(values) - 1)
    low = high - 1
    if format.ties == "down":  # the midpoint as a float32; a number equal to it stays below
        cut = ((values[low] + values[high]) / 2).astype(np.float32)
        return np.where(x <= cut, codes[low], codes[high])
    below = x.astype(np.float64) - values[low]
    above = values[high] - x.astype(np.float64)
    even_low = {"up": False, "even": codes[low] % 2 == 0}[format.ties]
    return np.where((below < above) | ((below == above) & even_low), codes[low], codes[high])


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_encode_is_nearest_for_every_bfloat16(format):
    got = np.asarray(format.encode(jnp.asarray(FINITE)))
    want = nearest(format, FINITE)
    np.testing.assert_array_equal(format.grid[got], format.grid[want])


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_ties_go_where_they_should(format):
    middle = (format.values[:-1].astype(np.float64) + format.values[1:]) / 2
    exact = middle[middle.astype(np.float32) == middle].astype(np.float32)
    near = np.concatenate(
        [exact, np.nextafter(exact, np.float32(np.inf)), np.nextafter(exact, np.float32(-np.inf))]
    )
    got = np.asarray(format.encode(jnp.asarray(near)))
    np.testing.assert_array_equal(format.grid[got], format.grid[nearest(format, near)])


@pytest.mark.parametrize("name", ML_DTYPES)
def test_equals_ml_dtypes(name):
    format = FORMATS[name]
    want = np.clip(FINITE, format.min, format.max).astype(ML_DTYPES[name]).astype(np.float32)
    got = np.asarray(format.decode(format.encode(jnp.asarray(FINITE))))
    np.testing.assert_array_equal(got, want)
    patterns = np.arange(len(format.grid), dtype=np.uint8).view(ML_DTYPES[name]).astype(np.float32)
    finite = np.isfinite(patterns)
    np.testing.assert_array_equal(format.grid[finite], patterns[finite])
    assert np.isnan(format.grid[~finite]).all()


def test_e8m0_equals_ml_dtypes_for_normal_numbers():
    """Below 2⁻¹²⁶ ml_dtypes takes 2⁻¹²⁶ for numbers nearer to 2⁻¹²⁷; the definition here is
    nearest.
    """
    x = FINITE[(FINITE >= 2.0**-126) & (FINITE < 1.5 * 2.0**127)]  # above, ml_dtypes says NaN
    want = x.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8)
    np.testing.assert_array_equal(np.asarray(E8M0.encode(jnp.asarray(x))), want)
    tiny = np.array([2.0**-127, 1.01 * 2.0**-127, 1.9 * 2.0**-127], np.float32)
    assert np.asarray(E8M0.encode(jnp.asarray(tiny))).tolist() == [0, 0, 1]


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_every_value_is_a_fixed_point_and_never_nan_or_minus_zero(format):
    finite = np.isfinite(format.grid)
    codes = np.asarray(format.encode(jnp.asarray(format.grid[finite])))
    np.testing.assert_array_equal(format.grid[codes], format.grid[finite])
    reached = format.grid[np.asarray(format.encode(jnp.asarray(FINITE)))]
    assert np.isfinite(reached).all()
    assert not np.signbit(reached[reached == 0]).any()


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_compiled_equals_eager(format):
    x = jnp.asarray(FINITE)
    with jax.disable_jit():
        eager = format.encode(x)
    np.testing.assert_array_equal(eager, jax.jit(format.encode)(x))
    np.testing.assert_array_equal(format.decode(eager), jax.jit(format.decode)(eager))


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=16, max_size=16))
def test_encode_is_monotonic(numbers):
    x = np.sort(np.array(numbers, np.float32))
    for format in (FP4, FP8, INT4, FORMATS["NF4"], FORMATS["IQ4NL"]):
        y = np.asarray(format.decode(format.encode(jnp.asarray(x))))
        assert (np.diff(y) >= 0).all()


def test_codes_are_the_stored_patterns():
    assert np.isnan(FP8.grid[0x7F]) and np.isnan(FP8.grid[0xFF]) and FP8.max == 448
    assert np.signbit(FP4.grid[8]) and FP4.grid[8] == 0 and FP4.max == 6
    assert INT4.grid[0] == -8 and INT4.grid[15] == 7
    assert FP8_E5M2.max == 57344 and np.isnan(FP8_E5M2.grid[0x7C])  # infinity is no finite number
    stored = np.array([-128, -1, 0, 127], np.int8)
    codes = np.asarray(INT8.encode(jnp.asarray(stored, jnp.float32)))
    np.testing.assert_array_equal(codes, stored.view(np.uint8) ^ 128)


def test_equality_is_by_name_and_bits():
    assert FORMATS["TERNARY"] != FORMATS["TERNARY2"]
    assert Format("INT4", 4, INT4.grid) == INT4 and hash(Format("INT4", 4, INT4.grid)) == hash(INT4)
    assert len(FORMATS) == 27 and all(FORMATS[f.name] is f for f in FORMATS.values())


def test_table_formats_have_their_sources_shape():
    """NF4 holds 0 and ±1 with 8 positive and 7 negative levels; DYNAMIC8 is 256 distinct values
    with 0 and 1.
    """
    nf4, dynamic = FORMATS["NF4"].grid, FORMATS["DYNAMIC8"].grid
    assert (nf4 > 0).sum() == 8 and (nf4 < 0).sum() == 7 and nf4[7] == 0
    assert len(np.unique(dynamic)) == 256 and dynamic[-1] == 1 and 0 in dynamic
    from scipy.stats import norm

    quantiles = norm.ppf(np.linspace(0.9677083, 0.5, 9)[:-1])
    np.testing.assert_allclose(nf4[8:][::-1], quantiles / quantiles[0], atol=2e-6)
