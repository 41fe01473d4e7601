"""What the tiny model can do: exact match on held-out exercises, each beside its chance.

An answer counts when every one of its tokens is the model's first choice, the question and the
answer's earlier tokens given.
"""

import random
from collections.abc import Callable
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np

import qlab
from qlab.data import problems
from qlab.models.transformer import Transformer

LENGTH = 128  # tokens a line may have
BATCH = 16


def answer_span(question: list[int], line: list[int]) -> range:
    """Positions of the answer's tokens: where the line leaves the question, to its end."""
    same = next((i for i, (a, b) in enumerate(zip(question, line, strict=False)) if a != b), None)
    return range(len(question) if same is None else same, len(line))


def exact_match(model: Transformer, asked: list[problems.Problem]) -> float:
    """Returns the share of problems whose whole answer is the model's first choice."""
    encode = model.tokenizer.encode
    lines = [encode(p.line)[:LENGTH] for p in asked]
    rows = np.array([line + [0] * (LENGTH - len(line)) for line in lines])
    run = jax.jit(lambda m, x: jnp.argmax(m(x), axis=-1))
    best = np.concatenate(
        [run(model, jnp.asarray(rows[i : i + BATCH])) for i in range(0, len(rows), BATCH)]
    )
    right = [
        all(best[j][i - 1] == line[i] for i in answer_span(encode(p.question), line))
        for j, (p, line) in enumerate(zip(asked, lines, strict=True))
    ]
    return float(np.mean(right))


def probes() -> dict[str, Callable[[random.Random], problems.Problem]]:
    """Returns {name: generator}: every kind of arithmetic, then the other exercises."""
    kinds = {k: lambda rng, k=k: problems.arithmetic(rng, k) for k in problems.ARITHMETIC}
    return kinds | {
        "recall": problems.recall,
        "brackets": problems.brackets,
        "names": problems.names,
    }


def main(count: int = 320) -> None:
    model = qlab.load("tiny")
    for name, draw in probes().items():
        asked = list(islice(problems.problems(draw, seed=5), count))
        print(f"{name:10} {exact_match(model, asked):.3f}")


if __name__ == "__main__":
    main()
