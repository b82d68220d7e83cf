"""Compressed tensors and modules: drop-in nn.Linear and nn.Embedding that hold coded streams."""

from .codec import FORMATS, Codec, CompressedTensor, load_codec
from .embedding import CompressedEmbedding
from .linear import CompressedLinear
from .replace import coded_form, dense_form, obstacle
from .streams import (
    STREAM_DTYPES,
    STREAM_NAMES,
    CodedModule,
    Statistics,
    checksums_compared,
    set_exact,
    set_statistics,
    sync_tables,
)

__all__ = [
    "FORMATS",
    "STREAM_DTYPES",
    "STREAM_NAMES",
    "Codec",
    "CodedModule",
    "CompressedEmbedding",
    "CompressedLinear",
    "CompressedTensor",
    "Statistics",
    "checksums_compared",
    "coded_form",
    "dense_form",
    "load_codec",
    "obstacle",
    "set_exact",
    "set_statistics",
    "sync_tables",
]
