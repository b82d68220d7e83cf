"""Entropy-coded weight matrices and the ops on them. Importing registers torch.ops.codecllm."""

from .codec import CodedMatrix
from .format import CorruptStreamError, UnsupportedFormatError
from .ops import (
    BackendUnavailableError,
    backend_info,
    decode,
    decode_linear,
    decode_rows,
    encode,
    quantize_int8,
    select_cpu_isa,
    set_check,
    use_backend,
)

__all__ = [
    "BackendUnavailableError",
    "CodedMatrix",
    "CorruptStreamError",
    "UnsupportedFormatError",
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
