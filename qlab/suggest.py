"""Words of sentences: after an unknown name the nearest known one, after a count its noun."""

import difflib
from collections.abc import Iterable


def near(name: object, known: Iterable[str]) -> str:
    """`did you mean 'x'?` for the known name closest to `name`, else `known are …`.

    Args:
        name: what was asked for; upper and lower case do not matter.
        known: the names that there are.

    Example:
        >>> near("Kroean", ("english", "korean"))
        "did you mean 'korean'?"
        >>> near("?", ("english", "korean"))
        'known are english, korean'
    """
    known = list(known)
    spelt = {one.lower(): one for one in known}
    close = difflib.get_close_matches(str(name).lower(), spelt, n=1, cutoff=0.4)
    return f"did you mean {spelt[close[0]]!r}?" if close else f"known are {', '.join(known)}"


def counted(n: int, noun: str) -> str:
    """A count with its noun, which takes an s unless it is one.

    Args:
        n: how many.
        noun: what one of them is called.

    Example:
        >>> counted(1, "window"), counted(2048, "token"), counted(0, "layer")
        ('1 window', '2,048 tokens', '0 layers')
    """
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
