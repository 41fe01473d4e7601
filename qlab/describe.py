"""A Spec in words, bits and a picture: one English sentence, where every bit goes, and their sum.

Everything is read off the Spec's own fields, so a Spec that nobody named explains itself too.
"""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from qlab.formats import Format

if TYPE_CHECKING:
    from qlab.qtensor import QTensor, Spec


class Part(NamedTuple):
    """Something a weight pays for: `each` bits of `stored`, shared by `count` weights (inf: once a
    row or a tensor).
    """

    what: str
    stored: str
    each: float
    count: float

    @property
    def bits(self) -> float:
        return self.each / self.count


def parts(spec: Spec) -> list[Part]:
    """Where the bits of a weight go, codes first; nested Specs unfold to the end."""
    found = [Part("code", spec.format.name, float(spec.format.bits), 1)]
    for what in ("scale", "zero", "offset"):
        found += _stored(what, getattr(spec, what), _weights_of(spec.block))
    return found


def _weights_of(block: int | tuple[int, int] | str) -> float:
    if isinstance(block, str):
        return math.inf
    return math.prod((block,) if isinstance(block, int) else block)


def _stored(what: str, how: str | Format | Spec | None, count: float) -> list[Part]:
    if how is None:
        return []
    if how == "mean":
        return [Part("mean", "float32", 32.0, math.inf)]
    if isinstance(how, str):
        return [Part(what, how, {"float32": 32.0}.get(how, 16.0), count)]
    if isinstance(how, Format):
        return [Part(what, how.name, float(how.bits), count)]
    inner = [Part(what, how.format.name, float(how.format.bits), count)]
    for below in ("scale", "zero", "offset"):
        name = f"{below} of the {what}s"
        inner += _stored(name, getattr(how, below), count * _weights_of(how.block))
    return inner


def format_words(format: Format) -> str:
    """`INT4 (-8 … 7)`; of tables and floats the number of values too."""
    ends = f"{format.min:g} … {format.max:g}"
    return (
        f"{format.name} ({ends})"
        if format.is_integer
        else (f"{format.name} ({len(format.values)} values, {ends})")
    )


def _block_words(block: int | tuple[int, int] | str) -> str:
    if block == "row":
        return "every row"
    if block == "tensor":
        return "the whole tensor"
    if isinstance(block, int):
        return f"every {block} weights of a row" if block > 1 else "each weight of a row"
    return f"every {block[0]} × {block[1]} tile"


def _how_words(how: str | Format | Spec) -> str:
    """`a float16`, `an INT8 number`, or a nested Spec's own clause."""
    if isinstance(how, str):
        return f"a {how}"
    format = how if isinstance(how, Format) else how.format
    bits = f"{format.bits:g}"
    article = "an" if bits.startswith("8") else "a"
    name = f"{article} {bits}-bit {format.name} number"
    if isinstance(how, Format) or how.scale is None:
        return name
    share = {"tensor": "all of them share", "row": "all of them share"}.get(
        str(how.block), f"every {how.block} of them share"
    )
    less = ", their mean taken out first" if how.offset == "mean" else ""
    return f"{name} ({share} {_how_words(how.scale)}{less})"


def sentence(spec: Spec) -> str:
    """One English sentence: what a code is, what a block shares, how a weight is computed.

    Example:
        >>> from qlab.qtensor import Spec
        >>> from qlab.formats import INT4
        >>> print(sentence(Spec(INT4, 128, "float16")))
        Each weight is a 4-bit code of INT4 (-8 … 7); every 128 weights of a row share a scale
        stored as a float16, and the weight is scale · value.
    """
    formula, shared = "value", []
    if spec.zero is not None:
        formula = "(value − zero)"
        kind = "an integer zero point" if isinstance(spec.zero, Format) else "a real zero point"
        shared.append(f"{kind} stored as {_how_words(spec.zero)}")
    if spec.scale is not None:
        formula = f"scale · {formula}"
        shared.insert(0, f"a scale stored as {_how_words(spec.scale)}")
    if spec.offset == "mean":
        formula += " + mean of the tensor"
    elif spec.offset is not None:
        least = _stores_minima(spec)
        formula += " − minimum" if least else " + offset"
        what = "a minimum, its sign turned," if least else "an offset"
        shared.append(f"{what} stored as {_how_words(spec.offset)}")
    bits = f"{spec.format.bits:g}"
    article = "an" if bits.startswith("8") else "a"
    words = f"Each weight is {article} {bits}-bit code of {format_words(spec.format)}"
    if shared:
        singular = spec.block in ("row", "tensor", 1) or isinstance(spec.block, tuple)
        verb = "shares" if singular else "share"
        words += f"; {_block_words(spec.block)} {verb} " + " and ".join(shared) + ","
    return f"{words} and the weight is {formula}."


def _stores_minima(spec: Spec) -> bool:
    """Whether offsets are minima of at most 0 that are kept as positive codes and subtracted, as in
    ggml's k-quants; a QTensor keeps the sign in their super-scale, and adds.
    """
    format = getattr(spec.offset, "format", None)  # of a nested Spec; a Format has a method
    unsigned = isinstance(format, Format) and format.min == 0
    return unsigned and spec.rule.__name__ == "minmax0"


def fields(format: Format) -> str:
    """The bit fields of one code, highest bit first: s sign, e exponent, m mantissa, i integer, t
    table index.
    """
    if format.bits != int(format.bits):
        return f"five trits a byte ({format.bits:g} bits each)"
    bits = int(format.bits)
    if format.is_integer or len(format.values) == 3:
        return "i" * bits
    if format.name in ("E8M0",):
        return "e" * bits
    binade = ((format.values >= 1) & (format.values < 2)).sum()
    if format.name in ("NF4", "IQ4NL", "BNB_FP4", "DYNAMIC8"):
        return "t" * bits
    mantissa = int(binade).bit_length() - 1
    return "s" + "e" * (bits - 1 - mantissa) + "m" * mantissa


def sum_of_bits(spec: Spec) -> str:
    """`4 + 16/128 = 4.125 bits per weight`.

    Example:
        >>> from qlab.qtensor import Spec
        >>> from qlab.formats import INT4
        >>> sum_of_bits(Spec(INT4, 128, "float16"))
        '4 + 16/128 = 4.125 bits per weight'
    """
    found = parts(spec)
    paid = [p for p in found if p.count < math.inf]
    terms = [f"{p.each:g}" if p.count == 1 else f"{p.each:g}/{p.count:g}" for p in paid]
    total = f"{sum(p.bits for p in paid):g} bits per weight"
    line = " + ".join(terms) + f" = {total}" if len(terms) > 1 else total
    rest = [f"{p.each:g} bits of {p.what}" for p in found if p.count == math.inf]
    where = "row" if spec.block == "row" else "tensor"
    return f"{line}, and {' and '.join(rest)} once a {where}" if rest else line


def picture(spec: Spec) -> str:
    """The bit picture as text: one line for everything that a weight pays for, bars in
    proportion.
    """
    found = parts(spec)
    widths = [max(len(p.what) for p in found), max(len(p.stored) for p in found)]
    lines = []
    for p in found:
        if p.what == "code":
            drawn = f"[{fields(spec.format)}]  each weight"
        else:
            owner = "each weight" if p.count == 1 else f"every {p.count:g} weights"
            owner = "once" if p.count == math.inf else owner
            drawn = f"[{p.each:g} bits]  {owner}"
        cost = "      0" if p.count == math.inf else f"{p.bits:7.4f}"
        lines.append(f"{p.what:{widths[0]}}  {p.stored:{widths[1]}}  {cost}  {drawn}")
    return "\n".join(lines)


# Okabe–Ito colours, told apart also by their labels.
_COLOURS = {"code": "#0072B2", "scale": "#E69F00", "zero": "#009E73", "offset": "#CC79A7"}
_WIDTH = 560


def _colour(part: Part) -> str:
    """One hue for all that belongs to scales, one for offsets, …, paler the deeper it is nested."""
    return next(c for k, c in _COLOURS.items() if part.what.rstrip("s").endswith(k))


def svg(spec: Spec) -> str:
    """The bit picture drawn: one weight's bits as a bar, cut into codes, scales and offsets."""
    paid = [p for p in parts(spec) if p.count < math.inf]
    total = sum(p.bits for p in paid)
    x, marks = 0.0, []
    for p in paid:
        width = _WIDTH * p.bits / total
        name = html.escape(p.what)
        marks.append(
            f'<rect x="{x:.1f}" width="{max(width - 1, 0.5):.1f}" height="22" fill="{_colour(p)}" '
            f'fill-opacity="{0.55 if " of " in p.what else 1}">'
            f"<title>{name}: {p.stored}, {p.bits:g} bits per weight</title></rect>"
        )
        if width > 7 * len(p.what) + 8:
            marks.append(f'<text x="{x + 5:.1f}" y="15" font-size="12" fill="#fff">{name}</text>')
        x += width
    return (
        f'<svg role="img" aria-label="{html.escape(sum_of_bits(spec))}" width="{_WIDTH}" '
        f'height="24" xmlns="http://www.w3.org/2000/svg">{"".join(marks)}</svg>'
    )


def _table(spec: Spec) -> str:
    """Where the bits go, a line for each part."""
    lines = [("", "part", "stored as", "one for", "bits per weight")]
    for p in parts(spec):
        mark = f"<span style='color:{_colour(p)}'>■</span>" if p.count < math.inf else ""
        owner = "a weight" if p.count == 1 else f"{p.count:g} weights"
        if p.count == math.inf:
            owner = "a row" if spec.block == "row" else "a tensor"
        lines.append((mark, html.escape(p.what), p.stored, owner, f"{p.bits:.4g}"))
    rows = ["<tr><td>" + "</td><td>".join(line) + "</td></tr>" for line in lines]
    return f"<table>{''.join(rows)}</table>"


def spec_html(spec: Spec) -> str:
    """Sentence, picture, table and sum, for a notebook."""
    return (
        f"<div><p style='max-width:46em'>{html.escape(sentence(spec))}</p>{svg(spec)}{_table(spec)}"
        f"<p><b>{html.escape(sum_of_bits(spec))}</b></p></div>"
    )


def qtensor_html(q: QTensor, bits: float) -> str:
    """A QTensor for a notebook: what it is, what it costs, and its first codes."""
    shape, count = " × ".join(map(str, q.shape)), math.prod(q.shape)
    extras = [name for name in ("perm", "channel_scale") if getattr(q, name) is not None]
    also = f" with {' and '.join(extras)}" if extras else ""
    codes = [] if q.codes is None else np.asarray(q.codes).reshape(-1)[:16]
    return (
        f"<div><b>QTensor {shape}</b>{also}: {bits:.4f} bits per weight, "
        f"{count * bits / 8:,.0f} bytes packed, {count * 4:,} as float32"
        f"<p>first codes: <code>{', '.join(map(str, codes))} …</code></p>{spec_html(q.spec)}</div>"
    )
