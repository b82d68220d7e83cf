"""What is switched for all compressed modules of a model at once."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from codecllm_ops.codec.coded import CodedMatrix, lasting

from .module import CodedModule
from .statistics import Statistics
from .streams import Stream, has_bytes


def sync_tables(model: nn.Module) -> None:
    """Rebuilds the tables of all compressed modules that have streams, replaced or not."""
    for module in model.modules():
        if isinstance(module, CodedModule) and has_bytes(module.weight_head):
            module.rebuild()


def replace_streams(modules: Iterable[CodedModule], coded: CodedMatrix) -> None:
    """Gives modules that share their four Parameters four others, which they share again.

    Not other contents to the same Parameters: a CodedWeight that somebody still holds goes on with
    streams that belong together, and so does a forward in another thread.
    """
    with lasting():
        streams = tuple(Stream(tensor) for tensor in coded.tensors())
    for module in modules:
        module.replace_streams(streams)


def set_exact(model: nn.Module, exact: bool = True) -> None:
    """Switches all compressed modules of a model between exact and fused."""
    for module in model.modules():
        if isinstance(module, CodedModule):
            module.exact = exact


def set_statistics(model: nn.Module, on: bool = True) -> None:
    """Gives all compressed modules of a model new counters, or takes them away."""
    for module in model.modules():
        if isinstance(module, CodedModule):
            module.statistics = Statistics() if on else None
