"""Pure torch backend: runs on any device and waits for it. Slow, needs no compiler."""

from __future__ import annotations

import torch

from ....codec.operand import Operand
from ....format.layout_word import CODINGS as NAMES
from ....format.layout_word import Layout
from .. import register
from ..protocol import Backend
from ..stored import is_stored, stored_words
from . import encoder, fixed, rans

# By name: modules with decode_words(coded) and decode_rows_words(ids, coded).
CODINGS = {"rans": rans, "fixed": fixed}


class ReferenceBackend(Backend):
    """The functions of this folder."""

    name = "reference"
    encoder = encoder

    def handles(self, device_type: str) -> bool:
        return True

    def decode_into(self, coded: Operand, out: torch.Tensor) -> None:
        out.copy_(decode_words(coded))

    def decode_rows_words(self, ids: torch.Tensor, coded: Operand) -> torch.Tensor:
        return decode_rows_words(ids, coded)


register(ReferenceBackend())


def decode_words(coded: Operand) -> torch.Tensor:
    """Decodes to uint8 [rows, cols * word bytes]."""
    if is_stored(coded):
        return stored_words(coded)
    return _coding_of(coded).decode_words(coded)


def decode_rows_words(ids: torch.Tensor, coded: Operand) -> torch.Tensor:
    """Decodes rows `ids` (int64 [n]) to uint8 [n, cols * word bytes]."""
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= coded.rows):
        raise IndexError(f"codecllm::decode_rows: an index is out of range for {coded.rows} rows")
    if is_stored(coded):
        return stored_words(coded)[ids]
    return _coding_of(coded).decode_rows_words(ids, coded)


def _coding_of(coded: Operand):
    return CODINGS[NAMES[Layout.unpack(coded.layout).coding]]
