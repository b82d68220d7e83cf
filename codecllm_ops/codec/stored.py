"""The coding `stored`: words row by row (docs/format.md, section 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..format.head import Head
from ..format.weight_formats import WeightFormat
from .assemble import assemble

if TYPE_CHECKING:
    from .coded import CodedMatrix

name = "stored"
concat_keys: tuple[str, ...] = ()


def head_of(
    fmt: WeightFormat, rows: int, cols: int, scale: np.ndarray | None, scale_kind: int
) -> Head:
    """Without checksums."""
    return Head(fmt, rows, cols, 0, 0, 0, (), coding=name, scale=scale, scale_kind=scale_kind)


def runtime_table(head: Head) -> np.ndarray:
    """Nothing: [0, 0]."""
    return np.zeros((0, 0), np.int32)


def check_contents(coded: CodedMatrix) -> None:
    """Every pattern is a word."""


def cut(coded: CodedMatrix, head: Head, rows: slice, cols: slice) -> tuple:
    """Head, coded plane, raw plane and index of a part; any borders."""
    b = coded.info.fmt.word_bytes
    words = coded.stream.view(coded.info.rows, coded.info.cols * b)
    part = words[rows, cols.start * b : cols.stop * b].reshape(-1)
    return head, part, coded.raw, coded.index


def join(parts: list[CodedMatrix], head: Head) -> tuple:
    """The same for parts below each other."""
    stream = torch.cat([p.stream for p in parts])
    return head, stream, parts[0].raw, parts[0].index


def convert(source: CodedMatrix, **options: Any) -> tuple[torch.Tensor, ...]:
    """The words as they are. Raises ValueError for options: there are none."""
    if options:
        raise ValueError(f"to({name!r}) takes no options, not {', '.join(options)}")
    words, like = torch.ops.codecllm.decode(*source.operand), source.info
    head = head_of(like.fmt, *words.shape, like.scale, like.scale_kind)
    body = words.contiguous().view(torch.uint8) if words.numel() else words.new_empty(0)
    nothing = np.zeros(0, np.int32)
    return assemble(head, body.reshape(-1).to(torch.uint8), b"", nothing, words.device)
