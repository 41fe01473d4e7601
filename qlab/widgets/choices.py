"""What a learner may choose: kinds of number, their bits, the range rules that fit them, and the
Spec that follows.
"""

from __future__ import annotations

from qlab.formats import FORMATS
from qlab.qtensor import Spec
from qlab.rules import RULES
from qlab.suggest import near

# kind -> ({bits: format}, range rules, the usual one first)
KINDS: dict[str, tuple[dict[int, str], tuple[str, ...]]] = {
    "integer": (
        {b: f"INT{b}" for b in range(2, 9)},
        ("absmax", "absmax_mid", "absmax_full", "signed_absmax"),
    ),
    "integer, zero point": ({b: f"UINT{b}" for b in range(2, 9)}, ("gptq_asym", "awq_asym")),
    "float": ({4: "FP4", 6: "FP6_E2M3", 8: "FP8"}, ("absmax", "pow2_floor", "pow2_rceil")),
    "normal float": ({4: "NF4"}, ("absmax",)),
}
BLOCKS: tuple[int | str, ...] = (16, 32, 64, 128, "row", "tensor")


def make_spec(kind: str, bits: int, block: int | str, rule: str) -> Spec:
    """The Spec of a choice: float16 scales; powers of two are stored in 8 bits (E8M0), a zero
    point in a code's bits.

    Raises:
        ValueError: a kind, bits or rule that is not on offer, with what is.

    Example:
        >>> make_spec("integer", 4, 32, "absmax").format
        INT4
    """
    if kind not in KINDS:
        raise ValueError(f"no kind of number is called {kind!r}: {near(kind, KINDS)}")
    formats, rules = KINDS[kind]
    if bits not in formats:
        raise ValueError(f"{kind!r} has {', '.join(map(str, formats))} bits, not {bits}")
    if rule not in rules:
        raise ValueError(f"{kind!r} has the range rules {', '.join(rules)}, not {rule!r}")
    format = FORMATS[formats[bits]]
    zero = format if kind == "integer, zero point" else None
    scale = FORMATS["E8M0"] if rule.startswith("pow2") else "float16"
    return Spec(format, block, scale, zero=zero, rule=RULES[rule])
