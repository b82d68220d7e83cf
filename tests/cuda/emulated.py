"""The CUDA kernels of csrc/cuda, compiled for the CPU and run by the emulator in emu/."""

from __future__ import annotations

import ctypes as c
import functools
import math
import os
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch

from codecllm_ops.codec import codings
from codecllm_ops.codec.coded import CodedMatrix
from codecllm_ops.format.geometry import plane_tile_bytes
from codecllm_ops.format.layout_word import CODINGS

ROOT = Path(__file__).parents[2]
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
GOOD = 2**64 - 1  # status: no tile was corrupt
BAD_ID = 2**64 - 2


class View(c.Structure):
    """struct CodedView of csrc/core/coded_view.h."""

    _fields_ = [
        ("stream", c.c_void_p),
        ("stream_bytes", c.c_int64),
        ("raw", c.c_void_p),
        ("raw_bytes", c.c_int64),
        ("index", c.c_void_p),
        ("table", c.c_void_p),
        *((n, c.c_int64) for n in ("segments", "table_stride", "rows", "cols")),
        *((n, c.c_int32) for n in ("format", "tile_cols", "coding")),
        *((n, c.c_int32) for n in ("scale_bits", "len_bits", "predictor")),
        *(
            (n, c.c_int64)
            for n in ("tile_rows", "col_tiles", "plane_row_bytes", "plane_tile_bytes")
        ),
    ]


class Options(c.Structure):
    """arch, processors, shared_per_block, shared_per_processor, buffer_bytes."""

    _fields_ = [(n, c.c_int32) for n in ("arch", "sms", "block", "processor", "buffer_bytes")]


class Plan(c.Structure):
    _fields_ = [
        *(
            (n, c.c_int32)
            for n in (
                "path",
                "log2_rows",
                "band_rows",
                "chunk_tiles",
                "chunks",
                "copies",
                "warps",
                "shared_bytes",
                "x_bytes",
                "kernel_bytes",
            )
        ),
        ("grid", c.c_int64),
    ]


PATHS = ("none", "mma", "fma")  # enum class Path of csrc/cuda/plan.h


def build(folder: Path, *flags: str) -> Path:
    """Compiles the kernels for the CPU; nothing is done if they have not changed."""
    target = folder / "libemulated.so"
    sources = [*ROOT.glob("csrc/c[ou]*/**/*"), *Path(__file__).parent.rglob("emu/**/*")]
    newest = max(s.stat().st_mtime for s in sources if s.is_file())
    if not target.exists() or target.stat().st_mtime < newest:
        compiler = os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "g++"
        temporary = folder / f"{os.getpid()}.so"
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [*compiler.split()[:1], "-std=c++20", "-O2", "-g1", "-fPIC", "-shared", "-Wall",
             "-Wno-unknown-pragmas", "-Wl,-z,defs", f"-I{ROOT}/tests/cuda/emu/fake",
             *flags, "-o", temporary, ROOT / "tests/cuda/emu/emulated.cpp"],
            check=True,
        )  # fmt: skip
        temporary.rename(target)
    return target


@functools.cache
def library():
    lib = c.CDLL(os.environ.get("CODECLLM_EMULATED") or build(ROOT / "build/emulator"))
    lib.emulated_plan.restype = lib.emulated_cached_plan.restype = Plan
    lib.emulated_plan_time.restype = c.c_double
    for name in ("emulated_linear", "emulated_decode", "emulated_decode_rows", "sizeof_view"):
        getattr(lib, name).restype = c.c_uint64
    assert lib.sizeof_view() == c.sizeof(View)
    return lib


@dataclass
class Device:
    """The GPU that the emulator pretends to be; its size decides how work is cut."""

    arch: int = 90
    processors: int = 3
    shared_per_block: int = 232448
    shared_per_processor: int = 233472
    buffer_bytes: int = 0

    def options(self) -> Options:
        return Options(
            self.arch,
            self.processors,
            self.shared_per_block,
            self.shared_per_processor,
            self.buffer_bytes,
        )


def view_of(coded: CodedMatrix, table: torch.Tensor | None = None) -> tuple[View, torch.Tensor]:
    """The struct, and the tensor that must live as long as it."""
    head = coded.info
    fmt = head.fmt
    if table is None:
        table = torch.from_numpy(codings.room(head.coding).runtime_table(head))
    grid = head.grid
    full = plane_tile_bytes(grid.plane_bits, head.tile_cols)
    view = View(
        coded.stream.data_ptr(), coded.stream.numel(), coded.raw.data_ptr(), coded.raw.numel(),
        coded.index.data_ptr(), table.data_ptr(), len(head.segments), table.shape[1],
        head.rows, head.cols, fmt.id, head.tile_cols, CODINGS.index(head.coding),
        head.scale_bits, head.len_bits, head.predictor,
        grid.tile_rows, grid.col_tiles, grid.plane_row_bytes, full,
    )  # fmt: skip
    return view, table


class Output:
    """A tensor with a fence on both sides: kernels must not write beyond it."""

    FENCE, BYTE = 4096, 0x5E

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, fill: int) -> None:
        count = math.prod(shape) * dtype.itemsize
        self._all = torch.full((count + 2 * self.FENCE,), self.BYTE, dtype=torch.uint8)
        inner = self._all[self.FENCE : self.FENCE + count]
        self.tensor = inner.fill_(fill).view(dtype).view(shape)

    @property
    def pointer(self) -> c.c_void_p:
        return c.c_void_p(self.tensor.data_ptr())

    def checked(self) -> torch.Tensor:
        fences = torch.cat([self._all[: self.FENCE], self._all[-self.FENCE :]])
        assert (fences == self.BYTE).all(), "written outside of the output"
        return self.tensor.clone()


def decode(
    coded: CodedMatrix, device: Device | None = None, table: torch.Tensor | None = None
) -> tuple[torch.Tensor, int]:
    """Words of the matrix, and the status."""
    view, _table = view_of(coded, table)
    return decode_view(view, coded.info.fmt, device)


def decode_view(view: View, fmt, device: Device | None = None) -> tuple[torch.Tensor, int]:
    out = Output((view.rows, view.cols * fmt.word_bytes), torch.uint8, 0x55)
    options = (device or Device()).options()
    status = library().emulated_decode(c.byref(view), out.pointer, c.byref(options))
    return out.checked().view(fmt.dtype), status


def decode_rows(
    ids: torch.Tensor, coded: CodedMatrix, table: torch.Tensor | None = None
) -> tuple[torch.Tensor, int]:
    view, _table = view_of(coded, table)
    return decode_rows_view(ids, view, coded.info.fmt)


def decode_rows_view(ids: torch.Tensor, view: View, fmt) -> tuple[torch.Tensor, int]:
    out = Output((ids.numel(), view.cols * fmt.word_bytes), torch.uint8, 0x55)
    status = library().emulated_decode_rows(
        c.byref(view), c.c_void_p(ids.data_ptr()), c.c_int64(ids.numel()), out.pointer
    )
    return out.checked().view(fmt.dtype), status


def plan_of(view: View, m: int, dtype: torch.dtype, device: Device | None = None) -> Plan:
    options = (device or Device()).options()
    return library().emulated_plan(c.byref(view), c.c_int64(m), DTYPES[dtype], c.byref(options))


def cached_plan_of(view: View, m: int, dtype: torch.dtype, device: Device | None = None) -> Plan:
    options = (device or Device()).options()
    return library().emulated_cached_plan(
        c.byref(view), c.c_int64(m), DTYPES[dtype], c.byref(options)
    )


def plan_nanoseconds(view: View, m: int, cached: bool, repeats: int) -> float:
    """Of a plan for bf16 on an H200."""
    options = Device(90, 132).options()
    return library().emulated_plan_time(
        c.byref(view), c.c_int64(m), DTYPES[torch.bfloat16], c.byref(options), int(cached), repeats
    )


@dataclass
class Calls:
    """What was asked of the pretended CUDA runtime."""

    loads: int
    attributes: int
    launches: int
    strict: bool  # the thread's capture mode is the one it had


def runtime(*, capturing: bool = False, loads_in_capture: bool = True, error: int = 0) -> Calls:
    """What was called since the last time; from now on the runtime behaves as said."""
    counts = (c.c_int64 * 4)()
    library().emulated_runtime(int(capturing), int(loads_in_capture), error, counts)
    return Calls(*counts[:3], bool(counts[3]))


def decode_error(coded: CodedMatrix, device: Device) -> int:
    """CUDA's error of a launch of decode."""
    view, table = view_of(coded)
    out = Output((view.rows, view.cols * coded.info.fmt.word_bytes), torch.uint8, 0)
    options = device.options()
    error = library().emulated_decode_error(c.byref(view), out.pointer, c.byref(options))
    del table
    return error


def launch_nothing_error(coded: CodedMatrix) -> int:
    view, _table = view_of(coded)
    return library().emulated_launch_nothing(c.byref(view))


def device_error(number: int) -> tuple[int, bool]:
    """Of reading a device's properties; whether this library has code for it."""
    has_code = c.c_int()
    return library().emulated_device(number, c.byref(has_code)), bool(has_code.value)


def plan(coded: CodedMatrix, m: int, dtype: torch.dtype, device: Device | None = None) -> Plan:
    view, _table = view_of(coded)
    return plan_of(view, m, dtype, device)


def linear(
    x: torch.Tensor,
    coded: CodedMatrix,
    bias: torch.Tensor | None = None,
    device: Device | None = None,
    table: torch.Tensor | None = None,
) -> tuple[torch.Tensor, int]:
    """decode_linear of x [m, cols], and the status."""
    view, _table = view_of(coded, table)
    return linear_view(x, view, coded.info.scale, coded.info.scale_kind == 2, bias, device)


def linear_view(
    x: torch.Tensor,
    view: View,
    scale=None,
    scale_per_row: bool = False,
    bias: torch.Tensor | None = None,
    device: Device | None = None,
) -> tuple[torch.Tensor, int]:
    out = Output((x.shape[0], view.rows), x.dtype, 0xFF)
    options = (device or Device()).options()
    status = library().emulated_linear(
        c.byref(view), c.c_void_p(x.data_ptr()), c.c_int64(x.shape[0]), DTYPES[x.dtype],
        None if scale is None else c.c_void_p(scale.ctypes.data), int(scale_per_row),
        None if bias is None else c.c_void_p(bias.data_ptr()),
        out.pointer, c.byref(options),
    )  # fmt: skip
    return out.checked(), status
