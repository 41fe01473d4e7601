"""What to say after an unknown name: the nearest known one, or all of them."""

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
