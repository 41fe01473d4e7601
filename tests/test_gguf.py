"""GGUF: blocks decode to ggml's own numbers and become QTensors without rounding."""

import gguf as peer
import numpy as np
import pytest

from qlab.io import gguf
from qlab.qtensor import bits_per_weight, dequantize

QUANTIZED = list(gguf.TYPE_SPECS)


def random_blocks(kind: str, rows: int = 5, blocks: int = 7, seed: int = 0) -> np.ndarray:
    """Random bits with scales that are finite: NaN != NaN would spoil a comparison of numbers."""
    size, layout = gguf.BLOCKS[kind]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, blocks * layout.itemsize), dtype=np.uint8)
    if layout.names:
        view = raw.view(layout)
        for name in {"d", "m", "dmin"} & set(layout.names):
            if layout[name] == np.float16:
                view[name] = rng.normal(0, 1, view[name].shape).astype(np.float16)
    if kind == "IQ1_M":  # its scale lies in the top nibbles of its last four words
        raw.reshape(rows, blocks, -1)[..., -1] &= 0x3F
    if kind == "MXFP4":
        view["e"] = rng.integers(2, 250, view["e"].shape)
    if kind == "NVFP4":
        view["d"] = rng.integers(0, 127, view["d"].shape)
    if kind == "TQ2_0":
        view["qs"] &= 0b01010101  # trits
    return raw


@pytest.mark.parametrize("kind", list(gguf.BLOCKS))
def test_decode_is_ggml_bit_for_bit(kind):
    raw = random_blocks(kind)
    ours = gguf.decode(raw, kind)
    theirs = peer.quants.dequantize(raw, peer.GGMLQuantizationType[kind])
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("kind", list(gguf.BLOCKS))
def test_decode_handles_every_bit_pattern(kind):
    size, struct = gguf.BLOCKS[kind]
    raw = np.random.default_rng(1).integers(0, 256, (64, 4 * struct.itemsize), dtype=np.uint8)
    with np.errstate(all="ignore"):
        theirs = peer.quants.dequantize(raw, peer.GGMLQuantizationType[kind])
        np.testing.assert_array_equal(gguf.decode(raw, kind), theirs)  # NaN equals NaN here


@pytest.mark.parametrize("kind", QUANTIZED)
def test_qtensor_holds_the_same_numbers(kind):
    raw = random_blocks(kind)
    q = gguf.to_qtensor(raw, kind)
    expected = gguf.decode(raw, kind)
    assert q.shape == expected.shape
    np.testing.assert_array_equal(np.asarray(dequantize(q)), expected)
    assert bits_per_weight(q) == 8 * gguf.BLOCKS[kind][1].itemsize / gguf.BLOCKS[kind][0]


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="'Q8_K' is unknown: did you mean 'Q"):
        gguf.decode(np.zeros((1, 144), np.uint8), "Q8_K")
    with pytest.raises(ValueError, match="19 bytes a row are no multiple of Q4_0's 18"):
        gguf.decode(np.zeros((1, 19), np.uint8), "Q4_0")
    with pytest.raises(ValueError, match="uint8"):
        gguf.decode(np.zeros((1, 18), np.int8), "Q4_0")
    with pytest.raises(ValueError, match="'F16' is no QTensor"):
        gguf.to_qtensor(np.zeros((1, 18), np.uint8), "F16")
