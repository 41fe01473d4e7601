"""The tensors of a `pytorch_model.bin` without torch, and without trusting the file.

The file is a zip: `data.pkl`, a pickle that names tensors, and one raw member `data/<key>` for each
storage. A pickle is a program that may call whatever it names; this reader lets it name only
OrderedDict, the function that rebuilds a tensor and the storage types, and refuses the rest before
anything is looked up. Not here: the format from before torch 1.6, which is no zip.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "BoolStorage": np.dtype(np.bool_),
}


class _Reader(pickle.Unpickler):
    """An unpickler that knows the handful of names a checkpoint needs, and no others."""

    def __init__(self, archive: zipfile.ZipFile, root: str):
        super().__init__(io.BytesIO(_member(archive, f"{root}/data.pkl")))
        self.archive, self.root = archive, root
        self.storages: dict[str, np.ndarray] = {}  # tied tensors share one

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *args: _tensor(*args)  # a new one each time: nothing shared can be set
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES:
            return name  # only `persistent_load` uses it, and a string cannot be called
        raise ValueError(f"its pickle asks for {module}.{name}, which no checkpoint needs")

    def persistent_load(self, pid: Any) -> np.ndarray:
        _, kind, key, _, count = pid  # ("storage", type, key, device, elements)
        if key not in self.storages:
            raw = _member(self.archive, f"{self.root}/data/{key}")
            self.storages[key] = np.frombuffer(raw, _STORAGES[kind], count)
        return self.storages[key]


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member stored as it is, as torch writes them: it cannot be larger than the file."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its member {name} is compressed, which torch never does")
    return archive.read(name)


def _tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *_: Any) -> np.ndarray:
    count = math.prod(shape)
    dense = tuple(math.prod(shape[i + 1 :]) for i in range(len(shape)))
    if any(n != 1 and a != b for n, a, b in zip(shape, strides, dense, strict=True)):
        raise ValueError(f"a tensor of shape {shape} has strides {strides}; {dense} are read")
    if not 0 <= offset <= offset + count <= storage.size:
        raise ValueError(f"a tensor wants {count} elements from {offset} of {storage.size}")
    return storage[offset : offset + count].reshape(shape)


def read_pytorch(path: Path) -> dict[str, jax.Array]:
    """The tensors of one file, in the dtypes it stores.

    Raises:
        ValueError: the file is missing, damaged, older than torch 1.6, or its pickle asks for
            anything but tensors: the sentence says what.
    """
    if not path.exists():
        raise ValueError(f"{path.parent} has no {path.name}")
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            found = _Reader(archive, pickles[0].removesuffix("/data.pkl")).load()
        size, limit = sum(w.nbytes for w in found.values()), 2 * path.stat().st_size
        if size > limit:  # one tied table at most is in it twice
            raise ValueError(f"its tensors are {size} bytes, more than twice the file")
        return {str(key): jnp.asarray(w) for key, w in found.items()}
    except Exception as error:  # a hostile pickle can raise anything
        reason = error if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{path} cannot be read ({reason}); where torch trusts it, safetensors.torch.save_file("
            f"torch.load({path.name!r}, weights_only=True), 'model.safetensors') converts it"
        ) from None
