"""What the tests of the kernels share: small matrices, and how close a product must come."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlab import kernels
from qlab.qtensor import Spec, quantize
from qlab.specs import SPECS

WEIGHTS = {  # name -> Spec: groups of 32, 64, 128 and a row; with and without zero, offset, table
    "int4_g32": SPECS["int4_g32"],
    "int4_g64": SPECS["int4_g64"],
    "int4_g128": SPECS["int4_g128"],
    "int4_channel": SPECS["int4_channel"],
    "awq_g128": SPECS["awq_g128"],
    "hqq4_g64": SPECS["hqq4_g64"],
    "q4_1": SPECS["q4_1"],
    "nf4": SPECS["nf4"],
    "mxfp4": SPECS["mxfp4"],
    "int8_g128": SPECS["int8_g128"],
    "fp8_block": SPECS["fp8_block"],
}


def mostly_slow(cases: list[tuple], quick: str) -> list:
    """All cases, those whose Spec or op is not among `quick` marked slow."""
    names = set(quick.split())
    rest = pytest.mark.slow
    return [c if names & set(map(str, c)) else pytest.param(*c, marks=rest) for c in cases]


def numbers(*shape: int, seed: int = 0) -> jax.Array:
    """Normal numbers with a few outliers, a row of zeros and no two shapes alike."""
    rng = np.random.default_rng([seed, *shape])
    x = rng.standard_normal(shape).astype(np.float32)
    x[rng.random(shape) < 0.01] *= 20
    if shape[0] > 2:
        x[1] = 0
    return jnp.asarray(x)


@functools.cache
def packed(spec: Spec, out: int, inner: int, target: str = "any"):
    """Such numbers as a QTensor and packed."""
    q = quantize(numbers(out, inner, seed=1), spec)
    return q, kernels.prepack(q, target=target)


def assert_close(y, like, x, w) -> None:
    """Within two steps of bfloat16 where that is the dtype, and in both within the error of summing
    in another order: each of `in` additions is off by at most half an ulp of what was summed.
    """
    size = np.abs(np.asarray(x, np.float64)) @ np.abs(np.asarray(w, np.float64)).T
    bound = 2.0**-24 * x.shape[1] * size
    if y.dtype == jnp.bfloat16:
        bound = bound + 2 * 2.0**-8 * np.abs(np.asarray(like, np.float64))
    off = np.abs(np.asarray(y, np.float64) - np.asarray(like, np.float64))
    assert y.shape == like.shape and y.dtype == like.dtype
    assert (off <= bound).all(), f"off by {(off / np.maximum(bound, 1e-30)).max():.2f} bounds"
