"""GPTQ's steps: the weights as they are now, what was just pushed and the row of U that pushed it,
on shared columns under one frame; beside them the error so far, with and without pushing, and the
step in an equation, a line of code and the numbers of one row.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from qlab.plots.svg import Picture
from qlab.plots.widget_parts import PANEL, WIDTH, Axis, number, share, title, x_axis
from qlab.plots.widget_words import say

HEIGHT = 562
LEFT, CELL = 26, 20  # of the matrices, in pixels
RIGHT = 388  # where the second half begins
WEIGHTS, CHANGE, ROW_OF_U = 150, 350, 496  # upper edges
LOW = 15  # height of a cell of the change
MATRIX = "matrix"  # its name as a Pick


@dataclasses.dataclass(frozen=True)
class Steps:
    """Every step of one run; columns in the order of processing.

    Attributes:
        w: (out, in) at the start.
        before, after: (in, out, in) weights before and after each step.
        q: (out, in) what the columns were rounded to.
        errors: (out, in) E, errors divided by U's diagonal.
        u: (in, in) upper triangular.
        order: (in,) the columns' own numbers.
    """

    w: np.ndarray
    before: np.ndarray
    after: np.ndarray
    q: np.ndarray
    errors: np.ndarray
    u: np.ndarray
    order: np.ndarray


@dataclasses.dataclass(frozen=True)
class GptqStepsData:
    """What the picture shows.

    Attributes:
        steps: of the run that is drawn.
        losses: pushing or not -> (in + 1,) error of the output after so many columns, as a part
            of the output.
        push: whether the run drawn pushes.
        column: place, from 0, of the column just rounded. row: whose numbers are written out.
        bits: of a code.
        code: the three lines of a step: round, divide, push.
    """

    steps: Steps
    losses: dict[bool, np.ndarray]
    push: bool
    column: int
    row: int
    bits: int
    code: tuple[str, ...]

    @property
    def change(self) -> np.ndarray:
        """(out, in) what the step added to the columns to come."""
        pushed = self.steps.after[self.column] - self.steps.before[self.column]
        return np.where(np.arange(pushed.shape[1]) > self.column, pushed, 0.0)

    @property
    def enlarged(self) -> int:
        """By how much the changes can be drawn larger than the weights, one number for all steps:
        a power of two up to 16.
        """
        later = np.triu(np.ones(self.steps.u.shape), 1)[:, None, :]
        most = float(np.abs((self.steps.after - self.steps.before) * later).max())
        room = float(np.abs(self.steps.w).max()) / max(most, 1e-30)
        return int(2 ** np.clip(np.floor(np.log2(room)), 0, 4))


def draw_gptq_steps(data: GptqStepsData, lang: str = "en") -> Picture:
    """The picture of `GptqStepsData`; a column and a row can be picked in the matrix.

    Example:
        >>> draw_gptq_steps(gptq_steps_data(source, state)).figure()   # doctest: +SKIP
    """
    picture = Picture(WIDTH, HEIGHT)
    _head(picture, data, lang)
    _matrices(picture, data, lang)
    _curves(picture, data, lang)
    _numbers(picture, data, lang)
    inner = data.steps.w.shape[1]
    box = (LEFT, WEIGHTS, inner * CELL, len(data.steps.w) * CELL)
    picture.pick(MATRIX, box, say("choose a column and a row: click, or arrow keys", lang))
    return picture


def sentence(data: GptqStepsData, lang: str) -> str:
    """What the step has done."""
    j, name, left = data.column, int(data.steps.order[data.column]), data.steps.w.shape[1] - 1
    moved = (data.steps.order != np.arange(left + 1)).any()
    words = "Column {name}, number {j} in the order," if moved else "Column {name}"
    what = {"column": say(words, lang, name=name, j=j), "n": left - j, "u": f"U[{j},{j}]"}
    what["value"] = number(float(data.steps.u[j, j]))
    words = "{column} is rounded; its error, divided by {u} = {value}, is pushed into {n} others."
    if not data.push:
        words = "{column} is rounded; nothing is pushed, its error stays."
    elif j == left:
        words = "{column} is rounded, the last: no other is left to make up for its error."
    elif j == left - 1:
        words = "{column} is rounded; its error, divided by {u} = {value}, is pushed into the last."
    return say(words, lang, **what)


def _head(picture: Picture, data: GptqStepsData, lang: str) -> None:
    """One large number, and what just happened."""
    done, inner = data.column + 1, data.steps.w.shape[1]
    now, ends = data.losses[data.push][done], data.losses[not data.push][-1]
    other = "plain rounding" if data.push else "with pushing"
    picture.rect(0, 0, WIDTH, 64, fill="panel", opacity=PANEL)
    name = say("output error after {done} of {all} columns", lang, done=done, all=inner)
    picture.text(14, 17, name, size=11.5, colour="muted")
    picture.text(14, 52, share(float(now)), size=30, bold=True)
    rival = say("{what} ends at", lang, what=say(other, lang))
    mine = (say("this run ends at", lang), data.losses[data.push][-1])
    for x, (said, value) in ((RIGHT, mine), (RIGHT + 184, (rival, ends))):
        picture.text(x, 17, said, size=11.5, colour="muted")
        picture.text(x, 45, share(float(value)), size=18)
    words = sentence(data, lang)
    picture.text(0, 88, words, size=13)
    picture.label = f"{words} {name}: {share(float(now))}; {rival} {share(float(ends))}."


def _heat(picture: Picture, x: float, y: float, high: float, values: np.ndarray) -> None:
    """Values −1 … 1 as cells, blue above zero, vermilion below, each cell outlined."""
    rows, inner = values.shape
    box = (x, y, inner * CELL, rows * high)
    for sign, colour in ((1, "blue"), (-1, "vermilion")):
        picture.cells(box, np.clip(sign * values, 0, 1), fill=colour)
    xs, ys = x + CELL * np.arange(inner + 1), y + high * np.arange(rows + 1)
    picture.segments(xs, y, xs, ys[-1], stroke="faint", width=0.7)
    picture.segments(x, ys, xs[-1], ys, stroke="faint", width=0.7)


def _matrices(picture: Picture, data: GptqStepsData, lang: str) -> None:
    steps, j = data.steps, data.column
    rows, inner = steps.w.shape
    top = float(np.abs(steps.w).max())
    title(picture, LEFT, 116, say("the weights now", lang))
    picture.rect(LEFT + 118, 107, 9, 9, fill="green")
    picture.text(LEFT + 132, 116, say("rounded", lang), size=11, colour="muted")
    for place, name in enumerate(steps.order):
        x = LEFT + CELL * (place + 0.5)
        look = {"bold": place == j, "colour": "ink" if place == j else "muted"}
        picture.text(x, 137, str(name), size=11, anchor="middle", **look)
    picture.rect(LEFT, WEIGHTS - 6, (j + 1) * CELL, 5, fill="green")
    _heat(picture, LEFT, WEIGHTS, CELL, steps.after[j] / top)
    for row in range(rows):
        look = {"bold": row == data.row, "colour": "ink" if row == data.row else "muted"}
        middle = WEIGHTS + CELL * (row + 0.5) + 4
        picture.text(LEFT - 8, middle, str(row), size=11, anchor="end", **look)
    picture.rect(LEFT, WEIGHTS + CELL * data.row, inner * CELL, CELL, stroke="ink", width=1.2)
    larger = data.enlarged
    _heat(picture, LEFT, CHANGE, LOW, larger * data.change / top)
    _heat(picture, LEFT, ROW_OF_U, CELL, steps.u[j : j + 1] / np.abs(steps.u[j]).max())
    words = "what was just pushed, {n} times enlarged" if data.push else "nothing is pushed"
    titles: dict[float, str] = {CHANGE - 10: say(words, lang, n=larger)}
    words = "row {j} of U, which pushes it" if data.push else "row {j} of U, its diagonal alone"
    titles[ROW_OF_U - 8] = say(words, lang, j=j)
    for y, words in titles.items():
        title(picture, LEFT, y, words)
    _frame(picture, LEFT + CELL * j - 1.5, CELL + 3, titles)
    _key(picture, lang)


def _frame(picture: Picture, x: float, wide: float, titles: dict[float, str]) -> None:
    """The frame around a column, through all three matrices, open where it would cross a title."""
    top, bottom, look = 123, ROW_OF_U + CELL + 4, {"stroke": "ink", "width": 2.2}
    for side in (x, x + wide):
        ends = [top]
        for y, words in titles.items():
            reach = LEFT + sum(12.5 if letter > "ᄀ" else 6.6 for letter in words)
            ends += [y - 13, y + 5] if side < reach + 4 else []
        ends.append(bottom)
        picture.segments(side, ends[::2], side, ends[1::2], **look)
    picture.segments(x - 1.1, [top, bottom], x + wide + 1.1, [top, bottom], **look)


def _key(picture: Picture, lang: str) -> None:
    y = ROW_OF_U + CELL + 18
    for x, colour, words in ((LEFT, "vermilion", "below zero"), (LEFT + 110, "blue", "above zero")):
        picture.cells((x, y, 30, 10), [[0.3, 0.6, 1]], fill=colour)
        picture.text(x + 36, y + 9, say(words, lang), size=11, colour="muted")


def _curves(picture: Picture, data: GptqStepsData, lang: str) -> None:
    """The error so far of both runs; the one that is drawn is marked."""
    title(picture, RIGHT, 116, say("output error so far, %", lang))
    inner, done = data.steps.w.shape[1], data.column + 1
    x = Axis(0, inner, RIGHT + 34, WIDTH - 98)
    y = Axis(0, 105 * float(max(loss.max() for loss in data.losses.values())), 296, 130)
    for tick in y.ticks(4):
        picture.segments(x.start, y(tick), x.end, y(tick), stroke="faint", opacity=0.6)
        look = {"size": 11, "anchor": "end", "colour": "muted"}
        picture.text(x.start - 5, float(y(tick)) + 4, number(tick), **look)
    ends = [float(y(100 * data.losses[push][-1])) for push in (False, True)]
    middle, apart = sum(ends) / 2, max(abs(ends[0] - ends[1]) / 2, 9)  # the labels never overlap
    for push, colour, words in ((False, "vermilion", "plain rounding"), (True, "blue", "GPTQ")):
        active, loss = push == data.push, 100 * data.losses[push]
        look = {"width": 3 if active else 1.6, "dash": "" if push else "dash"}
        picture.line(x(np.arange(inner + 1)), y(loss), stroke=colour, **look)
        below = ends[push] >= ends[not push] and (push or ends[0] != ends[1])
        place = middle + apart if below else middle - apart
        picture.text(x.end + 8, place + 4, say(words, lang), size=11.5, bold=active)
        picture.segments(x.end + 8, place + 8, x.end + 34, place + 8, stroke=colour, **look)
    picture.segments(x(done), y.start, x(done), y.end, stroke="ink", width=1, dash="dot")
    picture.dots(x(done), y(100 * data.losses[data.push][done]), 5.5, fill="ink")
    x_axis(picture, x, 296, say("columns rounded", lang), 4)


def _numbers(picture: Picture, data: GptqStepsData, lang: str) -> None:
    """The step of one row: equation, code and numbers; what does not happen is faint."""
    steps, j, row = data.steps, data.column, data.row
    w, q = float(steps.before[j][row, j]), float(steps.q[row, j])
    u, e = float(steps.u[j, j]), float(steps.errors[row, j])
    title(picture, RIGHT, CHANGE - 2, say("this step in row {row}", lang, row=row))
    last = j == steps.w.shape[1] - 1
    if last:
        third = say("no column is left", lang)
    else:
        ahead, by = float(steps.before[j][row, j + 1]), float(steps.u[j, j + 1])
        third = f"w[{j + 1}] = {number(ahead)} − ({number(e)})·({number(by)})"
        third += f" = {number(float(steps.after[j][row, j + 1]))}"
    lines = (
        ("Q[:,j] = quant(W[:,j])", f"{number(w, 4)} → {number(q, 4)}"),
        ("E[:,j] = (W[:,j] − Q[:,j]) / U[j,j]", f"{number(w - q)} / {number(u)} = {number(e)}"),
        ("W[:,k] = W[:,k] − E[:,j]·U[j,k],  k > j", third),
    )
    names = ("round", "divide", "push")
    for i, (name, (equation, numbers), code) in enumerate(zip(names, lines, data.code)):
        y = CHANGE + 8 + 62 * i
        faint = i == 2 and (not data.push or last)
        ink = "muted" if faint else "ink"
        picture.rect(RIGHT, y, WIDTH - RIGHT, 57, fill="panel", opacity=0.25 if faint else PANEL)
        picture.text(RIGHT + 8, y + 16, say(name, lang), size=11.5, bold=True, colour=ink)
        picture.text(RIGHT + 74, y + 16, equation, size=11.5, colour=ink)
        picture.text(RIGHT + 74, y + 33, code, size=11, colour="muted")
        if not faint or last:
            picture.text(RIGHT + 74, y + 50, numbers, size=11.5, colour=ink)
        else:
            skipped = say("U[j,k] is taken as 0: nothing changes", lang)
            picture.text(RIGHT + 74, y + 50, skipped, size=11.5, colour=ink)
