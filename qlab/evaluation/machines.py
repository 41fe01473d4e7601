"""Where a model shall run: how much memory, how fast it is read, how fast is multiplied.

Sizes of devices are in GiB (2³⁰ bytes): memory chips come in powers of two, and a card sold as
24 GB holds 24 GiB. A memory said without a device is read as written: 24 GB are 24·10⁹ bytes.
"""

from __future__ import annotations

import dataclasses
import math
import re

from qlab.suggest import near

GB, GIB = 1e9, 2.0**30
# The share of a device's memory that a model may take; an assumption but for Apple's 64 GiB, where
# llama.cpp prints a recommendedMaxWorkingSetSize of 51539.61 MB, three quarters.
SHARES = {"nvidia": 1.0, "apple": 0.75, "cpu": 0.85, "edge": 0.75, "phone": 0.5}


@dataclasses.dataclass(frozen=True)
class Device:
    """A device.

    Attributes:
        name: as it is asked for. kind: a key of SHARES.
        sizes: GiB that it is sold with, ascending.
        bandwidth: of its memory, bytes a second.
        flops: dense 16-bit, with sums in float32 on NVIDIA's; None: its maker does not say.
        formats: keys of `mixtures.SERVED` that its tensor cores or kernels serve.
        source: of the numbers.
    """

    name: str
    kind: str
    sizes: tuple[int, ...]
    bandwidth: float
    flops: float | None
    formats: tuple[str, ...]
    source: str


_AMPERE = ("INT8", "AWQ 4-bit")
_ADA = ("FP8", *_AMPERE)
_BLACKWELL = (*_ADA, "NVFP4")


def _nvidia(name: str, size: int, bandwidth: float, tera: float, formats: tuple, source: str):
    return Device(name, "nvidia", (size,), bandwidth * GB, tera * 1e12, formats, source)


def _other(name: str, kind: str, sizes: tuple, bandwidth: float, tera: float | None, source: str):
    flops = None if tera is None else tera * 1e12
    return Device(name, kind, sizes, bandwidth * GB, flops, (), source)


# What NVIDIA's white papers call FP16 with sums in float32 is twice the shaders' FLOP/s. "Compared
# with": a page by others that has the same numbers; the makers' own were not at hand.
_GEFORCE = "NVIDIA's data sheet; FLOP/s: twice the shaders'; compared with "
_HOPPER = "NVIDIA's data sheet, SXM, without sparsity; compared with glennklockwood.com, H100"
_APPLE = "Apple's press release; compared with "
_BUS = "bytes of the bus × transfers a second"
_ALL = (
    _nvidia("RTX 3060 12GB", 12, 360, 25.5, _AMPERE, _GEFORCE + "sysrqmts.com"),
    _nvidia("RTX 4060 8GB", 8, 272, 30.2, _ADA, _GEFORCE + "hmc-tech.com, fpsbench.com"),
    _nvidia("RTX 3090", 24, 936, 71, _AMPERE, _GEFORCE + "holynerdvana.blogspot.com"),
    _nvidia("RTX 4090", 24, 1008, 165.2, _ADA, _GEFORCE + "hmc-tech.com, fpsbench.com"),
    _nvidia("RTX 5090", 32, 1792, 209.5, _BLACKWELL, _GEFORCE + "spheron.network (838 sparse / 4)"),
    _nvidia("H100", 80, 3350, 989.4, _ADA, _HOPPER),
    _nvidia("H200", 141, 4800, 989.4, _ADA, _HOPPER + "; ai-hpc.github.io, 8x-H200"),
    _other("Apple M1", "apple", (8, 16), 68.25, 2.6,
           "LPDDR4X-4266 on 128 bits: " + _BUS + "; FLOP/s: " + _APPLE + "hmc-tech.com"),
    _other("Apple M1 Max", "apple", (32, 64), 400, 10.4, _APPLE + "calendar-uk.co.uk, Apple GPU"),
    _other("Apple M2", "apple", (8, 16, 24), 100, 3.6, _APPLE + "applebuyegypt.com, macrumors.com"),
    _other("Apple M2 Ultra", "apple", (64, 128, 192), 800, 27.2, _APPLE + "apple.com/pl/mac-pro"),
    _other("Apple M3 Max", "apple", (48, 64, 128), 400, None,
           _APPLE + "macmegasite.com; 40 GPU cores; sizes not compared"),
    _other("Apple M4", "apple", (16, 24, 32), 120, None, _APPLE + "mactrast.com"),
    _other("Apple M4 Pro", "apple", (24, 48, 64), 273, None, _APPLE + "techmoran.com"),
    _other("Apple M4 Max", "apple", (48, 64, 128), 546, None,
           _APPLE + "macrumors.com, 2024-10-30; 40 GPU cores"),
    _other("Apple M3 Ultra", "apple", (96, 256, 512), 819, None, _APPLE + "techpowerup.com"),
    _other("phone", "phone", (8, 12, 16), 76.8, None, "LPDDR5X-9600 on 64 bits: " + _BUS),
    _other("Jetson AGX Orin", "edge", (32, 64), 204.8, None,
           "LPDDR5-6400 on 256 bits: " + _BUS + "; not compared with NVIDIA's data sheet"),
    _other("Raspberry Pi 5", "edge", (8, 16), 17.1, None,
           "LPDDR4X-4267 on 32 bits (compared with circuitdigest.com): " + _BUS),
    _other("CPU DDR4", "cpu", (16, 32, 64, 128), 51.2, None, "DDR4-3200, 2 channels: " + _BUS),
    _other("CPU DDR5", "cpu", (16, 32, 64, 128, 192), 89.6, None, "DDR5-5600, 2 channels: " + _BUS),
)  # fmt: skip
HARDWARE = {device.name: device for device in _ALL}
OFFLOAD = HARDWARE["CPU DDR5"]  # where that goes which does not fit: an assumption


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a model may use.

    Attributes:
        said: as it was asked for.
        each: bytes of one device. count: of devices. share: that a model may take.
        device: None where only a memory was said.
    """

    said: str
    each: float
    count: int = 1
    share: float = 1.0
    device: Device | None = None

    @property
    def capacity(self) -> float:
        """Bytes that a model may take."""
        return self.each * self.count * self.share

    @property
    def line(self) -> str:
        """How the capacity comes about."""
        unit, name = (GIB, "GiB") if self.device else (GB, "GB")
        parts = f"{self.count} × " if self.count > 1 else ""
        parts += f"{self.each / unit:.4g} {name}"
        parts += f" × {self.share:.2f} usable" if self.share != 1 else ""
        plain = self.device is None and self.count == 1
        return f"{self.capacity / GB:.2f} GB" if plain else f"{parts} = {self.capacity / GB:.2f} GB"


_MEMORY = re.compile(r"(?:(\d+)\s*[x×*]\s*)?(\d+(?:\.\d+)?)\s*(gb|gib|g|tb|tib|mb|mib)?", re.I)
_SCALE = {"gb": GB, "g": GB, "gib": GIB, "tb": 1e12, "tib": 2.0**40, "mb": 1e6, "mib": 2.0**20}
MOST_DEVICES = 4096


def memory_of(memory: float | str) -> tuple[int, float, bool]:
    """(devices, bytes of each, said in powers of two) of 24, "24 GB", "24 GiB" or "2x24 GB".

    Raises:
        ValueError: it is none of these.

    Example:
        >>> memory_of("2x24 GB")
        (2, 24000000000.0, False)
    """
    found = _MEMORY.fullmatch(str(memory).strip().replace(",", ""))
    if isinstance(memory, bool) or not found:
        raise ValueError(f"memory {memory!r:.40} is not of the form 24, '24 GB' or '2x24 GB'")
    count, each = int(found[1] or 1), float(found[2])
    unit = (found[3] or "gb").lower()
    if not 1 <= count <= MOST_DEVICES or not 0 < each < 1e6:
        raise ValueError(f"memory {memory!r:.40}: between 1 and {MOST_DEVICES} devices, above 0 GB")
    return count, each * _SCALE[unit], unit.endswith("ib")


def machine_of(memory: float | str | None, hardware: str | None) -> Machine:
    """A machine from what was said of it.

    With a device, sizes are GiB whatever the unit, and a memory larger than that of a GPU is
    several of them.

    Args:
        memory: as in `memory_of`; None: the device's.
        hardware: a key of HARDWARE, also as "2x RTX 3090" or "Apple M4 Max 64GB".

    Raises:
        ValueError: neither is given, an unknown device, or one sold with several sizes without a
            memory, or more memory than it has.

    Example:
        >>> machine_of(None, "2x RTX 3090").line
        '2 × 24 GiB = 51.54 GB'
    """
    if hardware is None:
        if memory is None:
            raise ValueError("say a memory, such as '24 GB', or a hardware, such as 'RTX 4090'")
        count, each, binary = memory_of(memory)
        said = f"{count} × " if count > 1 else ""
        unit, name = (GIB, "GiB") if binary else (GB, "GB")
        return Machine(f"{said}{each / unit:.4g} {name}", each, count)
    copies, device, tail = _device(hardware)
    if memory is not None and (copies > 1 or tail):
        raise ValueError(f"{hardware!r} and memory {memory!r} both say how much; give one")
    if memory is None:
        size = tail or device.sizes[0]
        if len(device.sizes) > 1 and not tail:
            sizes = " or ".join(map(str, device.sizes))
            raise ValueError(f"{device.name!r} comes with {sizes} GiB: say memory='64 GB'")
        return _machine(device, copies, size)
    count, each, binary = memory_of(memory)
    size = each / (GIB if binary else GB)
    if device.kind != "nvidia" and count * size > device.sizes[-1]:
        raise ValueError(f"{device.name!r} has at most {device.sizes[-1]} GiB, not {memory!r}")
    if count == 1 and size > device.sizes[-1]:
        count = math.ceil(size / device.sizes[-1])
        size /= count
    return _machine(device, count, size)


def _machine(device: Device, count: int, size: float) -> Machine:
    said = f"{count} × {device.name}" if count > 1 else device.name
    said += "" if re.search(r"\dGB$", device.name) else f" {size:.4g}GB"
    return Machine(said, size * GIB, count, SHARES[device.kind], device)


def _device(hardware: str) -> tuple[int, Device, float]:
    """(copies, device, GiB said after the name or 0)."""
    known = {re.sub(r" \d+GB$", "", name).lower(): device for name, device in HARDWARE.items()}
    known |= {name.lower(): device for name, device in HARDWARE.items()}
    found = re.fullmatch(r"\s*(?:(\d+)\s*[x×]\s*)?(.*?)\s*", str(hardware))
    copies, name = (int(found[1] or 1), found[2].lower()) if found else (1, "")
    tail = re.fullmatch(r"(.*?)\s+(\d+)\s*g(?:i?b)", name)
    if name not in known and tail and tail[1] in known:
        return copies, known[tail[1]], float(tail[2])
    if name not in known or not 1 <= copies <= MOST_DEVICES:
        raise ValueError(f"no hardware is called {hardware!r:.60}: {near(name, HARDWARE)}")
    return copies, known[name], 0.0
