"""Triton backend: docs/triton.md. Importing this does not import Triton."""

from __future__ import annotations

import functools
import importlib
import os
import re
import sys
from types import ModuleType
from typing import Any

import torch

from ....codec.operand import Operand
from .. import gpu, register
from ..protocol import Backend

MIN_TRITON = (3, 6)


def interpreting() -> bool:
    """TRITON_INTERPRET=1: the kernels run on CPU tensors, for tests."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _ops() -> ModuleType:
    return importlib.import_module(".ops", __name__)


class TritonBackend(Backend):
    name = "triton"
    fuses = True

    def handles(self, device_type: str) -> bool:
        return device_type == "cuda" or (device_type == "cpu" and interpreting())

    def volunteers(self, device_type: str) -> bool:
        return device_type == "cuda"

    def problem(self) -> str | None:
        return _problem()

    def absence(self) -> str | None:
        # Before Triton is imported, which takes a while.
        return self.problem() if torch.cuda.is_available() or interpreting() else gpu.NO_GPU

    def demanded(self) -> str | None:
        return self.problem()

    def problem_on(self, device: torch.device) -> str | None:
        return None if device.type == "cpu" else gpu.too_old(device.index)

    def set_check(self, on: bool) -> None:
        if f"{__name__}.ops" in sys.modules or on:
            _ops().set_check(on)

    def details(self) -> dict[str, Any]:
        return {"triton": importlib.import_module("triton").__version__}

    def decode_into(self, coded: Operand, out: torch.Tensor) -> None:
        _ops().decode_into(coded, out)

    def decode_rows_words(self, ids: torch.Tensor, coded: Operand) -> torch.Tensor:
        return _ops().decode_rows_words(ids, coded)

    def decode_linear(
        self, x: torch.Tensor, coded: Operand, bias: torch.Tensor | None
    ) -> torch.Tensor | None:
        return _ops().decode_linear(x, coded, bias)


@functools.cache
def _problem() -> str | None:
    need = ".".join(map(str, MIN_TRITON))
    try:
        version = str(importlib.import_module("triton").__version__)
    except Exception as error:  # whatever a broken installation raises
        return f"Triton {need} or later is needed: pip install 'triton>={need}' ({error})"
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or tuple(map(int, numbers.groups())) < MIN_TRITON:
        return f"Triton {version} is too old: {need} or later is needed"
    if not (torch.cuda.is_available() or interpreting()):
        return gpu.NO_GPU
    try:
        _ops()
    except Exception as error:
        return f"Triton {version} does not take the kernels: {error}"
    return None


register(TritonBackend())
