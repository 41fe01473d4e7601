"""The answer to "which file?": a headline, the table of files, the arithmetic line by line, what it
rests on. Prints as text, shows as HTML. Not here: the rules (`advise`).
"""

from __future__ import annotations

import dataclasses
from html import escape

from qlab.evaluation.evidence import (
    ANCHORS,
    EFFICIENCY,
    LOSSES,
    NEWER_WORDS,
    PREFILL,
    PREFILL_WORDS,
    SLOWER_WORDS,
    SMALL,
    SMALL_WORDS,
    TASKS,
    WORN,
    WORN_WORDS,
)
from qlab.evaluation.fits import ROWS, RUNTIME, Fit, Question
from qlab.evaluation.machines import GB, GIB, OFFLOAD
from qlab.models.kv import FLOAT_BITS, name_of

COLUMNS = (
    "file", "bits/w", "weights GB", "KV GB", "needs GB", "spare GB", "max context", "tokens/s",
    "KL 8B",
)  # fmt: skip


def gigabytes(count: float) -> str:
    """Bytes in GB (10⁹): `42.51 GB`."""
    return f"{_number(count)} GB"


def _number(count: float) -> str:
    """Bytes in GB, to hundredths; two figures of what is less than 0.1."""
    value = count / GB
    return (f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}").replace("-", "−")


def span(found: tuple[float, float] | None) -> str:
    """A low and a high number: `10–18`."""
    if found is None:
        return "—"
    low, high = (f"{x:,.0f}" if x >= 9.5 else f"{x:.1f}" for x in found)
    return low if low == high else f"{low}–{high}"


@dataclasses.dataclass(frozen=True, repr=False)
class Advice:
    """An answer.

    Attributes:
        question: what was asked.
        fits: every file, best first, then a GPU server's formats.
        best: the GGUF file recommended; None: none fits, or none has the bits that the task asks.
        served: the same for a GPU server's formats.
        target: the file that one would wish for: 4 bits, or what the task asks.
        smaller: a smaller model that fits as `target`, where `best` is none or nearly so.
        roomy: the 4-bit file, where `best` leaves little room for context.
    """

    question: Question
    fits: tuple[Fit, ...]
    best: Fit | None
    served: Fit | None
    target: Fit
    smaller: Fit | None
    roomy: Fit | None

    @property
    def headline(self) -> str:
        """What to take, in one sentence."""
        q, best = self.question, self.best
        where = f"{q.shape.name} on {q.machine.said}"
        if best is None:
            return f"{where}: {self._nothing()}"
        said = f"{best.file} ({best.bits:.2f} bits a weight)"
        needs = f"{gigabytes(best.need)} of {gigabytes(q.machine.capacity)}"
        if best.bits < WORN:
            return f"{where}: nothing better than {said} fits, {needs}; {self._rather()}"
        return f"{where}: take {said}, {needs} with {q.context:,} tokens of context."

    def _nothing(self) -> str:
        floor = TASKS[self.question.task].floor
        least = min((f for f in self.fits if f.nominal >= floor), key=lambda f: f.need)
        if self.target.nominal >= 8:
            least = self.target
        asked = f"with the {floor} bits that {self.question.task!r} asks for " if floor > 5 else ""
        return (
            f"nothing {asked}fits. {least.file} needs {gigabytes(least.need)}, "
            f"{gigabytes(-least.spare)} more than there is; {self._rather()}"
        )

    def _rather(self) -> str:
        if self.smaller is None:
            return "take a smaller model or more memory."
        f = self.smaller
        return (
            f"rather take a smaller model at {f.nominal} bits or more, such as "
            f"{f.question.shape.name} in {f.file} ({gigabytes(f.need)})."
        )

    @property
    def arithmetic(self) -> tuple[str, ...]:
        """The numbers put into the formulas, line by line, for `best`, or `target` if none fits."""
        f = self.best or self.target
        q, capacity = self.question, self.question.machine.capacity
        logits = f"{ROWS} × {q.shape.vocab:,} × 4 bytes"
        left = "to spare" if f.fits else "missing"
        lines = [
            f"memory: {q.machine.line}",
            f"weights, {f.file}: {q.shape.params:,.0f} × {f.bits:.4f} bits / 8 = "
            f"{gigabytes(f.weights)}",
            *_caches(q),
            f"reserve: {q.machine.count} × {RUNTIME / GB:g} GB + {logits} = {gigabytes(q.reserve)}",
            f"together: {_number(f.weights)} + {_number(q.cache)} + {_number(q.reserve)} = "
            f"{gigabytes(f.need)} of {gigabytes(capacity)}: {gigabytes(abs(f.spare))} {left}",
        ]
        if f.fits:
            left = f"({capacity:,.0f} − {f.weights:,.0f} − {q.reserve:,.0f})"
            each = f" / {q.token * q.batch:,.0f} bytes"
            if q.kv is not None:
                each = f" less the windows, by{each[2:]} a token, a block at a time"
            lines.append(f"longest context: {left}{each} = {_room(f)}")
            lines += _speeds(f)
        if self.best is None and f.nominal < 8:
            bare = q.shape.params / 2
            lines.append(
                f"codes of exactly 4 bits alone: {q.shape.params:,.0f} × 4 / 8 = {gigabytes(bare)}"
            )
        return tuple(lines)

    @property
    def notes(self) -> tuple[str, ...]:
        """What else to do: servers' formats, longer contexts, offloading, other memories."""
        q, said = self.question, []
        if self.served:
            f = self.served
            words = f"in a GPU server's formats: {f.file}, {gigabytes(f.need)}"
            small = [o for o in self.fits if o.nominal == 4 and o.served and o != f and o.fits]
            words += f", room for {f.room:,} tokens"
            if small and f.room < q.shape.longest:
                words += f"; {small[0].file} has room for {small[0].room:,}"
            said.append(words)
        if self.roomy:
            said.append(
                f"for longer contexts or batches: Q4_K_M has room for {self.roomy.room:,} tokens"
            )
        if self.best and self.best.nominal == 16 and q.task != "benchmark":
            kl = LOSSES["Q8_0"][1]
            said.append(f"Q8_0 is nearly as good (KL {kl:g} on an 8B model) at half the size")
        if q.context > q.shape.longest:
            said.append(f"the model was made for {q.shape.longest:,} tokens, not {q.context:,}")
        if self.best and self.best.spare < 0.05 * q.machine.capacity:
            spare = gigabytes(self.best.spare)
            said.append(f"tight: a display or another program may take the {spare} to spare")
        if not self.target.fits:
            said += self._offload()
        task = TASKS[q.task]
        if self.best and self.best.nominal < task.floor:
            said.append(f"{q.task}: {task.floor} bits or more would be better, see below")
        return tuple(said)

    def _offload(self) -> list[str]:
        f, m = self.target, self.question.machine
        said = [f"{f.file} would need {gigabytes(f.need)}: {gigabytes(-f.spare)} more"]
        if m.device is not None and m.device.kind != "nvidia":
            return said
        if f.devices:
            each = m.device.name if m.device else f"{m.each / GB:.4g} GB"
            said[0] += f", or {f.devices} × {each}"
        rest = f"{f.file} with {gigabytes(f.outside)} left in a CPU's memory"
        most = OFFLOAD.sizes[-1] * GIB
        if f.outside > most:
            return [*said, f"{rest}: more than the {gigabytes(most)} of a board with two channels"]
        speed = f"{OFFLOAD.bandwidth / GB:g} GB/s, {OFFLOAD.name}, assumed"
        return [*said, f"{rest} ({speed}): at most {f.offloaded:.2g} tokens/s"]

    @property
    def evidence(self) -> tuple[tuple[str, str], ...]:
        """(what was found, where) for the choice and its warnings."""
        q, task, said = self.question, TASKS[self.question.task], []
        for f in (self.best, self.served):
            if f and f.file in LOSSES:
                ppl, kl, source = LOSSES[f.file]
                loss = "" if kl is None else f", KL {kl:g}"
                said.append((f"{f.file} on an 8B model: perplexity {ppl:g}{loss}", source))
        if task.words:
            said.append((f"{q.task}: {task.words}", task.source))
        if task.floor < 8 and (self.best is None or self.best.bits < WORN):
            said.append(WORN_WORDS)
        if self.served:
            said.append(SLOWER_WORDS)
        if q.shape.params < SMALL:
            said.append(SMALL_WORDS)
        elif self.best and self.best.nominal <= 4:
            said.append(NEWER_WORDS)
        if q.machine.device:
            low, high = (100 * e for e in EFFICIENCY)
            few = ", ".join(f"{a.what} {100 * a.efficiency:.0f} %" for a in ANCHORS)
            where = "; ".join(dict.fromkeys(a.source for a in ANCHORS))
            said.append((f"{low:.0f}–{high:.0f} % of the bandwidth are reached: {few}", where))
            if q.machine.device.flops:
                said.append(PREFILL_WORDS)
        return tuple(said)

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What was not known and how it was taken."""
        q, m, said = self.question, self.question.machine, []
        if q.shape.like and q.shape.total != q.shape.active_total:
            said.append(f"bits a weight as in {q.shape.like}, whose tensors are known")
        elif q.shape.like:
            said.append(f"layers, heads and bits as in {q.shape.like}, the nearest in size")
        if m.device is None and m.each % GIB:
            sold = m.each / GB * GIB / GB
            said.append(
                f"GB are 10⁹ bytes; a card sold with {m.each / GB:g} GB holds {sold:.1f} of them"
            )
        if m.share != 1:
            said.append(f"{100 * m.share:.0f} % of the memory may be taken by a model")
        if m.count > 1:
            said.append("layers are split over the devices, which work one after another")
        said.append("the reserve for runtime and activations is a guess of usual size")
        if q.shape.active < q.shape.params:
            said.append(f"a token meets {q.shape.active / 1e9:.3g} billion of the parameters")
        return tuple(said)

    def lines(self) -> list[tuple[str, ...]]:
        """The cells of the table, a line for each file; `COLUMNS` names them."""
        return [_cells(f, f in (self.best, self.served)) for f in self.fits]

    def __str__(self) -> str:
        rows = [COLUMNS, *self.lines()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
        table = [
            "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths)))
            for r in rows
        ]
        parts = [self.headline, "", *table, "", *self.arithmetic]
        parts += [f"· {note}" for note in self.notes]
        parts += [f"· {words} [{source}]" for words, source in self.evidence]
        parts += [f"· assumed: {words}" for words in self.assumptions]
        return "\n".join(line.rstrip() for line in parts)

    def __repr__(self) -> str:
        return f"<Advice: {self.headline}>"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(c)}</th>" for c in COLUMNS)
        body = []
        for f, cells in zip(self.fits, self.lines()):
            look = "font-weight:bold" if f in (self.best, self.served) else ""
            look += "" if f.fits else "opacity:0.6"
            rest = "".join(f'<td style="text-align:right">{escape(c)}</td>' for c in cells[1:])
            body.append(f'<tr style="{look}"><td>{escape(cells[0])}</td>{rest}</tr>')
        proofs = [f"{escape(w)} <i>[{escape(s)}]</i>" for w, s in self.evidence]
        notes = [*map(escape, self.notes), *proofs]
        notes += [f"assumed: {escape(words)}" for words in self.assumptions]
        return (
            f"<div><p><b>{escape(self.headline)}</b></p><table><thead><tr>{head}</tr></thead>"
            f"<tbody>{''.join(body)}</tbody></table>"
            f"<pre>{escape(chr(10).join(self.arithmetic))}</pre>"
            f"<ul>{''.join(f'<li>{n}</li>' for n in notes)}</ul></div>"
        )


def _cells(f: Fit, chosen: bool) -> tuple[str, ...]:
    kl = LOSSES.get(f.file, (0, None, ""))[1]
    numbers = (f.weights, f.question.cache, f.need, f.spare)
    return (
        ("▸ " if chosen else "  ") + f.file,
        f"{f.bits:.2f}",
        *map(_number, numbers),
        f"{f.room:,}" if f.room else "—",
        span(f.speed) if f.fits else "—",
        "—" if kl is None else f"{kl:g}",
    )


def _room(f: Fit) -> str:
    longest = f.question.shape.longest
    most = ", but the model was made for no more" if f.room == longest else ""
    return f"{f.room:,} tokens{most}"


def _caches(q: Question) -> list[str]:
    """The KV cache as formulas; with a recipe, a line for keys and one for values."""
    if q.kv is None:
        return [
            f"KV cache: {_cache(q)} a token; × {q.context:,} tokens × {q.batch} = "
            f"{gigabytes(q.cache)}"
        ]
    s, lines = q.shape, []
    heads = f"{s.layers} layers × {s.kv_heads} KV heads × {s.head_dim}"
    for name, side in (("keys", q.kv.key_side), ("values", q.kv.value_side)):
        closed = side.closed(q.context)
        room = min(q.context, side.kept) if side.spec else q.context
        total = q.batch * s.layers * s.kv_heads * s.head_dim * side.bits(q.context) / 8
        lines.append(
            f"KV cache, {name} as {name_of(q.kv)}: ({closed:,} tokens × {side.code_bits:g} bits + "
            f"a window of {room:,} × {FLOAT_BITS}) × {heads} × {q.batch} / 8 = {gigabytes(total)}"
        )
    return lines


def _cache(q: Question) -> str:
    """The bytes of a token in the KV cache, as a formula."""
    s, each = q.shape, f"{q.kv_bits / 8:g} bytes"
    if s.mla:
        return f"{s.layers} layers × ({s.mla[0]} + {s.mla[1]}) × {each} = {q.token:,.0f} bytes"
    heads = f"{s.kv_heads} KV heads × {s.head_dim}"
    return f"2 × {s.layers} layers × {heads} × {each} = {q.token:,.0f} bytes"


def _speeds(f: Fit) -> list[str]:
    """Decode and prompts as formulas; nothing where no device was named."""
    device, q = f.question.machine.device, f.question
    if device is None or f.seconds is None:
        return ["speed: name a hardware to have it estimated"]
    shares = f"{100 * EFFICIENCY[0]:.0f}–{100 * EFFICIENCY[1]:.0f} %"
    lines = [
        f"decode: {gigabytes(f.read)} read a step / {device.bandwidth / GB:g} GB/s = "
        f"{1e3 * f.read / device.bandwidth:.1f} ms at best; at {shares} of it, {q.batch} at once: "
        f"{span(f.speed)} tokens/s"
    ]
    if device.flops:
        shares = f"{100 * PREFILL[0]:.0f}–{100 * PREFILL[1]:.0f} %"
        lines.append(
            f"prompts: {device.flops / 1e12:g} TFLOP/s / (2 × {q.shape.active:,.0f}) at {shares}: "
            f"{span(f.prompt)} tokens/s"
        )
    return lines
