"""Importance matrices: E[x²] of every column that a linear layer reads, as llama.cpp keeps them.

Two files hold them. The newer is a GGUF file with Σx² (`….in_sum2`) and the tokens it was summed
over (`….counts`) of every tensor. The older, `.dat`, holds E[x²] · chunks and how many chunks, and
does not say how many tokens a chunk has. Source: llama.cpp tools/imatrix/imatrix.cpp and
common/imatrix-loader.cpp. Not here: how x is collected (`qlab.imatrix`), and what an encoder makes
of columns that were never seen.
"""

from __future__ import annotations

import dataclasses
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qlab.io import gguf
from qlab.io.atomic import atomic_file
from qlab.io.gguf_values import Value
from qlab.suggest import counted

SUMS, COUNTS = ".in_sum2", ".counts"
CHUNK = 512  # tokens of a chunk where a file does not say: llama.cpp's own default


@dataclasses.dataclass(frozen=True)
class Imatrix:
    """Sums of squared inputs.

    Attributes:
        sums: by GGUF name, (matrices, columns) float32; one matrix unless the tensor holds experts.
        counts: by GGUF name, (matrices,) int64: tokens, or chunks where `chunk_size` is 0.
        chunk_size: tokens of a chunk; 0 where the file does not say (`.dat`).
        chunks: how many chunks were read.
        datasets: what was read.

    Example:
        >>> one = Imatrix({"w": np.array([[8.0, 0.0]], np.float32)}, {"w": np.array([4])}, 4, 1)
        >>> one.means()["w"].tolist(), one.problems()
        ([2.0, 0.0], ['w: 1 of 2 columns never seen'])
    """

    sums: Mapping[str, np.ndarray]
    counts: Mapping[str, np.ndarray]
    chunk_size: int
    chunks: int
    datasets: tuple[str, ...] = ()

    def means(self) -> dict[str, np.ndarray]:
        """E[x²] by tensor, (columns,) float32, or (matrices, columns) of experts; ones where
        nothing was counted, as llama.cpp has it.
        """
        found = {}
        for name, sums in self.sums.items():
            count = self.counts[name].astype(np.float32)[:, None]
            mean = np.where(count > 0, sums / np.maximum(count, 1), np.float32(1))
            found[name] = mean[0] if len(mean) == 1 else mean
        return found

    def problems(self, names: Iterable[str] = ()) -> list[str]:
        """What an encoder has to know, a line each: columns that were zero in every token, tensors
        that were never reached, and those of `names` that are not there.
        """
        lines = []
        for name, sums in self.sums.items():
            for i, (row, count) in enumerate(zip(sums, self.counts[name], strict=True)):
                where = name if len(sums) == 1 else f"{name}[{i}]"
                unseen = int((row == 0).sum())
                if count <= 0:
                    lines.append(f"{where}: no tokens; every column counts the same")
                elif unseen:
                    lines.append(f"{where}: {unseen} of {row.size} columns never seen")
        return lines + [f"{name}: not there" for name in names if name not in self.sums]

    def __repr__(self) -> str:
        size = f" of {counted(self.chunk_size, 'token')}" if self.chunk_size else ""
        text = f", {', '.join(self.datasets)}" if self.datasets else ""
        tensors, chunks = counted(len(self.sums), "tensor"), counted(self.chunks, "chunk")
        return f"Imatrix({tensors}, {chunks}{size}{text})"


# ---- reading -------------------------------------------------------------------------------------


def read(path: str | os.PathLike) -> Imatrix:
    """Reads an importance matrix, GGUF or `.dat`, whatever the file is called.

    Raises:
        ValueError: there is no such file, it is neither, ends early, contradicts itself or holds
            numbers that no sum of squares can be; the sentence names the byte or the tensor.

    Example:
        >>> read("imatrix.gguf").problems()   # doctest: +SKIP
        []
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no importance matrix in {path}: it is no file")
    with open(path, "rb") as handle:
        magic = handle.read(4)
    found = _from_gguf(path) if magic == b"GGUF" else _from_dat(path)
    for name, sums in found.sums.items():
        if not (np.isfinite(sums).all() and (sums >= 0).all()):
            raise ValueError(f"{path}: {name!r:.80} holds sums below zero, NaN or Inf")
    return found


def refuse(path: str | os.PathLike) -> None:
    """Refuses an importance matrix where a model is expected; anything else passes.

    Raises:
        ValueError: it is one, GGUF or `.dat`; the sentence says where it goes.

    Example:
        >>> refuse("model.gguf")   # doctest: +SKIP
    """
    path = Path(path)
    with open(path, "rb") as handle:
        magic = handle.read(4)
    if magic == b"GGUF":
        is_one = gguf.read(path).metadata.get("general.type") == "imatrix"
    else:
        try:
            is_one = bool(_from_dat(path).sums)
        except ValueError:
            is_one = False
    if is_one:
        raise ValueError(
            f"{path} is an importance matrix, not a model; give it beside a model as imatrix=…"
        )


def _from_gguf(path: Path) -> Imatrix:
    file = gguf.read(path)
    said = file.metadata
    if said.get("general.type") != "imatrix":
        raise ValueError(f"{path} is a GGUF file, but no imatrix: its general.type is another")
    sums, counts = {}, {}
    for name, tensor in file.tensors.items():
        stem, kept = name.removesuffix(SUMS), sums
        if stem == name:
            stem, kept = name.removesuffix(COUNTS), counts
        if stem == name or tensor.type != "F32":
            raise ValueError(f"{path}: {name!r:.80} ({tensor.type}) is no F32 {SUMS} or {COUNTS}")
        kept[stem] = tensor.decode().reshape(-1)
    alone = sorted(sums.keys() ^ counts.keys())
    if alone or not sums:
        lost = f"{alone[0]!r:.80} has only one of {SUMS} and {COUNTS}" if alone else "no tensors"
        raise ValueError(f"{path}: {lost}")
    for name, values in sums.items():
        rows = counts[name]
        if len(values) % len(rows):
            raise ValueError(f"{path}: {name!r:.80} has {len(values)} sums for {len(rows)} counts")
        if not (np.isfinite(rows).all() and (rows >= 0).all() and (rows < 1 << 62).all()):
            raise ValueError(f"{path}: {name!r:.80} has counts that are no numbers of tokens")
        sums[name] = values.reshape(len(rows), -1)
        counts[name] = np.rint(rows).astype(np.int64)
    size, chunks = (_count(path, said, f"imatrix.chunk_{key}") for key in ("size", "count"))
    return Imatrix(sums, counts, size, chunks, _datasets(path, said))


def _count(path: Path, said: Mapping[str, Any], key: str) -> int:
    value = said.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{path}: {key} is {value!r:.40}, not a whole number")
    return value


def _datasets(path: Path, said: Mapping[str, Any]) -> tuple[str, ...]:
    value = said.get("imatrix.datasets", [])
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{path}: imatrix.datasets is {value!r:.40}, not a list of texts")
    return tuple(value)


def _from_dat(path: Path) -> Imatrix:
    at, data = 0, np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)

    def take(count: int, what: str) -> np.ndarray:
        nonlocal at
        if not 0 <= count <= len(data) - at:
            raise ValueError(
                f"{path} is no imatrix, or truncated: {what} of {count} bytes at byte {at}, "
                f"the file ends at {len(data)}"
            )
        at += count
        return data[at - count : at]

    def integer(what: str) -> int:
        return struct.unpack("<i", take(4, what).tobytes())[0]

    def text(what: str) -> str:
        start = at
        try:
            return take(integer(what), what).tobytes().decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{path}: {what} is not UTF-8 (byte {start})") from None

    entries = integer("the number of entries")
    if not 0 < entries <= min(gguf.MOST, len(data) // 16):
        raise ValueError(f"{path} is no imatrix: {entries} entries in {len(data)} bytes (byte 0)")
    sums, counts = {}, {}
    for _ in range(entries):
        start = at
        name, calls, values = text("a name"), integer("calls"), integer("values")
        if not name or name in sums or values < 1 or calls < 0:
            raise ValueError(
                f"{path}: entry {name!r:.80} with {values} values of {calls} calls (byte {start}) "
                "is empty or stands there twice"
            )
        row = take(4 * values, f"the values of {name!r:.80}")
        sums[name] = row.view("<f4")[None].astype(np.float32)
        counts[name] = np.array([calls], np.int64)
    chunks, datasets = 0, ()
    if at < len(data):  # the oldest files end here
        chunks = max(0, integer("the number of chunks"))
    if at < len(data):
        datasets = tuple(filter(None, [text("the name of the text")]))
    return Imatrix(sums, counts, 0, chunks, datasets)


# ---- writing -------------------------------------------------------------------------------------


def write(path: str | os.PathLike, imatrix: Imatrix, *, overwrite: bool = False) -> Path:
    """Writes an importance matrix: GGUF, or the older form where the name ends in `.dat`.

    What came from a `.dat` file counts chunks; for GGUF they are taken to have 512 tokens.

    Args:
        path: the file; it appears whole or not at all.
        imatrix: what to write.
        overwrite: replace a file that is there.

    Raises:
        ValueError: nothing to write, or the file exists.

    Example:
        >>> write("imatrix.gguf", qlab.imatrix(qlab.load("tiny")))   # doctest: +SKIP
    """
    if not imatrix.sums:
        raise ValueError("the imatrix holds no tensors")
    path = Path(path)
    if path.suffix == ".dat":
        with atomic_file(path, overwrite) as sink:
            sink.write(_as_dat(imatrix))
        return path
    size = imatrix.chunk_size or CHUNK
    scale = 1 if imatrix.chunk_size else size
    entries = []
    for name in sorted(imatrix.sums):
        sums = np.asarray(imatrix.sums[name], np.float32) * np.float32(scale)
        counts = (imatrix.counts[name] * scale).astype(np.float32)
        lone = len(sums) == 1  # ggml leaves out axes of 1
        shapes = (sums.shape[1:], (1,)) if lone else (sums.shape, (len(sums), 1))
        entries += [
            (name + SUMS, "F32", shapes[0], sums),
            (name + COUNTS, "F32", shapes[1], counts),
        ]
    metadata = {
        "general.type": "imatrix",
        "imatrix.datasets": Value.of("[str]", list(imatrix.datasets)),
        "imatrix.chunk_count": imatrix.chunks,
        "imatrix.chunk_size": size,
    }
    return gguf.write(path, metadata, entries, overwrite=overwrite)


def _as_dat(imatrix: Imatrix) -> bytes:
    names = [name for name in sorted(imatrix.sums) if imatrix.counts[name].max() > 0]
    out = bytearray(struct.pack("<i", len(names)))
    for name in names:
        sums, counts = imatrix.sums[name], imatrix.counts[name]
        if imatrix.chunk_size:
            calls = -(-int(counts.max()) // imatrix.chunk_size)
            mean = np.where(counts[:, None] > 0, sums, 1) / np.maximum(counts, 1)[:, None]
            sums = mean.astype(np.float32) * np.float32(calls)
        else:
            calls = int(counts.max())
        encoded = name.encode()
        out += struct.pack("<i", len(encoded)) + encoded
        out += struct.pack("<ii", calls, sums.size) + sums.astype("<f4").tobytes()
    text = (imatrix.datasets or ("",))[-1].encode()
    return bytes(out + struct.pack("<ii", imatrix.chunks, len(text)) + text)
