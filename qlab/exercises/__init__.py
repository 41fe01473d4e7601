"""Exercises that say what is wrong: `check` runs your function, `hint` helps, `solution` shows one.

A wrong answer is recognised by comparing it with the mistakes that people make; see `judge`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from qlab.exercises.awq import AWQ
from qlab.exercises.calibration import CALIBRATION
from qlab.exercises.floats import FLOATS
from qlab.exercises.gguf import GGUF
from qlab.exercises.gptq import GPTQ
from qlab.exercises.judge import Exercise, judge
from qlab.exercises.kernels import KERNELS
from qlab.exercises.numbers import NUMBERS
from qlab.exercises.qat import QAT
from qlab.exercises.smoothquant import SMOOTHQUANT
from qlab.exercises.start import START
from qlab.suggest import near

EXERCISES: dict[str, Exercise] = {
    exercise.name: exercise
    for group in (START, NUMBERS, FLOATS, GPTQ, AWQ, SMOOTHQUANT, CALIBRATION, GGUF, QAT, KERNELS)
    for exercise in group
}

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
    if name in EXERCISES:
        return EXERCISES[name]
    raise ValueError(f"no exercise is called {name!r}: {near(name, EXERCISES)}")
