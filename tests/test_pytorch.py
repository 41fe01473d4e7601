"""pytorch_model.bin without torch: what torch wrote comes back, and a pickle that wants to do
anything else is refused before it does it."""

import io
import json
import pickle
import pickletools
import sys
import types
import zipfile

import numpy as np
import pytest

from qlab.io.pytorch import read_pytorch
from tests.test_golden import GOLDEN


@pytest.fixture(scope="module")
def written() -> bytes:
    """A state_dict of float16 that torch saved (tests/golden/make_opt.py)."""
    with np.load(GOLDEN / "opt.npz") as file:
        return file["pytorch_model.bin"].tobytes()


def repack(data: bytes, path, pickled: bytes | None = None, compress=False, without=()):
    """The file again, with another pickle or without some of its members."""
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if name not in without:
                is_pickle = name.endswith("data.pkl") and pickled is not None
                kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
                new.writestr(name, pickled if is_pickle else old.read(name), kind)
    return path


def refused(path, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        read_pytorch(path)
    assert "\n" not in str(error.value) and "model.safetensors" in str(error.value)


def test_what_torch_wrote(written, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(written)
    found = read_pytorch(path)
    assert len(found) == 37 and all(w.dtype == np.float16 for w in found.values())
    assert found["model.decoder.layers.1.fc1.weight"].shape == (40, 16)
    np.testing.assert_array_equal(
        found["lm_head.weight"], found["model.decoder.embed_tokens.weight"]
    )
    # The same numbers as in the raw member: the first storage is the table.
    with zipfile.ZipFile(path) as archive:
        raw = np.frombuffer(archive.read("archive/data/0"), np.float16).reshape(272, 16)
    np.testing.assert_array_equal(found["lm_head.weight"], raw)


# ---- checkpoints that this file writes itself -----------------------------------------------


class Tensor:
    """Pickles as torch's tensors do: rebuilt from (storage, offset, size, stride, …)."""

    def __init__(self, *args):
        self.args = args

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (*self.args, False, {})


class Storage:
    def __init__(self, kind, key, count):
        self.pid = ("storage", getattr(sys.modules["torch"], kind), key, "cpu", count)


class Writer(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Storage) else None


@pytest.fixture
def torch(monkeypatch):
    """As much of torch as a pickle names."""
    module, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in ("FloatStorage", "BFloat16Storage", "LongStorage", "ComplexFloatStorage"):
        kind = type(name, (), {"__module__": "torch"})
        setattr(module, name, kind)

    def _rebuild_tensor_v2(*args):
        raise AssertionError

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2
    module._utils = utils
    monkeypatch.setitem(sys.modules, "torch", module)
    monkeypatch.setitem(sys.modules, "torch._utils", utils)


def checkpoint(path, value, **storages) -> None:
    buffer = io.BytesIO()
    Writer(buffer, protocol=2).dump(value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", buffer.getvalue())
        for key, raw in storages.items():
            archive.writestr(f"m/data/{key.removeprefix('s')}", np.ascontiguousarray(raw).tobytes())


def test_dtypes_slices_and_scalars(torch, tmp_path):
    path, raw = tmp_path / "m.bin", np.arange(12, dtype=np.float32)
    whole = Storage("FloatStorage", "0", 12)
    value = {
        "part": Tensor(whole, 6, (2, 3), (3, 1)),
        "number": Tensor(whole, 5, (), ()),
        "row": Tensor(whole, 0, (1, 4), (99, 1)),  # the stride of an axis of one means nothing
        "ids": Tensor(Storage("LongStorage", "1", 2), 0, (2,), (1,)),
        "half": Tensor(Storage("BFloat16Storage", "2", 2), 0, (2,), (1,)),
    }
    checkpoint(path, value, s0=raw, s1=np.array([7, 8]), s2=np.array([0x3F80, 0xC000], np.uint16))
    found = read_pytorch(path)
    np.testing.assert_array_equal(found["part"], raw[6:].reshape(2, 3))
    assert float(found["number"]) == 5 and found["row"].tolist() == [[0, 1, 2, 3]]
    assert found["ids"].tolist() == [7, 8] and found["half"].tolist() == [1.0, -2.0]


@pytest.mark.parametrize(
    "args, sentence",
    [
        ((0, (4, 3), (1, 4)), r"shape \(4, 3\) has strides \(1, 4\)"),  # transposed
        ((0, (1000, 1000), (0, 0)), "has strides"),  # a bomb out of one number
        ((8, (2, 3), (3, 1)), "wants 6 elements from 8 of 12"),
        ((-3, (3,), (1,)), "wants 3 elements from -3"),
        ((0, (-1,), (1,)), "wants -1 elements"),
        ((0, (10**9, 10**9), (10**9, 1)), "elements from 0 of 12"),
    ],
)
def test_tensors_beyond_their_storage(args, sentence, torch, tmp_path):
    value = {"w": Tensor(Storage("FloatStorage", "0", 12), *args)}
    checkpoint(tmp_path / "m.bin", value, s0=np.zeros(12, np.float32))
    refused(tmp_path / "m.bin", sentence)


def test_many_views_of_one_storage_are_no_way_to_fill_the_memory(torch, tmp_path):
    storage = Storage("FloatStorage", "0", 4096)
    value = {f"w{i}": Tensor(storage, 0, (4096,), (1,)) for i in range(5)}
    checkpoint(tmp_path / "m.bin", value, s0=np.zeros(4096, np.float32))
    refused(tmp_path / "m.bin", "81920 bytes, more than twice the file")


def test_other_storages_and_values_are_named(torch, tmp_path):
    odd = Tensor(Storage("ComplexFloatStorage", "0", 1), 0, (1,), (1,))
    checkpoint(tmp_path / "a.bin", {"w": odd}, s0=np.zeros(1, np.complex64))
    refused(tmp_path / "a.bin", "asks for torch.ComplexFloatStorage")
    checkpoint(tmp_path / "b.bin", {"epoch": 3})
    refused(tmp_path / "b.bin", "'int' object")
    checkpoint(tmp_path / "c.bin", [1, 2])
    refused(tmp_path / "c.bin", "'list' object")
    lost = {"w": Tensor(Storage("FloatStorage", "5", 1), 0, (1,), (1,))}
    checkpoint(tmp_path / "d.bin", lost)
    refused(tmp_path / "d.bin", "m/data/5")


# ---- hostile files --------------------------------------------------------------------------


def calls(module: str, name: str, *args: str) -> bytes:
    """A pickle of protocol 0 that calls module.name(*args) when it is read naively."""
    strings = b"".join(b"V" + arg.encode() + b"\n" for arg in args)
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + strings + b"tR."


HOSTILE = {
    "os.system": lambda mark: calls("os", "system", f"touch {mark}"),
    "posix.system": lambda mark: calls("posix", "system", f"touch {mark}"),
    "builtins.eval": lambda mark: calls("builtins", "eval", f"open({str(mark)!r}, 'w')"),
    "builtins.getattr": lambda mark: calls("builtins", "getattr", "a", "b"),
    "builtins.open": lambda mark: calls("builtins", "open", str(mark), "w"),
    "torch.load": lambda mark: calls("torch", "load", str(mark)),
    "torch.hub.load": lambda mark: calls("torch.hub", "load", "a", "b"),
    "torch._utils.os": lambda mark: calls("torch._utils", "os", "a"),
    "collections.OrderedDict.fromkeys": lambda m: calls("collections", "OrderedDict.fromkeys", "a"),
    "numpy.load": lambda mark: calls("numpy", "load", str(mark)),
    "copyreg._reconstructor": lambda mark: calls("copyreg", "_reconstructor", "a"),
    # The instance opcode, and protocol 4's way of naming.
    "subprocess.Popen": lambda mark: b"(V" + f"touch {mark}".encode() + b"\nisubprocess\nPopen\n.",
    "os.popen": lambda mark: (
        b"\x80\x04\x8c\x02os\x8c\x05popen\x93\x8c" + bytes([len(f"touch {mark}")])
        + f"touch {mark}".encode() + b"\x85R."
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(name, written, tmp_path):
    mark = tmp_path / "mark"
    pickled = HOSTILE[name](mark)
    list(pickletools.genops(pickled))  # it is a pickle
    path = repack(written, tmp_path / "m.bin", pickled)
    refused(path, f"its pickle asks for {name}, which no checkpoint needs")
    assert not mark.exists()


def test_the_hostile_ones_would_work(tmp_path):
    """That nothing happened means something: read naively, such a pickle does what it says."""
    mark = tmp_path / "mark"
    pickle.loads(HOSTILE["posix.system"](mark))
    assert mark.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n}V__code__\nV\nsb.",  # sets an attribute
        b"ctorch\nFloatStorage\n(tR.",  # calls a storage
        b"ccollections\nOrderedDict\n}V__reduce__\nV\nsb.",
        b"\x80\x02Q.",  # a persistent id from nowhere
        b"(Va\nVb\nVc\nVd\nVe\ntQ.",
        b"",
        b".",
        b"\x80\x05\x95\xff\xff\xff\xff\xff\xff\xff\x7f.",  # a frame of nine exabytes
        b"(" * 100_000 + b".",
    ],
)
def test_nonsense_is_one_sentence(pickled, written, tmp_path):
    refused(repack(written, tmp_path / "m.bin", pickled), "cannot be read")
    found = read_pytorch(repack(written, tmp_path / "sound.bin"))  # and the next file is unharmed
    assert len(found) == 37


def test_damaged_files(written, tmp_path):
    path = tmp_path / "pytorch_model.bin"
    for length in (0, 10, len(written) // 2, len(written) - 1):
        path.write_bytes(written[:length])
        refused(path, "cannot be read")
    path.write_bytes(pickle.dumps({"w": 1}))  # as torch wrote before 1.6: no zip
    refused(path, "not a zip file")
    refused(repack(written, path, compress=True), "is compressed, which torch never does")
    refused(repack(written, path, without=["archive/data/3"]), "archive/data/3")
    flipped = bytearray(written)
    flipped[len(written) // 3] ^= 1
    path.write_bytes(flipped)
    refused(path, "CRC")
    with pytest.raises(ValueError, match="has no gone.bin"):
        read_pytorch(tmp_path / "gone.bin")


def test_the_golden_file_is_torchs_own(written):
    with np.load(GOLDEN / "opt.npz") as file:
        assert json.loads(str(file["meta"]))["versions"]["torch"].startswith("2.")
    names = {op.name for op, *_ in pickletools.genops(
        zipfile.ZipFile(io.BytesIO(written)).read("archive/data.pkl")
    )}  # fmt: skip
    assert {"BINPERSID", "GLOBAL", "REDUCE", "BUILD"} <= names  # BUILD: state_dict's metadata
