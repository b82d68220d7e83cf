"""Compressed tensors and modules: drop-in nn.Linear and nn.Embedding that hold coded streams."""

from .codec import FORMATS, Codec, CompressedTensor, load_codec
from .coding import default_coding
from .count import count_weights, num_parameters
from .embedding import CompressedEmbedding
from .execution import EXACT, FUSED, Execution
from .holder import checksums_compared
from .linear import CompressedLinear
from .module import CodedModule
from .replace import coded_form, dense_form, obstacle
from .statistics import Statistics
from .streams import STREAM_DTYPES, STREAM_NAMES
from .switches import set_exact, set_statistics, sync_tables
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
    "default_coding",
    "dense_form",
    "load_codec",
    "num_parameters",
    "obstacle",
    "set_exact",
    "set_statistics",
    "sync_tables",
]
