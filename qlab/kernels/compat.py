"""What differs between the versions of JAX that qlab runs on, in one place.

jax 0.10.2 (Python 3.11), 0.11 (3.12) and 0.12 (3.13) are tried. A kernel imports from here what
has moved or been renamed; everything else it takes from Pallas itself. Pallas for GPUs costs a
tenth of a second to import, so it is imported inside of functions only.
"""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental.pallas import tpu as pltpu

# `TPUCompilerParams` before 0.7, `CompilerParams` since.
CompilerParams: Any = getattr(pltpu, "CompilerParams", None) or getattr(
    pltpu, "TPUCompilerParams", None
)
InterpretParams: Any = pltpu.InterpretParams


def version() -> tuple[int, ...]:
    """The version of JAX as numbers: (0, 10, 2)."""
    return tuple(int(part) for part in jax.__version__.split(".")[:3] if part.isdigit())


def races_found(interpret: Any = None) -> bool:
    """Whether the last kernel interpreted with `detect_races=True` raced; JAX keeps it inside.

    Args:
        interpret: how it was interpreted; None: as a TPU's.
    """
    if for_gpu(interpret):
        from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call as gpu_inside

        races = gpu_inside.get_races()
    else:
        from jax._src.pallas.mosaic.interpret import interpret_pallas_call as inside

        races = inside.races
    if races is None:
        raise ValueError("no kernel was interpreted with detect_races=True")
    return bool(races.races_found)


# ---- GPUs ----------------------------------------------------------------------------------------


def gpu_interpret(**how: Any) -> Any:
    """`pltpu.InterpretParams` of a GPU: `detect_races=True` and the like. Public from 0.12.

    Example:
        >>> for_gpu(gpu_interpret()), for_gpu(InterpretParams()), for_gpu(True)
        (True, False, False)
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    public = getattr(plgpu, "InterpretParams", None) or getattr(plgpu, "InterpretGPUParams", None)
    if public is None:
        from jax._src.pallas.mosaic_gpu.interpret import params

        public = params.InterpretGPUParams
    return public(**how)


def for_gpu(interpret: Any) -> bool:
    """Whether a wish to interpret means the GPU's kernel."""
    return "mosaic_gpu" in type(interpret).__module__


def reset_gpu_interpreter() -> None:
    """Forgets what an exception inside of an interpreted GPU kernel left behind."""
    from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call as inside

    inside.reset_gpu_interpret_mode_state()


def gpu_params(**how: Any) -> Any:
    """Compiler parameters under which layouts of registers are inferred: 0.10 asks for it, later
    versions do it by themselves.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    if hasattr(plgpu.CompilerParams(), "lowering_semantics"):
        how["lowering_semantics"] = plgpu.LoweringSemantics.Warpgroup
    return plgpu.CompilerParams(**how)


def turn(ref: Any) -> Any:
    """A reference to a matrix as one to its transpose: `transpose_ref` before 0.11."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return ref.transpose((1, 0)) if version() >= (0, 11) else plgpu.transpose_ref(ref, (1, 0))


def load(ref: Any, layout: Any) -> jax.Array:
    """What a reference holds in a layout of registers; before 0.11 with an index of its own."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    index = () if version() >= (0, 11) else ((),)
    return plgpu.load(ref, *index, layout=layout)


def ieee_divide(a: jax.Array, b: jax.Array, layout: Any) -> jax.Array:
    """a / b as IEEE rounds it, inside of a GPU kernel. Plain `/` becomes PTX's `div.full`, which
    may be two steps off, as everywhere in XLA on a GPU; so the instruction is written out.

    Args:
        a: float32.
        b: float32 of that shape.
        layout: how both lie in registers.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu
    from jaxlib.mlir import ir
    from jaxlib.mlir.dialects import llvm, vector

    def one(a: Any, b: Any) -> Any:
        return llvm.inline_asm(ir.F32Type.get(), [a, b], "div.rn.f32 $0, $1, $2;", "=f,f,f")

    def each(a: Any, b: Any) -> Any:
        """A register holds one number or a vector of them."""
        if not isinstance(a.type, ir.VectorType):
            return one(a, b)
        whole = llvm.mlir_undef(a.type)
        for i in range(ir.VectorType(a.type).shape[0]):
            parts = (vector.extract(x, dynamic_position=[], static_position=[i]) for x in (a, b))
            whole = vector.insert(one(*parts), whole, dynamic_position=[], static_position=[i])
        return whole

    result = plgpu.ShapeDtypeStruct(a.shape, a.dtype, layout)

    @plgpu.inline_mgpu(arg_types=(layout, layout), return_type=result)
    def divide(_: Any, a: Any, b: Any) -> Any:
        return a._pointwise(each, b)

    return divide(*(plgpu.layout_cast(x, layout) for x in (a, b)))
