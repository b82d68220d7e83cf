"""Which backend runs: what was asked for, or an error; backend_info says what is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree, ignore_patterns

import pytest
import torch

import codecllm_ops as ops
from cases import ISAS, needs_cpu_kernels
from codecllm_ops.ops.backends import reference as reference_backend

PROGRAM = """
import json
import torch
import codecllm_ops as ops

w = torch.randn(33, 70, generator=torch.Generator().manual_seed(0)).bfloat16()
x = torch.randn(2, 70, requires_grad=True)
coded = ops.encode(w, tile_cols=32, allow_stored=False).check()
y = ops.decode_linear(x, coded)
y.sum().backward()
print(json.dumps({
    "info": ops.backend_info(),
    "nbytes": coded.nbytes,
    "crc": coded.info.crc_stream,
    "decode": torch.equal(ops.decode(coded), w),
    "decode_rows": torch.equal(ops.decode_rows(torch.tensor([32, 0]), coded), w[[32, 0]]),
    "decode_linear": torch.allclose(y, x @ w.float().T, atol=1e-3),
    "backward": torch.allclose(x.grad, w.float().sum(0).expand(2, -1), atol=1e-3),
}))
"""


def run(folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess:
    """PROGRAM in an interpreter of its own; imports come from `folder` first."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("CODECLLM_", "TRITON_"))}
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.run(
        command, cwd=folder, env=clean | environment, capture_output=True, text=True
    )


def result(folder: Path | None = None, **environment: str) -> dict:
    done = run(folder, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def reference():
    return result(CODECLLM_BACKEND="reference")


def test_everything_works_without_compiled_kernels(reference):
    assert reference["info"]["cpu"] == reference["info"]["requested"] == "reference"
    assert reference["info"]["missing"]["cpu"] == "CODECLLM_BACKEND=reference"
    assert all(reference[name] for name in ("decode", "decode_rows", "decode_linear", "backward"))


@needs_cpu_kernels
def test_backend_and_instruction_set_are_taken_from_the_environment(reference):
    found = result(CODECLLM_BACKEND="cpu", CODECLLM_CPU_ISA="portable")
    assert (found["info"]["cpu"], found["info"]["cpu_isa"]) == ("cpu", "portable")
    assert (found["nbytes"], found["crc"]) == (reference["nbytes"], reference["crc"])


@pytest.mark.parametrize(
    "environment",
    [
        {"CODECLLM_BACKEND": "gpu"},
        pytest.param({"CODECLLM_CPU_ISA": "mmx"}, marks=needs_cpu_kernels),
    ],
    ids=str,
)
def test_wish_that_cannot_be_met_is_an_error(environment):
    done = run(**environment)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "BackendUnavailableError" in last and next(iter(environment.values())) in last


@pytest.fixture
def without_library(tmp_path) -> Path:
    """A folder with codecllm_ops as it is installed without a compiler."""
    source = Path(ops.__file__).parent
    copytree(source, tmp_path / "codecllm_ops", ignore=ignore_patterns("*.so", "__pycache__"))
    return tmp_path


def test_missing_library_falls_back_and_says_so(without_library):
    found = result(without_library)
    assert found["info"]["cpu"] == "reference" and found["decode"] and found["decode_linear"]
    assert "not compiled: reinstall" in found["info"]["missing"]["cpu"]


def test_missing_library_is_an_error_when_asked_for(without_library):
    done = run(without_library, CODECLLM_BACKEND="cpu")
    assert done.returncode != 0
    assert "BackendUnavailableError: CODECLLM_BACKEND=cpu: not compiled" in done.stderr


def test_library_that_does_not_load_says_why(without_library):
    (without_library / "codecllm_ops" / "_C.so").write_bytes(b"no library")
    assert "_C.so does not load" in result(without_library)["info"]["missing"]["cpu"]


def test_cuda_kernels_that_are_missing_say_why(without_library):
    """Without a driver, a toolkit, or a CUDA build of torch: never an import error."""
    (without_library / "codecllm_ops" / "_C_cuda.so").write_bytes(b"no library")
    reason = result(without_library)["info"]["missing"]["cuda"]
    assert "this torch is no CUDA build" in reason or "_C_cuda.so does not load" in reason
    done = run(without_library, CODECLLM_BACKEND="cuda")
    assert done.returncode != 0
    assert f"BackendUnavailableError: CODECLLM_BACKEND=cuda: {reason}" in done.stderr


# ---- Triton -------------------------------------------------------------------------------------


needs_triton = pytest.mark.skipif(not find_spec("triton"), reason="no Triton")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


@pytest.fixture(scope="module")
def interpreted():
    return result(CODECLLM_BACKEND="triton", TRITON_INTERPRET="1")


@needs_triton
def test_triton_runs_in_its_interpreter(interpreted, reference):
    info = interpreted["info"]
    assert (info["requested"], info["cpu"]) == ("triton", "triton") and info["triton"]
    assert all(interpreted[name] for name in ("decode", "decode_rows", "decode_linear", "backward"))
    assert (interpreted["nbytes"], interpreted["crc"]) == (reference["nbytes"], reference["crc"])


@needs_triton
@without_gpu
def test_triton_without_a_gpu_is_an_error_when_asked_for():
    done = run(CODECLLM_BACKEND="triton")
    assert "BackendUnavailableError: CODECLLM_BACKEND=triton: torch sees no GPU" in done.stderr


def stub_of_triton(folder: Path, source: str) -> dict[str, str]:
    (folder / "triton.py").write_text(source)
    return {"PYTHONPATH": str(folder), "CODECLLM_BACKEND": "triton"}


@pytest.mark.parametrize("version", ["2.3.1", "3.5.1"])
def test_triton_that_is_too_old_names_the_version_it_needs(version, tmp_path):
    done = run(**stub_of_triton(tmp_path, f"__version__ = {version!r}"))
    assert f"Triton {version} is too old: 3.6 or later is needed" in done.stderr


def test_triton_that_is_missing_names_the_version_it_needs(tmp_path):
    done = run(**stub_of_triton(tmp_path, "raise ImportError('not here')"))
    assert "Triton 3.6 or later is needed: pip install 'triton>=3.6' (not here)" in done.stderr


# ---- while running ------------------------------------------------------------------------------


@needs_cpu_kernels
def test_backend_changes_while_running():
    w = torch.randn(33, 70, generator=torch.Generator().manual_seed(0)).bfloat16()
    coded, x = ops.encode(w, allow_stored=False), torch.randn(3, 70)
    before = ops.decode_linear(x, coded)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        inner = reference_backend.decode_words
        patch.setattr(reference_backend, "decode_words", lambda a: calls.append(1) or inner(a))
        assert ops.use_backend("reference") == "auto"
        try:
            assert ops.backend_info()["cpu"] == "reference"
            torch.testing.assert_close(ops.decode_linear(x, coded), before)
            assert torch.equal(ops.decode(coded), w) and len(calls) == 2
        finally:
            assert ops.use_backend("auto") == "reference"
        assert torch.equal(ops.decode_linear(x, coded), before) and len(calls) == 2


@pytest.mark.parametrize("name", ["cuda", "gpu", "triton"])
@without_gpu
def test_change_that_cannot_be_met_changes_nothing(name):
    if name == "triton" and os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("its interpreter needs no GPU")
    before = ops.backend_info()
    with pytest.raises(ops.BackendUnavailableError, match=f"CODECLLM_BACKEND={name}"):
        ops.use_backend(name)
    assert ops.backend_info() == before


@pytest.mark.skipif("cuda" not in ops.backend_info()["missing"], reason="CUDA kernels are there")
def test_checking_needs_cuda_kernels():
    with pytest.raises(ops.BackendUnavailableError, match="no kernels for GPUs"):
        ops.set_check(True)


@needs_cpu_kernels
def test_selected_instruction_set_is_used_until_the_next():
    try:
        for isa in ISAS:
            ops.select_cpu_isa(isa)
            assert ops.backend_info()["cpu_isa"] == isa
    finally:
        ops.select_cpu_isa()
    assert ops.backend_info()["cpu_isa"] == ISAS[0]


@needs_cpu_kernels
def test_unknown_instruction_set_lists_what_there_is():
    with pytest.raises(
        ops.BackendUnavailableError, match=r"no CPU kernels for 'sse9' here.*portable"
    ):
        ops.select_cpu_isa("sse9")
    assert ops.backend_info()["cpu_isa"] == ISAS[0]
