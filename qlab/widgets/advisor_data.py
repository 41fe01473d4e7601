"""The state of `advisor()` and what it may be; the numbers are `qlab.advise`'s."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qlab.evaluation.advice import Advice
from qlab.evaluation.advise import advise
from qlab.evaluation.evidence import TASKS
from qlab.evaluation.machines import HARDWARE
from qlab.suggest import near

ANY = "any"  # hardware: a memory, without a speed
MEMORIES = (4, 6, 8, 12, 16, 24, 32, 36, 48, 64, 80, 96, 128, 141, 160, 192, 256, 320, 512, 640,
            1128)  # fmt: skip
CONTEXTS = (512, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CACHES = (("16 bits", 16.0), ("8.5, q8_0", 8.5), ("4.5, q4_0", 4.5))
DEVICES = (ANY, *HARDWARE)
TASK_NAMES = tuple(TASKS)


@dataclass(frozen=True)
class AdvisorState:
    """`memory` in GiB, of all devices together; the rest as in `qlab.advise`."""

    model: str = "llama-3.1-70b"
    hardware: str = ANY
    memory: int = 48
    context: int = 8192
    batch: int = 1
    kv_bits: float = 16.0
    task: str = "general"


def memory_on(hardware: str, memory: int | None) -> int:
    """A memory that the hardware can have: several GPUs, but no more of others than are sold.

    Args:
        hardware: ANY, or a key of HARDWARE.
        memory: in GiB, one of MEMORIES; None: as much as one such device is sold with.

    Raises:
        ValueError: unknown hardware.

    Example:
        >>> memory_on("Apple M1 Max", 128), memory_on("RTX 3090", 48), memory_on("H100", None)
        (64, 48, 80)
    """
    if hardware == ANY:
        return 24 if memory is None else memory
    if hardware not in HARDWARE:
        raise ValueError(f"no hardware is called {hardware!r}: {near(hardware, DEVICES)}")
    device = HARDWARE[hardware]
    most = MEMORIES[-1] if device.kind == "nvidia" else device.sizes[-1]
    return (
        device.sizes[-1] if memory is None else max(m for m in MEMORIES if m <= min(memory, most))
    )


def advisor_data(model: Any, state: AdvisorState) -> Advice:
    """The advice for a state.

    Args:
        model: what `state.model` names: a Shape, a loaded model, a name or a size.
        state: what is chosen.

    Example:
        >>> advisor_data("llama-3.1-70b", AdvisorState()).best.file
        'Q4_K_M'
    """
    hardware = None if state.hardware == ANY else state.hardware
    memory = f"{state.memory} GiB"
    return advise(model, memory, hardware, state.context, state.batch, state.task, state.kv_bits)
