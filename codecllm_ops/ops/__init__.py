"""Ops: schemas, implementations per backend, and functions that take a CodedMatrix."""

from . import autograd, kernels  # noqa: F401  (register the ops)
from .functional import decode, decode_linear, decode_rows, encode, quantize_int8
from .registry import BackendUnavailableError, backend_info, select_cpu_isa, set_check, use_backend

__all__ = [
    "BackendUnavailableError",
    "backend_info",
    "decode",
    "decode_linear",
    "decode_rows",
    "encode",
    "quantize_int8",
    "select_cpu_isa",
    "set_check",
    "use_backend",
]
