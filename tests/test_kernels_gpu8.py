"""The 8-bit kernels for GPUs, without one: interpreted step by step they give what the reference
gives, without races; lowered, they pass the rules of Mosaic GPU.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from qlab import kernels
from qlab.activations import ACTS, act_matmul
from qlab.formats import FP8
from qlab.kernels import compat, gpu8
from qlab.kernels.tilings import GpuTile
from qlab.qtensor import Spec, dequantize, quantize
from qlab.specs import SPECS
from tests import kernels_for_tests
from tests.kernels_for_tests import assert_close, numbers

TILE = GpuTile(64, 64, 128, 2)  # several steps along every axis of the matrices below
BLOCK_ACT = Spec(FP8, 128)
INTERPRET, RACING = compat.gpu_interpret(), compat.gpu_interpret(detect_races=True)


def packed(name: str, out: int, inner: int, target: str = "cuda"):
    return kernels_for_tests.packed(SPECS[name], out, inner, target)


# ---- the layout ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["int8_channel", "fp8_channel", "fp8_block"])
def test_turned_weights_are_the_same_everywhere(name):
    """(out, in) for a GPU changes neither shape, weights nor memory, and products by the order of
    their sums at most.
    """
    q, p = packed(name, 96, 256)
    _, plain = packed(name, 96, 256, "any")
    assert p.turned and not plain.turned
    assert p.shape == plain.shape == q.shape == p.codes.shape == plain.codes.shape[::-1]
    assert p.bits_per_weight == plain.bits_per_weight
    np.testing.assert_array_equal(kernels.dequantize(p), dequantize(q))
    x = numbers(5, 256)
    act = {"int8_channel": "int8_token", "fp8_channel": "fp8_token"}.get(name, BLOCK_ACT)
    for how in (None, act):
        like = kernels.matmul(x, plain, how)
        assert_close(kernels.matmul(x, p, how), like, x, dequantize(q))
    op = kernels.w8a8 if name == "int8_channel" else kernels.fp8
    both = kernels.quantize_activations(x, act)
    tile = kernels.Tile(16, 128, 128)
    np.testing.assert_array_equal(  # the TPU's kernel turns them back
        op(*both, p, tiling=tile, interpret=True), op(*both, plain, tiling=tile, interpret=True)
    )
    y = jax.lax.scan(lambda c, p: (c, kernels.matmul(x, p)), 0, jax.tree.map(lambda a: a[None], p))
    assert y[1].shape == (1, 5, 96)


def test_only_bytes_that_a_gpu_multiplies_are_turned():
    for name in ("int4_channel", "int8_g128", "uint8_channel", "q4_k"):
        assert not packed(name, 96, 256)[1].turned, name
    with pytest.raises(ValueError, match="packed for any or cuda: did you mean 'cuda'"):
        kernels.prepack(packed("int8_channel", 96, 256)[0], target="cudda")


# ---- rung 1: interpreted -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens, out, inner, target",
    [(1, 96, 256, "cuda"), (70, 160, 192, "cuda"), (5, 64, 576, "any"), (3, 32, 128, "cuda")],
)
def test_w8a8_is_exact(tokens, out, inner, target):
    """Kernel = reference = act_matmul, bit for bit: sums are in int32."""
    q, p = packed("int8_channel", out, inner, target)
    x = numbers(tokens, inner)
    both = kernels.quantize_activations(x, "int8_token")
    y = kernels.w8a8(*both, p, tiling=TILE, interpret=INTERPRET)
    np.testing.assert_array_equal(y, act_matmul(x, q, ACTS["int8_token"]))
    np.testing.assert_array_equal(y, kernels.w8a8(*both, p))


def test_w8a8_holds_the_largest_sums():
    p = kernels.prepack(quantize(jnp.full((64, 512), -1.0), SPECS["int8_channel"]), target="cuda")
    x, scale = jnp.full((2, 512), -127, jnp.int8), jnp.ones((2, 1))
    y = kernels.w8a8(x, scale, p, tiling=TILE, interpret=INTERPRET)
    np.testing.assert_array_equal(y, kernels.w8a8(x, scale, p))
    assert float(y[0, 0]) == pytest.approx(127 * 512)


@pytest.mark.parametrize(
    "name, act, tokens, out, inner",
    [
        ("fp8_channel", "fp8_token", 70, 96, 320),
        ("fp8_channel", "fp8_token", 1, 64, 256),
        ("fp8_block", BLOCK_ACT, 70, 160, 256),
        ("fp8_block", BLOCK_ACT, 1, 64, 384),
        ("fp8_block", BLOCK_ACT, 3, 64, 128),  # one block
    ],
)
def test_fp8(name, act, tokens, out, inner):
    q, p = packed(name, out, inner)
    x = numbers(tokens, inner)
    both = kernels.quantize_activations(x, act)
    y = kernels.fp8(*both, p, tiling=TILE, interpret=INTERPRET)
    assert_close(y, kernels.fp8(*both, p), x, dequantize(q))


@pytest.mark.parametrize(
    "act, dtype, tokens, inner",
    [
        ("int8_token", "float32", 5, 576),  # 9 lines of 64, filled up to 10
        ("int8_token", "bfloat16", 1, 4352),  # a whole chunk and a part of one
        ("fp8_token", "bfloat16", 3, 48),
        ("fp8_token", "float32", 1, 256),
        (BLOCK_ACT, "float32", 37, 256),  # 74 blocks: a tile and a part of one
        (BLOCK_ACT, "bfloat16", 1, 128),
        ("fp8_tile", "float32", 5, 256),
    ],
)
def test_quantize_activations_is_exact(act, dtype, tokens, inner):
    x = (numbers(tokens, inner) * 3e-5).astype(dtype)  # about the floor of fp8_tile
    codes, scale = kernels.quantize_activations(x, act)
    kept = kernels.quantize_activations(x, act, interpret=INTERPRET)
    np.testing.assert_array_equal(_bits(codes), _bits(kept[0]))  # no −0 either
    np.testing.assert_array_equal(scale, kept[1])


def test_quantize_activations_at_ties_and_edges():
    """Half to even, cut off at the ends, and no −0 for what is too small."""
    x = [127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -126.5, -0.4999] + [0.0] * 8
    codes, scale = kernels.quantize_activations(jnp.array([x]), "int8_token", interpret=INTERPRET)
    assert codes[0, :8].tolist() == [127, 0, 2, 2, 0, -2, -126, 0] and float(scale[0, 0]) == 1
    x = [448.0, -448.0, -(2.0**-10), -(2.0**-9), 17.0, 19.0, -1e-30, 464.0 * 0.96] + [0.0] * 8
    codes, _ = kernels.quantize_activations(jnp.array([x]), "fp8_token", interpret=INTERPRET)
    assert codes[0, :6].astype(jnp.float32).tolist() == [448, -448, 0, -(2.0**-9), 16, 20]
    assert not (_bits(codes)[codes.astype(jnp.float32) == 0]).any()


def _bits(codes: jax.Array) -> np.ndarray:
    return np.asarray(jax.lax.bitcast_convert_type(codes, jnp.uint8))


CALLS = [  # op, Spec, act
    ("w8a8", "int8_channel", "int8_token"),
    ("fp8", "fp8_channel", "fp8_token"),
    ("fp8", "fp8_block", BLOCK_ACT),
    *[("quantize_activations", None, act) for act in ("int8_token", "fp8_token", BLOCK_ACT)],
]


def call(op: str, name: str | None, act, interpret=None):
    """A small call of an op: the function and its inputs."""
    run, x = getattr(kernels, op), numbers(20, 256)
    if name is None:
        return functools.partial(run, act=act, interpret=interpret), (x,)
    run = functools.partial(run, tiling=TILE, interpret=interpret)
    return run, (*kernels.quantize_activations(x, act), packed(name, 64, 256)[1])


@pytest.mark.parametrize("op, name, act", CALLS)
def test_no_races(op, name, act):
    run, operands = call(op, name, act, RACING)
    jax.block_until_ready(jax.jit(run)(*operands))
    assert not compat.races_found(RACING)


# ---- rung 2: lowered -----------------------------------------------------------------------------

CHECKS = [export.DisabledSafetyCheck.custom_call(n) for n in ("mosaic_gpu_v2", "mosaic_gpu")]


@pytest.mark.parametrize("op, name, act", CALLS)
@pytest.mark.parametrize("tokens", [1, 20])
def test_exports_to_cuda(op, name, act, tokens):
    """On a machine without one: layouts are found, copies and instructions are legal."""
    run, operands = call(op, name, act)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), operands)
    few = [jax.ShapeDtypeStruct((tokens, *a.shape[1:]), a.dtype) for a in shapes if a.ndim == 2
           and not isinstance(a, kernels.Packed)]  # fmt: skip
    shapes = (*few, *shapes[len(few) :])
    program = export.export(jax.jit(run), platforms=["cuda"], disabled_checks=CHECKS)(*shapes)
    assert "mosaic_gpu" in program.mlir_module()


@pytest.mark.parametrize("name, act", [(n, act) for _, n, act in CALLS if n])
def test_stacks_of_weights_and_inputs(name, act):
    """vmap makes an axis of the grid of either; so do experts and stacked layers."""
    (q, p), x = packed(name, 64, 256), numbers(20, 256)
    two = jax.tree.map(lambda a: jnp.stack([a, a]), (x, p))
    run = jax.vmap(lambda x, p: kernels.matmul(x, p, act))
    for y in run(*two):
        assert_close(y, kernels.matmul(x, p, act), x, dequantize(q))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), two)
    program = export.export(jax.jit(run), platforms=["cuda"], disabled_checks=CHECKS)(*shapes)
    assert program.mlir_module().count("mosaic_gpu") >= 2  # rounding and product


def test_what_a_gpu_does_not_multiply():
    x = jnp.zeros((3, 128), jnp.int8)
    scale = jnp.ones((3, 1))
    for name, out, inner, sentence in (
        ("int4_channel", 64, 128, "bytes of one kind, not int8 by uint8"),
        ("int8_channel", 40, 128, "multiples of 32 outputs and inputs"),
    ):
        p = packed(name, out, inner)[1]
        with pytest.raises(ValueError, match=sentence):
            kernels.w8a8(x, scale, p, interpret=INTERPRET)
    with pytest.raises(ValueError, match="multiple of 16 inputs, at most 32,768, not 40"):
        kernels.quantize_activations(jnp.ones((1, 40)), "int8_token", interpret=INTERPRET)
    q = quantize(numbers(64, 128), SPECS["fp8_e5m2_tensor"])
    both = kernels.quantize_activations(numbers(3, 128), "fp8_token")
    with pytest.raises(ValueError, match="not float8_e4m3fn by float8_e5m2"):
        kernels.fp8(*both, kernels.prepack(q), tiling=TILE)


def test_tiles_are_cut_to_a_product():
    p = packed("int8_channel", 1024, 256)[1]
    x = jax.ShapeDtypeStruct((1, 256), "int8")
    tile = gpu8.fit(GpuTile(16, 128, 128, 4, 32), x, p)
    assert tile == GpuTile(64, 32, 128, 4, 32)  # 32 blocks of 32 outputs
    many = jax.ShapeDtypeStruct((300, 256), "int8")
    assert gpu8.fit(GpuTile(128, 128, 512, 3), many, p) == GpuTile(128, 128, 256, 3)
    p8 = packed("fp8_channel", 1024, 256)[1]
    many = jax.ShapeDtypeStruct((300, 256), "float8_e4m3fn")
    assert gpu8.fit(GpuTile(128, 128, 512, 3), many, p8) == GpuTile(64, 128, 128, 3)
    blocks = packed("fp8_block", 1024, 256)[1]
    assert gpu8.fit(GpuTile(64, 128, 64, 3), many, blocks) == GpuTile(64, 128, 128, 3)
