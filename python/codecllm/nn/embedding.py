"""CompressedEmbedding: an nn.Embedding that keeps its table coded and decodes rows on demand."""

from __future__ import annotations

import torch
from torch import nn

from codecllm_ops.ops.functional import translated

from .codec import Codec
from .streams import STREAM_NAMES, CodedModule, Statistics


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
        coded = (codec or Codec()).encode_matrix(embedding.weight, format)
        streams = dict(zip(STREAM_NAMES, coded.tensors(), strict=True))
        self._set_up(
            embedding.num_embeddings, embedding.embedding_dim, embedding.padding_idx, exact
        )
        self._init_streams(streams, embedding.weight.dtype)
        self.training = embedding.training
        self.statistics = Statistics() if statistics else None

    @classmethod
    def from_streams(
        cls,
        num_embeddings: int,
        embedding_dim: int,
        streams: dict[str, torch.Tensor] | CodedModule | None,
        *,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str | None = None,
        exact: bool = False,
    ) -> CompressedEmbedding:
        """An embedding of streams that exist already, or of none yet (see CompressedLinear)."""
        self = cls.__new__(cls)
        self._set_up(num_embeddings, embedding_dim, padding_idx, exact)
        self._init_streams(streams, dtype, device)
        return self

    def _set_up(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None, exact: bool
    ) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = padding_idx
        self.max_norm, self.norm_type = None, 2.0
        self.scale_grad_by_freq = self.sparse = False
        self.exact = exact

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.num_embeddings, self.embedding_dim

    def reset_parameters(self) -> None:
        """Nothing to reset: the table is coded."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids [...] of an integer dtype -> [..., embedding_dim] of the dense dtype."""
        self._prepare()
        if self.statistics is not None:
            return self._counted(ids.numel(), lambda: self._look_up(ids))
        return self._look_up(ids)

    def _look_up(self, ids: torch.Tensor) -> torch.Tensor:
        return translated(torch.ops.codecllm.decode_rows, ids, *self._operand(), self.dense_dtype)

    def decompress(self) -> nn.Embedding:
        """The dense embedding."""
        return nn.Embedding(
            self.num_embeddings,
            self.embedding_dim,
            padding_idx=self.padding_idx,
            _weight=self.dense_weight(),
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
