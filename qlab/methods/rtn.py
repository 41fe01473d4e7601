"""RTN, round to nearest: every weight goes to the closest value of its block's grid. No data, and
no search unless asked for.

    q = argmin_c |w − s·(grid[c] − z)|,  the baseline of every paper here (e.g. Frantar et al. 2022,
    arXiv 2210.17323, §1).

symbol · name here · shape:  W · w · (out, in),  s, z · fit(w, spec) · one of each per block,  q ·
codes · (out, in). It minimises ‖W − Ŵ‖ for given ranges, not the error of the layer's output: that
is what the other methods are for.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from qlab.methods.method import check_arguments, method
from qlab.qtensor import QTensor, Spec, quantize
from qlab.ranges import fit_mse, fit_parts, join, period
from qlab.stats import Stats


@method(supports=lambda spec: True)
def rtn(w: jax.Array, stats: Stats | None, spec: Spec, *, mse: bool = False) -> QTensor:
    """Round to nearest.

    Args:
        w: (out, in) floating point.
        stats: unused; every method takes it.
        spec: any Spec whose block fits.
        mse: clip: search every range for the least Σ|ŵ − w|^2.4 (`ranges.fit_mse`), in each row and
            group apart where ranges allow it. Half the error at 2 bits, little at 8.

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
    if not mse:
        return quantize(w, spec)
    check_arguments(rtn, w, spec, {"mse": mse})
    return quantize(w, _searched(jnp.asarray(w), spec))


@partial(jax.jit, static_argnames="spec")
def _searched(w: jax.Array, spec: Spec) -> QTensor:
    """The ranges of least error, each `period` of columns searched apart."""
    width = period(spec, w.shape[1])
    if width is None:
        return fit_mse(w, spec)
    return join(fit_parts(w, width, partial(fit_mse, spec=spec)), len(w))
