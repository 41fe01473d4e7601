"""GGUF files: what is written is read back bit for bit; what is damaged ends in one sentence that
names the byte, at once and in little memory."""

import contextlib
import filecmp
import struct
import time
import tracemalloc

import gguf as peer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlab.io import gguf
from tests.fuzz_for_tests import outcomes
from tests.test_gguf import random_blocks

LATER = "Q8_K"  # a type that files hold and nothing here decodes: of activations


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


def test_unsupported_types_are_named(tmp_path):
    path = tmp_path / "k.gguf"
    writer = peer.GGUFWriter(path, "llama")
    raw = np.zeros((1, 292), np.uint8)
    writer.add_tensor("w", raw, raw_dtype=peer.GGMLQuantizationType[LATER])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = gguf.read(path).tensors["w"]
    assert (tensor.type, tensor.shape, tensor.raw.shape) == (LATER, (1, 256), (1, 292))
    with pytest.raises(ValueError, match=f"tensor 'w' has type {LATER}; decoded are F32"):
        tensor.decode()


def test_type_numbers_and_sizes_are_ggmls():
    known = {kind.name: kind for kind in peer.GGMLQuantizationType}
    assert set(gguf.TYPES) - set(known) == {"Q2_0"}  # newer than the package
    for name, (number, size, stored) in gguf.TYPES.items():
        if name in known:
            assert number == known[name].value
            assert (size, stored) == peer.GGML_QUANT_SIZES[known[name]]
    for name, (size, layout) in gguf.BLOCKS.items():
        assert gguf.TYPES[name][1:] == (size, layout.itemsize)


# ---- hostile files --------------------------------------------------------------------------


def header(values=(), tensors=(), version=3, counts=None) -> bytes:
    """A file packed by hand: values are (key, number, bytes), tensors (name, axes, number,
    offset)."""
    n = counts or (len(tensors), len(values))
    out = struct.pack("<4sIQQ", b"GGUF", version, *n)
    for key, number, raw in values:
        key = key if isinstance(key, bytes) else key.encode()
        out += struct.pack("<Q", len(key)) + key + struct.pack("<I", number) + raw
    for name, axes, number, offset in tensors:
        out += struct.pack("<Q", len(name)) + name.encode()
        out += struct.pack(f"<I{len(axes)}QIQ", len(axes), *axes, number, offset)
    return out


def array(inner: int, count: int, raw: bytes = b"") -> bytes:
    return struct.pack("<IQ", inner, count) + raw


def nested(depth: int) -> bytes:
    return b"".join(array(9, 1) for _ in range(depth)) + array(4, 0)


TEXT = struct.pack("<Q", 1) + b"x"
U32 = struct.pack("<I", 1)
HOSTILE = {
    "version 1": (header(version=1), "version 1", 4),
    "big-endian": (b"GGUF\0\0\0\3" + bytes(40), "big-endian", 4),
    "2^60 values": (header(counts=(0, 1 << 60)), "1152921504606846976 values", 16),
    "2^60 tensors": (header(counts=(1 << 60, 0)), "1152921504606846976 tensors", 8),
    "more values than bytes": (header(counts=(0, 60_000)), "a list of 60000 values", 24),
    "2^60 texts": (header([("a", 9, array(8, 1 << 60))]), "array of 1152921504606846976", None),
    "2^60 numbers": (header([("a", 9, array(4, 1 << 60))]), "array of 1152921504606846976", None),
    "2^60 arrays": (header([("a", 9, array(9, 1 << 60))]), "array of 1152921504606846976", None),
    "empty texts beyond the end": (header([("a", 9, array(8, 9, bytes(64)))]), "array of 9", None),
    "a text of 2^63": (header([("a", 8, struct.pack("<Q", 1 << 63))]), "a text at byte", None),
    "a key of 2^63": (header() [:16] + struct.pack("<QQ", 1, 1 << 63) + bytes(40), "a key", 32),
    "deep arrays": (header([("a", 9, nested(5))]), "more than 4 deep", 85),
    "unknown value": (header([("a", 77, bytes(8))]), "type number 77", 33),
    "unknown array": (header([("a", 9, array(77, 3))]), "type number 77", 37),
    "a bool of 2": (header([("a", 7, b"\2")]), "neither 0 nor 1", 37),
    "a list of bools": (header([("a", 9, array(7, 3, b"\1\0\2"))]), "neither 0 nor 1", 49),
    "bad UTF-8": (header([("a", 8, struct.pack("<Q", 2) + b"a\xff")]), "not UTF-8", 46),
    "bad UTF-8 in a list": (header([("a", 9, array(8, 2, TEXT + TEXT[:8] + b"\xff"))]),
                            "not UTF-8", 66),
    "bad UTF-8 in a key": (header([(b"\xc0", 4, U32)]), "a key is not UTF-8", 32),
    "two keys": (header([("a", 4, U32), ("a", 4, U32)]), "'a' stands there twice", 41),
    "an empty key": (header([("", 4, U32)]), "a key is empty", 24),
    "alignment 0": (header([(gguf.ALIGNMENT, 4, bytes(4))]), "u32 0, not a power", 53),
    "alignment 24": (header([(gguf.ALIGNMENT, 4, b"\x18\0\0\0")]), "u32 24, not a power", 53),
    "alignment a text": (header([(gguf.ALIGNMENT, 8, TEXT)]), "is str", 53),
    "five axes": (header((), [("w", [1] * 5, 0, 0)]), "has 5 axes", 24),
    "an axis of 0": (header((), [("w", [4, 0], 0, 0)]), "an axis of 0 in (0, 4)", 24),
    "axes of 2^64": (header((), [("w", [1 << 63] * 4, 0, 0)]), "truncated", None),
    "unknown type": (header((), [("w", [4], 5, 0)]), "type number 5", 24),
    "half a block": (header((), [("w", [33], 8, 0)]), "33 columns are no multiple", 24),
    "past the end": (header((), [("w", [4], 0, 1 << 20)]) + bytes(99), "truncated", None),
    "2^64 - 32": (header((), [("w", [4], 0, (1 << 64) - 32)]) + bytes(99), "truncated", None),
    "unaligned": (header((), [("w", [4], 0, 4)]) + bytes(99), "no multiple of 32", 24),
    "two names": (header((), [("w", [4], 0, 0), ("w", [4], 0, 32)]) + bytes(99), "two tensors", 57),
    "overlap": (header((), [("w", [9], 0, 0), ("v", [4], 0, 32)]) + bytes(99), "overlap", 57),
    "one place": (header((), [("v", [4], 0, 0), ("w", [4], 0, 0)]) + bytes(99), "overlap", 57),
}  # fmt: skip


@pytest.mark.parametrize("name", list(HOSTILE))
def test_hostile_files_name_the_byte(name, tmp_path):
    data, said, at = HOSTILE[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(data)
    tracemalloc.start()
    begin = time.perf_counter()
    with pytest.raises(ValueError) as error:
        gguf.read(path)
    seconds, peak = time.perf_counter() - begin, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert said in str(error.value) and "byte" in str(error.value)
    if at is not None:
        assert f"byte {at})" in str(error.value) or f"at byte {at} " in str(error.value)
    assert seconds < 1 and peak < 1 << 18


def test_large_arrays_cost_nothing_until_looked_at(tmp_path):
    """A million short texts, numbers and pairs are walked once, and none of them is kept."""
    texts = (struct.pack("<Q", 2) + b"ab") * 400_000
    pairs = array(0, 2, b"ab") * 100_000
    values = [
        ("texts", 9, array(8, 400_000, texts)),
        ("numbers", 9, array(2, 1_000_000, bytes(2_000_000))),
        ("pairs", 9, array(9, 100_000, pairs)),
    ]
    path = tmp_path / "large.gguf"
    path.write_bytes(header(values))
    tracemalloc.start()
    file = gguf.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 18
    assert [file.values[key].kind for key in ("texts", "numbers", "pairs")] == [
        "[str]", "[u16]", "[[u8]]"
    ]  # fmt: skip
    assert file.metadata["texts"] == ["ab"] * 400_000
    assert file.metadata["pairs"][-1] == [97, 98]


def test_many_keys_and_tensors_cost_a_bounded_sum(tmp_path):
    """What a key or tensor costs beyond its bytes is about the same each, and there are 65,536 at
    most."""
    count = 20_000
    path = tmp_path / "many.gguf"
    data = header(
        [(f"k{i}", 0, b"\0") for i in range(count)],
        [(f"t{i}", [1], 24, 32 * i) for i in range(count)],
    )
    path.write_bytes(data + bytes(-len(data) % 32 + 32 * count))
    tracemalloc.start()
    file = gguf.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(file.values) == len(file.tensors) == count
    assert peak < 2 * path.stat().st_size + 800 * count
    path.write_bytes(header([(f"k{i}", 0, b"\0") for i in range(gguf.MOST + 1)]))
    with pytest.raises(ValueError, match="65537 values; files have 65536 at most"):
        gguf.read(path)


def read_all(path):
    file = gguf.read(path)
    dict(file.metadata)
    for tensor in file.tensors.values():
        if tensor.type in gguf.BLOCKS:
            with np.errstate(all="ignore"):
                tensor.decode()


FUZZED = [pytest.param(1_000, id="1000"), pytest.param(10_000, id="10000", marks=pytest.mark.slow)]


@pytest.mark.parametrize("count", FUZZED)
def test_mutated_files_read_or_are_refused(good, tmp_path, count):
    found = outcomes(good.read_bytes(), tmp_path, read_all, count, seed=count)
    assert found["read"] + found["refused"] == count
    assert found["refused"] > count // 3 and found["read"] > count // 50
    assert found["told a byte"] == found["refused"]


@given(st.binary(max_size=400), st.booleans())
def test_arbitrary_bytes_never_crash_otherwise(tmp_path_factory, data, with_magic):
    path = tmp_path_factory.getbasetemp() / "arbitrary.gguf"
    path.unlink(missing_ok=True)
    path.write_bytes(b"GGUF\3\0\0\0" + data if with_magic else data)
    with contextlib.suppress(ValueError):
        read_all(path)


# ---- writing --------------------------------------------------------------------------------

KINDS = {
    "u8": st.integers(0, 255), "i8": st.integers(-128, 127), "u16": st.integers(0, 65535),
    "i16": st.integers(-32768, 32767), "u32": st.integers(0, (1 << 32) - 1),
    "i32": st.integers(-(1 << 31), (1 << 31) - 1), "u64": st.integers(0, (1 << 64) - 1),
    "i64": st.integers(-(1 << 63), (1 << 63) - 1), "f32": st.floats(width=32),
    "f64": st.floats(), "bool": st.booleans(),
    "str": st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
}  # fmt: skip


@st.composite
def a_value(draw):
    kind = draw(st.sampled_from(list(KINDS)))
    values, depth = KINDS[kind], draw(st.sampled_from([0, 0, 1, 1, 2]))
    for _ in range(depth):
        kind, values = f"[{kind}]", st.lists(values, max_size=4)
    return gguf.Value.of(kind, draw(values))


@st.composite
def a_tensor(draw):
    kind = draw(st.sampled_from(list(gguf.TYPES)))
    _, size, stored = gguf.TYPES[kind]
    shape = (*draw(st.lists(st.integers(1, 3), max_size=3)), size * draw(st.integers(1, 3)))
    seed = draw(st.integers(0, 1 << 30))
    count = int(np.prod(shape)) // size * stored
    return kind, shape, np.random.default_rng(seed).bytes(count)


@given(
    st.dictionaries(st.text("abc.", min_size=1, max_size=5), a_value(), max_size=5),
    st.dictionaries(st.text("wxyz._", min_size=1, max_size=20), a_tensor(), max_size=4),
    st.sampled_from([None, 1, 32, 64, 4096]),
)
def test_what_is_written_is_read_back(tmp_path_factory, values, tensors, alignment):
    path = tmp_path_factory.getbasetemp() / "round.gguf"
    entries = [(name, *entry) for name, entry in tensors.items()]
    gguf.write(path, values, entries, alignment, overwrite=True)
    found = gguf.read(path)
    assert found.alignment == (alignment or 32)
    told = {} if alignment in (None, 32) else {gguf.ALIGNMENT: gguf.Value.of("u32", alignment)}
    assert found.values == values | told and list(found.tensors) == list(tensors)
    for name, (kind, shape, raw) in tensors.items():
        tensor = found.tensors[name]
        assert (tensor.type, tensor.shape, tensor.raw.tobytes()) == (kind, shape, raw)
    again = path.with_name("again.gguf")
    copies = [(t.name, t.type, t.shape, t.raw) for t in found.tensors.values()]
    gguf.write(again, found.values, copies, overwrite=True)
    assert again.read_bytes() == path.read_bytes()


def test_a_value_keeps_its_bits(tmp_path):
    """A signalling NaN, −0 and an empty list of a kind survive: nothing passes through Python."""
    values = [("nan", 6, b"\1\0\x80\x7f"), ("zero", 6, b"\0\0\0\x80"), ("none", 9, array(2, 0))]
    path, again = tmp_path / "a.gguf", tmp_path / "b.gguf"
    data = header(values)
    path.write_bytes(data + bytes(-len(data) % 32))
    gguf.write(again, gguf.read(path).values, [])
    assert again.read_bytes() == path.read_bytes()


def test_the_peer_reads_what_is_written(tmp_path):
    raw, half = random_blocks("Q5_0", 3, 2), np.arange(6, dtype=np.float16).reshape(2, 3)
    values = {"general.architecture": "llama", "a": 7, "b": -3, "c": 1.5, "d": True,
              "e": ["x", "안녕"], "f": [1, 2],
              "g": gguf.Value.of("u8", 9), "h": 1 << 40}  # fmt: skip
    entries = [("blocks", "Q5_0", (3, 64), lambda: raw), ("half", "F16", (2, 3), half)]
    path = gguf.write(tmp_path / "w.gguf", values, entries, 64)
    found = peer.GGUFReader(path)
    kinds = {name: [t.name for t in field.types] for name, field in found.fields.items()}
    assert kinds["a"] == ["UINT32"] and kinds["b"] == ["INT32"] and kinds["c"] == ["FLOAT32"]
    assert kinds["e"] == ["ARRAY", "STRING"] and kinds["f"] == ["ARRAY", "INT32"]
    assert kinds["g"] == ["UINT8"] and kinds["h"] == ["INT64"] and kinds["d"] == ["BOOL"]
    assert found.fields["e"].contents() == ["x", "안녕"] and found.alignment == 64
    blocks, half_found = found.tensors
    assert (blocks.name, blocks.tensor_type.name, blocks.shape.tolist()) == (
        "blocks",
        "Q5_0",
        [64, 3],
    )
    np.testing.assert_array_equal(blocks.data, raw)
    np.testing.assert_array_equal(half_found.data, half)


def test_one_tensor_lives_at_a_time(tmp_path):
    size, alive = 1 << 22, []

    def make(i):
        def data():
            alive.append(tracemalloc.get_traced_memory()[0])
            return np.full(size, i, np.uint8)

        return data

    tracemalloc.start()
    entries = [(f"w{i}", "I8", (size,), make(i)) for i in range(6)]
    path = gguf.write(tmp_path / "w.gguf", {}, entries)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(alive) == 6 and peak < 2.5 * size
    assert [t.raw[0, 0] for t in gguf.read(path).tensors.values()] == list(range(6))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.gguf"
    path.write_bytes(b"old")
    one = ("w", "F32", (2,), np.zeros(2, np.float32))

    def broken():
        raise KeyboardInterrupt

    with pytest.raises(ValueError, match="overwrite=True"):
        gguf.write(path, {}, [one])
    with pytest.raises(KeyboardInterrupt):
        gguf.write(path, {}, [one, ("v", "F32", (2,), broken)], overwrite=True)
    with pytest.raises(ValueError, match="'w' has 8 bytes of data, its shape 12"):
        gguf.write(path, {}, [("w", "F32", (3,), one[3])], overwrite=True)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    gguf.write(path, {}, [one], overwrite=True)
    assert list(tmp_path.iterdir()) == [path] and path.stat().st_mode & 0o777 == 0o644
    with pytest.raises(ValueError, match="is a folder"):
        gguf.write(tmp_path, {}, [one], overwrite=True)


@pytest.mark.parametrize(
    "entry, sentence",
    [
        (("w" * 64, "F32", (1,), bytes(4)), "1 to 63 bytes, .* has 64"),
        (("", "F32", (1,), bytes(4)), "has 0"),
        (("w", "F32", (), bytes(4)), "1 to 4 axes above 0"),
        (("w", "F32", (0, 4), b""), "1 to 4 axes above 0"),
        (("w", "F33", (4,), bytes(16)), "tensor 'w': no ggml type is called 'F33'; did you mean"),
        (("w", "Q4_K", (2, 64), bytes(1)), "64 columns are no multiple of Q4_K's 256"),
    ],
)
def test_writing_refuses(entry, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        gguf.write(tmp_path / "w.gguf", {}, [entry])
    assert not list(tmp_path.iterdir())


def test_writing_refuses_values(tmp_path):
    def refused(sentence, values, alignment=None, entries=()):
        with pytest.raises(ValueError, match=sentence):
            gguf.write(tmp_path / "w.gguf", values, entries, alignment)

    twice = ("w", "I8", (1,), b"a")
    refused("two tensors are named 'w'", {}, None, [twice, twice])
    refused("alignment=24 is no power of two", {}, 24)
    refused("alignment=64, but general.alignment in the metadata is 32", {gguf.ALIGNMENT: 32}, 64)
    refused("an empty list", {"a": []})
    refused("it is a dict", {"a": {}})
    refused(r"\[1, 'x'\] is no \[i32\]", {"a": [1, "x"]})
    with pytest.raises(ValueError, match="300 is no u8"):
        gguf.Value.of("u8", 300)
    with pytest.raises(ValueError, match="'u33'; did you mean 'u32'"):
        gguf.Value.of("u33", 3)
    with pytest.raises(ValueError, match="'x' is no"):
        gguf.Value.of("[str]", "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.network
def test_a_real_file_copies_bit_for_bit(tmp_path):
    from qlab.models.load import smollm2_file

    try:
        path = smollm2_file()
    except ConnectionError as error:
        pytest.skip(str(error))
    file = gguf.read(path)
    copies = [(t.name, t.type, t.shape, t.raw) for t in file.tensors.values()]
    again = gguf.write(tmp_path / "copy.gguf", file.values, copies)
    assert filecmp.cmp(path, again, shallow=False)
