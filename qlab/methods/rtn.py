"""RTN, round to nearest: every weight goes to the closest value of its block's grid. No data, no
search.

    q = argmin_c |w − s·(grid[c] − z)|,  the baseline of every paper here (e.g. Frantar et al. 2022,
    arXiv 2210.17323, §1).

symbol · name here · shape:  W · w · (out, in),  s, z · fit(w, spec) · one of each per block,  q ·
codes · (out, in). It minimises ‖W − Ŵ‖ for given ranges, not the error of the layer's output: that
is what the other methods are for.
"""

from __future__ import annotations

import jax

from qlab.methods.method import method
from qlab.qtensor import QTensor, Spec, quantize
from qlab.stats import Stats


@method(supports=lambda spec: True)
def rtn(w: jax.Array, stats: Stats | None, spec: Spec) -> QTensor:
    """Round to nearest.

    Args:
        w: (out, in) floating point.
        stats: unused; every method takes it.
        spec: any Spec whose block fits.

    Returns:
        QTensor of `spec`.

    Raises:
        ValueError: as `qlab.quantize`.

    Example:
        >>> import jax.numpy as jnp
        >>> from qlab.specs import SPECS
        >>> rtn(jnp.ones((2, 64)), None, SPECS["int4_g64"]).shape
        (2, 64)
    """
    return quantize(w, spec)
