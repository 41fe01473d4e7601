"""What differs between the versions of JAX that qlab runs on, in one place.

jax 0.10.2 (Python 3.11), 0.11 (3.12) and 0.12 (3.13) are tried. A kernel imports from here what
has moved or been renamed; everything else it takes from Pallas itself.
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


def races_found() -> bool:
    """Whether the last kernel interpreted with `detect_races=True` raced; JAX keeps it inside."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call as inside

    races = inside.races
    if races is None:
        raise ValueError("no kernel was interpreted with detect_races=True")
    return bool(races.races_found)
