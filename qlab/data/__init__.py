"""The bundled texts: four domains, each with a calibration and an evaluation split.

No document is in two splits, and the bundled tiny model was trained on none of them. Licences are
in `licences/`; `training/texts.py` builds the files; `problems` draws fresh exercises.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from qlab.suggest import near

DOMAINS = ("english", "code", "math", "korean")
SPLITS = ("calibration", "evaluation")


def texts(domain: str, split: str = "evaluation") -> str:
    """Returns a bundled text of about 200 kB.

    Args:
        domain: "english" (speeches, a manual), "code" (Python modules), "math" (one problem a
            line), "korean" (a manual, a constitution).
        split: "calibration" for what a method may look at, "evaluation" for what is measured.

    Raises:
        ValueError: unknown domain or split; the nearest known one is suggested.

    Example:
        >>> texts("math").startswith("Q: ")
        True
    """
    _check("domain", domain, DOMAINS)
    _check("split", split, SPLITS)
    path = Path(__file__).parent / "texts" / f"{domain}.{split}.txt"
    return path.read_bytes().decode("utf-8")


def text_hash(text: str) -> str:
    """Returns the hex sha256 of a text's UTF-8 bytes: two results compare only if it is the same.

    Example:
        >>> text_hash("abc")[:8]
        'ba7816bf'
    """
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _check(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise ValueError(f"no {kind} is called {name!r}; {near(name, known)}")
