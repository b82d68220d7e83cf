"""Compiles the Triton kernels for GPUs that are not here, and reads the machine code."""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from codecllm_ops.format import WeightFormat
from codecllm_ops.ops.backends.triton import decode, launch, linear

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import sass_count

CUDA = {arch: GPUTarget("cuda", arch, 32) for arch in (80, 86, 89, 90, 100, 120)}
HIP = {
    "gfx90a": GPUTarget("hip", "gfx90a", 64),
    "gfx942": GPUTarget("hip", "gfx942", 64),
    "gfx1100": GPUTarget("hip", "gfx1100", 32),
}

_POINTERS = {
    "coded": "*u8", "raw": "*i32", "index": "*i32", "table": "*i32", "status": "*i64",
    "ids": "*i64", "scale": "*fp32", "partial": "*fp32",
}  # fmt: skip
_DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def _compile(kernel, target: GPUTarget, pointers: dict, constants: dict, **options):
    signature, constexprs = {}, {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name], constexprs[name] = "constexpr", constants[name]
        else:
            signature[name] = (_POINTERS | pointers).get(name, "i32")
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(kernel, signature, constexprs=constexprs, attrs=aligned)
    return triton.compile(source, target=target, options=options)


def linear_kernel(target, fmt: WeightFormat, dtype: torch.dtype, m: int, tiles: int,
                  left: bool = False, partial: bool = True, checked: bool = False):  # fmt: skip
    hip = target.backend == "hip"
    product = launch.operand(fmt, dtype, None if hip else divmod(target.arch, 10))
    n = launch.columns_of_x(m, product)
    n = max(n, 16) if hip else n
    name = _DTYPES[dtype]
    return _compile(
        linear.linear,
        target,
        {"x": f"*{name}", "bias": f"*{name}", "out": "*fp32" if partial else f"*{name}"},
        launch.format_constants(fmt)
        | {"SCALE_BITS": 11, "LEFT": left, "OPERAND": product, "N": n, "T": tiles,
           "PARTIAL": partial, "PER_ROW": checked, "CHECK": checked, "INTERPRETED": False,
           "TOGETHER": launch.TOGETHER}
        | ({} if checked else {"scale": None, "status": None}),
        **launch.options(None if hip else launch.linear_registers(tiles, n, product, left)),
    )  # fmt: skip


def decode_kernel(target, fmt: WeightFormat, tiles: int, rows: bool = False, left: bool = False,
                  even: bool = True, checked: bool = False):  # fmt: skip
    return _compile(
        decode.decode_rows if rows else decode.decode_matrix,
        target,
        {"out": "*u8"},
        launch.format_constants(fmt)
        | {"SCALE_BITS": 11, "LEFT": left, "WORD_BITS": fmt.word_bits, "EVEN": even, "T": tiles,
           "CHECK": checked} | ({} if checked else {"status": None}),
        **launch.options(None if target.backend == "hip" else launch.decode_registers(tiles)),
    )  # fmt: skip


def reduce_kernel(target, dtype: torch.dtype):
    name = _DTYPES[dtype]
    return _compile(
        linear.reduce,
        target,
        {"bias": f"*{name}", "out": f"*{name}"},
        {"PER_ROW": True, "BLOCK": 256},
        **(launch.options() | {"num_warps": 4}),
    )


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
