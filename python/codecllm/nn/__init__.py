"""Compressed tensors and modules: drop-in nn.Linear and nn.Embedding that hold coded streams."""

from .codec import FORMATS, Codec, CompressedTensor, load_codec
from .count import count_weights, num_parameters
from .embedding import CompressedEmbedding
from .execution import EXACT, FUSED, Execution
from .linear import CompressedLinear
from .module import (
    CodedModule,
    Statistics,
    checksums_compared,
    set_exact,
    set_statistics,
    sync_tables,
)
from .replace import coded_form, dense_form, obstacle
from .streams import STREAM_DTYPES, STREAM_NAMES
from .weight import CodedWeight

__all__ = [
    "EXACT",
    "FORMATS",
    "FUSED",
    "STREAM_DTYPES",
    "STREAM_NAMES",
    "Codec",
    "CodedModule",
    "CodedWeight",
    "CompressedEmbedding",
    "CompressedLinear",
    "CompressedTensor",
    "Execution",
    "Statistics",
    "checksums_compared",
    "coded_form",
    "count_weights",
    "dense_form",
    "load_codec",
    "num_parameters",
    "obstacle",
    "set_exact",
    "set_statistics",
    "sync_tables",
]
