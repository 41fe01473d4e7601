"""The kernels, without an accelerator: interpreted step by step they give what the reference gives,
without races; lowered, they pass the rules of a TPU. The reference gives what qlab itself gives.

Interpreting costs a few milliseconds a grid step, so the matrices are small and the tiles smaller.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental.pallas import tpu as pltpu

from qlab import kernels, specs
from qlab.activations import ACTS, act_matmul, find
from qlab.formats import FORMATS, FP8, INT4, INT8, NF4, UINT4
from qlab.kernels import compat, cpu, tilings
from qlab.kernels.packed import shift_of
from qlab.kernels.tiles import half_bits, table_values, to_float
from qlab.kernels.tilings import Tile
from qlab.kernels.w4a16.reference import w4a16
from qlab.qtensor import QTensor, Spec, dequantize, quantize
from qlab.rules import gptq_asym
from tests.kernels_for_tests import WEIGHTS, assert_close, mostly_slow, numbers, packed

SPECS = specs.SPECS
SMALL = Tile(16, 128, 128)  # several steps along every axis of the matrices below
BLOCK_ACT = Spec(FP8, 128)


# ---- the layout and the reference ----------------------------------------------------------------


def readable(spec: Spec) -> bool:
    codes = jnp.zeros((2, 256), jnp.uint8)
    return kernels.unsupported(QTensor(codes, None, None, None, spec=spec)) is None


READ = [name for name, spec in SPECS.items() if readable(spec)]
SOME = "uint8_channel hqq4_g64 nf4_double fp8_block mxfp4 q4_1 q4_k tq1_0"


def test_which_specs_are_read():
    assert set(SPECS) - set(READ) == {"mxfp6_e2m3", "mxfp6_e3m2"}


@pytest.mark.parametrize(
    "name", [n if n in SOME.split() else pytest.param(n, marks=pytest.mark.slow) for n in READ]
)
def test_the_reference_is_dequantize(name):
    """Bit for bit, for every Spec that a kernel reads."""
    q, p = packed(SPECS[name], 136, 256)
    assert p.shape == q.shape == (136, 256)
    np.testing.assert_array_equal(kernels.dequantize(p), dequantize(q))


def test_the_drawing_of_the_nibbles():
    q, p = packed(Spec(UINT4, "row", zero=UINT4, rule=gptq_asym), 3, 8)
    assert q.codes is not None
    for n, k in np.ndindex(3, 8):
        nibble = int(p.codes[k // 2, n]) >> 4 * (k % 2) & 15
        assert (nibble ^ 8) == int(q.codes[n, k])  # two's complement of code − 8
    _, p = packed(Spec(NF4, 8), 3, 8)
    assert p.shift == 0 and kernels.dequantize(p).shape == (3, 8)


def test_super_blocks_are_llama_cpps():
    from qlab.io.ggml_layouts import SixBits

    q, p = packed(SPECS["q4_k"], 5, 512)
    assert p.layout == "q4_k" and p.bits_per_weight == 4.5
    parts = ((0, q.scale), (1, q.offset))  # each has its own bits of the twelve bytes
    written = [SixBits(k).write(np.asarray(x.codes).reshape(10, 8))["scales"] for k, x in parts]
    mine = np.asarray(p.scale).transpose(2, 0, 1).reshape(10, 12)
    np.testing.assert_array_equal(mine, written[0] | written[1])


def test_memory_is_what_the_layout_says():
    assert packed(SPECS["int4_g128"], 128, 256)[1].bits_per_weight == 4.125
    assert packed(SPECS["awq_g128"], 128, 256)[1].bits_per_weight == 4.25  # zeros in bfloat16
    assert packed(SPECS["int8_channel"], 128, 256)[1].bits_per_weight == 8 + 32 / 256
    assert packed(SPECS["mxfp4"], 128, 256)[1].scale.dtype == jnp.bfloat16  # E8M0, exactly


def test_helpers_of_a_tile():
    halves = jnp.arange(1 << 16, dtype=jnp.uint16)
    halves = jax.lax.bitcast_convert_type(halves, jnp.float16)
    halves = halves[jnp.isfinite(halves)]
    np.testing.assert_array_equal(to_float(half_bits(halves)), halves.astype(jnp.float32))
    codes = jnp.arange(-8, 8)
    np.testing.assert_array_equal(table_values(codes, NF4.grid), jnp.asarray(NF4.grid)[codes & 15])
    assert [shift_of(FORMATS[f]) for f in ("INT4", "UINT4", "UINT3", "UINT8", "NF4", "UINT5")] == [
        0, 8, 0, 128, 0, 0,
    ]  # fmt: skip


# ---- rung 1: interpreted -------------------------------------------------------------------------

SHAPES = [("int4_g64", d, t) for d in ("float32", "bfloat16") for t in (1, 5)] + mostly_slow(
    [(name, ("bfloat16", "float32")[i % 2], 37) for i, name in enumerate(WEIGHTS)],
    "int4_g32 int4_g64 int4_g128 int4_channel hqq4_g64 nf4",
)


@pytest.mark.parametrize("name, dtype, tokens", SHAPES)
def test_w4a16(name, dtype, tokens):
    q, p = packed(WEIGHTS[name], 192, 256)  # 192 outputs: a tile and a half
    w, x = dequantize(q), numbers(tokens, 256).astype(dtype)
    like = kernels.w4a16(x, p)
    assert_close(like, (x.astype(jnp.float32) @ w.astype(dtype).T).astype(dtype), x, w)
    assert_close(kernels.w4a16(x, p, tiling=SMALL, interpret=True), like, x, w)


def test_w4a16_where_128_does_not_divide():
    """576 inputs, as SmolLM2 has: one tile takes them all."""
    q, p = packed(SPECS["int4_g64"], 72, 576)
    x = numbers(3, 576)
    y = kernels.w4a16(x, p, tiling=SMALL._replace(inner=256), interpret=True)
    assert_close(y, kernels.w4a16(x, p), x, dequantize(q))


@pytest.mark.parametrize("tokens, dtype", [(1, "float32"), (5, "bfloat16"), (37, "bfloat16")])
def test_q4_k(tokens, dtype):
    q, p = packed(SPECS["q4_k"], 192, 512)
    x = numbers(tokens, 512).astype(dtype)
    y = kernels.q4_k(x, p, tiling=Tile(16, 128, 256), interpret=True)
    assert_close(y, kernels.q4_k(x, p), x, dequantize(q))


@pytest.mark.parametrize(
    "name, tokens",
    [("int8_channel", 1), ("int8_channel", 5), ("int8_channel", 37), ("int4_channel", 37)],
)
def test_w8a8_is_exact(name, tokens):
    """Kernel = reference = act_matmul, bit for bit: sums are in int32."""
    q, p = packed(SPECS[name], 192, 256)
    x = numbers(tokens, 256)
    both = kernels.quantize_activations(x, "int8_token")
    like = act_matmul(x, q, ACTS["int8_token"])
    np.testing.assert_array_equal(kernels.w8a8(*both, p), like)
    np.testing.assert_array_equal(kernels.w8a8(*both, p, tiling=SMALL, interpret=True), like)


def test_w8a8_holds_the_largest_sums():
    p = kernels.prepack(quantize(jnp.full((128, 512), -1.0), SPECS["int8_channel"]))
    x, scale = jnp.full((2, 512), -127, jnp.int8), jnp.ones((2, 1))
    y = kernels.w8a8(x, scale, p, tiling=SMALL, interpret=True)
    np.testing.assert_array_equal(y, kernels.w8a8(x, scale, p))
    assert float(y[0, 0]) == pytest.approx(127 * 512)


@pytest.mark.parametrize(
    "name, act, inner, tokens",
    [
        ("fp8_channel", "fp8_token", 128, 37),
        ("fp8_e5m2_tensor", "fp8_token", 512, 1),
        ("fp8_block", BLOCK_ACT, 128, 5),  # a block a step
        ("fp8_block", BLOCK_ACT, 256, 37),  # two
        ("fp8_block", "fp8_tile", 128, 5),
    ],
)
def test_fp8(name, act, inner, tokens):
    q, p = packed(SPECS[name], 192, 512)
    x = numbers(tokens, 512)
    both = kernels.quantize_activations(x, act)
    like = kernels.fp8(*both, p)
    y = kernels.fp8(*both, p, tiling=SMALL._replace(inner=inner), interpret=True)
    assert_close(y, like, x, dequantize(q))
    assert_close(like, act_matmul(x, q, find(act)), x, dequantize(q))


@pytest.mark.parametrize(
    "act, dtype", [("int8_token", "float32"), ("fp8_token", "bfloat16"), (BLOCK_ACT, "float32"),
                   ("fp8_tile", "float32")]
)  # fmt: skip
def test_quantize_activations_is_exact(act, dtype):
    spec = ACTS[act].spec if isinstance(act, str) else act
    for tokens, inner in ((1, 128), (37, 256)):
        x = (numbers(tokens, inner) * 3e-5).astype(dtype)  # about the floor of fp8_tile
        codes, scale = kernels.quantize_activations(x, act)
        kept = kernels.quantize_activations(x, act, interpret=True)
        np.testing.assert_array_equal(codes.astype(jnp.float32), kept[0].astype(jnp.float32))
        np.testing.assert_array_equal(scale, kept[1])
        back = codes.astype(jnp.float32).reshape(tokens, scale.shape[1], -1) * scale[..., None]
        np.testing.assert_array_equal(
            back.reshape(x.shape), dequantize(quantize(x.astype(jnp.float32), spec))
        )
        assert not np.signbit(
            np.asarray(kept[0], np.float32)[np.asarray(kept[0], float) == 0]
        ).any()


@pytest.mark.parametrize(
    "name, dtype",
    mostly_slow(
        [(n, ("bfloat16", "float32")[i % 2]) for i, n in enumerate([*WEIGHTS, "q4_k"])],
        "int4_g64 awq_g128 mxfp4 q4_k",
    ),
)
def test_dequantize(name, dtype):
    q, p = packed(SPECS[name], 192, 512)
    tile = Tile(16, 128, 256)
    w = kernels.dequantize(p, dtype, tiling=tile, interpret=True)
    np.testing.assert_array_equal(w, kernels.dequantize(p, dtype))
    assert w.dtype == dtype


RACING = pltpu.InterpretParams(detect_races=True, out_of_bounds_reads="raise")


CALLS = [  # op, Spec, what else it takes
    *[("w4a16", n, d) for n in ("int4_g128", "nf4") for d in ("float32", "bfloat16")],
    ("w4a16", "awq_g128", "bfloat16"),
    ("w4a16", "int8_g128", "bfloat16"),
    *[("q4_k", "q4_k", d) for d in ("float32", "bfloat16")],
    *[("dequantize", n, "bfloat16") for n in ("int4_g128", "q4_k")],
    ("w8a8", "int8_channel", "int8_token"),
    ("w8a8", "int4_channel", "int8_token"),
    ("fp8", "fp8_channel", "fp8_token"),
    ("fp8", "fp8_block", BLOCK_ACT),
    *[("quantize_activations", None, act) for act in ("int8_token", "fp8_token", BLOCK_ACT)],
]


def call(op: str, name: str | None, how, tile: Tile, interpret=None):
    """A small call of an op: the function and its inputs."""
    run, x = getattr(kernels, op), numbers(20, 256)
    if op == "quantize_activations":
        return functools.partial(run, act=how, interpret=interpret), (x,)
    p = packed(SPECS[name], 192, 256)[1]
    run = functools.partial(run, tiling=tile, interpret=interpret)
    if op == "dequantize":
        return functools.partial(run, dtype=how), (p,)
    if how in ("float32", "bfloat16"):
        return run, (x.astype(how), p)
    return run, (*kernels.quantize_activations(x, how), p)


@pytest.mark.parametrize(
    "op, name, how",
    mostly_slow([c for c in CALLS if c[2] != "float32"], "int8_channel q4_k fp8_block"),
)
def test_no_races(op, name, how):
    tile = Tile(16, 128, 256 if op == "q4_k" or name == "q4_k" else 128)
    run, operands = call(op, name, how, tile, RACING)
    jax.block_until_ready(jax.jit(run)(*operands))
    assert not compat.races_found()


# ---- rung 2: lowered -----------------------------------------------------------------------------


@pytest.mark.parametrize("op, name, how", CALLS)
def test_exports_to_tpu(op, name, how):
    """On a machine without one: block shapes, dtypes and primitives pass Mosaic's rules."""
    run, operands = call(op, name, how, SMALL._replace(inner=256))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), operands)
    program = export.export(jax.jit(run), platforms=["tpu"])(*shapes)
    assert "tpu_custom_call" in program.mlir_module()


def test_support_says_what_runs():
    assert set(kernels.support("tpu").values()) == {"Pallas kernel"}
    assert set(kernels.support("cpu").values()) == {"reference, compiled by XLA"}


# ---- matmul --------------------------------------------------------------------------------------


def test_matmul_takes_any_leading_axes_and_dtype():
    q, p = packed(SPECS["int4_g64"], 24, 128)
    x = numbers(6, 128).reshape(2, 3, 128)
    y = kernels.matmul(x, p)
    assert y.shape == (2, 3, 24)
    np.testing.assert_array_equal(y.reshape(6, 24), kernels.w4a16(x.reshape(6, 128), p))
    rounded = kernels.matmul(x, kernels.prepack(q, "bfloat16"))
    low = kernels.w4a16(x.reshape(6, 128).astype(jnp.bfloat16), p)
    assert rounded.dtype == jnp.float32
    np.testing.assert_array_equal(rounded.reshape(6, 24), low.astype(jnp.float32))


def test_matmul_follows_perm_and_channel_scale():
    order = jnp.asarray(np.random.default_rng(2).permutation(128), jnp.int32)
    factor = jnp.exp(numbers(1, 128)[0] / 4)
    ranges = quantize(numbers(24, 128), SPECS["int4_g64"]).replace(
        codes=None, perm=order, channel_scale=factor
    )
    q = quantize(numbers(24, 128), ranges)
    p, x = kernels.prepack(q), numbers(5, 128, seed=3)
    np.testing.assert_array_equal(kernels.dequantize(p), dequantize(q))
    w = dequantize(q)
    assert_close(kernels.matmul(x, p), x @ w.T, x, jnp.abs(w) * 2)
    q8 = quantize(numbers(24, 128), SPECS["int8_channel"]).replace(channel_scale=factor)
    np.testing.assert_array_equal(
        kernels.matmul(x, kernels.prepack(q8), "int8_token"),
        act_matmul(x, q8, ACTS["int8_token"]),
    )


def test_gradient_vmap_and_scan():
    q, p = packed(SPECS["awq_g128"], 24, 128)
    x = numbers(4, 128)
    g = jax.grad(lambda x: (kernels.matmul(x, p) ** 2).sum())(x)
    w = dequantize(q)
    np.testing.assert_allclose(g, 2 * (x @ w.T) @ w, rtol=1e-4, atol=1e-3)
    stack = jax.tree.map(lambda a: jnp.stack([a, a]), p)
    y = kernels.matmul(x, p)
    for run in (
        jax.vmap(lambda p: kernels.matmul(x, p)),
        lambda stack: jax.lax.scan(lambda c, p: (c, kernels.matmul(x, p)), 0, stack)[1],
    ):
        for one in run(stack):
            np.testing.assert_allclose(one, y, rtol=1e-5, atol=1e-4)
    x8 = jax.grad(lambda x: kernels.matmul(x, packed(SPECS["int8_channel"], 24, 128)[1],
                                           "int8_token").sum())(x)  # fmt: skip
    assert not x8.any()


@pytest.mark.parametrize("way", ["halves", "grouped", "tiles"])
@pytest.mark.parametrize("name", ["awq_g128", "q4_1", "int8_g128"])
def test_formulations_of_the_cpu_agree(way, name):
    q, p = packed(SPECS[name], 512, 256)
    x = numbers(5, 256)
    known = cpu.ways(w4a16, x, p)
    if way not in known:
        assert way == "halves" and not p.nibbles
        return
    # What is summed are codes and zeros, which may be large where their difference is not.
    size = jnp.full(q.shape, 4 * jnp.abs(dequantize(q)).max())
    assert_close(known[way](x, p), kernels.w4a16(x, p), x, size)


def test_the_cpu_measures_once(monkeypatch):
    monkeypatch.setattr(cpu, "SMALL", 0)
    monkeypatch.setattr(cpu, "CHOICES", {})
    _, p = packed(SPECS["int4_g64"], 72, 256)
    x = numbers(5, 256)
    y = jax.jit(kernels.matmul)(x, p)  # measured while it is traced
    (kept,) = cpu.CHOICES.values()
    assert kept in cpu.ways(w4a16, x, p)
    monkeypatch.setattr(cpu, "_time", None)
    np.testing.assert_allclose(kernels.matmul(x[:4], p), y[:4], rtol=1e-5, atol=1e-4)


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec, shape, sentence",
    [
        (SPECS["mxfp6_e2m3"], (2, 64), "no kernel reads FP6_E2M3"),
        (Spec(INT4), (2, 33), "33 inputs are odd"),
        (Spec(INT8, (2, 48)), (2, 64), "blocks of 48 is short"),
    ],
)
def test_prepack_refuses(spec, shape, sentence):
    with pytest.raises(ValueError, match=sentence):
        kernels.prepack(quantize(numbers(*shape), spec))


def test_ops_refuse_what_they_cannot_do():
    _, groups = packed(SPECS["int8_g128"], 24, 256)
    _, k = packed(SPECS["q4_k"], 24, 256)
    x = numbers(3, 256)
    with pytest.raises(ValueError, match="needs integers with one scale an output"):
        kernels.matmul(x, groups, "int8_token")
    with pytest.raises(ValueError, match="fp8 multiplies FP8 weights"):
        kernels.matmul(x, groups, "fp8_token")
    with pytest.raises(ValueError, match="no kernel quantizes activations as 'llm_int8'"):
        kernels.matmul(x, groups, "llm_int8")
    with pytest.raises(ValueError, match="w4a16 reads no super-blocks"):
        kernels.w4a16(x, k)
    with pytest.raises(ValueError, match=r"\(3, 128\) are not \(tokens, in\)"):
        kernels.w4a16(x[:, :128], groups)
    with pytest.raises(ValueError, match="multiplies float32 or bfloat16, not float16"):
        kernels.w4a16(x.astype(jnp.float16), groups)
    with pytest.raises(ValueError, match="kernels multiply float32 or bfloat16, not 'float16'"):
        kernels.prepack(quantize(x, SPECS["int8_channel"]), "float16")


def test_what_is_no_packed_weight_is_named():
    q, p = packed(SPECS["int4_g64"], 24, 256)
    x = numbers(3, 256)
    for op in (kernels.matmul, kernels.w4a16):
        with pytest.raises(ValueError, match="reads what prepack made of a QTensor, not an array"):
            op(x, x)
        with pytest.raises(ValueError, match="reads what prepack made of a QTensor, not QTensor"):
            op(x, q)
    with pytest.raises(ValueError, match=r"with codes, not an array of shape \(3, 256\)$"):
        kernels.prepack(x)
    assert kernels.matmul(x[:0].reshape(2, 0, 256), p).shape == (2, 0, 24)
    with pytest.raises(ValueError, match="are no tokens"):
        kernels.w4a16(x[:0], p)
    with pytest.raises(ValueError, match="tiling='big' is no Tile"):
        kernels.w4a16(x, p, tiling="big")
    np.testing.assert_array_equal(kernels.w4a16(x, p, interpret=False), kernels.w4a16(x, p))
    assert kernels.support("gpu") == kernels.support("cuda")
    with pytest.raises(ValueError, match="no platform is called 'tpy': did you mean 'tpu'"):
        kernels.support("tpy")


def test_tilings():
    assert tilings.fit(Tile(16, 512, 1024), 300, 1000, 11008, 128) == Tile(16, 512, 256)
    assert tilings.fit(Tile(16, 512, 1024), 1, 8, 4096, 4096).inner == 1024
    assert tilings.fit(Tile(16, 512, 256), 1, 8, 4160, 64) is None  # 65 · 64, and too long
    for kind, row in tilings.TILINGS.items():
        for tile in row.values():
            multiple = (128, 256, 16) if isinstance(tile, Tile) else (64, 128, 16)
            sizes = (tile.out, tile.inner, tile.tokens)
            assert not any(n % m for n, m in zip(sizes, multiple)), kind
    with pytest.warns(UserWarning, match="no tiling is known for 'TPU v99'"):
        assert tilings.find(1, "TPU v99") == tilings.TILINGS[""]["decode"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tilings.find(1, "TPU v99")  # said once


def test_a_matrix_without_a_tile_says_so():
    _, p = packed(SPECS["int4_g64"], 2, 4160)
    with pytest.raises(ValueError, match="no multiple of 128"):
        kernels.w4a16(numbers(1, 4160), p, tiling=Tile(16, 512, 256), interpret=True)
    with pytest.warns(UserWarning, match="the reference runs"):
        kernels.w4a16(numbers(1, 4160), p)
