"""Dense bytes: any codes of any format come back, and take exactly the bits that they should."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlab.formats import FORMATS, INT3, INT4, TERNARY, TERNARY2, UINT2
from qlab.packing import pack, packed_size, unpack


@given(st.sampled_from(sorted(FORMATS)), st.integers(1, 600), st.integers(0, 2**32 - 1))
def test_round_trip(name, count, seed):
    format = FORMATS[name]
    codes = np.random.default_rng(seed).integers(0, len(format.grid), count).astype(np.uint8)
    data = pack(codes, format)
    assert data.dtype == np.uint8 and data.size == packed_size(count, format)
    np.testing.assert_array_equal(unpack(data, format, (count,)), codes)


def test_bit_order():
    assert pack(np.array([1, 2, 3, 0], np.uint8), UINT2).tolist() == [0b00111001]
    assert pack(np.array([7, 0, 5], np.uint8), INT3).tolist() == [0b01000111, 0b1]
    assert pack(np.array([[0xA, 0xB], [0xC, 0xD]], np.uint8), INT4).tolist() == [0xBA, 0xDC]
    assert pack(np.array([1, 2, 0, 0, 1], np.uint8), TERNARY)[0] == 1 + 2 * 3 + 81


def test_sizes():
    assert packed_size(256, TERNARY) == 52 and packed_size(257, TERNARY) == 104
    assert packed_size(3, INT4) == 2
    for name, format in FORMATS.items():
        assert packed_size(4096, format) * 8 == 4096 * format.bits, name


@pytest.mark.parametrize(
    "call, sentence",
    [
        (lambda: unpack(np.zeros(3, np.uint8), INT4, (4,)), "4 codes of INT4 take 2 bytes, not 3"),
        (lambda: pack(np.array([16], np.uint8), INT4), "code 16 is not below the 16 of INT4"),
        (lambda: unpack(np.array([3], np.uint8), TERNARY2, (1,)), "code 3 is not below the 3"),
    ],
)
def test_bad_bytes(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
