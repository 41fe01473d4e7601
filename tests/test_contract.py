"""The contract that every method keeps with every Spec: METHODS × SPECS × nasty tensors.

For each pair: finite and shaped as asked · jit = eager, bit for bit · vmap = loop · the
straight-through gradient · strict dtype promotion · round trip through dense bytes. A pair that a
method does not support raises, naming both, and is counted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qlab.methods import METHODS
from qlab.packing import pack, unpack
from qlab.qtensor import QTensor, dequantize, fake_quantize
from qlab.specs import SPECS, TABLE
from qlab.stats import Stats, output_error

ROWS, COLUMNS = 4, 512  # a multiple of every block, two super-blocks of 256
RNG = np.random.default_rng(0)


def _nasty() -> dict[str, np.ndarray]:
    normal = RNG.standard_normal((ROWS, COLUMNS)).astype(np.float32)
    mixed = normal.copy()
    mixed[0], mixed[1], mixed[2, :256] = 0.0, 0.75, -0.0
    exact = np.resize(np.arange(-8, 8) / 2, (ROWS, COLUMNS))  # ties everywhere
    return {
        "normal": normal,
        "zeros": np.zeros_like(normal),
        "constant rows": np.broadcast_to(RNG.standard_normal((ROWS, 1)), normal.shape),
        "positive": np.abs(normal),
        "negative": -np.abs(normal),
        "mixed": mixed,
        "ties": exact,
        "1e-30": 1e-30 * normal,
        "1e30": 1e30 * normal,
        "subnormal": 1e-39 * normal,
        "one outlier": np.where(np.arange(COLUMNS) == 7, 1e4, normal),
        "dead channels": np.where(np.arange(COLUMNS) % 3 == 0, 0.0, normal),
    }


NASTY = {name: np.asarray(w, np.float32) for name, w in _nasty().items()}
INPUTS = RNG.standard_normal((2 * COLUMNS, COLUMNS)).astype(np.float32)
INPUTS[:, ::17] = 0.0  # channels that calibration never saw
PAIRS = [(m, s) for m in METHODS for s in SPECS]
SUPPORTED = [(m, s) for m, s in PAIRS if METHODS[m].supports(SPECS[s])]


@pytest.fixture(scope="module")
def stats() -> Stats:
    return Stats.from_inputs(jnp.asarray(INPUTS))


def same(a: QTensor, b: QTensor) -> None:
    """Two QTensors agree in every bit of every leaf."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.mark.parametrize("method_name, spec_name", SUPPORTED)
def test_contract(method_name, spec_name, stats):
    method, spec = METHODS[method_name], SPECS[spec_name]
    run = lambda w, stats: method(w, stats, spec)  # noqa: E731
    with jax.numpy_dtype_promotion("strict"):
        results = {name: run(jnp.asarray(w), stats) for name, w in NASTY.items()}
        decoded = {name: np.asarray(dequantize(q)) for name, q in results.items()}

    for name, q in results.items():
        assert q.codes.dtype == jnp.uint8 and q.shape == (ROWS, COLUMNS), name
        assert np.isfinite(decoded[name]).all(), name
        assert np.isfinite(spec.format.grid[np.asarray(q.codes)]).all(), name
        codes = np.asarray(q.codes)
        np.testing.assert_array_equal(
            unpack(pack(codes, spec.format), spec.format, codes.shape), codes
        )
    # the MX scale of a block of zeros is 2⁻¹²⁷, and of tiny ones too: everything decodes to
    # (almost) nothing
    assert np.abs(decoded["zeros"]).max() < 1e-30
    # on the inputs, because weights that calibration never met may become anything
    error = output_error(jnp.asarray(NASTY["normal"]), jnp.asarray(decoded["normal"]), stats)
    assert error < (1.0 if spec.format.bits <= 2 else 0.45 if spec.format.bits <= 3 else 0.25)

    if method.propagate == "none":
        vmap_is_loop(run, results, stats)
        # kquants takes seconds a matrix without a compiler: the slow test below
        some = () if method_name == "kquants" else ("normal", "mixed", "1e30", "subnormal")
        jit_is_eager(run, results, stats, some)


# Stats are arguments, as they are in `quantize_model`: powers of constants would be taken when
# compiling, by another function than when running.
def vmap_is_loop(run, results, stats) -> None:
    """All matrices as one stack: the same bits."""
    stack = jnp.asarray(np.stack([NASTY[name] for name in results]))
    many = jax.jit(jax.vmap(run, in_axes=(0, None)))(stack, stats)
    for i, name in enumerate(results):
        same(jax.tree.map(lambda leaf, i=i: leaf[i], many), results[name])


def jit_is_eager(run, results, stats, some) -> None:
    """Compiled for one matrix, and step by step without a compiler: the same bits."""
    compiled = jax.jit(run)
    for name in results:
        same(compiled(jnp.asarray(NASTY[name]), stats), results[name])
    with jax.disable_jit():
        for name in some:
            eager = run(jnp.asarray(NASTY[name]), stats)
            same(eager, results[name])
            np.testing.assert_array_equal(dequantize(eager), dequantize(results[name]))


@pytest.mark.slow
@pytest.mark.parametrize("method_name, spec_name", [p for p in SUPPORTED if p[0] != "rtn"])
def test_jit_vmap_and_eager_agree_for_methods_that_loop_over_columns(method_name, spec_name, stats):
    """Seconds to compile, and ten without a compiler, hence slow."""
    method, spec = METHODS[method_name], SPECS[spec_name]
    run = lambda w, stats: method(w, stats, spec)  # noqa: E731
    results = {name: run(jnp.asarray(w), stats) for name, w in NASTY.items()}
    vmap_is_loop(run, results, stats)
    if method.propagate == "none":
        jit_is_eager(run, {"mixed": results["mixed"]}, stats, ("mixed",))
        return
    same(jax.jit(run)(jnp.asarray(NASTY["mixed"]), stats), results["mixed"])
    with jax.disable_jit():
        close(run(jnp.asarray(NASTY["mixed"]), stats), results["mixed"])


def close(a: QTensor, b: QTensor) -> None:
    """Codes differ in a near-tie at most and scales by a few ulp: methods that read text sum over
    H, and a product of matrices is summed in another order when it runs by itself."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype and x.shape == y.shape
        if np.issubdtype(x.dtype, np.integer):
            assert np.mean(x != y) <= 0.002
            assert np.abs(x.astype(int) - y.astype(int)).max() <= 1
        else:
            np.testing.assert_allclose(x, y, rtol=1e-6)


@pytest.mark.parametrize("method_name", [m for m in METHODS if METHODS[m].propagate != "none"])
def test_vmap_is_loop_for_methods_that_read_text(method_name, stats):
    for spec in ("uint4_g64", "q4_k"):
        run = lambda w, stats, spec=spec: METHODS[method_name](w, stats, SPECS[spec])  # noqa: E731
        results = {name: run(jnp.asarray(w), stats) for name, w in NASTY.items()}
        vmap_is_loop(run, results, stats)


@pytest.mark.parametrize("spec_name", SPECS)
def test_one_row_and_the_straight_through_gradient(spec_name):
    spec = SPECS[spec_name]
    row, g = jnp.asarray(NASTY["mixed"][3:]), jnp.asarray(NASTY["normal"][:1])
    value, pull = jax.jit(
        lambda w, g: (fake_quantize(w, spec), jax.vjp(lambda w: fake_quantize(w, spec), w)[1](g))
    )(row, g)
    np.testing.assert_array_equal(pull[0], g)
    np.testing.assert_array_equal(value, dequantize(METHODS["rtn"](row, None, spec)))


def test_unsupported_pairs_raise_naming_both_and_are_counted(stats):
    unsupported = [pair for pair in PAIRS if pair not in SUPPORTED]
    for method, spec in unsupported:
        with pytest.raises(ValueError, match=f"(?i){method}.*{SPECS[spec].format}"):
            METHODS[method](jnp.asarray(NASTY["normal"]), stats, SPECS[spec])
    counts = {m: sum(name == m for name, _ in SUPPORTED) for m in METHODS}
    # A number that falls is a promise withdrawn: change it knowingly.
    all_of_them = dict.fromkeys(("rtn", "gptq", "awq", "smoothquant"), len(TABLE))
    # hqq: only one of the Specs has a real zero point; kquants: the containers of ggml;
    # four_over_six: NVFP4
    assert counts == all_of_them | {"hqq": 1, "kquants": 16, "four_over_six": 1}
