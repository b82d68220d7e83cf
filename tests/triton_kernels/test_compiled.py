"""What Triton makes of the kernels for GPUs that are not here: they compile, nothing spills, and a
weight costs no more instructions than the budget says.

Where a change makes the code better, lower the budget: run this file, it prints what is measured.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script

from cases import FORMATS, INTERPRETING

if importlib.util.find_spec("triton") is None or INTERPRETING:
    pytest.skip("no Triton, or its interpreter instead", allow_module_level=True)

import triton.language as tl

from codecllm_ops.ops.backends.triton import launch
from triton_kernels import compiled

BUDGET = json.loads(Path(__file__).with_name("budget.json").read_text())
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TARGETS = {f"sm_{arch}": target for arch, target in compiled.CUDA.items()} | compiled.HIP
SM_90 = compiled.CUDA[90]

every_target = pytest.mark.parametrize("target", TARGETS)
every_format = pytest.mark.parametrize("fmt", FORMATS)


def tiles_for(fmt: str, dtype: str, m: int, target=SM_90, left: bool = False) -> list[int]:
    """Tile rows of a program, of all choices that the launcher may make."""
    hip = target.backend == "hip"
    arch = None if hip else divmod(target.arch, 10)
    product = launch.operand(FORMATS[fmt], DTYPES[dtype], arch)
    n = max(launch.columns_of_x(m, product), 16 if hip else 0)
    choices = launch.linear_choices(10_000, 32, n, 132, product != tl.float32, left)
    return sorted({tiles for tiles, _ in choices})


def assert_no_spills(kernel, what) -> None:
    if "cubin" in kernel.asm:
        assert compiled.spills(kernel) == 0, what


@pytest.mark.parametrize("m", [1, 16, 32, 64])
@pytest.mark.parametrize("dtype", DTYPES)
@every_format
def test_linear_of_every_format(fmt, dtype, m):
    for tiles in tiles_for(fmt, dtype, m):
        kernel = compiled.linear_kernel(SM_90, FORMATS[fmt], DTYPES[dtype], m, tiles)
        assert_no_spills(kernel, f"{tiles} tiles")


@pytest.mark.parametrize("m", [16, 32])
@every_format
def test_linear_with_predictor_left(fmt, m):
    for dtype in ("bf16", "fp16"):
        for tiles in tiles_for(fmt, dtype, m, left=True):
            kernel = compiled.linear_kernel(SM_90, FORMATS[fmt], DTYPES[dtype], m, tiles, left=True)
            assert_no_spills(kernel, f"{dtype}, {tiles} tiles")


@every_target
def test_kernels_that_report_damage(target):
    for fmt in ("bf16", "int8"):
        kernel = compiled.linear_kernel(
            TARGETS[target], FORMATS[fmt], torch.bfloat16, 16, 2, partial=False, checked=True
        )
        assert_no_spills(kernel, fmt)
        for rows in (False, True):
            kernel = compiled.decode_kernel(TARGETS[target], FORMATS[fmt], 2, rows, checked=True)
            assert_no_spills(kernel, f"decode {fmt}, {rows}")


@pytest.mark.parametrize("m", [1, 64])
@pytest.mark.parametrize("case", ["bf16 x bf16", "int8 x fp16", "fp8_e4m3 x bf16", "fp32 x fp32"])
@every_target
def test_linear_on_every_target(target, case, m):
    fmt, dtype = case.split(" x ")
    target = TARGETS[target]
    for tiles in tiles_for(fmt, dtype, m, target):
        kernel = compiled.linear_kernel(target, FORMATS[fmt], DTYPES[dtype], m, tiles)
        assert_no_spills(kernel, f"{tiles} tiles")


@pytest.mark.parametrize("left", [False, True], ids=["none", "left"])
@every_format
def test_decode_of_every_format(fmt, left):
    for tiles in launch.decode_choices(1 << 20, 132):
        assert_no_spills(compiled.decode_kernel(SM_90, FORMATS[fmt], tiles, left=left), tiles)
    for even in (False, True):
        kernel = compiled.decode_kernel(SM_90, FORMATS[fmt], 2, rows=True, left=left, even=even)
        assert_no_spills(kernel, even)


@every_target
def test_the_others_on_every_target(target):
    target, bf16 = TARGETS[target], FORMATS["bf16"]
    for tiles in launch.decode_choices(1 << 20, 132):
        assert_no_spills(compiled.decode_kernel(target, bf16, tiles), tiles)
    assert_no_spills(compiled.decode_kernel(target, bf16, 1, even=False), "odd")
    assert_no_spills(compiled.decode_kernel(target, bf16, 2, rows=True), "rows")
    kernel = compiled.linear_kernel(target, bf16, torch.bfloat16, 1, 2, left=True, partial=False)
    assert_no_spills(kernel, "left")
    assert_no_spills(compiled.reduce_kernel(target, torch.bfloat16), "reduce")


# ---- instructions -------------------------------------------------------------------------------


def measured(case: str) -> float:
    """Instructions per weight of a case of budget.json."""
    what, tiles = case.split(", ")[0], int(case.split(" tile")[0].split()[-1])
    if what.startswith("decode "):
        kernel = compiled.decode_kernel(SM_90, FORMATS[what.removeprefix("decode ")], tiles)
    else:
        fmt, dtype = what.split(" x ")
        m = int(case.split("M = ")[1].split(",")[0])
        kernel = compiled.linear_kernel(SM_90, FORMATS[fmt], DTYPES[dtype], m, tiles)
    loop = compiled.main_loop(kernel)
    assert loop.local_memory == 0
    return loop.issued / (8 * tiles)  # one group


@pytest.mark.parametrize("case", BUDGET["instructions per weight, sm_90"])
def test_instructions_per_weight(case):
    assert measured(case) <= BUDGET["instructions per weight, sm_90"][case]


@every_target
def test_amd_gets_no_ptx(target):
    kernel = compiled.linear_kernel(TARGETS[target], FORMATS["bf16"], torch.bfloat16, 1, 2)
    assert ("ptx" in kernel.asm) == (TARGETS[target].backend == "cuda")
    assert "inline_asm" not in kernel.asm["ttir"]


@every_target
def test_subnormals_are_not_flushed(target):
    """fp8_e4m3 goes through float32 subnormals; the interpreter would not notice."""
    kernel = compiled.linear_kernel(TARGETS[target], FORMATS["fp8_e4m3"], torch.bfloat16, 1, 2)
    if "ptx" in kernel.asm:
        assert "mul" in kernel.asm["ptx"] and ".ftz" not in kernel.asm["ptx"]
    else:
        assert ".amdhsa_float_denorm_mode_32 3" in kernel.asm["amdgcn"]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_120"])
def test_weights_stay_in_registers(target):
    """The fragments are what tensor cores take: no weight moves between threads."""
    for dtype, fmt in ((torch.bfloat16, "bf16"), (torch.float16, "int8")):
        kernel = compiled.linear_kernel(TARGETS[target], FORMATS[fmt], dtype, 8, 2)
        loop = compiled.main_loop(kernel)
        assert loop.count("HMMA") > 0
        assert loop.count("LDS", "STS", "LDSM", "BAR", "SHFL") == 0


if __name__ == "__main__":
    for name in BUDGET["instructions per weight, sm_90"]:
        print(f"{name}: {measured(name):.2f}")
