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

from codecllm_ops.ops.backends.triton import launch, matrix
from codecllm_ops.ops.backends.triton.choices import Product, decode_choices, linear_choices
from triton_kernels import compiled

_BUDGETS = json.loads(Path(__file__).with_name("budget.json").read_text())
BUDGET = _BUDGETS["instructions per weight, sm_90"]
if launch.TOGETHER:
    BUDGET = BUDGET | _BUDGETS["of them, Triton before 3.8"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

every_target = pytest.mark.parametrize("target", compiled.TARGETS)
every_format = pytest.mark.parametrize("fmt", FORMATS)


def linear_tiles(fmt: str, dtype: str, m: int, target="sm_90", left: bool = False) -> list[int]:
    """Tile rows of a program, of all choices that the launcher may make."""
    device = compiled.device_of(target)
    step = matrix.CODINGS["rans" if fmt in FORMATS else "fixed"].STEP
    found = FORMATS[compiled.format_name(fmt)]
    product = Product.of(found, DTYPES[dtype], m, left, step, device)
    return sorted({tiles for tiles, _ in linear_choices(10_000, 32, product, device)})


def decode_tiles(target="sm_90") -> list[int]:
    return decode_choices(1 << 20, compiled.device_of(target))


def assert_no_spills(kernel, what) -> None:
    if "cubin" in kernel.asm:
        assert compiled.spills(kernel) == 0, what


@pytest.mark.parametrize("m", [1, 16, 32, 64])
@pytest.mark.parametrize("dtype", DTYPES)
@every_format
def test_linear_of_every_format(fmt, dtype, m):
    for tiles in linear_tiles(fmt, dtype, m):
        kernel = compiled.linear_kernel("sm_90", fmt, DTYPES[dtype], m, tiles)
        assert_no_spills(kernel, f"{tiles} tiles")


@pytest.mark.parametrize("case", ["bf16, 1", "bf16, 16", "bf16, 32", "bf16, 64", "fp32, 64"])
def test_linear_of_fixed(case):
    dtype, m = case.split(", ")
    for tiles in linear_tiles("fixed bf16", dtype, int(m)):
        kernel = compiled.linear_kernel("sm_90", "fixed bf16", DTYPES[dtype], int(m), tiles)
        assert_no_spills(kernel, f"{tiles} tiles")


@pytest.mark.parametrize("m", [16, 32])
@every_format
def test_linear_with_predictor_left(fmt, m):
    for dtype in ("bf16", "fp16"):
        for tiles in linear_tiles(fmt, dtype, m, left=True):
            kernel = compiled.linear_kernel("sm_90", fmt, DTYPES[dtype], m, tiles, left=True)
            assert_no_spills(kernel, f"{dtype}, {tiles} tiles")


@every_target
def test_kernels_that_report_damage(target):
    for fmt in ("bf16", "int8", "fixed bf16"):
        kernel = compiled.linear_kernel(
            target, fmt, torch.bfloat16, 16, 2, partial=False, checked=True
        )
        assert_no_spills(kernel, fmt)
        for tiles in (2, None):
            kernel = compiled.decode_kernel(target, fmt, tiles, checked=True)
            assert_no_spills(kernel, f"decode {fmt}, {tiles}")


@pytest.mark.parametrize("m", [1, 64])
@pytest.mark.parametrize("case", ["bf16 x bf16", "int8 x fp16", "fp8_e4m3 x bf16", "fp32 x fp32"])
@every_target
def test_linear_on_every_target(target, case, m):
    fmt, dtype = case.split(" x ")
    for tiles in linear_tiles(fmt, dtype, m, target):
        kernel = compiled.linear_kernel(target, fmt, DTYPES[dtype], m, tiles)
        assert_no_spills(kernel, f"{tiles} tiles")


@pytest.mark.parametrize("left", [False, True], ids=["none", "left"])
@every_format
def test_decode_of_every_format(fmt, left):
    for tiles in decode_tiles():
        assert_no_spills(compiled.decode_kernel("sm_90", fmt, tiles, left), tiles)
    for even in (False, True):
        assert_no_spills(compiled.decode_kernel("sm_90", fmt, None, left, even), even)


@every_target
def test_fixed_on_every_target(target):
    kernel = compiled.linear_kernel(target, "fixed bf16", torch.bfloat16, 1, 2)
    assert_no_spills(kernel, "linear")
    for tiles in (2, None):
        assert_no_spills(compiled.decode_kernel(target, "fixed bf16", tiles), tiles)


@every_target
def test_the_others_on_every_target(target):
    for tiles in (*decode_tiles(target), None):
        assert_no_spills(compiled.decode_kernel(target, "bf16", tiles), tiles)
    assert_no_spills(compiled.decode_kernel(target, "bf16", 1, even=False), "odd")
    kernel = compiled.linear_kernel(target, "bf16", torch.bfloat16, 1, 2, left=True, partial=False)
    assert_no_spills(kernel, "left")
    kernels = compiled.linear_kernels(target, "bf16", torch.bfloat16, 1, 1)
    assert_no_spills(kernels["reduce"], "reduce")


# ---- instructions -------------------------------------------------------------------------------


def measured(case: str) -> float:
    """Instructions per weight of a case of budget.json."""
    what, tiles = case.split(", ")[0], int(case.split(" tile")[0].split()[-1])
    groups = 1
    if what.startswith("decode "):
        fmt = what.removeprefix("decode ")
        kernel = compiled.decode_kernel("sm_90", fmt, tiles)
        groups = 1 if fmt in FORMATS else 4
    else:
        fmt, dtype = what.split(" x ")
        # Of a step in the main loop; without tensor cores steps are of one group.
        groups = 4 if fmt not in FORMATS and dtype != "fp32" else 1
        m = int(case.split("M = ")[1].split(",")[0])
        kernel = compiled.linear_kernel("sm_90", fmt, DTYPES[dtype], m, tiles)
    loop = compiled.main_loop(kernel)
    assert loop.local_memory == 0
    return loop.issued / (8 * tiles * groups)


@pytest.mark.parametrize("case", BUDGET)
def test_instructions_per_weight(case):
    assert measured(case) <= BUDGET[case]


@pytest.mark.parametrize("fmt", ["bf16", "fixed bf16"])
@every_target
def test_amd_gets_no_ptx(target, fmt):
    kernel = compiled.linear_kernel(target, fmt, torch.bfloat16, 1, 2)
    assert ("ptx" in kernel.asm) == (target in compiled.CUDA)
    assert "inline_asm" not in kernel.asm["ttir"]


@every_target
def test_subnormals_are_not_flushed(target):
    """fp8_e4m3 goes through float32 subnormals; the interpreter would not notice."""
    kernel = compiled.linear_kernel(target, "fp8_e4m3", torch.bfloat16, 1, 2)
    if "ptx" in kernel.asm:
        assert "mul" in kernel.asm["ptx"] and ".ftz" not in kernel.asm["ptx"]
    else:
        assert ".amdhsa_float_denorm_mode_32 3" in kernel.asm["amdgcn"]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_120"])
def test_weights_stay_in_registers(target):
    """The fragments are what tensor cores take: no weight moves between threads."""
    cases = (torch.bfloat16, "bf16"), (torch.float16, "int8"), (torch.bfloat16, "fixed bf16")
    for dtype, fmt in cases:
        kernel = compiled.linear_kernel(target, fmt, dtype, 8, 2)
        loop = compiled.main_loop(kernel)
        assert loop.count("HMMA") > 0
        assert loop.count("LDS", "STS", "LDSM", "BAR", "SHFL") == 0


if __name__ == "__main__":
    for name in BUDGET:
        print(f"{name}: {measured(name):.2f}")
