"""What nvcc makes of the kernels: instructions per weight against the committed budget, no spills.

Where a change makes the code better, lower the budget: `python tests/cuda/test_sass.py` prints what
is measured with the nvcc at hand.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import sass_count  # noqa: E402

from cases import ALL_FORMATS  # noqa: E402

BUDGET = json.loads(Path(__file__).with_name("budget.json").read_text())
FORMATS = [f.name for f in ALL_FORMATS]
ARCHS = ["75", "80", "86", "89", "90a", "100a", "120"]
# One trip of the fused loop: eight groups of four pairs.
WEIGHTS_PER_LANE = 64

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None or sass_count.cuobjdump() is None,
    reason="no nvcc or no cuobjdump (a CUDA toolkit's, or triton's)",
)


@functools.cache
def kernels_of(fmt: str, arch: str) -> dict[str, list]:
    return kernels_in(f"kernels_{fmt}.cu", arch)


@functools.cache
def kernels_in(source: str, arch: str) -> dict[str, list]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        subprocess.run(
            ["nvcc", "-cubin", f"-arch=sm_{arch}", "-std=c++17", "-O3", f"-I{ROOT}/csrc",
             "-o", cubin, ROOT / "csrc/cuda" / source],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return sass_count.disassemble(cubin)


def fused_loops(kernels) -> dict[str, sass_count.Loop]:
    """Main loops of linear_mma by "activation/rows of x"; own: the weights' type."""
    loops = {}
    for name, kernel in kernels.items():
        if found := re.search(
            r"linear_mma.*RansSource.*ELb0EEE(?:NS_4(Bf16|Fp16)E|S3_)Li(\d+)E", name
        ):
            activation = (found[1] or "own").lower()
            loops[f"{activation}/{found[2]}"] = sass_count.main_loop(kernel)
    return loops


def fixed_loops() -> dict[str, sass_count.Loop]:
    """Main loops of linear_mma for the coding fixed, by rows of x."""
    return {
        found[1]: sass_count.main_loop(kernel)
        for name, kernel in kernels_of("bf16", "90a").items()
        if (found := re.search(r"linear_mma.*FixedSource.*Li(\d+)E", name))
    }


def test_every_format_has_its_file():
    """Nobody else compiles its kernels: the library would not load."""
    files = {path.stem.removeprefix("kernels_") for path in ROOT.glob("csrc/cuda/kernels_*.cu")}
    assert files == set(FORMATS)


@needs_nvcc
@pytest.mark.parametrize("fmt", [f for f in FORMATS if f != "fp32"])
def test_instructions_per_weight(fmt):
    budget = BUDGET["instructions per weight, sm_90a"][fmt]
    loops = fused_loops(kernels_of(fmt, "90a"))
    assert loops.keys() == budget.keys()
    for name, loop in loops.items():
        issued, integer_pipe = budget[name]
        assert loop.local_memory == 0, f"{name}: spills in the main loop"
        assert loop.issued / WEIGHTS_PER_LANE <= issued, f"{name}: budget {issued}"
        assert loop.integer_pipe / WEIGHTS_PER_LANE <= integer_pipe, f"{name}: {integer_pipe}"


@needs_nvcc
@pytest.mark.parametrize("fmt", BUDGET["decode, instructions per weight, sm_90a"])
def test_decode_instructions_per_weight(fmt):
    kernels = kernels_of(fmt, "90a")
    (loop,) = (
        sass_count.main_loop(k) for n, k in kernels.items() if "decode_matrix" in n and "Lb0E" in n
    )
    budget = BUDGET["decode, instructions per weight, sm_90a"][fmt]
    assert loop.local_memory == 0
    assert loop.issued / WEIGHTS_PER_LANE <= budget, loop.issued / WEIGHTS_PER_LANE


@needs_nvcc
def test_fixed_instructions_per_weight():
    budget = BUDGET["fixed, instructions per weight, sm_90a"]
    loops = fixed_loops()
    assert loops.keys() == budget.keys()
    for m, loop in loops.items():
        issued, integer_pipe = budget[m]
        assert loop.local_memory == 0, f"{m}: spills in the main loop"
        assert loop.issued / WEIGHTS_PER_LANE <= issued, f"{m}: budget {issued}"
        assert loop.integer_pipe / WEIGHTS_PER_LANE <= integer_pipe, f"{m}: {integer_pipe}"


@needs_nvcc
@pytest.mark.parametrize("m", ["1", "2", "4", "8"])
def test_fixed_takes_less_than_1_8_instructions_per_weight(m):
    """What the coding was made for, whatever the budget says."""
    assert fixed_loops()[m].issued <= 1.8 * WEIGHTS_PER_LANE


@needs_nvcc
def test_fixed_reads_twelve_bits_per_weight():
    """A trip is what the tests take it for: eight groups, 96 bytes a lane."""
    for m, loop in fixed_loops().items():
        loads = [i.opcode for i in loop.path if i.name == "LDG"]
        assert len(loads) * 16 * 8 == 12 * WEIGHTS_PER_LANE, m
        assert all(".128" in opcode for opcode in loads)


@needs_nvcc
def test_fixed_decode_instructions_per_weight():
    (loop,) = (
        sass_count.main_loop(kernel)
        for name, kernel in kernels_of("bf16", "90a").items()
        if "decode_matrix" in name and "FixedSource" in name
    )
    budget = BUDGET["fixed, decode, instructions per weight, sm_90a"]
    assert loop.local_memory == 0
    assert loop.issued / WEIGHTS_PER_LANE <= budget, loop.issued / WEIGHTS_PER_LANE


@needs_nvcc
def test_conversions_have_no_local_memory_in_main_loops():
    kernels = kernels_in("to_fixed.cu", "90a")
    assert len(kernels) == 6  # two passes over rans, rans with a predictor, and stored
    for name, kernel in kernels.items():
        assert sass_count.main_loop(kernel).local_memory == 0, name


@needs_nvcc
@pytest.mark.parametrize("m", [1, 2, 4, 8])
def test_bf16_takes_nine_instructions_per_weight(m):
    """What README and docs promise, whatever the budget says."""
    assert fused_loops(kernels_of("bf16", "90a"))[f"own/{m}"].issued <= 9 * WEIGHTS_PER_LANE


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHS)
def test_compiles_without_local_memory_in_main_loops(arch):
    for name, kernel in kernels_of("bf16", arch).items():
        if arch == "75" and "linear_mma" in name:
            continue  # never launched there: MMA of bf16 begins with sm_80
        assert sass_count.main_loop(kernel).local_memory == 0, name


@needs_nvcc
@pytest.mark.parametrize("fmt", FORMATS)
def test_decode_loops_have_no_local_memory(fmt):
    for name, kernel in kernels_of(fmt, "90a").items():
        if "Lb0E" in name:
            assert sass_count.main_loop(kernel).local_memory == 0, name


def test_usual_path_skips_what_is_rare():
    def instruction(address, opcode, arguments=""):
        return sass_count.Instruction(address, "", opcode, arguments)

    kernel = [
        instruction(0x00, "MOV"),
        instruction(0x10, "LDS"),
        instruction(0x20, "BRA.DIV", "UR4, 0x90"),
        instruction(0x30, "BRA", "0x60"),
        instruction(0x40, "LDS"),
        instruction(0x50, "LDL"),
        instruction(0x60, "HMMA.16816.F32"),
        instruction(0x70, "BRA", "0x10"),
        instruction(0x80, "EXIT"),
        instruction(0x90, "BRA", "0x90"),
    ]
    loop = sass_count.main_loop(kernel)
    assert [i.address for i in loop.path] == [0x10, 0x20, 0x30, 0x60, 0x70]
    assert loop.count("HMMA") == 1 and loop.local_memory == 0


if __name__ == "__main__":

    def per_weight(loops: dict[str, sass_count.Loop]) -> dict[str, list[float]]:
        return {
            name: [round(v / WEIGHTS_PER_LANE, 2) for v in (loop.issued, loop.integer_pipe)]
            for name, loop in loops.items()
        }

    measured = {fmt: per_weight(fused_loops(kernels_of(fmt, "90a"))) for fmt in FORMATS}
    print(json.dumps({**measured, "fixed": per_weight(fixed_loops())}, indent=1))
