"""Importance matrices: files as llama.cpp packs them, hostile ones, and what a model reads."""

import struct

import gguf as peer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import qlab
from qlab.io import gguf, imatrix
from qlab.io.gguf_values import Value
from qlab.io.imatrix import Imatrix
from qlab.models import to_gguf
from qlab.models.taps import layer_inputs
from tests.fuzz_for_tests import outcomes
from tests.models_for_tests import OPT_CONFIG, random_model, tokens_for

RNG = np.random.default_rng(0)
SUMS = {
    "blk.0.attn_q.weight": RNG.uniform(1, 9, (1, 4)).astype(np.float32),
    "blk.10.ffn_down_exps.weight": RNG.uniform(1, 9, (3, 5)).astype(np.float32),
    "blk.2.ffn_up.weight": RNG.uniform(1, 9, (1, 6)).astype(np.float32),
}
COUNTS = {name: np.array([1000 + i for i in range(len(s))]) for name, s in SUMS.items()}


def an_imatrix(**changes):
    given = {"sums": SUMS, "counts": COUNTS, "chunk_size": 512, "chunks": 2, "datasets": ("a.txt",)}
    return Imatrix(**given | changes)


def packed_dat(sums, counts, chunk_size, chunks, text: bytes) -> bytes:
    """`save_imatrix_legacy` by hand: int32s, names without a zero, values · calls."""
    out = struct.pack("<i", len(sums))
    for name in sorted(sums):
        out += struct.pack("<i", len(name)) + name.encode()
        calls = (int(counts[name].max()) + chunk_size - 1) // chunk_size
        out += struct.pack("<ii", calls, sums[name].size)
        for row, count in zip(sums[name], counts[name]):
            for x in row:
                mean = np.float32(1) if count == 0 else np.float32(x) / np.float32(count)
                out += struct.pack("<f", mean * np.float32(calls))
    return out + struct.pack("<ii", chunks, len(text)) + text


def same(a: Imatrix, b: Imatrix) -> None:
    assert (a.chunk_size, a.chunks, a.datasets) == (b.chunk_size, b.chunks, b.datasets)
    assert set(a.sums) == set(b.sums)
    for name in a.sums:
        np.testing.assert_array_equal(a.sums[name], b.sums[name])
        np.testing.assert_array_equal(a.counts[name], b.counts[name])


def test_dat_is_what_llama_cpp_packs(tmp_path):
    counts = COUNTS | {"blk.10.ffn_down_exps.weight": np.array([700, 0, 513])}
    one = an_imatrix(counts=counts)
    path = imatrix.write(tmp_path / "i.dat", one)
    assert path.read_bytes() == packed_dat(SUMS, counts, 512, 2, b"a.txt")
    found = imatrix.read(path)
    assert found.chunk_size == 0 and found.chunks == 2 and found.datasets == ("a.txt",)
    means = one.means()
    for name, mean in found.means().items():  # the old form does not tell experts apart
        np.testing.assert_allclose(mean, means[name].reshape(-1), rtol=1e-6)
    assert found.means()["blk.10.ffn_down_exps.weight"][5:10].tolist() == [1] * 5
    assert imatrix.write(tmp_path / "j.dat", found).read_bytes() == path.read_bytes()


def test_gguf_is_what_llama_cpp_packs(tmp_path):
    """Keys, names, kinds and axes as `save_imatrix` has them, through its own package."""
    path = imatrix.write(tmp_path / "i.gguf", an_imatrix())
    reader = peer.GGUFReader(path)
    keys = peer.Keys
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["a.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 2
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    for key in ("imatrix.chunk_count", "imatrix.chunk_size"):
        assert reader.fields[key].types == [peer.GGUFValueType.UINT32]
    assert keys.General.TYPE == "general.type"
    found = {t.name: t for t in reader.tensors}
    assert list(found)[:2] == ["blk.0.attn_q.weight.in_sum2", "blk.0.attn_q.weight.counts"]
    assert found["blk.0.attn_q.weight.in_sum2"].shape.tolist() == [4]
    assert found["blk.10.ffn_down_exps.weight.in_sum2"].shape.tolist() == [5, 3]
    assert found["blk.10.ffn_down_exps.weight.counts"].shape.tolist() == [1, 3]
    assert found["blk.10.ffn_down_exps.weight.counts"].data.reshape(-1).tolist() == [
        1000, 1001, 1002
    ]  # fmt: skip
    same(imatrix.read(path), an_imatrix())


def test_a_file_of_the_peers_writer_is_read(tmp_path):
    path = tmp_path / "i.gguf"
    writer = peer.GGUFWriter(path, "")
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["b.txt", "c.txt"])
    writer.add_uint32("imatrix.chunk_count", 2)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, sums in SUMS.items():
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", COUNTS[name].astype(np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    same(imatrix.read(path), an_imatrix(datasets=("b.txt", "c.txt")))


def test_old_to_new_takes_512_tokens_a_chunk(tmp_path):
    old = imatrix.read(imatrix.write(tmp_path / "i.dat", an_imatrix()))
    new = imatrix.read(imatrix.write(tmp_path / "i.gguf", old))
    assert new.chunk_size == 512 and new.counts["blk.2.ffn_up.weight"].tolist() == [1024]
    for name, mean in old.means().items():
        np.testing.assert_allclose(new.means()[name], mean, rtol=1e-6)


@given(
    st.dictionaries(
        st.text("abc.0", min_size=1, max_size=12),
        st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(0, 1 << 20)),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), max_size=2),
)
def test_round_trips(tmp_path_factory, shapes, datasets):
    rng = np.random.default_rng(len(shapes))
    sums = {n: rng.uniform(0, 99, (m, c)).astype(np.float32) for n, (m, c, _) in shapes.items()}
    counts = {n: np.full(m, count) for n, (m, _, count) in shapes.items()}
    one = Imatrix(sums, counts, 256, 7, tuple(datasets))
    folder = tmp_path_factory.getbasetemp()
    same(imatrix.read(imatrix.write(folder / "round.gguf", one, overwrite=True)), one)
    if any(count for _, _, count in shapes.values()):
        imatrix.read(imatrix.write(folder / "round.dat", one, overwrite=True))


@pytest.mark.parametrize("suffix", ["gguf", "dat"])
def test_it_is_no_model(suffix, tmp_path):
    path = imatrix.write(tmp_path / f"i.{suffix}", an_imatrix())
    for wrong in (qlab.load, lambda p: to_gguf(p, tmp_path / "m.gguf", "Q8_0")):
        with pytest.raises(ValueError, match=f"i.{suffix} is an importance matrix, not a model; "):
            wrong(path)
    imatrix.refuse(qlab.save(random_model(), tmp_path / "m.gguf"))
    (tmp_path / "text.txt").write_text("no model either, but said by the reader of models")
    imatrix.refuse(tmp_path / "text.txt")


def test_problems_are_told():
    sums = SUMS | {"blk.2.ffn_up.weight": np.array([[0, 1, 0, 2, 0, 3]], np.float32)}
    counts = COUNTS | {"blk.10.ffn_down_exps.weight": np.array([5, 0, 5])}
    found = an_imatrix(sums=sums, counts=counts).problems(["blk.2.ffn_up.weight", "output.weight"])
    assert found == [
        "blk.10.ffn_down_exps.weight[1]: no tokens; every column counts the same",
        "blk.2.ffn_up.weight: 3 of 6 columns never seen",
        "output.weight: not there",
    ]
    assert an_imatrix().problems() == []
    assert repr(an_imatrix()) == "Imatrix(3 tensors, 2 chunks of 512 tokens, a.txt)"


# ---- hostile files --------------------------------------------------------------------------


ONE = struct.pack("<f", 1)


def entry(name=b"w", calls=1, values=1, raw=ONE) -> bytes:
    return struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, values) + raw


BAD = {
    "empty": (b"", "truncated"),
    "no entries": (struct.pack("<i", 0) + bytes(40), "0 entries"),
    "minus one": (struct.pack("<i", -1) + bytes(40), "-1 entries"),
    "2^31 entries": (struct.pack("<i", 2**31 - 1) + bytes(40), "2147483647 entries"),
    "a long name": (struct.pack("<ii", 1, 2**31 - 1) + bytes(40), "a name of 2147483647 bytes"),
    "a negative name": (struct.pack("<ii", 1, -5) + bytes(40), "a name of -5 bytes"),
    "bad UTF-8": (struct.pack("<i", 1) + entry(b"\xff"), "not UTF-8 .byte 4"),
    "many values": (struct.pack("<i", 1) + entry(values=2**31 - 1), "the values of 'w'"),
    "no values": (struct.pack("<i", 1) + entry(values=0), "0 values"),
    "minus values": (struct.pack("<i", 1) + entry(values=-1), "-1 values"),
    "twice": (struct.pack("<i", 2) + 2 * entry(), "twice"),
    "NaN": (struct.pack("<i", 1) + entry(raw=struct.pack("<f", float("nan"))), "NaN or Inf"),
    "negative": (struct.pack("<i", 1) + entry(raw=struct.pack("<f", -1)), "below zero"),
    "half a number": (struct.pack("<i", 1) + entry() + b"\1\0", "the number of chunks"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_dat_files(name, tmp_path):
    data, sentence = BAD[name]
    (tmp_path / "i.dat").write_bytes(data)
    with pytest.raises(ValueError, match=sentence):
        imatrix.read(tmp_path / "i.dat")


def test_the_end_of_a_dat_file_may_be_missing(tmp_path):
    (tmp_path / "i.dat").write_bytes(struct.pack("<i", 1) + entry())
    found = imatrix.read(tmp_path / "i.dat")
    assert (found.chunks, found.datasets) == (0, ()) and found.means()["w"].tolist() == [1]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"general.type": Value.of("str", "model")}, "no imatrix"),
        ({"imatrix.chunk_size": Value.of("str", "x")}, "chunk_size is 'x'"),
        ({"imatrix.chunk_count": Value.of("i32", -1)}, "chunk_count is -1"),
        ({"imatrix.datasets": Value.of("u32", 3)}, "datasets is 3"),
    ],
)
def test_bad_metadata(change, sentence, tmp_path):
    path = imatrix.write(tmp_path / "i.gguf", an_imatrix())
    file = gguf.read(path)
    entries = [(t.name, t.type, t.shape, t.raw) for t in file.tensors.values()]
    gguf.write(path, file.values | change, entries, overwrite=True)
    with pytest.raises(ValueError, match=sentence):
        imatrix.read(path)


def test_bad_tensors(tmp_path):
    path = imatrix.write(tmp_path / "i.gguf", an_imatrix())
    values = gguf.read(path).values
    two, three = np.ones(2, np.float32), np.ones(3, np.float32)

    def refused(sentence, *entries):
        gguf.write(path, values, entries, overwrite=True)
        with pytest.raises(ValueError, match=sentence):
            imatrix.read(path)

    refused("no tensors")
    refused("'w' has only one of", ("w.in_sum2", "F32", (2,), two))
    refused("'w.other' .F32. is no F32", ("w.other", "F32", (2,), two))
    refused("'w.counts' .F16. is no F32", ("w.counts", "F16", (1,), b"\0\0"))
    refused(
        "3 sums for 2 counts", ("w.in_sum2", "F32", (3,), three), ("w.counts", "F32", (2,), two)
    )
    refused(
        "no numbers of tokens", ("w.in_sum2", "F32", (2,), two), ("w.counts", "F32", (2,), -two)
    )
    with pytest.raises(ValueError, match="holds no tensors"):
        imatrix.write(tmp_path / "x.gguf", Imatrix({}, {}, 1, 1))


@pytest.mark.parametrize("count", [300, pytest.param(5_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("suffix", [".gguf", ".dat"])
def test_mutated_files_read_or_are_refused(suffix, count, tmp_path):
    good = imatrix.write(tmp_path / f"good{suffix}", an_imatrix()).read_bytes()

    def read(path):
        with np.errstate(all="ignore"):
            imatrix.read(path).means()

    found = outcomes(good, tmp_path, read, count, suffix=suffix)
    assert found["read"] + found["refused"] == count and found["refused"] > count // 3


# ---- a model --------------------------------------------------------------------------------


def test_a_models_own_inputs():
    """Σx² of what the taps see, padding left out; names in llama.cpp's terms."""
    model, tokens = random_model(), np.asarray(tokens_for(random_model(), batch=3))
    mask = np.ones(tokens.shape, bool)
    mask[1, 20:] = mask[2, 5:] = False
    found = qlab.imatrix(
        model, {"input_ids": tokens, "attention_mask": mask.astype(int)}, progress=False
    )
    inputs = layer_inputs(model, tokens)
    assert len(found.sums) == len(inputs) == 14
    for path, name in (
        ("layers.0.self_attn.k_proj", "blk.0.attn_k.weight"),
        ("layers.1.self_attn.o_proj", "blk.1.attn_output.weight"),
        ("layers.1.mlp.up_proj", "blk.1.ffn_up.weight"),
        ("layers.1.mlp.down_proj", "blk.1.ffn_down.weight"),
    ):
        x = np.asarray(inputs[path], np.float64)[mask]
        np.testing.assert_allclose(found.sums[name][0], (x**2).sum(0), rtol=1e-4)
        assert found.counts[name].tolist() == [mask.sum()]
    assert found.chunk_size == tokens.shape[1] and found.problems() == []


def test_it_is_the_diagonal_of_calibration():
    model = random_model()
    tokens = tokens_for(model)
    stats = qlab.calibrate(model, tokens)
    means = qlab.imatrix(model, tokens, progress=False).means()
    for path, name in (("self_attn.v_proj", "attn_v"), ("mlp.down_proj", "ffn_down")):
        diagonal = np.diagonal(stats[f"layers.1.{path}"].hessian)
        np.testing.assert_allclose(means[f"blk.1.{name}.weight"], diagonal, rtol=1e-4)


def test_opt_has_no_names_in_a_file():
    model = random_model(OPT_CONFIG)
    with pytest.raises(ValueError, match="no name in a GGUF file"):
        qlab.imatrix(model, tokens_for(model), progress=False)
