"""kquants and io.gguf.encode: ggml's own bytes for every type, its errors, and what goes wrong in
one sentence.

The vectors are ggml's (tests/golden/make_ggml.py). Every block is compared byte for byte."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qlab
from qlab.io import ggml, gguf
from qlab.methods.kquants import floored, kquants
from qlab.methods.kquants_blocks import ENCODERS, floor_log2
from qlab.methods.kquants_search import make_qkx, make_qp, make_qx, nearest_int
from qlab.specs import SPECS

GOLDEN = Path(__file__).parent / "golden"
TYPES = ("F16", "BF16", *ggml.TYPE_SPECS)
WEIGHED = [n for n, s in ggml.TYPE_SPECS.items() if ENCODERS[qlab.specs.name_of(s)].weighs]
CODEBOOKS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")
# Share of blocks that may differ, if they lose the same: measured are 0. Only where products of
# weights are subnormal (weights below 10⁻⁵), which XLA reads as 0 and C does not, do bytes differ.
MOST = 0.001


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "ggml.npz") as file:
        found = {k: file[k] for k in file.files}
    print(json.loads(str(found["meta"]))["versions"])
    return found


def blocks(raw: np.ndarray, name: str) -> np.ndarray:
    return raw.reshape(-1, ggml.BLOCKS[name][1].itemsize)


def share_of_equal_blocks(ours: np.ndarray, theirs: np.ndarray, name: str) -> float:
    return float((blocks(ours, name) == blocks(theirs, name)).all(axis=1).mean())


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("kind", ["none", "usual", "holes"])
def test_bytes_are_ggmls(golden, name, kind):
    importance = None if kind == "none" else golden[f"importance_{kind}"]
    ours, theirs = gguf.encode(golden["w"], name, importance), golden[f"{name}_{kind}"]
    assert ours.dtype == np.uint8 and ours.shape == theirs.shape
    equal = share_of_equal_blocks(ours, theirs, name)
    print(f"{name}, importance {kind}: {equal:.4%} of {len(blocks(ours, name))} blocks equal")
    assert 1 - equal <= MOST
    if equal < 1:
        with np.errstate(invalid="ignore"):
            loss = [np.square(gguf.decode(raw, name) - golden["w"]).sum() for raw in (ours, theirs)]
        np.testing.assert_allclose(*loss, rtol=1e-6)


@pytest.mark.parametrize("name", CODEBOOKS)
def test_codebooks_decode_as_in_c(golden, name):
    want = golden[f"{name}_out"]
    np.testing.assert_array_equal(gguf.decode(golden[f"{name}_raw"], name), want)
    with pytest.raises(ValueError, match=f"{name} is read, but not written; written are F32"):
        gguf.encode(np.zeros((1, 256), np.float32), name)


@pytest.mark.parametrize("name", ggml.TYPE_SPECS)
def test_from_qtensor_reverses_to_qtensor(golden, name):
    """Every byte of a block has one place, whatever it holds."""
    raw = golden[f"{name}_usual"]
    np.testing.assert_array_equal(gguf.from_qtensor(gguf.to_qtensor(raw, name), name), raw)
    if name in ("TQ1_0", "TQ2_0"):
        return  # not every byte is one of trits
    anything = np.random.default_rng(0).integers(0, 256, raw.shape, dtype=np.uint8)
    again = gguf.from_qtensor(gguf.to_qtensor(anything, name), name)
    np.testing.assert_array_equal(again, anything)


@pytest.mark.parametrize("name", ggml.TYPE_SPECS)
def test_kquants_is_what_encode_writes(golden, name):
    rows = golden["w"][[0, 1, 3, 8, 21]]
    q = kquants(rows, None, ggml.TYPE_SPECS[name])
    raw = gguf.encode(rows, name)
    np.testing.assert_array_equal(gguf.from_qtensor(q, name), raw)
    np.testing.assert_array_equal(qlab.dequantize(q), gguf.decode(raw, name))
    item = ggml.BLOCKS[name][1].itemsize * 8 / ggml.BLOCKS[name][0]
    assert qlab.bits_per_weight(q) == item


def test_every_method_can_fill_a_block():
    """`from_qtensor` takes plain rounding as well: the container is the same."""
    w = np.random.default_rng(0).standard_normal((2, 512)).astype(np.float32)
    for name, spec in ggml.TYPE_SPECS.items():
        q = qlab.rtn(jnp.asarray(w), None, spec)
        raw = gguf.from_qtensor(q, name)
        np.testing.assert_array_equal(gguf.decode(raw, name), qlab.dequantize(q))


# ---- what the searches lose ----------------------------------------------------------------------

# Relative root mean square errors that ggml itself reaches, on N(0, 1), Student t with 4 degrees of
# freedom and Laplace numbers (its C library on 256 × 4096 of each, seed 0).
LOSSES = {
    "Q8_0": (0.00535, 0.00737, 0.00673), "Q6_K": (0.01772, 0.02283, 0.02169),
    "Q5_1": (0.03784, 0.04562, 0.04438), "Q5_0": (0.04272, 0.05786, 0.05349),
    "Q5_K": (0.03610, 0.04385, 0.04278), "Q4_1": (0.07816, 0.09385, 0.09174),
    "Q4_0": (0.08596, 0.11535, 0.10674), "Q4_K": (0.07129, 0.08649, 0.08450),
    "IQ4_NL": (0.07610, 0.09321, 0.08788), "IQ4_XS": (0.07669, 0.09423, 0.08859),
    "Q3_K": (0.15092, 0.18267, 0.17616), "Q2_K": (0.29669, 0.34150, 0.34401),
    "MXFP4": (0.11499, 0.13102, 0.12677), "NVFP4": (0.09508, 0.09160, 0.09280),
}  # fmt: skip


def loss(w: np.ndarray, name: str, importance: np.ndarray | None, weigh: np.ndarray) -> float:
    wrong = gguf.decode(gguf.encode(w, name, importance), name) - w
    return float(np.sqrt((weigh * np.square(wrong)).sum() / (weigh * np.square(w)).sum()))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_ggmls(name):
    rng, shape = np.random.default_rng(0), (256, 1024)
    data = (rng.standard_normal(shape), rng.standard_t(4, shape), rng.laplace(size=shape))
    ours = [loss(w.astype(np.float32), name, None, np.ones(1)) for w in data]
    print(name, [round(x, 5) for x in ours])
    np.testing.assert_allclose(ours, LOSSES[name], rtol=0.02)


# Importance-weighted losses without and with importance of log-normal numbers, σ = 1.5.
GAINS = {
    "Q2_K": (0.296, 0.204), "Q3_K": (0.151, 0.122), "Q4_K": (0.0712, 0.0574),
    "Q5_K": (0.0361, 0.0298), "Q6_K": (0.0177, 0.0148), "Q4_0": (0.0859, 0.0720),
    "IQ4_XS": (0.0766, 0.0651),
}  # fmt: skip


@pytest.mark.parametrize("name", GAINS)
def test_importance_gains_what_it_does_in_ggml(name):
    """Within 2 % for the loss; 6 % of what importance leaves, which depends on the draw of 4096."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 4096)).astype(np.float32)
    importance = np.exp(1.5 * rng.standard_normal(4096)).astype(np.float32)
    without, with_it = (loss(w, name, given, importance) for given in (None, importance))
    print(name, round(without, 5), round(with_it, 5))
    np.testing.assert_allclose(without, GAINS[name][0], rtol=0.02)
    np.testing.assert_allclose(with_it, GAINS[name][1], rtol=0.06)


# ---- importance, chunks, shapes ------------------------------------------------------------------


def test_importance_is_taken_from_stats():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((300, 512)).astype(np.float32) * np.exp(rng.standard_normal(512))
    w, stats = rng.standard_normal((4, 512)), qlab.Stats.from_inputs(jnp.asarray(x, jnp.float32))
    w = jnp.asarray(w, jnp.float32)
    importance = jnp.diagonal(stats.hessian)
    for name in WEIGHED:
        spec = ggml.TYPE_SPECS[name]
        a = kquants(w, stats, spec)
        b = kquants(w, None, spec, importance=importance)
        plain = kquants(w, None, spec)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
            np.testing.assert_array_equal(x, y)
        assert not np.array_equal(a.codes, plain.codes), name


def test_columns_without_importance_are_floored_and_counted():
    importance = np.ones(512, np.float32)
    importance[:256] = 0.0
    w = np.random.default_rng(2).standard_normal((2, 512)).astype(np.float32)
    q, facts = qlab.METHODS["kquants"].with_facts(w, None, SPECS["q4_k"], importance=importance)
    assert int(facts["floored"]) == 256
    wrong = np.asarray(qlab.dequantize(q)) - w
    assert np.square(wrong[:, :256]).mean() < 0.02  # ggml would have made them zeros: 1.0
    values, count = floored(jnp.zeros(8))
    assert values.tolist() == [1.0] * 8 and int(count) == 8


@pytest.mark.parametrize("name", ["Q4_K", "Q5_0", "IQ4_NL"])
def test_chunks_and_shapes_do_not_matter(name):
    """One row at a time, all rows, and all under a trace (where chunks are a loop): one result."""
    rng = np.random.default_rng(3)
    w = rng.standard_normal((136, 1024)).astype(np.float32)  # a little over two chunks
    importance = np.exp(rng.standard_normal(1024)).astype(np.float32)
    spec = ggml.TYPE_SPECS[name]
    whole = gguf.encode(w, name, importance)
    np.testing.assert_array_equal(gguf.encode(w[5:6], name, importance), whole[5:6])
    traced = jax.jit(lambda w, v: kquants(w, None, spec, importance=v, saturate=False))
    np.testing.assert_array_equal(gguf.from_qtensor(traced(w, importance), name), whole)


def test_scales_beyond_half_precision():
    """ggml's overflow to infinity; `kquants` stops at 65504 and stays finite."""
    w = 1e30 * np.random.default_rng(4).standard_normal((1, 256)).astype(np.float32)
    with np.errstate(all="ignore"):
        assert not np.isfinite(gguf.decode(gguf.encode(w, "Q4_K"), "Q4_K")).all()
    q = kquants(w, None, SPECS["q4_k"])
    assert float(q.scale.scale[0]) == 65504.0
    assert np.isfinite(qlab.dequantize(q)).all()


def test_floats():
    w = np.array([[1.0, -1e30, 1e-40, 65519.0, 1 + 2**-9]], np.float32)
    np.testing.assert_array_equal(gguf.decode(gguf.encode(w, "F32"), "F32"), w)
    np.testing.assert_array_equal(
        gguf.decode(gguf.encode(w, "F16"), "F16"), [[1, -np.inf, 0, 65504, 1 + 2**-9]]
    )
    assert gguf.decode(gguf.encode(w, "BF16"), "BF16")[0, [0, 4]].tolist() == [1.0, 1.0]


# ---- the searches --------------------------------------------------------------------------------


def test_searches_find_what_fits_exactly():
    """Codes times a scale come back, and no loss is left."""
    rng, ones = np.random.default_rng(5), jnp.ones((32, 100))
    q = rng.integers(-8, 8, (32, 100))
    q[0] = -8
    scale, codes = make_qx(jnp.asarray(q * 0.25, jnp.float32), ones, 8)
    np.testing.assert_allclose(scale, 0.25, rtol=1e-6)
    np.testing.assert_array_equal(codes, q + 8)
    q = rng.integers(0, 16, (32, 100))
    q[0], q[1] = 0, 15
    scale, minimum, codes = make_qkx(
        jnp.asarray(q * 0.5 - 3.0, jnp.float32), ones, 15, (-1, 0.1, 20)
    )
    np.testing.assert_allclose(scale, 0.5, rtol=1e-5)
    np.testing.assert_allclose(minimum, 3.0, rtol=1e-5)
    np.testing.assert_array_equal(codes, q)
    q = rng.integers(0, 64, (8, 100))
    q[0] = 63
    scale, codes = make_qp(jnp.asarray(q * 2.0, jnp.float32), ones[:8], 63)
    np.testing.assert_allclose(scale, 2.0, rtol=1e-6)
    np.testing.assert_array_equal(codes, q)


def test_a_search_never_loses_more_than_its_first_candidate():
    rng = np.random.default_rng(6)
    x = jnp.asarray(rng.standard_t(4, (16, 500)), jnp.float32)
    weights = jnp.asarray(np.exp(rng.standard_normal((16, 500))), jnp.float32)
    far = np.take_along_axis(np.asarray(x), np.abs(x).argmax(0)[None], 0)
    first = far / -32
    plain = np.clip(np.round(x / first), -32, 31) * first
    scale, codes = make_qx(x, weights, 32)
    found = (np.asarray(codes) - 32) * np.asarray(scale)
    both = [(np.asarray(weights) * np.square(x - y)).sum(0) for y in (found, plain)]
    assert (both[0] <= both[1] * (1 + 1e-5)).all() and both[0].sum() < 0.95 * both[1].sum()


def test_nearest_int_and_floor_log2_are_cs():
    x = np.random.default_rng(7).standard_normal(10_000).astype(np.float32) * 1e4
    np.testing.assert_array_equal(nearest_int(jnp.asarray(x)), np.rint(x).astype(np.int32))
    # numbers around every power of two: C rounds the logarithm to float32, then takes the floor
    steps = np.arange(-40, 3, dtype=np.int32)
    near = (np.arange(2, 253, dtype=np.int32)[:, None] << 23) + steps
    near = near.view(np.float32).ravel()
    exact = np.floor(np.log2(near.astype(np.float64)).astype(np.float32))
    np.testing.assert_array_equal(floor_log2(jnp.asarray(near)), exact)


# ---- errors --------------------------------------------------------------------------------------

ONES = np.ones((2, 256), np.float32)
ROUNDED = qlab.quantize(ONES, SPECS["q4_0"])


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: gguf.encode(ONES, "Q4_k"), "'Q4_k' is unknown: did you mean 'Q4_K'"),
        (lambda: gguf.encode(ONES, "q4_k"), "'q4_k' is unknown: did you mean 'Q4_K'"),
        (lambda: gguf.encode(ONES, "iq4_xs"), "'iq4_xs' is unknown: did you mean 'IQ4_XS'"),
        (lambda: gguf.encode(ONES[:, :100], "Q4_K"), "100 columns are no multiple of Q4_K's 256"),
        (lambda: gguf.encode(ONES[:, :32], "NVFP4"), "32 columns are no multiple of NVFP4's 64"),
        (lambda: gguf.encode(ONES[0], "Q4_K"), r"\(rows, cols\), not float32 \(256,\)"),
        (lambda: gguf.encode(ONES.astype(int), "Q4_K"), "floating point .* not int64"),
        (lambda: gguf.encode(ONES * np.nan, "Q8_0"), "512 NaN and 0 Inf"),
        (lambda: gguf.encode(ONES, "Q4_K", ONES[0, :9]), r"256 columns but importance .*\(9,\)"),
        (lambda: gguf.encode(ONES, "Q4_K", -ONES[0]), "negative"),
        (lambda: gguf.encode(ONES, "Q4_K", ONES[0] * np.inf), "NaN or Inf"),
        (lambda: kquants(ONES, None, SPECS["nf4"]), r"kquants fills .* not a Spec of NF4 \(nf4\)"),
        (lambda: kquants(ONES, None, SPECS["q4_k"].replace(block=64)), "of UINT4 .*block 64"),
        (lambda: kquants(ONES[:, :96], None, SPECS["q4_k"]), "96 columns are no .* q4_k's 256"),
        (lambda: kquants(ONES[0], None, SPECS["q4_k"]), r"\(out, in\), not of shape \(256,\)"),
        (lambda: kquants(ONES, None, SPECS["q4_k"], saturate=1), "saturate is True or False"),
        (lambda: gguf.from_qtensor(ROUNDED, "Q5_0"), "Q5_0 holds .* q5_0, not of q4_0"),
        (lambda: gguf.from_qtensor(ROUNDED, "F16"), "holds no QTensor"),
        (lambda: gguf.to_qtensor(np.full((1, 66), 255, np.uint8), "TQ2_0"), "TQ2_0 holds code 3"),
        (lambda: gguf.to_qtensor(np.zeros((1, 66), np.uint8), "IQ2_XXS"), "'IQ2_XXS' is no QT"),
    ],
)  # fmt: skip
def test_errors_name_what_is_wrong(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# ---- live ----------------------------------------------------------------------------------------


def peer():
    """ggml itself, or a skip."""
    spec = importlib.util.spec_from_file_location("libggml", GOLDEN / "libggml.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    path = module.find()
    if path is None:
        pytest.skip("needs llama-cpp-python, or QLAB_GGML=…/libggml-base.so")
    return module.GGML(path)


@pytest.mark.peer
@pytest.mark.parametrize("name", TYPES)
def test_a_million_weights_against_the_peers_library(name):
    library = peer()
    rng = np.random.default_rng(8)
    importance = np.exp(1.5 * rng.standard_normal(2048)).astype(np.float32)
    size = np.exp(rng.uniform(-4, 1, (512, 1)))
    w = (size * rng.standard_t(4, (512, 2048))).astype(np.float32)
    for given in (None, importance):
        ours, theirs = gguf.encode(w, name, given), library.quantize(w, name, given)
        equal = share_of_equal_blocks(ours, theirs, name)
        print(f"{name}: {equal:.4%} of {len(blocks(ours, name))} blocks equal")
        assert equal == 1.0
        if name in ggml.TYPE_SPECS:
            raw = blocks(theirs, name)
            numbers = library.dequantize(raw, name, ggml.BLOCKS[name][0])
            mine = gguf.decode(raw, name)
            np.testing.assert_array_equal(mine.view(np.uint32), numbers.view(np.uint32))
