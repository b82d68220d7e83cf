"""Which coding a weight has in memory: the rule behind coding="auto", and what users said.

READ ME FIRST
1. Choosing has two halves. choose() looks at a device and is asked once per device: a pure function
   of what it is given, every answer with its reason. recode.py looks at one matrix: what cannot
   gain from `fixed` keeps its coding, under "auto" and under an explicit wish alike.
2. Words from strongest to weakest: an argument that is not "auto"; default_coding(); the variable
   CODECLLM_CODING; the rule.
3. Figures marked as predicted come from instruction counts and a simulator, not from a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch

AUTO, FIXED, RANS = "auto", "fixed", "rans"
WISHES = (AUTO, FIXED, RANS)
VARIABLE = "CODECLLM_CODING"

_RATE = {FIXED: 12.05, RANS: 10.75}
"""Bits per weight that a kernel reads, all in."""

_PREDICTED = {FIXED: 45.0, RANS: 6.0}
"""Weights per clock and multiprocessor that a GPU decodes where memory is no limit. Predicted: by
simulation of sm_90a code; rans: between 5.5 and 7.3 as its kernels are, batch 1."""

MEASURED: Mapping[str, Mapping[str, float]] = {"cpu": {FIXED: 1.96, RANS: 0.58}}
"""Speed of a product with one row of x relative to the dense one, by kind or name of device: the
more of its name an entry has, the more it counts. bf16, 4096 x 4096, two threads of an AMD EPYC
(Zen 4), commit 41b258b (docs/architecture.md)."""


def check_wish(coding: str) -> str:
    """Returns `coding`, or raises ValueError when no coding is called that."""
    if coding not in WISHES:
        known = ", ".join(map(repr, WISHES))
        raise ValueError(f"coding {coding!r} is unknown; known: {known}")
    return coding


# ---- what users said ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """What is asked for, and by whom (the end of a sentence).

    Attributes:
        demanded: by an argument: then it is an error where it cannot be met.
    """

    coding: str
    source: str = ""
    demanded: bool = False

    @property
    def explicit(self) -> bool:
        return self.coding != AUTO


_default: ContextVar[str] = ContextVar("codecllm_coding", default=AUTO)


@contextmanager
def default_coding(coding: str) -> Iterator[None]:
    """What "auto" means while this is entered: for folders that somebody else loads.

    with codecllm.default_coding("rans"):
        model = AutoModelForCausalLM.from_pretrained(folder)

    Raises:
        ValueError: no coding is called that.
    """
    token = _default.set(check_wish(coding))
    try:
        yield
    finally:
        _default.reset(token)


def wish(*said: str) -> Wish:
    """The first of `said` that is not "auto"; else what default_coding() or the variable says.

    Raises:
        ValueError: the name of no coding; says if it is the variable's.
    """
    for coding in map(check_wish, said):
        if coding != AUTO:
            return Wish(coding, "asked for", demanded=True)
    if (coding := _default.get()) != AUTO:
        return Wish(coding, "default_coding()")
    coding = os.environ.get(VARIABLE, "").lower() or AUTO
    if coding not in WISHES:
        raise ValueError(f"{VARIABLE}={coding} is not one of {', '.join(WISHES)}")
    return Wish(coding, f"{VARIABLE}={coding}" if coding != AUTO else "")


# ---- the rule -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """What the rule looks at.

    Attributes:
        type: "cpu", "cuda"...
        name: as the driver gives it.
        bytes_per_clock: that memory delivers per clock and multiprocessor, of a GPU; None: unknown.
    """

    type: str
    name: str = ""
    bytes_per_clock: float | None = None

    @staticmethod
    def of(device: torch.device | str) -> Device:
        """A device of this machine, or only its kind where torch cannot look."""
        device = torch.device(device)
        if device.type != "cuda" or not torch.cuda.is_available():
            return Device(device.type)
        p = torch.cuda.get_device_properties(device)
        # In kHz and bits; double data rate.
        memory = 2e3 * getattr(p, "memory_clock_rate", 0) * getattr(p, "memory_bus_width", 0) / 8
        clocks = 1e3 * getattr(p, "clock_rate", 0) * p.multi_processor_count
        return Device("cuda", p.name, memory / clocks if memory and clocks else None)


@dataclass(frozen=True)
class Choice:
    """A coding and why: "fixed: this CPU ..."."""

    coding: str
    reason: str

    def __str__(self) -> str:
        return f"{self.coding}: {self.reason}"


def choose(
    device: Device,
    *,
    fixed_bytes: int = 0,
    room: int | None = None,
    measured: Mapping[str, Mapping[str, float]] = MEASURED,
) -> Choice:
    """The coding that weights of bf16 should have in the memory of a device.

    Args:
        fixed_bytes: what all weights together would take as fixed.
        room: bytes that there are for them; None: enough.
        measured: relative speeds by kind or name of device.
    """
    if room is not None and fixed_bytes > room:
        need, have = fixed_bytes / 2**30, room / 2**30
        return Choice(RANS, f"memory is short: fixed takes {need:.2f} GiB, {have:.2f} are there")
    if speeds := _measured(device, measured):
        best = max(speeds, key=lambda coding: speeds[coding])
        return Choice(best, f"measured on {_name(device)}: {_shown(speeds, 'x the dense speed')}")
    if device.type != "cuda":
        return Choice(FIXED, f"the fewest instructions, and {_name(device)} was not measured")
    if device.bytes_per_clock is None:
        return Choice(
            FIXED, f"{_name(device)} does not tell its bandwidth; the fewest instructions"
        )
    speeds = {c: min(_PREDICTED[c], 8 * device.bytes_per_clock / _RATE[c]) for c in _PREDICTED}
    best = max(speeds, key=lambda coding: speeds[coding])
    figures = _shown(speeds, "weights per clock and multiprocessor")
    return Choice(best, f"predicted for {_name(device)}: {figures}")


def _measured(
    device: Device, measured: Mapping[str, Mapping[str, float]]
) -> Mapping[str, float] | None:
    known = [key for key in measured if key == device.type or (key and key in device.name)]
    return measured[max(known, key=lambda key: (key != device.type, len(key)))] if known else None


def _name(device: Device) -> str:
    return device.name or ("a CPU" if device.type == "cpu" else device.type)


def _shown(speeds: Mapping[str, float], unit: str) -> str:
    return ", ".join(f"{coding} {speed:.3g}" for coding, speed in speeds.items()) + f" {unit}"


def decide(said: Wish, device: Device, fixed_bytes: int = 0, room: int | None = None) -> Choice:
    """What a wish comes to on a device."""
    if said.explicit:
        return Choice(said.coding, said.source)
    return choose(device, fixed_bytes=fixed_bytes, room=room)


# ---- memory ------------------------------------------------------------------------------------


def free_bytes(device: torch.device) -> int | None:
    """Memory of a device that nobody has yet; None: not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _free_on_host() if device.type == "cpu" else None


def _free_on_host() -> int | None:
    """Of the machine, or of the group of processes whose memory is limited (containers)."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return None
    try:
        group = Path("/sys/fs/cgroup")
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        most = int((group / "memory.max").read_text())  # "max" where there is no limit
        return min(free, most - int(stat["anon"]) - int(stat["shmem"]))
    except (OSError, KeyError, ValueError):
        return free
