"""Says what is wrong with a learner's function, never only that it is wrong.

The function runs on seeded cases, the ordinary one first. At the first wrong answer the catalogued
mistakes are tried: a mistake is itself a function, and it is recognised when it gives the same
answer. What no mistake explains is described: shape, NaN, factor, sign, the first wrong number.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

RELATIVE, ABSOLUTE = 1e-4, 1e-6  # float32 in any order of operations passes, a wrong divisor not


@dataclasses.dataclass(frozen=True)
class Case:
    """Arguments, and the words that name them after "on"."""

    words: str
    args: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A wrong function that people write, and what to tell them."""

    words: str
    function: Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Exercise:
    """What to write, how it is judged, and what helps.

    Attributes:
        name: what `check` is given. task: one sentence.
        difficulty: 1 to 3. minutes: for somebody who sees this for the first time.
        section: where it is taught, notebook and heading.
        returns: the names of what the function returns, one or several.
        solution: the right function. cases: ordinary first. mistakes: likeliest first.
        hints: from a nudge to nearly the answer. lesson: said when it is solved.
        run: how a function is tried on the arguments of a case; None: it is called.
        empty: what is said of a function that gives nothing; "": that nothing is returned.
    """

    name: str
    task: str
    difficulty: int
    minutes: int
    section: str
    returns: tuple[str, ...]
    solution: Callable[..., Any]
    cases: tuple[Case, ...]
    mistakes: tuple[Mistake, ...]
    hints: tuple[str, ...]
    lesson: str
    run: Callable[..., Any] | None = None
    empty: str = ""

    def tried(self, function: Callable[..., Any], case: Case) -> Any:
        """What a function makes of a case."""
        return self.run(function, *case.args) if self.run else function(*case.args)

    @property
    def marks(self) -> str:
        """`●○○ · 5 minutes · 01, "A scale"`."""
        dots = "●" * self.difficulty + "○" * (3 - self.difficulty)
        return f"{dots} · {self.minutes} minutes · {self.section}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether a function is right, and the words for it."""

    passed: bool
    text: str


def judge(exercise: Exercise, function: Callable[..., Any]) -> Verdict:
    """Runs a function on every case until one is wrong, and finds the words for it."""
    if not callable(function):
        return _not_yet(exercise, "give the function itself, without calling it: no (…) behind")
    first = None
    for number, case in enumerate(exercise.cases):
        right = _parts(exercise.tried(exercise.solution, case))
        try:
            answer = exercise.tried(function, case)
        except Exception as error:  # whatever a learner's code does, the notebook goes on
            return _not_yet(exercise, _raised(exercise, function, case, error), number)
        if answer is None or answer is Ellipsis:
            return _not_yet(exercise, exercise.empty or _nothing(case, number))
        if isinstance(answer, list) and len(exercise.returns) > 1:
            answer = tuple(answer)
        first = answer if number == 0 else first
        if not _equal(answer, right):
            words = _known(exercise, function, case) or _describe(exercise, case, answer, right)
            if number and right[0].ndim == 0 and _equal(answer, _parts(first)):
                words = "your function gives the same answer again: does it use its arguments?"
            return _not_yet(exercise, words, number)
    count = len(exercise.cases)
    return Verdict(True, f"✓ {exercise.name}: right on all {count} cases. {exercise.lesson}")


def _not_yet(exercise: Exercise, words: str, passed: int = 0) -> Verdict:
    before = f"right on {passed} of {len(exercise.cases)} cases, but " if passed else ""
    return Verdict(
        False,
        f"○ {exercise.name}: not yet: {before}{words}\n"
        f"  {exercise.marks} · stuck? qlab.exercises.hint({exercise.name!r})",
    )


def _nothing(case: Case, number: int) -> str:
    if number == 0:
        return (
            "nothing is returned so far; put your code in place of ...\n"
            "  (return gives a result back, print only shows it)"
        )
    return f"on {case.words} your function returns nothing: is there a path without return?"


_REF = "read a reference with ref[...]: it is no array before that"
# What an error message of Python or JAX means for somebody who meets it for the first time.
_MEANINGS = {
    "truth value of an array": "Python's max, min and if know single numbers; for arrays there are "
    "jnp.max, jnp.minimum and jnp.where",
    "Incompatible shapes for broadcasting": "with keepdims=True a maximum keeps its axis and fits "
    "its rows",
    "of integer type": "a shape is made of whole numbers: // divides to one",
    "'AbstractRef' object has no attribute": _REF,
    "requires ndarray or scalar arguments": _REF,
    "Cannot store a Ref": _REF,
    "division by zero": "catch that case before dividing",
}


def _raised(exercise: Exercise, function: Callable, case: Case, error: Exception) -> str:
    try:
        inspect.signature(function).bind(*case.args)
    except TypeError:
        wanted = ", ".join(inspect.signature(exercise.solution).parameters)
        return f"your function is called with the arguments ({wanted}), which it does not take"
    except ValueError:
        pass  # some built-in functions do not tell their arguments
    said = (str(error).strip().splitlines() or ["no message"])[0][:110]
    known = [meaning for part, meaning in _MEANINGS.items() if part in said]
    hint = f"\n  ({known[0]})" if known else ""
    return f"on {case.words} your function raises {type(error).__name__}: {said}{hint}"


# ---- comparing -----------------------------------------------------------------------------------


def _parts(answer: Any) -> tuple[np.ndarray, ...]:
    """Everything that was returned as float64 arrays; one array is a tuple of one."""
    several = answer if isinstance(answer, tuple) else (answer,)
    if any(part is None for part in several):
        raise TypeError("None is no number")  # numpy would make it NaN
    return tuple(np.asarray(part, np.float64) for part in several)


def _equal(answer: Any, right: tuple[np.ndarray, ...]) -> bool:
    try:
        parts = _parts(answer)
    except (TypeError, ValueError):
        return False
    return len(parts) == len(right) and all(
        a.shape == b.shape and np.allclose(a, b, RELATIVE, ABSOLUTE, equal_nan=True)
        for a, b in zip(parts, right)
    )


def _known(exercise: Exercise, function: Callable, wrong: Case) -> str | None:
    """The words of the mistake that gives the learner's answer: of several, the one that agrees on
    most cases.
    """
    best, words = 0, None
    for mistake in exercise.mistakes:
        agreed = [c for c in exercise.cases if _same(exercise, function, mistake.function, c)]
        if wrong in agreed and len(agreed) > best:
            best, words = len(agreed), mistake.words
    return words


def _same(exercise: Exercise, function: Callable, mistake: Callable, case: Case) -> bool:
    try:
        answer = exercise.tried(function, case)
        return _equal(answer, _parts(exercise.tried(mistake, case)))
    except Exception:  # either may fail on a case that is not the one in question
        return False


# ---- describing ----------------------------------------------------------------------------------


def _describe(exercise: Exercise, case: Case, answer: Any, right: tuple[np.ndarray, ...]) -> str:
    """What is wrong with an answer that no catalogued mistake gives."""
    try:
        parts = _parts(answer)
    except (TypeError, ValueError):
        return f"on {case.words} your function returns {type(answer).__name__}, not numbers"
    if len(parts) != len(right):
        wanted = " and ".join(exercise.returns)
        return f"return {wanted}, {len(right)} in all; your function returns {len(parts)}"
    for name, a, b in zip(exercise.returns, parts, right):
        if not _equal(a, (b,)):
            return _describe_part(name, case, a, b)
    raise AssertionError("called for a right answer")


def _describe_part(name: str, case: Case, a: np.ndarray, b: np.ndarray) -> str:
    if a.shape != b.shape:
        return f"wrong shape of the {name}: got {a.shape}, expected {b.shape}{_shape_hint(a, b)}"
    broken = ~np.isfinite(a) & np.isfinite(b)
    if broken.any():
        kind = "NaN" if np.isnan(a[broken]).any() else "infinity"
        return f"you return {kind} for {case.words}: is something divided by zero?"
    if b.ndim == 0:
        return f"on {case.words} you give {a:.6g}, expected {b:.6g}{_times(a, b)}"
    factor = _constant(a, b, np.divide)
    if factor == -1:
        return f"your {name} has the wrong sign, on {case.words} everywhere"
    if factor:
        return f"your {name} is everywhere{_times(a[b != 0][0], b[b != 0][0])[1:]}"
    shift = _constant(a, b, np.subtract)
    if shift:
        return f"your {name} is everywhere {abs(shift):.4g} too {'large' if shift > 0 else 'small'}"
    wrong = np.argwhere(~np.isclose(a, b, RELATIVE, ABSOLUTE))
    where = tuple(int(i) for i in wrong[0])
    place = f"{name}{list(where)}" if where else f"the {name}"
    return (
        f"on {case.words} {place} is {a[where]:.5g}, expected {b[where]:.5g} "
        f"({len(wrong)} of {b.size} numbers differ)"
    )


def _times(a: np.ndarray, b: np.ndarray) -> str:
    """`, 2.143 times too small`."""
    if a == 0 or b == 0:
        return ""
    factor, size = (a / b, "large") if abs(a) > abs(b) else (b / a, "small")
    digits = f"{factor:,.0f}" if abs(factor) >= 1000 else f"{factor:.4g}"
    return f", {digits} times too {size}"


def _shape_hint(a: np.ndarray, b: np.ndarray) -> str:
    if b.ndim == 0:
        return ": one number was asked for, a norm or a sum over everything"
    if a.ndim == 0:
        return ": one number for everything; axis=-1 gives one a row"
    if a.shape == tuple(n for n in b.shape if n != 1):
        return ": keepdims=True keeps the axis, so that the result divides the rows"
    if b.shape == tuple(n for n in a.shape if n != 1):
        return ": leave keepdims out"
    if a.shape == b.shape[::-1]:
        return ": rows and columns have changed places; weights are (rows, columns)"
    return ""


def _constant(a: np.ndarray, b: np.ndarray, how: Callable) -> float | None:
    """The one factor (or shift) between two arrays, if there is one and it changes something."""
    used = (b != 0) if how is np.divide else np.ones(b.shape, bool)
    if used.sum() < min(2, b.size) or not np.allclose(a[~used], b[~used], RELATIVE, ABSOLUTE):
        return None
    found = how(a[used], b[used])
    first = float(found.flat[0])
    return first if np.allclose(found, first, RELATIVE, ABSOLUTE) and first != 0 else None
