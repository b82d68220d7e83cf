"""Compiles the Triton kernels for GPUs that are not here, and reads the machine code: the functions
of the backend run on CPU tensors, with Triton told to compile and not to launch."""

from __future__ import annotations

import functools
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import codecllm_ops as ops
from cases import FORMATS, weights
from codecllm_ops.ops.backends.triton import launch, tune
from codecllm_ops.ops.backends.triton import ops as backend
from codecllm_ops.ops.backends.triton.choices import Device
from triton_kernels.calls import decode

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import sass_count

CUDA = {f"sm_{arch}": GPUTarget("cuda", arch, 32) for arch in (80, 86, 89, 90, 100, 120)}
HIP = {
    "gfx90a": GPUTarget("hip", "gfx90a", 64),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}
TARGETS = CUDA | HIP
PROCESSORS = 132


def device_of(target: str) -> Device:
    return Device(divmod(CUDA[target].arch, 10) if target in CUDA else None, PROCESSORS)


@contextmanager
def compiling(target: str = "sm_90", choice=None) -> Iterator[list]:
    """Kernels that are launched inside are compiled instead, and listed with their names.

    Args:
        choice: that tune.py makes; None: the first.
    """
    found = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        found.append((self.__name__, kernel))
        return kernel

    def choose(key, candidates, run):
        return candidates()[0] if choice is None else choice

    gpu = SimpleNamespace(
        get_current_device=lambda: list(TARGETS).index(target),
        get_current_target=lambda: TARGETS[target],
        get_current_stream=lambda device=None: 0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", compile_only)
        patch.setattr(driver, "_active", gpu)
        patch.setattr(launch, "device_of", lambda device: device_of(target))
        patch.setattr(tune, "choose", choose)
        yield found


def format_name(fmt: str) -> str:
    """Without the coding."""
    return fmt.removeprefix("fixed ")


@functools.cache
def coded_of(fmt: str, left: bool = False, even: bool = True) -> ops.CodedMatrix:
    """Two tiles beside each other; int8 with a scale per row. `fmt`: a format's name, with "fixed "
    in front in that coding."""
    w, scale = weights(16, 48 if even else 47, FORMATS[format_name(fmt)]), None
    if fmt != format_name(fmt):
        return ops.encode(w, coding="fixed", tile_cols=32, allow_stored=False)
    if w.dtype == torch.int8:
        scale = torch.ones(16)
    predictor = "left" if left else "none"
    return ops.encode(w, scale=scale, tile_cols=32, predictor=predictor, allow_stored=False)


def linear_kernels(target: str, fmt: str, dtype: torch.dtype, m: int, tiles: int,
                   left: bool = False, partial: bool = True, checked: bool = False):  # fmt: skip
    """Compiled kernels by name."""
    coded = coded_of(fmt, left).operand
    x, bias = torch.zeros(m, coded.cols, dtype=dtype), torch.zeros(coded.rows, dtype=dtype)
    with compiling(target, (tiles, 2 if partial else 1)) as found, checking(checked):
        backend.decode_linear(x, coded, bias)
    return dict(found)


def linear_kernel(*args, **kwargs):
    return linear_kernels(*args, **kwargs)["linear"]


def decode_kernel(target: str, fmt: str, tiles: int | None, left: bool = False, even: bool = True,
                  checked: bool = False):  # fmt: skip
    """decode_matrix, or with tiles None decode_rows."""
    coded = coded_of(fmt, left, even).operand
    with compiling(target, tiles) as found, checking(checked):
        if tiles is None:
            backend.decode_rows_words(torch.tensor([3]), coded)
        else:
            decode(coded)
    ((_, kernel),) = found
    return kernel


@contextmanager
def checking(on: bool) -> Iterator[None]:
    before = backend.set_check(on)
    try:
        yield
    finally:
        backend.set_check(before)


def instructions(compiled) -> list[sass_count.Instruction]:
    """SASS of a kernel for an NVIDIA GPU."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        (kernel,) = sass_count.disassemble(file.name).values()
    return kernel


def spills(compiled) -> int:
    """Accesses to local memory (NVIDIA), or spilled registers (AMD)."""
    if "cubin" in compiled.asm:
        return sum(i.name in ("LDL", "STL") for i in instructions(compiled))
    found = re.findall(r"\.(?:s|v)gpr_spill_count:\s+(\d+)", compiled.asm["amdgcn"])
    return sum(map(int, found))


def main_loop(compiled) -> sass_count.Loop:
    return sass_count.main_loop(instructions(compiled))
