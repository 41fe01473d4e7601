"""A file that appears whole or not at all: written beside its place, flushed, then renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A new file that takes its place at the end, or vanishes on an error.

    Args:
        path: where to.
        overwrite: replace what is there.

    Raises:
        ValueError: a folder is there, or a file and not `overwrite`.

    Example:
        >>> with atomic_file("notes.bin") as sink:   # doctest: +SKIP
        ...     sink.write(b"all or nothing")
    """
    target = Path(path).expanduser()
    if target.is_dir():
        raise ValueError(f"{target} is a folder; give a file")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} is there already; overwrite=True replaces it")
    target.parent.mkdir(parents=True, exist_ok=True)
    number, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    part = Path(name)
    try:
        with os.fdopen(number, "wb") as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        part.chmod(0o644)
        os.replace(part, target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """The renaming itself reaches the disk, where folders can be opened."""
    if hasattr(os, "O_DIRECTORY"):
        number = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
