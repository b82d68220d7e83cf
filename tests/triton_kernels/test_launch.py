"""Launches without a GPU: the functions of the backend run as on an sm_90, with Triton told to
compile and not to launch; and how a choice is made."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

import codecllm_ops as ops
from cases import FORMATS, INTERPRETING, every_format, weights

if importlib.util.find_spec("triton") is None or INTERPRETING:
    pytest.skip("no Triton, or its interpreter instead", allow_module_level=True)

import triton
from torch.utils._python_dispatch import TorchDispatchMode

from codecllm_ops.ops.backends.triton import matrix, tune
from codecllm_ops.ops.backends.triton import ops as backend
from triton_kernels.calls import every_op
from triton_kernels.compiled import compiling
from triton_kernels.other_formats import every_word


@pytest.fixture
def compiled() -> Iterator[list]:
    """Kernels that were compiled instead of launched."""
    with compiling() as found:
        yield found


every_coding = pytest.mark.parametrize("coding", ["rans", "fixed"])


def coded_of(rows: int, cols: int, fmt=FORMATS["bf16"], tile_cols: int = 32, coding: str = "rans"):
    w = weights(rows, cols, fmt)
    return ops.encode(w, tile_cols=tile_cols, allow_stored=False, coding=coding).operand


@every_format
def test_every_op_compiles_as_it_is_launched(fmt, compiled):
    coded = coded_of(40, 70, fmt)
    for dtype in (torch.bfloat16, torch.float32):
        x, bias = torch.randn(3, 70).to(dtype), torch.randn(40).to(dtype)
        every_op(coded, x, [3, 1])
        y = backend.decode_linear(x, coded, bias)
        assert y.shape == (3, 40) and y.dtype == dtype
    assert {name for name, _ in compiled} == {"decode_matrix", "decode_rows", "linear", "reduce"}
    assert all("cubin" in kernel.asm for _, kernel in compiled)


def test_formats_that_the_package_does_not_have_compile(other_format, compiled):
    every_op(every_word(other_format), torch.ones(2, 1).bfloat16(), [3, 1])
    assert len(compiled) == 3


@every_coding
def test_shapes_share_a_kernel(compiled, coding):
    """Numbers are arguments: another shape or batch is no other kernel."""
    kernels = set()
    for rows, cols, m in ((48, 64, 1), (160, 96, 8), (34, 2, 5), (16, 16, 3), (272, 256, 2)):
        coded = coded_of(rows, cols, tile_cols=16, coding=coding)
        every_op(coded, torch.ones(m, cols).bfloat16(), [0] * m)
    kernels = {(name, kernel.hash) for name, kernel in compiled}
    assert len({h for name, h in kernels if name == "linear"}) == 2  # partial sums or not
    assert {name for name, _ in kernels} == {"decode_matrix", "decode_rows", "linear", "reduce"}
    assert len(kernels) == 5


def test_above_64_rows_and_stored_matrices_are_left_to_a_gemm(compiled):
    coded = coded_of(40, 70)
    assert backend.decode_linear(torch.ones(65, 70), coded, None) is None
    assert backend.decode_linear(torch.ones(0, 70), coded, None).shape == (0, 40)
    stored = ops.encode(weights(40, 70, FORMATS["bf16"])).to("stored").operand
    assert backend.decode_linear(torch.ones(1, 70), stored, None) is None
    assert not compiled


# ---- what a call costs besides its kernels ------------------------------------------------------


class _Counted(TorchDispatchMode):
    """Names of the operators of torch that ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


# They neither copy, nor run a kernel of torch's, nor wait.
_FREE = {"empty", "new_empty", "view", "_unsafe_view", "alias", "detach"}


@every_coding
def test_a_call_neither_waits_nor_copies(compiled, coding):
    coded = coded_of(48, 64, coding=coding)
    x, ids = torch.ones(3, 64).bfloat16(), torch.tensor([1])
    out = torch.empty((48, 128), dtype=torch.uint8)
    with _Counted() as counted:
        backend.decode_into(coded, out)
        backend.decode_rows_words(ids, coded)
        backend.decode_linear(x, coded, None)
        backend.decode_linear(x.view(1, 3, 64), coded, x[0, :48])
    assert len(compiled) == 6
    assert set(counted.names) <= _FREE | {"select", "slice"}  # x[0, :48]


def test_what_follows_from_the_shape_is_computed_once(compiled):
    coded = coded_of(48, 64)
    matrix.plan_of.cache_clear()
    for _ in range(3):
        every_op(coded, torch.ones(3, 64), [1])
    moved = coded._replace(stream=coded.stream.clone(), raw=coded.raw.clone())
    every_op(moved, torch.ones(1, 64), [2])
    assert matrix.plan_of.cache_info().misses == 1


def test_streams_that_begin_anywhere_are_copied(compiled):
    """Modules align them when they are loaded; an op does not refuse others."""
    coded = coded_of(48, 64)
    shifted = torch.empty(coded.raw.numel() + 1, dtype=torch.uint8)[1:]
    with _Counted() as counted:
        backend.decode_linear(torch.ones(1, 64), coded._replace(raw=shifted.copy_(coded.raw)), None)
    assert counted.names.count("clone") == 1


# ---- choices ------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU for tune.py, and its folder; `gpu.times` are what candidates take."""
    state = SimpleNamespace(measured=[], capturing=False, file=tmp_path / "codecllm-choices.json")
    properties = SimpleNamespace(name="GPU", multi_processor_count=132)

    def bench(run, **_):
        state.measured.append(run())
        return state.measured[-1]

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: state.capturing)
    monkeypatch.setattr(triton.testing, "do_bench", bench)
    monkeypatch.setattr(tune, "_file", lambda: state.file)
    monkeypatch.setattr(tune, "_chosen", {})
    tune._on_disk.cache_clear()
    yield state
    tune._on_disk.cache_clear()


def choose(candidates=(3, 1, 2)):
    return tune.choose(("key",), lambda: list(candidates), lambda candidate: candidate)


def test_the_fastest_is_chosen_and_remembered(gpu):
    assert choose() == 1 and gpu.measured == [3, 1, 2]
    assert choose() == 1 and len(gpu.measured) == 3
    tune._chosen.clear()  # another process
    tune._on_disk.cache_clear()
    assert choose() == 1 and len(gpu.measured) == 3
    assert list(json.loads(gpu.file.read_text()).values()) == [1]


def test_nothing_is_measured_or_remembered_during_capture(gpu, monkeypatch):
    gpu.capturing = True
    assert choose() == 3 and not gpu.measured
    gpu.capturing = False
    monkeypatch.setenv("CODECLLM_AUTOTUNE", "0")
    assert choose() == 3 and not gpu.measured
    monkeypatch.delenv("CODECLLM_AUTOTUNE")
    assert choose() == 1


@pytest.mark.parametrize("content", ["", "[]", "{", '{"k": "x"}'])
def test_a_file_that_is_not_ours_costs_a_measurement(gpu, content):
    gpu.file.write_text(content)
    assert choose() == 1


def test_a_folder_that_cannot_be_written_costs_a_measurement(gpu):
    gpu.file.write_text("a file where a folder should be")
    gpu.file = gpu.file / "choices.json"
    assert choose() == 1


def test_one_candidate_is_not_measured(gpu):
    assert choose([7]) == 7 and not gpu.measured and not gpu.file.exists()
