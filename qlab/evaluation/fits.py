"""One file on one machine: bytes of weights, KV cache and reserve, room for context, speed.

Decode reads the active weights and the cache once a step, so tokens/s ≤ bandwidth / bytes; prompts
multiply, so tokens/s ≤ FLOP/s / (2 · active parameters), attention not counted.
"""

from __future__ import annotations

import bisect
import dataclasses
import math

from qlab.evaluation.evidence import EFFICIENCY, PREFILL
from qlab.evaluation.machines import GB, OFFLOAD, Machine
from qlab.evaluation.mixtures import FILES, NOMINAL, SERVED, file_bits
from qlab.evaluation.shapes import Shape
from qlab.models.kv import KV

RUNTIME, ROWS = 0.5 * GB, 512  # an assumption: a runtime a device, float32 logits of 512 tokens


@dataclasses.dataclass(frozen=True)
class Question:
    """What is asked: a model on a machine, tokens of context for each of `batch` sequences, bits
    of a number in the KV cache (16; 8.5 is q8_0, 4.5 is q4_0), a key of TASKS, or instead of the
    bits a recipe whose last tokens stay float.
    """

    shape: Shape
    machine: Machine
    context: int = 8192
    batch: int = 1
    kv_bits: float = 16.0
    task: str = "general"
    kv: KV | None = None

    @property
    def token(self) -> float:
        """Bytes of one token in the KV cache; with a recipe: in codes, outside of the window."""
        if self.kv is None:
            return self.shape.cached * self.kv_bits / 8
        sides = (self.kv.key_side, self.kv.value_side)
        return self.shape.cached / 2 * sum(side.code_bits for side in sides) / 8

    @property
    def cache(self) -> float:
        """Bytes of the KV cache when all contexts are full."""
        return self.batch * self.stored(self.context)

    def stored(self, tokens: int) -> float:
        """Bytes of the KV cache of one sequence of so many tokens."""
        if self.kv is None:
            return self.token * tokens
        s = self.shape
        return s.layers * self.kv.bytes(tokens, s.kv_heads, s.head_dim)

    @property
    def reserve(self) -> float:
        """Bytes for the runtime and activations."""
        return RUNTIME * self.machine.count + 4.0 * ROWS * self.shape.vocab


@dataclasses.dataclass(frozen=True)
class Fit:
    """A file and what it needs.

    Attributes:
        file: a key of FILES or SERVED. bits: a weight, the whole file counted.
        weights: bytes of the file. question: what it answers.
    """

    file: str
    bits: float
    weights: float
    question: Question

    @property
    def served(self) -> bool:
        """A GPU server's format, not a GGUF file."""
        return self.file in SERVED

    @property
    def gguf(self) -> bool:
        """A file of llama.cpp's."""
        return self.file in FILES

    @property
    def nominal(self) -> int:
        """Bits of most codes: 4 for Q4_K_M."""
        return NOMINAL.get(self.file, int(self.bits))

    @property
    def need(self) -> float:
        """Bytes in all."""
        return self.weights + self.question.cache + self.question.reserve

    @property
    def spare(self) -> float:
        """Bytes left over; below zero: what is missing."""
        return self.question.machine.capacity - self.need

    @property
    def fits(self) -> bool:
        """Whether it fits with its context."""
        return self.spare >= 0

    @property
    def room(self) -> int:
        """Tokens of context that fit for each sequence; at most what the model was made for."""
        q = self.question
        left = q.machine.capacity - self.weights - q.reserve
        if q.kv is None:
            return max(0, min(q.shape.longest, int(left / (q.token * q.batch))))
        # More tokens never take fewer bytes, so the first that is too many is found by halving.
        asked = range(1, q.shape.longest + 1)
        return bisect.bisect_right(asked, left / q.batch, key=q.stored)

    @property
    def read(self) -> float:
        """Bytes read for a step of decode, all contexts full.

        Sequences of a batch may each wake other experts: all that they can wake are counted.
        """
        q = self.question
        share = min(1.0, q.batch * q.shape.active / q.shape.params)
        return self.weights * share + q.cache

    @property
    def seconds(self) -> float | None:
        """The least time of a step of decode: reading or multiplying, whichever is longer."""
        q, device = self.question, self.question.machine.device
        if device is None:
            return None
        work = 2 * q.shape.active * q.batch / device.flops if device.flops else 0.0
        return max(self.read / device.bandwidth, work)

    @property
    def speed(self) -> tuple[float, float] | None:
        """Tokens/s of decode for all sequences together, low and high; None: no device named."""
        if self.seconds is None:
            return None
        least, most = (share * self.question.batch / self.seconds for share in EFFICIENCY)
        return least, most

    @property
    def prompt(self) -> tuple[float, float] | None:
        """Tokens/s of reading a prompt, low and high; None: FLOP/s unknown."""
        device = self.question.machine.device
        if device is None or not device.flops:
            return None
        least, most = (s * device.flops / (2 * self.question.shape.active) for s in PREFILL)
        return least, most

    @property
    def devices(self) -> int:
        """How many such devices would hold it; 0: the runtime alone fills one."""
        m = self.question.machine
        each = m.each * m.share - RUNTIME
        rest = self.need - RUNTIME * m.count
        return math.ceil(rest / each) if each > 0 else 0

    @property
    def outside(self) -> float:
        """Bytes that would have to stay in a CPU's memory."""
        return max(0.0, -self.spare)

    @property
    def offloaded(self) -> float:
        """Tokens/s at most, for all sequences together, with `outside` read from OFFLOAD."""
        q, device = self.question, self.question.machine.device
        out = self.outside / self.need * self.read
        seconds = out / OFFLOAD.bandwidth
        seconds += (self.read - out) / device.bandwidth if device else 0.0
        return q.batch / seconds


def fit(file: str, question: Question) -> Fit:
    """A file's bits and bytes for a question.

    Example:
        >>> from qlab.evaluation.machines import machine_of
        >>> from qlab.evaluation.shapes import shape_of
        >>> q = Question(shape_of("llama-3.1-70b"), machine_of("24 GB", None))
        >>> round(fit("Q4_K_M", q).weights / 1e9, 2), fit("Q4_K_M", q).fits
        (42.51, False)
    """
    bits = file_bits(file, question.shape)
    return Fit(file, bits, question.shape.params * bits / 8, question)
