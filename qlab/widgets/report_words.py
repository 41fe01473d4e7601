"""A row of the report in words: its fields as they stand, and what those that stand out mean."""

from __future__ import annotations

from qlab.models.report import WORSE as NOISE
from qlab.models.report import LayerReport
from qlab.plots.layers import PAIRS, ratio
from qlab.plots.widget_parts import number, share

Remark = tuple[str, dict[str, object]]  # words for `say`, and what goes into them


def facts(row: LayerReport) -> tuple[tuple[str, str], ...]:
    """(name, value) of every field."""

    def loss(pair: tuple[str, str, str]) -> str:
        ours, theirs = (getattr(row, name) for name in pair[:2])
        if ours is None:
            return "–"
        beside = (
            "" if theirs is None else f" (RTN {number(theirs)}, {ratio(vars(row), pair):.2f} ×)"
        )
        return number(ours) + beside

    scale = "–" if row.scale is None else " – ".join(number(s, 2) for s in row.scale)
    return (
        ("shape, out × in", " × ".join(map(str, row.shape))),
        ("format", row.spec),
        ("bits per weight", f"{row.bits_per_weight:.4g}"),
        ("weight error", share(row.error)),
        ("largest error", number(row.max_error)),
        ("clipped weights", share(row.clipped)),
        ("loss", loss(PAIRS[0])),
        ("held-out loss", loss(PAIRS[1])),
        ("tokens", f"{row.tokens:,}" if row.tokens else "–"),
        ("dead channels", f"{row.dead:,}"),
        *(() if row.floored is None else (("raised importances", f"{row.floored:,}"),)),
        ("damping", "–" if row.damp is None else number(row.damp)),
        ("rung of the ladder", str(row.rung)),
        ("scales", scale),
        ("seconds", number(row.seconds, 2) if row.seconds else "–"),
    )


def remarks(row: LayerReport) -> tuple[Remark, ...]:
    """What a reader should know about the layer, the gravest first; notes stand as they are.

    Example:
        >>> row = LayerReport("0.fc1", (4, 8), "int4", 4.0, 0.1, 0.1, 0.0, tokens=6, damp=0.01)
        >>> remarks(row)[0][1]
        {'tokens': '6', 'inputs': '8'}
    """
    said: list[Remark] = []
    seen, held = (ratio(vars(row), pair) for pair in PAIRS)
    if seen > NOISE:
        said.append((WORSE, {"n": f"{seen:.2f}"}))
    if held > NOISE >= seen:
        said.append((OVERFIT, {"n": f"{held:.2f}"}))
    elif held > NOISE:
        said.append((WORSE_HELD, {"n": f"{held:.2f}"}))
    if row.rung:
        said.append((LADDER, {"rung": row.rung, "damp": number(row.damp or 0.0)}))
    if row.dead:
        said.append((DEAD, {"n": f"{row.dead:,}", "inputs": f"{row.shape[-1]:,}"}))
    if row.floored:
        said.append((FLOORED, {"n": f"{row.floored:,}", "inputs": f"{row.shape[-1]:,}"}))
    if row.damp is not None and row.tokens < row.shape[-1]:  # where H is inverted
        said.append((FEW, {"tokens": f"{row.tokens:,}", "inputs": f"{row.shape[-1]:,}"}))
    if row.clipped > CLIPPED:
        said.append((CLIPS, {"n": share(row.clipped)}))
    return (*said, *(("{note}", {"note": note}) for note in row.notes))


CLIPPED = 0.01  # from here on, clipped weights are worth a remark
WORSE = "Worse than rounding: {n} times RTN's loss on the calibration text."
WORSE_HELD = "On held-out text too: {n} times."
OVERFIT = (
    "Better than rounding on the text it has seen, worse on held-out text ({n} times): "
    "it fits its calibration text; more tokens help."
)
LADDER = (
    "Rung {rung}: H was not positive definite with less damping; {damp} times the mean of its "
    "diagonal was added. The more is added, the closer the result comes to plain rounding."
)
DEAD = (
    "{n} of {inputs} input channels were zero in every token: nothing is known about their weights."
)
FLOORED = (
    "{n} of {inputs} columns had an importance below 10⁻⁶ of the mean; they were given that much."
)
FEW = (
    "{tokens} tokens for {inputs} input channels: H cannot have full rank, only damping makes it "
    "invertible."
)
CLIPS = "{n} of the weights lie beyond the range and are cut to its ends."
