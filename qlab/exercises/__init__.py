"""Exercises that say what is wrong: `check` runs your function, `hint` helps, `solution` shows one.

A wrong answer is recognised by comparing it with the mistakes that people make; see `judge`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from qlab.exercises.judge import Exercise, judge
from qlab.suggest import near

# module -> its exercises; one is imported when it is asked for, because their cases are arrays that
# take seconds to make.
_GROUPS = {
    "start": "memory bits kv_cache",
    "numbers": "relative_error scale codes zero_point group_scale lost",
    "floats": "e4m3_value to_e4m3 power_scales floor_and_rceil nvfp4_bits four_or_six nf4_levels",
    "gptq": "diagonal_u push errors output_loss scaled_u range_weights act_order damped",
    "awq": "salient scaled_round awq_scale best_ratio fold clip",
    "smoothquant": (
        "effective_levels int8_token int_matmul smooth_scales smooth_fold outlier_channels "
        "mixed_product"
    ),
    "calibration": "merged windows_needed paired verdict percentile_range shrink zero_update",
    "gguf": (
        "unpack_nibbles q4_0_scale best_scale scale_min_k4 requantize use_more_bits bits_of_mixture"
    ),
    "qat": (
        "straight_through clipped_mask lsq_slope step_gradient pact_gradient absmean_ternary "
        "distillation"
    ),
    "kernels": (
        "decode_bytes compute_bound_batch cache_crossover speedup_bound kernel_nibbles w4_tile "
        "dequantize_tile"
    ),
}
_WHERE = {name: group for group, names in _GROUPS.items() for name in names.split()}

if TYPE_CHECKING:
    EXERCISES: dict[str, Exercise]

__all__ = ["EXERCISES", "Exercise", "check", "hint", "solution"]


def check(name: str, function: Callable[..., Any]) -> None:
    """Prints whether your function is right, and if not, what is wrong with it.

    Args:
        name: of the exercise, a key of EXERCISES.
        function: yours; the arguments are those of the stub.

    Raises:
        ValueError: for an unknown name, suggesting the nearest. Never because of your function.

    Example:
        >>> check("bits", lambda code_bits, group, scale_bits: code_bits + scale_bits)
        ○ bits: not yet: a scale is shared: its bits are divided by the weights of the group
          ●○○ · 4 minutes · 00, "Four bits are not four bits" · stuck? qlab.exercises.hint('bits')
    """
    print(judge(_find(name), function).text)


def hint(name: str, number: int = 1) -> None:
    """Prints a hint; a larger number says more.

    Raises:
        ValueError: for an unknown name or a number beyond the last hint.

    Example:
        >>> hint("bits")
        1 of 2: how many weights pay for one scale?
          more: qlab.exercises.hint('bits', 2)
    """
    hints = _find(name).hints
    if not 1 <= number <= len(hints):
        raise ValueError(f"{name!r} has {len(hints)} hints, there is no number {number}")
    print(f"{number} of {len(hints)}: {hints[number - 1]}")
    if number < len(hints):
        print(f"  more: qlab.exercises.hint({name!r}, {number + 1})")
    else:
        print(f"  the last hint; an answer: qlab.exercises.solution({name!r})")


def solution(name: str) -> None:
    """Prints one right answer.

    Raises:
        ValueError: for an unknown name, suggesting the nearest.

    Example:
        >>> solution("memory")
        def memory(parameters: float, bits: float) -> float:
            \"\"\"Gigabytes (10⁹ bytes) of a model's weights.\"\"\"
            return parameters * bits / 8 / 1e9
    """
    print(inspect.getsource(_find(name).solution).rstrip())


def _find(name: str) -> Exercise:
    if name not in _WHERE:
        raise ValueError(f"no exercise is called {name!r}: {near(name, _WHERE)}")
    return _group(_WHERE[name])[name]


def _group(group: str) -> dict[str, Exercise]:
    """The exercises of a module, by name."""
    module = import_module(f"qlab.exercises.{group}")
    return {exercise.name: exercise for exercise in getattr(module, group.upper())}


def __getattr__(name: str) -> Any:
    """EXERCISES: all of them, by name."""
    if name != "EXERCISES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = {key: one for group in _GROUPS for key, one in _group(group).items()}
    return globals().setdefault("EXERCISES", found)
