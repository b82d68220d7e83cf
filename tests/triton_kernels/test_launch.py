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

from codecllm_ops.ops.backends import triton as backend
from codecllm_ops.ops.backends.triton import tune
from triton_kernels.compiled import arguments, compiling


@pytest.fixture
def compiled() -> Iterator[list]:
    """Kernels that were compiled instead of launched."""
    with compiling() as found:
        yield found


@every_format
def test_every_op_compiles_as_it_is_launched(fmt, compiled):
    coded = ops.encode(weights(40, 70, fmt), tile_cols=32, allow_stored=False)
    tensors, shape = arguments(coded)
    backend.decode_words(*tensors, *shape)
    backend.decode_rows_words(torch.tensor([3, 1]), *tensors, *shape)
    for dtype in (torch.bfloat16, torch.float32):
        x, bias = torch.randn(3, 70).to(dtype), torch.randn(40).to(dtype)
        y = backend.decode_linear(x, *tensors, None, bias, *shape)
        assert y.shape == (3, 40) and y.dtype == dtype
    assert {name for name, _ in compiled} == {"decode_matrix", "decode_rows", "linear", "reduce"}
    assert all("cubin" in kernel.asm for _, kernel in compiled)


def test_shapes_share_a_kernel(compiled):
    """Numbers are arguments: another shape or batch is no other kernel."""
    hashes = set()
    for rows, cols, m in ((48, 64, 1), (160, 96, 8), (33, 1, 5), (16, 16, 3)):
        coded = ops.encode(weights(rows, cols, FORMATS["bf16"]), tile_cols=16, allow_stored=False)
        tensors, shape = arguments(coded)
        compiled.clear()
        backend.decode_linear(torch.randn(m, cols).bfloat16(), *tensors, None, None, *shape)
        hashes.update(k.hash for name, k in compiled if name == "linear")
    assert 1 <= len(hashes) <= 2  # with partial sums and without


def test_above_64_rows_and_stored_matrices_are_left_to_a_gemm(compiled):
    coded = ops.encode(weights(40, 70, FORMATS["bf16"]), allow_stored=False)
    tensors, shape = arguments(coded)
    assert backend.decode_linear(torch.ones(65, 70), *tensors, None, None, *shape) is None
    assert backend.decode_linear(torch.ones(0, 70), *tensors, None, None, *shape).shape == (0, 40)
    assert not compiled


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
