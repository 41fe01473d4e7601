"""Error bars: one standard error, found by drawing whole windows with replacement (Efron 1979).

Neighbouring tokens are not independent, so a formula that divides by √tokens is too proud; windows
nearly are. llama.cpp's formulas (`perplexity.cpp`), for independent tokens, stand beside: `naive`.
A difference is *paired*: both models are scored on the same windows, and what they share cancels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

FEWEST_WINDOWS = 8
DRAWS = 2000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A measured number and how well it is known.

    Attributes:
        value: the number.
        bar: one standard error by bootstrap over windows; None: fewer than 8 windows, too little
            text.
        naive: one standard error by llama.cpp's formula, which takes tokens as independent; None
            where it has none.
    """

    value: float
    bar: float | None = None
    naive: float | None = None

    def __str__(self) -> str:
        return with_bar(self.value, self.bar)


def with_bar(value: float, bar: float | None) -> str:
    """A number written to the last place its bar justifies: two digits of a bar below 35, else one.

    Example:
        >>> with_bar(52.2381, 0.8123), with_bar(0.04042, 0.00121), with_bar(7.51234, None)
        ('52.2 ± 0.8', '0.0404 ± 0.0012', '7.512')
    """
    if not np.isfinite(value):
        return "—"
    if bar is None or not np.isfinite(bar):
        return f"{value:.4g}"
    if bar == 0:
        return f"{value:.4g} ± 0"
    size = max(abs(value), bar)
    if size < 1e-3 or size >= 1e5:
        power = int(np.floor(np.log10(size)))
        return f"({with_bar(value / 10.0**power, bar / 10.0**power)})e{power}"
    first, power = f"{bar:.1e}".split("e")  # the bar rounded to two digits, 3.4e-02
    places = max(0, (1 if float(first) < 3.5 else 0) - int(power))
    return f"{value:.{places}f} ± {bar:.{places}f}"


def bootstrap(
    statistic: Callable[..., np.ndarray], *columns: np.ndarray, seed: int, draws: int = DRAWS
) -> float | None:
    """One standard error of `statistic`, by drawing windows with replacement.

    Args:
        statistic: takes the mean over windows of every column, vectorized over draws; exp, a
            difference, …
        columns: (windows,) each, one mean (or sum) per window.
        seed: of the draws; the same seed draws the same windows for every model, so rows are
            paired.
        draws: how many.

    Returns:
        The standard deviation over draws times √(W/(W−1)), which undoes the shrinking of a small
        bootstrap; None for fewer than 8 windows.

    Example:
        >>> bootstrap(lambda m: m, np.arange(100.0), seed=0)   # √(833.25 / 99) = 2.901 in the limit
        2.9...
    """
    count = len(columns[0])
    if count < FEWEST_WINDOWS:
        return None
    index = np.random.default_rng(seed).integers(0, count, (draws, count))
    means = [np.asarray(c, np.float64)[index].mean(axis=1) for c in columns]
    return float(np.std(statistic(*means), ddof=1) * np.sqrt(count / (count - 1)))


def standard_error(x: np.ndarray) -> float:
    """√(Var x / (n − 1)), Var dividing by n: llama.cpp's, for independent x."""
    return float(np.sqrt(np.var(np.asarray(x, np.float64)) / (len(x) - 1)))


def paired_error(a: np.ndarray, b: np.ndarray) -> float:
    """Standard error of mean(a) − mean(b), tokens independent: √(σ_a² + σ_b² − 2 cov)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    n = len(a) - 1
    cov = (np.mean(a * b) - np.mean(a) * np.mean(b)) / n
    return float(np.sqrt(max(np.var(a) / n + np.var(b) / n - 2 * cov, 0.0)))
