"""How a value comes out of its bits, in one line: ± 2^(e − bias) · (1 + m / 2^M), or a table."""

from __future__ import annotations

import numpy as np

from qlab.plots.widget_parts import SUPERSCRIPT, number
from qlab.widgets.numbers import Numbers


def formula(k: Numbers, code: int) -> str:
    """How the value comes out of the bits, in one line.

    Example:
        >>> formula(numbers("FP4"), 0b0101)
        '0 10 1 = + 2¹ · (1 + 1/2) = 3'
    """
    value, bits = k.value(code), f"{code:0{k.bits}b}"
    if k.layout[0] == "i":
        low = int(k.value(0))
        if low == 0:
            return f"{bits} = {code}"
        twos = f"{code ^ 1 << (k.bits - 1):0{k.bits}b}"
        return f"{bits} = {code}, {code} − {-low} = {number(value)}  (two's complement: {twos})"
    if k.layout[0] == "t":
        return f"{bits} = {code} → {number(value, 6)}"
    e, m = k.layout.count("e"), k.layout.count("m")
    groups = f"{bits[0]} {bits[1 : 1 + e]} {bits[1 + e :]}"
    if not np.isfinite(value):
        return f"{groups} = {number(value)}"
    exponent, mantissa, bias = code >> m & (1 << e) - 1, code & (1 << m) - 1, 2 ** (e - 1) - 1
    sign, power = (
        "−" if code >> (e + m) else "+",
        str(max(exponent, 1) - bias).translate(SUPERSCRIPT),
    )
    fraction = f"{mantissa}/{1 << m}"
    inside = f"(1 + {fraction})" if exponent else f"(0 + {fraction})"
    return f"{groups} = {sign} 2{power} · {inside} = {number(value, 8)}"
