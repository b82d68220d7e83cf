"""CompressedEmbedding: an nn.Embedding that keeps its table coded and decodes rows on demand."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .codec import Codec
from .execution import exact_or_fused
from .holder import Streams
from .module import CodedModule


class CompressedEmbedding(CodedModule, nn.Embedding):
    """Drop-in for nn.Embedding with a frozen table.

    Only the rows that are asked for get decoded. Tied to an output layer, both modules hold the
    same four Parameters.
    """

    def __init__(
        self,
        embedding: nn.Embedding,
        codec: Codec | None = None,
        format: str = "lossless",
        *,
        coding: str = "auto",
        exact: bool = False,
        statistics: bool = False,
    ) -> None:
        """Codes the table of `embedding`.

        Raises:
            ValueError: max_norm, scale_grad_by_freq or sparse are set (they change the table or
                its gradient); unknown format; the weight is on the meta device.
        """
        reason = unsupported_option(embedding)
        if reason:
            raise ValueError(f"an embedding with {reason} cannot be compressed")
        self._code(embedding, codec, format, coding, exact_or_fused(exact), statistics)

    @classmethod
    def from_streams(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        streams: Streams | CodedModule | None,
        *,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
        exact: bool = False,
    ) -> CompressedEmbedding:
        """An embedding of streams that exist already, or of none yet (see CompressedLinear)."""
        options = {
            "num_embeddings": num_embeddings,
            "embedding_dim": embedding_dim,
            "padding_idx": padding_idx,
        }
        return cls._made(options, streams, dtype, exact_or_fused(exact), device)

    @staticmethod
    def _options_of(dense: nn.Module) -> dict[str, Any]:
        names = ("num_embeddings", "embedding_dim", "padding_idx")
        return {name: getattr(dense, name) for name in names}

    def _set_up(self, num_embeddings: int, embedding_dim: int, padding_idx: int | None) -> None:
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = padding_idx
        self.max_norm, self.norm_type = None, 2.0
        self.scale_grad_by_freq = self.sparse = False

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.num_embeddings, self.embedding_dim

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [...] of an integer dtype -> [..., embedding_dim] of the dense dtype."""
        started = None if self.statistics is None else self._started()
        dtype = self._buffers["dtype_like"].dtype  # type: ignore[union-attr]
        rows = self.execution.rows(ids, self.operand(), dtype)
        if started is not None:
            self._count(started, ids.numel())
        return rows

    def _dense_without_weight(self) -> nn.Embedding:
        return nn.Embedding(
            self.num_embeddings, self.embedding_dim, padding_idx=self.padding_idx, device="meta"
        )

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"


def unsupported_option(embedding: nn.Embedding) -> str | None:
    """Name of an option that a coded table cannot honour, or None."""
    for option in ("max_norm", "scale_grad_by_freq", "sparse"):
        value = getattr(embedding, option)
        if value is not None and value is not False:
            return f"{option}={value}"
    return None
