"""GGUF: blocks decode to ggml's own numbers, become QTensors without rounding, and a damaged file
ends in one sentence."""

import gguf as peer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlab.io import gguf
from qlab.qtensor import bits_per_weight, dequantize

QUANTIZED = list(gguf.TYPE_SPECS)


def random_blocks(kind: str, rows: int = 5, blocks: int = 7, seed: int = 0) -> np.ndarray:
    """Random bits with scales that are finite: NaN != NaN would spoil a comparison of numbers."""
    size, struct = gguf.BLOCKS[kind]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows, blocks * struct.itemsize), dtype=np.uint8)
    if struct.names:
        view = raw.view(struct)
        for name in {"d", "m", "dmin"} & set(struct.names):
            if struct[name] == np.float16:
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


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small file with every kind of metadata and three tensors, as the peer writes it."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = peer.GGUFWriter(path, "llama")
    writer.add_uint32("a.u32", 7)
    writer.add_int64("a.i64", -(1 << 40))
    writer.add_float32("a.f32", 1.5)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "안녕")
    writer.add_array("a.texts", ["x", "", "Ġz"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_tensor("plain", np.arange(6, dtype=np.float32).reshape(2, 3))
    writer.add_tensor("half", np.arange(4, dtype=np.float16))
    writer.add_tensor(
        "blocks", random_blocks("Q8_0", 3, 2), raw_dtype=peer.GGMLQuantizationType.Q8_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_read_finds_what_the_peer_wrote(good):
    file = gguf.read(good)
    expected = {
        "general.architecture": "llama",
        "a.u32": 7,
        "a.i64": -(1 << 40),
        "a.f32": 1.5,
        "a.bool": True,
        "a.text": "안녕",
        "a.texts": ["x", "", "Ġz"],
        "a.numbers": [1, -2, 3],
    }
    assert {key: file.metadata[key] for key in expected} == expected
    assert list(file.tensors) == ["plain", "half", "blocks"]
    np.testing.assert_array_equal(file.tensors["plain"].decode(), [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(file.tensors["half"].decode(), [0, 1, 2, 3])
    blocks = file.tensors["blocks"]
    assert (blocks.type, blocks.shape) == ("Q8_0", (3, 64))
    np.testing.assert_array_equal(blocks.raw, random_blocks("Q8_0", 3, 2))


def test_every_truncation_is_one_sentence(good, tmp_path):
    data, short = good.read_bytes(), tmp_path / "short.gguf"
    for length in [0, 3, 4, 23, 24, 60, 100, len(data) // 2, len(data) - 40]:
        short.write_bytes(data[:length])
        with pytest.raises(ValueError, match="truncated|no GGUF file"):
            gguf.read(short)


@given(st.data())
def test_a_damaged_header_never_crashes_otherwise(good, tmp_path_factory, data):
    """Any bytes changed: the file reads, or a ValueError says why not; nothing else happens."""
    raw = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.sampled_from([0, 1, 127, 255]))
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    path.write_bytes(raw)
    try:
        for tensor in gguf.read(path).tensors.values():
            with np.errstate(all="ignore"):
                tensor.decode()
    except ValueError as error:
        assert len(str(error)) < 2000


def test_unsupported_types_are_named(tmp_path):
    path = tmp_path / "k.gguf"
    writer = peer.GGUFWriter(path, "llama")
    raw = np.zeros((1, 292), np.uint8)
    writer.add_tensor("w", raw, raw_dtype=peer.GGMLQuantizationType.Q8_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="tensor 'w' has type Q8_K"):
        gguf.read(path)


def test_type_numbers_are_ggmls():
    for number, name in gguf._TYPE_IDS.items():
        assert peer.GGMLQuantizationType(number).name == name
    for name, (size, struct) in gguf.BLOCKS.items():
        sizes = peer.GGML_QUANT_SIZES[peer.GGMLQuantizationType[name]]
        assert sizes == (size, struct.itemsize)
