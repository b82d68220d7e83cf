"""Counts the instructions of a kernel's main loop in a cubin, along the path that is nearly always
taken.

The main loop is the innermost loop with the most tensor core instructions, or without any, the most
shared-memory loads, or without those, accesses to global memory. On its path a forward branch
inside the loop is taken (it skips what is rare: escapes, special values), a divergence check
(BRA.DIV) is not.

    python tools/sass_count.py kernels.cubin [part of a kernel's mangled name]

The counts of csrc/cuda's kernels are budgeted in tests/cuda/budget.json.

Needs cuobjdump: the toolkit's, or the one that the triton wheel carries.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,6})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")
_TARGET = re.compile(r"0x([0-9a-f]+)")

# What Hopper's integer pipe executes, at half the rate of the others (16 lanes a clock and
# scheduler): the limit that is met first. Left out: IMAD and HFMA2, which the FMA pipe takes.
INTEGER_PIPE = (
    "LOP3", "SHF", "VIADD", "IADD3", "ISETP", "VIMNMX", "VIMNMX3", "PRMT", "LEA", "SEL", "PLOP3",
    "IMNMX", "SGXT", "BMSK", "FLO", "POPC", "MOV",
)  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    address: int
    predicate: str
    opcode: str
    arguments: str

    @property
    def name(self) -> str:
        return self.opcode.split(".")[0]

    @property
    def target(self) -> int | None:
        found = _TARGET.search(self.arguments) if self.name == "BRA" else None
        return int(found[1], 16) if found else None


@dataclass(frozen=True)
class Loop:
    """The main loop's usual path."""

    path: tuple[Instruction, ...]

    @property
    def issued(self) -> int:
        return len(self.path)

    @property
    def local_memory(self) -> int:
        return self.count("LDL", "STL")

    @property
    def integer_pipe(self) -> int:
        return sum(i.name in INTEGER_PIPE for i in self.path)

    def count(self, *names: str) -> int:
        return sum(i.name in names for i in self.path)

    def histogram(self) -> Counter:
        return Counter(i.name for i in self.path)


def cuobjdump() -> str | None:
    """The program's path, or None."""
    if found := shutil.which("cuobjdump"):
        return found
    if spec := importlib.util.find_spec("triton"):
        bundled = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
        if bundled.exists():
            return str(bundled)
    return None


def disassemble(cubin: str | Path) -> dict[str, list[Instruction]]:
    """Instructions of every kernel, by mangled name, without NOPs."""
    program = cuobjdump()
    if program is None:
        raise FileNotFoundError("cuobjdump: neither a CUDA toolkit's nor triton's is here")
    text = subprocess.run(
        [program, "-sass", str(cubin)], check=True, capture_output=True, text=True
    ).stdout
    kernels: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if found := re.search(r"Function : (\S+)", line):
            current = kernels.setdefault(found[1], [])
        elif (found := _LINE.match(line)) and found[3] != "NOP":
            current.append(Instruction(int(found[1], 16), found[2] or "", found[3], found[4]))
    return kernels


def main_loop(kernel: list[Instruction]) -> Loop:
    """Of the loops without a loop inside, the one that works most, and best among equals."""
    ends = [i for i in kernel if i.target is not None and i.target <= i.address]
    loops = [(i.target, i.address) for i in ends]
    innermost = [
        (a, b)
        for a, b in loops
        if not any(a <= c and d <= b and (a, b) != (c, d) for c, d in loops)
    ]
    if not innermost:
        raise ValueError("a kernel without a loop")
    paths = [_usual_path(kernel, begin, end) for begin, end in innermost]
    return max(
        paths, key=lambda p: (p.count("HMMA"), p.count("LDS"), p.count("LDG", "STG"), -p.issued)
    )


def _usual_path(kernel: list[Instruction], begin: int, end: int) -> Loop:
    path, at = [], begin
    for i in kernel:
        if not begin <= i.address <= end or i.address < at:
            continue
        path.append(i)
        target = i.target
        if target is not None and i.address < target <= end and i.opcode != "BRA.DIV":
            at = target
    return Loop(tuple(path))


def main() -> None:
    wanted = sys.argv[2] if len(sys.argv) > 2 else ""
    for name, kernel in disassemble(sys.argv[1]).items():
        if wanted in name:
            loop = main_loop(kernel)
            print(f"{name}: {loop.issued} issued, {loop.integer_pipe} on the integer pipe")
            print("   ", ", ".join(f"{n} {c}" for n, c in loop.histogram().most_common()))


if __name__ == "__main__":
    main()
