"""HQQ against the package (tests/golden/make_hqq_solver.py), and what its search promises."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qlab
from qlab import specs
from qlab.formats import FORMATS
from qlab.methods.hqq import hqq_step, shrink
from qlab.models.surgery import linears
from qlab.qtensor import block_sizes, fit, to_blocks
from qlab.specs import SPECS

FILE = np.load(Path(__file__).parent / "golden" / "hqq_solver.npz")
META = json.loads(str(FILE["meta"]))
SETTINGS = [tuple(setting) for setting in META["settings"]]


def exact(bits, group=64):
    """The package's own storage: float32 scales and zero points."""
    return specs.hqq(bits, group).replace(scale="float32", zero="float32")


def found(bits, group, round_zero) -> tuple[float, float]:
    """Shares of equal codes and of rows with equal zero points."""
    q = qlab.hqq(jnp.asarray(FILE["w"]), None, exact(bits, group), round_zero=round_zero)
    key = f"b{bits}_g{group}_{'round' if round_zero else 'real'}"
    same = np.asarray(q.codes) == FILE[f"{key}_codes"]
    near = np.isclose(q.zero, FILE[f"{key}_zero"], rtol=1e-4, atol=2e-3).all(1)
    return same.mean(), near.mean()


def test_codes_and_zero_points_are_the_packages():
    """A mean summed in another order moves a zero point by an ulp. In one row of one setting that
    moves a weight over a midpoint, and the row's later steps take another way."""
    shares = {setting: found(*setting) for setting in SETTINGS}
    assert min(codes for codes, _ in shares.values()) >= 0.998, (shares, META)
    assert np.mean([codes for codes, _ in shares.values()]) >= 0.9999, (shares, META)
    other = [setting for setting, (_, rows) in shares.items() if rows < 1]
    assert len(other) <= 1 and min(rows for _, rows in shares.values()) >= 23 / 24, (shares, META)


@pytest.fixture(scope="module")
def real() -> jax.Array:
    return linears(qlab.load("tiny"))["layers.1.mlp.up_proj"].weight


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_error_falls_and_the_scale_stays(bits, real):
    """Of the p-norm it minimises, and of the mean it stops by."""
    spec = exact(bits)
    q, plain = qlab.hqq(real, None, spec), qlab.rtn(real, None, spec)
    np.testing.assert_array_equal(q.scale, plain.scale)
    assert float(jnp.abs(q.zero - jnp.round(q.zero)).max()) > 0.1  # a real number
    for p in (0.7, 1.0):
        wrong = [float((jnp.abs(qlab.dequantize(x) - real) ** p).sum()) for x in (q, plain)]
        assert wrong[0] < wrong[1]


def test_the_steps_are_those_of_the_search(real):
    """Step by step until the error rises: the zero points of `hqq`."""
    spec, w = exact(3), real[:16]
    ranges = fit(w, spec)
    blocks = to_blocks(w, block_sizes(spec.block, w.shape))
    zero, best, errors = ranges.zero, np.inf, []
    for _ in range(20):
        error, zero = hqq_step(blocks, ranges.scale, zero, FORMATS["UINT3"])
        errors.append(float(error))
        if errors[-1] >= best:
            break
        best = errors[-1]
    assert len(errors) > 2 and all(a > b for a, b in zip(errors[:-2], errors[1:-1], strict=True))
    np.testing.assert_allclose(qlab.hqq(w, None, spec).zero, zero, rtol=1e-6, atol=1e-6)
    few = qlab.hqq(w, None, spec, iters=1).zero
    np.testing.assert_allclose(
        few, hqq_step(blocks, ranges.scale, ranges.zero, FORMATS["UINT3"])[1], rtol=1e-6
    )
    np.testing.assert_array_equal(qlab.hqq(w, None, spec, iters=0).zero, ranges.zero)


def test_shrinking():
    x = jnp.array([-3.0, -0.1, 0.0, 0.1, 3.0])
    found = shrink(x, 10.0, 0.7)
    np.testing.assert_allclose(found[0], -(3 - 3 ** (-0.3) / 10), rtol=1e-6)
    assert found[1] == found[2] == found[3] == 0 and found[4] == -found[0]
    np.testing.assert_allclose(shrink(x, 10.0, 1.0)[4], 2.9, rtol=1e-6)  # p = 1: soft threshold


def test_weights_on_the_grid_stay(real):
    spec = exact(4)
    once = qlab.dequantize(qlab.rtn(real[:4], None, spec))
    np.testing.assert_allclose(qlab.dequantize(qlab.hqq(once, None, spec)), once, atol=1e-6)


def test_what_is_refused(real):
    for name in ("int4_g64", "uint4_g64", "q4_k", "nf4"):
        with pytest.raises(ValueError, match="hqq moves a real zero point"):
            qlab.hqq(real, None, SPECS[name])
    with pytest.raises(ValueError, match="iters -1 is below 0"):
        qlab.hqq(real, None, SPECS["hqq4_g64"], iters=-1)
    with pytest.raises(ValueError, match="beta 0.0 is not positive"):
        qlab.hqq(real, None, SPECS["hqq4_g64"], beta=0.0)
