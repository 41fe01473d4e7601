"""The kernels for Hopper GPUs, without one: interpreted by Pallas' own model of a GPU they give
what the reference gives, without races; lowered, their layouts of registers are found.

Interpreting costs about two seconds a case, most of it tracing, so few cases run by default.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from qlab import kernels
from qlab.kernels import compat, dispatch, gpu, tilings
from qlab.kernels.tilings import GpuTile, Tile
from qlab.qtensor import dequantize
from qlab.specs import SPECS
from tests.kernels_for_tests import WEIGHTS, assert_close, mostly_slow, numbers, packed

SMALL = GpuTile(16, 128, 128, 2, blocks=4)  # several steps, and inputs split among thread blocks
RACING = functools.partial(compat.gpu_interpret, detect_races=True)


@pytest.fixture(autouse=True)
def fresh_interpreter():
    yield
    compat.reset_gpu_interpreter()


# ---- rung 1: interpreted -------------------------------------------------------------------------

PRODUCTS = [  # Spec, outputs, inputs, tokens: what is odd in each
    ("int4_g64", 192, 256, 1),  # one token; 128 does not divide the outputs
    ("int4_g128", 128, 256, 20),  # two tiles of tokens, and padding
    ("int4_g128", 64, 1152, 5),  # nine steps among four thread blocks, two loads under way
    ("int4_g32", 64, 128, 5),
    ("awq_g128", 64, 256, 3),  # zeros in bfloat16
    ("nf4", 64, 128, 3),  # a table
    ("int8_g128", 64, 128, 3),
    ("int4_channel", 64, 576, 3),  # a group is a row of 9 · 64
    ("hqq4_g64", 128, 256, 37),
    ("q4_1", 64, 256, 16),  # an offset
    ("mxfp4", 64, 128, 5),
    ("fp8_block", 192, 256, 37),
]


@pytest.mark.parametrize(
    "name, out, inner, tokens",
    mostly_slow(PRODUCTS, "int4_g64 int4_g128 nf4 int8_g128"),
)
def test_w4a16(name, out, inner, tokens):
    """As the reference, and no two accesses race."""
    q, p = packed(WEIGHTS[name], out, inner)
    x = numbers(tokens, inner).astype(jnp.bfloat16)
    interpret = RACING()
    y = kernels.w4a16(x, p, tiling=SMALL, interpret=interpret)
    assert_close(y, kernels.w4a16(x, p), x, dequantize(q))
    assert not compat.races_found(interpret)


@pytest.mark.parametrize(
    "out, inner, tokens", [(64, 512, 5), pytest.param(192, 768, 37, marks=pytest.mark.slow)]
)
def test_q4_k(out, inner, tokens):
    q, p = packed(SPECS["q4_k"], out, inner)
    x = numbers(tokens, inner).astype(jnp.bfloat16)
    interpret = RACING()
    y = kernels.q4_k(x, p, tiling=SMALL, interpret=interpret)
    assert_close(y, kernels.q4_k(x, p), x, dequantize(q))
    assert not compat.races_found(interpret)


@pytest.mark.parametrize(
    "name, out, inner",
    mostly_slow(
        [("int4_g128", 64, 1152), ("q4_k", 64, 512), ("int8_g128", 192, 256), ("nf4", 64, 128),
         ("int4_g32", 192, 128), ("int4_channel", 128, 576), ("awq_g128", 128, 256)],
        "int4_g128",
    ),
)  # fmt: skip
def test_dequantize_is_exact(name, out, inner):
    p = packed(SPECS[name], out, inner)[1]
    interpret = RACING()
    w = kernels.dequantize(p, "bfloat16", tiling=SMALL, interpret=interpret)
    np.testing.assert_array_equal(w, kernels.dequantize(p, "bfloat16"))
    assert not compat.races_found(interpret)


@pytest.mark.slow
def test_a_tile_of_the_table():
    q, p = packed(SPECS["int4_g64"], 192, 512)
    x = numbers(16, 512).astype(jnp.bfloat16)
    y = kernels.w4a16(x, p, interpret=compat.gpu_interpret())
    assert_close(y, kernels.w4a16(x, p), x, dequantize(q))
    each = jax.vmap(lambda x: kernels.w4a16(x[None], p, interpret=compat.gpu_interpret())[0])(x[:3])
    assert_close(each, y[:3], x[:3], dequantize(q))


def test_the_race_detector_can_find_one():
    """Shared memory read before its load is awaited."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    def body(x_gmem, y_gmem, x_smem, barrier):
        plgpu.copy_gmem_to_smem(x_gmem, x_smem, barrier)
        early = x_smem[...]
        plgpu.barrier_wait(barrier)
        y_gmem[...] = early + x_smem[...]

    interpret = RACING()
    shape = jax.ShapeDtypeStruct((8, 128), jnp.float32)
    scratch = [plgpu.SMEM((8, 128), jnp.float32), plgpu.Barrier()]
    run = plgpu.kernel(body, out_type=shape, scratch_types=scratch, interpret=interpret)
    try:
        jax.block_until_ready(run(jnp.ones((8, 128))))
        assert compat.races_found(interpret)
    except jax.errors.JaxRuntimeError as error:  # since 0.12
        assert "RACE DETECTED" in str(error)


# ---- rung 2: lowered -----------------------------------------------------------------------------

KNOWN = [export.DisabledSafetyCheck.custom_call(f"mosaic_gpu{version}") for version in ("", "_v2")]
TOKENS = {"decode": 1, "prefill": 200}
QUICK = "int4_g32 int4_g128 int4_channel nf4 int8_g128 fp8_block q4_k"
EXPORTS = mostly_slow([("w4a16", name, "decode") for name in WEIGHTS], QUICK)
EXPORTS += mostly_slow([("w4a16", name, "prefill") for name in WEIGHTS], "int4_g128 hqq4_g64")
EXPORTS += [("q4_k", "q4_k", phase) for phase in TOKENS]
EXPORTS += mostly_slow(
    [("dequantize", name, "decode") for name in ("int4_g128", "int8_g128", "nf4", "q4_k")],
    "int4_g128",
)


def program(op: str, name: str, tokens: int, dtype: str = "bfloat16") -> str:
    """An op exported for a GPU, tiles from the table."""
    p = packed(SPECS[name], 192, 512)[1]
    run = getattr(kernels, op)
    if op == "dequantize":
        run, operands = functools.partial(run, dtype=dtype), (p,)
    else:
        operands = (jnp.zeros((tokens, 512), dtype), p)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), operands)
    return export.export(jax.jit(run), platforms=["cuda"], disabled_checks=KNOWN)(
        *shapes
    ).mlir_module()


@pytest.mark.parametrize("op, name, phase", EXPORTS)
def test_exports_to_cuda(op, name, phase):
    """Layouts of registers are inferred, and what has no rule in Mosaic GPU would fail here."""
    assert "mosaic_gpu" in program(op, name, TOKENS[phase])


def test_what_the_gpu_does_not_take_runs_the_reference():
    assert "mosaic_gpu" not in program("w4a16", "int4_g64", 3, "float32")
    assert "mosaic_gpu" not in program("dequantize", "int4_g64", 3, "float32")


# ---- tiles and dispatch --------------------------------------------------------------------------


def test_tiles_are_cut():
    p = packed(SPECS["int4_g64"], 192, 576)[1]
    x = jnp.zeros((136, 576), jnp.bfloat16)
    tile = gpu.fit(GpuTile(128, 128, 256, 4), x, p)
    assert tile == GpuTile(72, 64, 192, 4)  # two tiles of 72 tokens, 9 · 64 inputs in three
    assert gpu.splits_of(tile._replace(blocks=1), 136, p) == 1
    assert gpu.splits_of(tile._replace(blocks=8), 16, p) == 2  # three tiles of outputs each
    large = GpuTile(128, 128, 256, 8)
    deep = gpu.fit(large, x[:128, :512], packed(SPECS["q4_k"], 128, 512)[1])
    assert isinstance(deep, GpuTile) and deep.steps == 2  # as many as shared memory holds
    assert "too large for registers" in str(gpu.fit(GpuTile(136, 192, 192, 1), x, p))
    long = packed(SPECS["int4_channel"], 64, 1024)[1]
    tile = GpuTile(128, 64, 1024, 1)
    assert "shared memory" in str(gpu.fit(tile, jnp.zeros((128, 1024), jnp.bfloat16), long))


@pytest.mark.parametrize(
    "name, out, dtype, sentence",
    [
        ("int4_g64", 192, "float32", "multiplies bfloat16, not float32"),
        ("int4_g64", 72, "bfloat16", "outputs that 64 divides, not 72"),
        ("nvfp4", 64, "bfloat16", "groups that 32 divides, not 16"),
    ],
)
def test_what_is_refused(name, out, dtype, sentence, monkeypatch):
    p = packed(SPECS[name], out, 128)[1]
    x = numbers(3, 128).astype(dtype)
    with pytest.raises(ValueError, match=sentence):
        kernels.w4a16(x, p, tiling=SMALL)
    with pytest.raises(ValueError, match=sentence):
        kernels.w4a16(x, p, interpret=compat.gpu_interpret())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernels.w4a16(x, p)  # no GPU here: nothing to say
    monkeypatch.setattr(dispatch.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(tilings, "_said", set())
    with pytest.warns(UserWarning, match="the reference runs"):
        assert dispatch.gpu_tile_of("w4a16", functools.partial(gpu.fit, x=x, p=p), 3, None) is None


def test_an_op_without_a_gpu_kernel_says_so():
    with pytest.raises(ValueError, match="no GPU kernel to interpret"):
        dispatch.choose(jnp.ones(3), default=jnp.sin, tpu=jnp.sin, interpret=compat.gpu_interpret())


def test_other_gpus_run_the_reference(monkeypatch):
    class Ampere:
        platform, device_kind, compute_capability = "gpu", "NVIDIA A100-SXM4-40GB", "8.0"

    monkeypatch.setattr(dispatch.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(dispatch.jax, "devices", lambda *_: [Ampere()])
    monkeypatch.setattr(tilings, "_said", set())
    with pytest.warns(UserWarning, match=r"compute capability 9.0, NVIDIA A100-SXM4-40GB has 8.0"):
        assert dispatch.gpu_tile_of("w4a16", lambda tile: tile, 1, None) is None


def test_tilings_of_gpus():
    assert tilings.find_gpu(1, "NVIDIA H200") == tilings.TILINGS["NVIDIA H200"]["decode"]
    bytes_row = tilings.TILINGS["NVIDIA H100"]["prefill 8"]
    assert tilings.find_gpu(17, "NVIDIA H100 PCIe", bits=8) == bytes_row
    with pytest.warns(UserWarning, match="no tiling is known for 'NVIDIA H900'"):
        assert tilings.find_gpu(1, "NVIDIA H900") == tilings.TILINGS["NVIDIA"]["decode"]
    assert isinstance(tilings.find(1), Tile)


def test_support_names_the_conditions():
    said = kernels.support("cuda")
    for op, platforms in dispatch.KERNELS.items():
        assert said[op].startswith("Pallas kernel (Hopper") == ("cuda" in platforms)
