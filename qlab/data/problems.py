"""Generated one-line exercises with exact answers: arithmetic, brackets, names, key-value recall.

Every problem belongs to one part of the data, decided by a hash of the problem itself and not by
a seed: `part(problem)` is "evaluation" (1 in 16), "calibration" (1 in 16) or "training" (the
rest). So a problem of the evaluation part was never seen in training, whoever generates it.
"""

import hashlib
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

PARTS = ("evaluation", "calibration", "training")


@dataclass(frozen=True)
class Problem:
    """One exercise: `kind` and `operands` name it, `question` ends where `answer` begins.

    Operands of commutative kinds are sorted, so 3 + 5 and 5 + 3 are one problem.
    """

    kind: str
    operands: tuple
    question: str
    answer: str

    @property
    def line(self) -> str:
        """The exercise as it stands in a text."""
        return self.question + self.answer


def part(problem: Problem) -> str:
    """Returns the part of the data that owns a problem.

    Example:
        >>> part(Problem("add", (1, 2), "Q: What is 1 + 2? A: ", "3")) in PARTS
        True
    """
    name = repr((problem.kind, *problem.operands)).encode()
    return {0: "evaluation", 1: "calibration"}.get(
        hashlib.sha256(name).digest()[0] % 16, "training"
    )


# ---------------------------------------------------------------------------------- arithmetic
# Each kind: random generator, largest operand -> operands, question, answer.


def _add(rng: random.Random, top: int):
    a, b = rng.randint(1, top), rng.randint(1, top)
    return tuple(sorted((a, b))), f"What is {a} + {b}?", a + b


def _subtract(rng: random.Random, top: int):
    a, b = sorted((rng.randint(1, top), rng.randint(1, top)), reverse=True)
    return (a, b), f"What is {a} - {b}?", a - b


def _multiply(rng: random.Random, top: int):
    a, b = rng.randint(2, top), rng.randint(2, min(top, 20))
    return tuple(sorted((a, b))), f"What is {a} * {b}?", a * b


def _divide(rng: random.Random, top: int):
    a, b = rng.randint(2, top), rng.randint(2, min(top, 20))
    return (a * b, b), f"What is {a * b} / {b}?", a


def _remainder(rng: random.Random, top: int):
    a, b = rng.randint(10, 10 * top), rng.randint(2, 12)
    return (a, b), f"What is the remainder when {a} is divided by {b}?", a % b


def _gcd(rng: random.Random, top: int):
    common = rng.randint(1, 12)
    a, b = (common * rng.randint(1, max(4, top // 10)) for _ in range(2))
    return (
        tuple(sorted((a, b))),
        f"What is the greatest common divisor of {a} and {b}?",
        math.gcd(a, b),
    )


def _lcm(rng: random.Random, top: int):
    a, b = rng.randint(2, max(12, top // 5)), rng.randint(2, 30)
    return (
        tuple(sorted((a, b))),
        f"What is the least common multiple of {a} and {b}?",
        math.lcm(a, b),
    )


def _larger(rng: random.Random, top: int):
    a, b = rng.sample(range(1, 10 * top), 2)
    return tuple(sorted((a, b))), f"Which is larger, {a} or {b}?", max(a, b)


def _solve(rng: random.Random, top: int):
    a, x, b = rng.randint(2, 20), rng.randint(1, max(10, top // 2)), rng.randint(1, 50)
    return (a, b, a * x + b), f"Solve {a}x + {b} = {a * x + b} for x.", x


def _sequence(rng: random.Random, top: int):
    start, step = rng.randint(1, top), rng.randint(2, 25)
    terms = [start + step * i for i in range(5)]
    return (start, step), f"What comes next: {', '.join(map(str, terms[:4]))}?", terms[4]


def _percent(rng: random.Random, top: int):
    rate, base = rng.choice((5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80)), 20 * rng.randint(1, top)
    return (rate, base), f"What is {rate}% of {base}?", rate * base // 100


def _share(rng: random.Random, top: int):
    name = rng.choice(("Mina", "Jonas", "Alice", "Omar", "Yuna", "Peter"))
    thing = rng.choice(("apples", "books", "stamps", "coins", "marbles"))
    a, b = rng.randint(2, top), rng.randint(2, top)
    return (
        (name, thing, a, b),
        f"{name} has {a} {thing} and gets {b} more. How many {thing} are there now?",
        a + b,
    )


def _minutes(rng: random.Random, top: int):
    hours, minutes = rng.randint(1, max(5, top // 4)), rng.randint(1, 59)
    return (
        (hours, minutes),
        f"How many minutes are {hours} hours and {minutes} minutes?",
        60 * hours + minutes,
    )


ARITHMETIC: dict[str, Callable] = {
    "add": _add,
    "subtract": _subtract,
    "multiply": _multiply,
    "divide": _divide,
    "remainder": _remainder,
    "gcd": _gcd,
    "lcm": _lcm,
    "larger": _larger,
    "solve": _solve,
    "sequence": _sequence,
    "percent": _percent,
    "share": _share,
    "minutes": _minutes,
}


def arithmetic(rng: random.Random, kind: str | None = None, top: int = 200) -> Problem:
    """Draws an arithmetic problem: `Q: Solve 14x + 2 = 702 for x. A: 50`.

    Args:
        rng: source of randomness.
        kind: one of `ARITHMETIC`, or None for any.
        top: rough size of the operands; 30 makes easy problems.

    Example:
        >>> arithmetic(random.Random(0), "add").line.startswith("Q: What is ")
        True
    """
    kind = kind or rng.choice(list(ARITHMETIC))
    operands, question, answer = ARITHMETIC[kind](rng, top)
    return Problem(kind, operands, f"Q: {question} A: ", str(answer))


# ------------------------------------------------------------------------------ other exercises

PAIRS = {"(": ")", "[": "]", "{": "}", "<": ">"}


def brackets(rng: random.Random) -> Problem:
    """Draws an open bracket word and the brackets that close it: `Close: ( [ { A: } ] )`."""
    stack, opened = [], []
    for _ in range(rng.randint(2, 9)):
        if stack and rng.random() < 0.35:
            opened.append(PAIRS[stack.pop()])
        else:
            stack.append(rng.choice(list(PAIRS)))
            opened.append(stack[-1])
    if not stack:
        return brackets(rng)
    closing = " ".join(PAIRS[b] for b in reversed(stack))
    return Problem("brackets", tuple(opened), f"Close: {' '.join(opened)} A: ", closing)


NAMES = (
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Emma",
    "Frank",
    "Grace",
    "Henry",
    "Irene",
    "James",
    "Karen",
    "Lucas",
    "Maria",
    "Nora",
    "Oscar",
    "Paul",
    "Rosa",
    "Simon",
    "Tina",
    "Victor",
)
PLACES = (
    "the market",
    "the school",
    "the station",
    "the library",
    "the office",
    "the garden",
    "the bank",
    "the museum",
)
THINGS = ("a book", "a letter", "a key", "a ticket", "a map", "a coin", "a pen", "a cup of tea")
VERBS = ("gave", "handed", "sent", "showed", "offered")


def names(rng: random.Random) -> Problem:
    """Draws an indirect-object sentence (Wang et al., arXiv 2211.00593): the name not repeated.

    `When Anna and Ben went to the bank, Ben gave a key to` -> ` Anna`; the answer keeps its
    space, because byte-level tokens begin with it.
    """
    first, second = rng.sample(NAMES, 2)
    giver, receiver = rng.sample((first, second), 2)
    place, thing, verb = rng.choice(PLACES), rng.choice(THINGS), rng.choice(VERBS)
    return Problem(
        "names",
        (first, second, giver, place, thing, verb),
        f"When {first} and {second} went to {place}, {giver} {verb} {thing} to",
        f" {receiver}.",
    )


def recall(rng: random.Random) -> Problem:
    """Draws keys with values and asks for one: `a=3 b=7 k=1 ; b? 7`."""
    keys = rng.sample("abcdefghijklmnopqrstuvwxyz", rng.randint(2, 6))
    values = [rng.randint(0, 9) for _ in keys]
    asked = rng.randrange(len(keys))
    pairs = " ".join(f"{k}={v}" for k, v in zip(keys, values, strict=True))
    return Problem(
        "recall", (*keys, *values, asked), f"{pairs} ; {keys[asked]}? ", str(values[asked])
    )


def cloze(rng: random.Random, sentence: str) -> Problem | None:
    """Takes one word out of a sentence: `Fill: The ___ is full. A: glass`.

    Args:
        rng: chooses the word.
        sentence: any line of text, in any script written with spaces.

    Returns:
        The problem, or None when the sentence is too short or has no word of 3 letters (2 in
        Hangul) to take out.
    """
    words = sentence.split()
    wide = [i for i, w in enumerate(words) if i and w.isalpha() and len(w) >= (3, 2)[w[0] >= "가"]]
    if not 6 <= len(words) <= 40 or not wide:
        return None
    gap = rng.choice(wide)
    holed = " ".join((*words[:gap], "___", *words[gap + 1 :]))
    return Problem("cloze", (holed,), f"Fill: {holed} A: ", words[gap])


def problems(
    draw: Callable[[random.Random], Problem], seed: int, wanted: str = "evaluation"
) -> Iterator[Problem]:
    """Yields endless problems of one part.

    Args:
        draw: a generator of this module, e.g. `arithmetic` or `recall`.
        seed: start of the random sequence.
        wanted: a part, one of `PARTS`.

    Raises:
        ValueError: unknown part.

    Example:
        >>> part(next(problems(recall, seed=0)))
        'evaluation'
    """
    if wanted not in PARTS:
        raise ValueError(f"unknown part {wanted!r}; the parts are {', '.join(PARTS)}")
    rng = random.Random(seed)
    while True:
        problem = draw(rng)
        if part(problem) == wanted:
            yield problem
