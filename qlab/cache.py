"""Where downloaded and computed files are kept: `$QLAB_CACHE`, else `~/.cache/qlab`."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Returns the cache folder, created if it was not there.

    Raises:
        ValueError: the path exists and is not a folder.

    Example:
        >>> cache_dir().is_dir()
        True
    """
    folder = Path(os.environ.get("QLAB_CACHE") or Path.home() / ".cache" / "qlab").expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"the cache folder {folder} is a file; set QLAB_CACHE to a folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
