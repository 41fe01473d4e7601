"""The kernel that Hopper GPUs share for weights that stay packed: yᵀ = W xᵀ, with W in registers.

    thread block (outputs, tokens, split of inputs): 128 threads, `tile.out` rows of W

A step loads bytes (inputs, outputs) into shared memory as they lie in `packed`, reads them turned,
and makes of them the register operand of the tensor cores: 64 outputs fill its rows whatever the
number of tokens, so that one token wastes nothing but arithmetic. A byte holds inputs 2r and
2r + 1, so low nibbles meet the even columns of x, high nibbles the odd ones, in two products. Not
here: sizes (`tilings`), which platform runs what (`dispatch`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from qlab.kernels import compat
from qlab.kernels.packed import SUB, SUPER, Packed, integers
from qlab.kernels.tiles import table_values
from qlab.kernels.tilings import GpuTile

FLOAT = jnp.float32
ROWS = plgpu.Layout.WGMMA.reduce(1)  # one number a row of the register operand
EDGE = 64  # outputs that fill the rows of the tensor cores
SHARED = 227 << 10  # bytes of shared memory of a thread block
SUMS = 128 * 128  # what 128 threads sum up in half of their registers
HALF = 0x6400  # bits of the float16 1024: with an integer n < 1024 in its low bits it is 1024 + n


# ---- what fits -----------------------------------------------------------------------------------


def unit_of(p: Packed) -> int:
    """Inputs of one product, which share a range: 64 or 32; 0: neither. More of them would not
    leave registers enough for two products under way.
    """
    group = SUB if p.layout == "q4_k" else p.group
    return next((size for size in (64, 32) if group % size == 0), 0)


def fit(tile: GpuTile, x: Any, p: Packed) -> GpuTile | str:
    """A tile cut to a matrix, or the clause that says why the kernel does not take it.

    Example:
        >>> from qlab.kernels import prepack
        >>> from qlab.qtensor import quantize
        >>> from qlab.specs import SPECS
        >>> p = prepack(quantize(jnp.ones((192, 576)), SPECS["int4_g64"]))
        >>> fit(GpuTile(16, 128, 256, 4), jnp.ones((3, 576), jnp.bfloat16), p)
        GpuTile(tokens=8, out=64, inner=192, steps=4, blocks=1)
    """
    (out, inner), unit, tokens = p.shape, unit_of(p), len(x)
    least = SUPER if p.layout == "q4_k" else unit
    if x.dtype != jnp.bfloat16:
        return f"the GPU's kernel multiplies bfloat16, not {x.dtype} (see the dtype of prepack)"
    if not unit:
        return f"the GPU's kernel reads groups that 32 divides, not {p.group}"
    if out % EDGE:
        return f"the GPU's kernel reads outputs that {EDGE} divides, not {out}"

    def meets(size: int) -> bool:
        return inner % size == 0 and (size % p.group == 0 or p.group % size == 0)

    sizes = [n for n in range(least, max(tile.inner, least) + 1, least) if meets(n)]
    across = pl.cdiv(tokens, pl.cdiv(tokens, tile.tokens))  # tiles of one size
    plain = out % tile.out == 0 and (integers(p.format) or not p.nibbles)  # tables take registers
    high = tile.out if plain else EDGE
    tile = tile._replace(tokens=pl.cdiv(across, 8) * 8, out=high, inner=sizes[-1])
    if tile.out * tile.tokens > SUMS:
        return f"{tile} is too large for registers"
    depth = next((n for n in range(tile.steps, 0, -1) if shared(tile, p, n) <= SHARED), 0)
    return tile._replace(steps=depth) if depth else f"{tile} is too large for shared memory"


def shared(tile: GpuTile, p: Packed, steps: int) -> int:
    """Bytes of shared memory that a tile takes with so many loads under way."""
    bits = 8 * sum(a.nbytes for a in operands(p)) / p.codes.size  # of a stored byte, ranges and all
    codes = tile.out * tile.inner * bits / 8 / (2 if p.nibbles else 1)
    each = math.ceil(codes) + 2 * tile.tokens * tile.inner + 4096  # blocks start at kilobytes
    return steps * each + 4 * tile.tokens * EDGE + 2048


def splits_of(tile: GpuTile, tokens: int, p: Packed) -> int:
    """Among how many thread blocks the inputs of a tile of outputs are split.

    Example:
        >>> from qlab.kernels import prepack
        >>> from qlab.qtensor import quantize
        >>> from qlab.specs import SPECS
        >>> p = prepack(quantize(jnp.ones((512, 1536)), SPECS["int4_g64"]))
        >>> splits_of(GpuTile(16, 128, 256, 4, blocks=16), 1, p)  # four tiles of six steps each
        4
    """
    blocks = p.shape[0] // tile.out * pl.cdiv(tokens, tile.tokens)
    return max(1, min(tile.blocks // blocks, p.shape[1] // tile.inner))


def share(steps: int, splits: int, s: jax.Array) -> tuple[jax.Array, int | jax.Array]:
    """The first step of a split and how many it has; they differ by at most one."""
    if steps % splits == 0:
        return s * (steps // splits), steps // splits
    first, end = (jax.lax.div(i * steps, jnp.int32(splits)) for i in (s, s + 1))
    return first, end - first


# ---- a tile of weights in registers --------------------------------------------------------------


def read(ref: Any, layout: Any, staged: bool) -> jax.Array:
    """What lies in shared memory, in a layout of registers; the interpreter knows no layouts."""
    return ref[...] if staged else compat.load(ref, layout)


def turned(ref: Any, staged: bool) -> jax.Array:
    """A tile (inputs, outputs) as (outputs, inputs), two neighbouring outputs a register."""
    return ref[...].T if staged else read(compat.turn(ref), plgpu.Layout.WGMMA_TRANSPOSED, False)


def to_operand(x: jax.Array, staged: bool) -> jax.Array:
    """16 bits a number, as tensor cores want their rows: a swap between neighbouring threads."""
    return x if staged else plgpu.layout_cast(x, plgpu.Layout.WGMMA)


def codes_of(p: Packed, ref: Any, staged: bool) -> list[jax.Array]:
    """Codes of one unit as float32 numbers without their ranges: (outputs, inputs) for bytes; for
    nibbles two arrays, the even and the odd inputs.
    """
    raw = turned(ref, staged)
    if not p.nibbles:
        held = to_operand(
            raw.astype(jnp.bfloat16 if raw.dtype == jnp.int8 else jnp.float16), staged
        )
        return [held.astype(FLOAT) + float(p.shift) if p.shift else held.astype(FLOAT)]
    pairs = to_operand(raw.astype(jnp.uint16), staged)
    if not integers(p.format):
        each = pairs.astype(jnp.int32)
        return [table_values(nibble, p.format.grid) for nibble in (each & 15, (each >> 4) & 15)]
    bias = 8 - p.shift  # two's complement with its sign bit turned is the integer + 8
    both = pairs ^ (HALF | 0x88)
    low, high = (
        jax.lax.bitcast_convert_type(both & (HALF | nibble), jnp.float16) for nibble in (0x0F, 0xF0)
    )  # 1024 + n and 1024 + 16 n: every step here is exact
    return [(low - (1024 + bias)).astype(FLOAT), (high * 0.0625 - (64 + bias)).astype(FLOAT)]


def ranges_of(p: Packed, refs: list[Any], unit: int, staged: bool) -> list[jax.Array | None]:
    """scale, zero and offset of one unit as float32 (outputs,), None where there is none.

    Args:
        p: whose layout it is.
        refs: of the arrays beside the codes, in the order of `operands`.
        unit: which one of the tile.
        staged: for the interpreter.
    """

    def row(ref: Any, *index: int) -> jax.Array:
        return read(ref.at[index], ROWS, staged)

    size = unit_of(p)
    if p.layout == "affine":
        left = iter(refs)
        group = unit * size // p.group
        return [
            None if r is None else row(next(left), group).astype(FLOAT)
            for r in (p.scale, p.zero, p.offset)
        ]
    six, supers = refs
    block, j = divmod(unit, SUPER // SUB)

    def byte(index: int) -> jax.Array:
        return row(six, block, index).astype(jnp.int32)

    if j < 4:
        scale, minimum = byte(j) & 63, byte(4 + j) & 63
    else:  # the drawing is in `packed`
        low = byte(4 + j)
        scale = (low & 15) | (byte(j - 4) >> 6 << 4)
        minimum = (low >> 4) | (byte(j) >> 6 << 4)
    d, dmin = (row(supers, block, index).astype(FLOAT) for index in (0, 1))
    return [d * scale.astype(FLOAT), None, dmin * minimum.astype(FLOAT)]


def weights_of(p: Packed, refs: list[Any], unit: int, staged: bool) -> list[jax.Array]:
    """Weights of one unit, float32 (outputs, inputs): an array for bytes, two for nibbles. The
    compiler may fuse the product with the addition of an offset: one rounding less.
    """
    codes_ref, *rest = refs
    rows = codes_ref.shape[0] * unit_of(p) // inner_of(p, codes_ref)
    found = codes_of(p, codes_ref.at[pl.ds(unit * rows, rows)], staged)
    ranges = ranges_of(p, rest, unit, staged)
    shape = found[0].shape
    scale, zero, offset = (
        None if r is None else jax.lax.broadcast_in_dim(r, shape, (0,)) for r in ranges
    )

    assert scale is not None

    def weigh(w: jax.Array) -> jax.Array:
        w = w if zero is None else w - zero
        w = w * scale
        return w if offset is None else w + offset

    return [weigh(w) for w in found]


def inner_of(p: Packed, codes_ref: Any) -> int:
    """Inputs that a block of codes holds."""
    return codes_ref.shape[0] * (2 if p.nibbles else 1)


# ---- blocks --------------------------------------------------------------------------------------


def swizzled(width: int, itemsize: int) -> dict[str, Any]:
    """Transforms of a block whose rows of `width` items are read by tensor cores or turned."""
    wide = min(128, width * itemsize)
    return {
        "transforms": (plgpu.TilingTransform((8, wide // itemsize)), plgpu.SwizzleTransform(wide))
    }


def operands(p: Packed) -> list[jax.Array]:
    """The arrays of a Packed that a kernel reads: codes first."""
    return [a for a in (p.codes, p.scale, p.zero, p.offset) if a is not None]


def specs(p: Packed, tile: GpuTile, where: Callable[..., tuple]) -> list[Any]:
    """A block of each of `operands`.

    Args:
        p: the weights.
        tile: sizes of a tile.
        where: index of the pipeline -> (tile along inputs, tile along outputs).
    """

    def block(*shape: int, steps: int = 1, **how: Any) -> Any:
        def index(*grid: Any) -> tuple:
            k, n = where(*grid)
            k = k if steps == 1 else jax.lax.div(k, jnp.int32(steps))
            return (k, *(0,) * (len(shape) - 1), n)

        return plgpu.BlockSpec((*shape, tile.out), index, **how)

    rows = tile.inner // 2 if p.nibbles else tile.inner
    codes = block(rows, **swizzled(tile.out, 1))
    if p.layout == "q4_k":
        return [codes, *(block(tile.inner // SUPER, size) for size in (12, 2))]
    one = block(max(tile.inner // p.group, 1), steps=max(p.group // tile.inner, 1))
    return [codes, *[one] * (len(operands(p)) - 1)]


# ---- the product ---------------------------------------------------------------------------------


def columns(x: jax.Array, p: Packed, tokens: int) -> jax.Array:
    """x as the products meet it: (2, tokens, in/2), even and odd inputs apart, for nibbles;
    (1, tokens, in) for bytes. Tokens are filled up with zeros.
    """
    x = jnp.pad(x, ((0, tokens - len(x)), (0, 0))) if tokens > len(x) else x
    return x.reshape(tokens, -1, 2).transpose(2, 0, 1) if p.nibbles else x[None]


def multiply(acc: Any, a: jax.Array, x_ref: Any, staged: bool) -> None:
    """acc += a xᵀ, a (outputs, inputs) from registers, x (tokens, inputs) from shared memory. The
    interpreter takes both from memory.
    """
    if not staged:
        return plgpu.wgmma(acc, a, compat.turn(x_ref))

    def through(a_ref: Any, b_ref: Any) -> None:
        a_ref[...], b_ref[...] = a, x_ref[...].T
        plgpu.wgmma(acc, a_ref, b_ref)

    return pl.run_scoped(
        through, plgpu.SMEM(a.shape, a.dtype), plgpu.SMEM(x_ref.shape[::-1], a.dtype)
    )


def _body(p: Packed, tile: GpuTile, splits: int, staged: bool, x_gmem: Any, *refs: Any) -> None:
    *stored, y_gmem, y_smem = refs
    n, t, s = (jax.lax.axis_index(name) for name in ("n", "t", "s"))
    begin, steps = share(p.shape[1] // tile.inner, splits, s)
    parts = x_gmem.shape[0]
    width = unit_of(p) // parts  # columns of x that meet one unit
    x_spec = plgpu.BlockSpec(
        (parts, tile.tokens, tile.inner // parts),
        lambda k: (0, t, begin + k),
        **swizzled(width, 2),
    )

    def step(acc: Any, _: Any, x_ref: Any, *blocks: Any) -> None:
        for unit in range(tile.inner // unit_of(p)):  # at most 8 a tile
            plgpu.wgmma_wait(parts)  # the products before the last unit's: their registers are free
            for part, w in enumerate(weights_of(p, list(blocks), unit, staged)):
                at = x_ref.at[part, :, pl.ds(unit * width, width)]
                multiply(acc, w.astype(x_ref.dtype), at, staged)
        plgpu.wgmma_wait(0)
        plgpu.commit_smem()  # the next load writes, by another path, where these were read

    def product(acc: Any) -> jax.Array:
        plgpu.emit_pipeline(
            partial(step, acc),
            grid=(steps,),
            in_specs=[x_spec, *specs(p, tile, lambda k: (begin + k, n))],
            max_concurrent_steps=tile.steps,
        )(x_gmem, *stored)
        return acc[...]

    y = pl.run_scoped(product, plgpu.WGMMAAccumulatorRef((tile.out, tile.tokens), FLOAT))
    for edge in range(0, tile.out, EDGE):  # 64 outputs at a time: at most 2
        write(y[edge : edge + EDGE].astype(y_smem.dtype), y_smem, staged)
        plgpu.commit_smem()
        to = y_gmem.at[s, pl.ds(t * tile.tokens, tile.tokens), pl.ds(n * tile.out + edge, EDGE)]
        plgpu.copy_smem_to_gmem(y_smem, to)
        plgpu.wait_smem_to_gmem(0)


def write(y: jax.Array, ref: Any, staged: bool) -> None:
    """(outputs, tokens) turned into shared memory."""
    if staged:
        ref[...] = y.T
    else:
        compat.turn(ref)[...] = plgpu.layout_cast(y, plgpu.Layout.WGMMA_TRANSPOSED)


def matmul(x: jax.Array, p: Packed, tile: GpuTile, interpret: Any = None) -> jax.Array:
    """x Wᵀ with w unpacked in registers: (tokens, in) -> (tokens, out) in the dtype of x.

    Args:
        x: (tokens, in) bfloat16, which w is rounded to before the product.
        p: the weights.
        tile: sizes that `fit` has cut to them.
        interpret: parameters of the GPU's interpreter; None: it is compiled.
    """
    tokens, out = len(x), p.shape[0]
    splits = splits_of(tile, tokens, p)
    tiles = pl.cdiv(tokens, tile.tokens)
    padded = tiles * tile.tokens
    dtype = x.dtype if splits == 1 else jnp.dtype(FLOAT)
    y = plgpu.kernel(
        partial(_body, p, tile, splits, interpret is not None),
        out_type=jax.ShapeDtypeStruct((splits, padded, out), dtype),
        grid=(out // tile.out, tiles, splits),
        grid_names=("n", "t", "s"),
        scratch_types=[plgpu.SMEM((tile.tokens, EDGE), dtype)],
        compiler_params=compat.gpu_params(),
        kernel_name=f"{p.layout}_matmul",
        **({} if interpret is None else {"interpret": interpret}),
    )(columns(x, p, padded), *operands(p))
    y = y[0] if splits == 1 else y.sum(axis=0).astype(x.dtype)
    return y[:tokens]
