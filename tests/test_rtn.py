"""RTN with the clip search: never worse by its own measure, each group apart, the same Spec."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qlab
from qlab.specs import SPECS

W = jnp.asarray(np.random.default_rng(0).standard_t(4, (6, 512)), jnp.float32)


def cost(q, axis) -> np.ndarray:
    return np.asarray((jnp.abs(qlab.dequantize(q) - W) ** 2.4).sum(axis=axis))


@pytest.mark.parametrize(
    "name", ["int2_g128", "uint2_g128", "int4_channel", "nf4", "q4_k", "mxfp4"]
)
def test_the_search_never_costs_more(name):
    plain, clipped = (qlab.rtn(W, None, SPECS[name], mse=mse) for mse in (False, True))
    assert clipped.spec == plain.spec
    assert jax.tree.structure(clipped) == jax.tree.structure(plain)
    assert (cost(clipped, 1) <= cost(plain, 1) * (1 + 1e-5)).all()
    if name.endswith("2_g128"):
        assert cost(clipped, None) < 0.6 * cost(plain, None)


def test_groups_are_searched_apart():
    """A group alone gets the same ranges as among others."""
    whole = qlab.rtn(W, None, SPECS["int2_g128"], mse=True)
    alone = qlab.rtn(W[:, 128:256], None, SPECS["int2_g128"], mse=True)
    np.testing.assert_array_equal(whole.scale[:, 1], alone.scale[:, 0])


def test_a_setting_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="mse is True or False"):
        qlab.rtn(W, None, SPECS["int2_g128"], mse="yes")
