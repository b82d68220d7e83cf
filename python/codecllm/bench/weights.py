"""The matrices that are multiplied with: a model's own, or normal ones of usual shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..model.checkpoint import Checkpoint, is_candidate, refusal
from .machine import cache_bytes

SHAPES = ((4096, 4096), (11008, 4096), (2048, 5632))
"""[N, K] without a model: projections of Llama-2-7B and of TinyLlama."""


@dataclass(frozen=True)
class Group:
    """Matrices of one shape.

    Attributes:
        shape: [N, K].
        layers: how many layers of the model have it.
        weights: dense, each [N, K]; so many that a pass over them leaves no cache warm.
    """

    shape: tuple[int, int]
    layers: int
    weights: list[torch.Tensor] = field(repr=False)


def normal_groups(shapes: Iterable[tuple[int, int]] = SHAPES) -> Iterator[Group]:
    """normal(0, 0.02) in bfloat16, the usual initialisation."""
    for rows, cols in shapes:
        generator = torch.Generator().manual_seed(rows + cols)
        w = (0.02 * torch.randn(rows, cols, generator=generator)).bfloat16()
        yield Group((rows, cols), 1, [w, *(w.clone() for _ in range(_wanted(w.nbytes) - 1))])


def model_groups(folder: Path, most: int) -> Iterator[Group]:
    """The shapes that most of a model's weights have, with weights of its own.

    Args:
        folder: a checkpoint, compressed or not.
        most: so many shapes.

    Raises:
        ValueError: no matrix in it is, or could be, coded.
        OSError, CorruptStreamError: as Checkpoint.
    """
    with Checkpoint(folder) as source:
        names = _multiplied(source)
        if not names:
            raise ValueError(f"{folder}: no weight in it that could be coded")
        by_share = sorted(names, key=lambda s: s[0] * s[1] * len(names[s]), reverse=True)
        for shape in by_share[:most]:
            dense = [_dense(source, names[shape][0])]
            wanted = _wanted(dense[0].nbytes)
            dense += [_dense(source, name) for name in names[shape][1:wanted]]
            copies = (dense[0].clone() for _ in range(wanted - len(dense)))
            yield Group(shape, len(names[shape]), [*dense, *copies])


def _multiplied(source: Checkpoint) -> dict[tuple[int, int], list[str]]:
    """Names by shape, of what goes into a product. Input embeddings do where they are tied."""
    config = source.config
    model_type, tied = str(config.get("model_type", "")), config.get("tie_word_embeddings")
    found: dict[tuple[int, int], list[str]] = defaultdict(list)
    for name in source.coded_names():
        info = source.checked_head(name)
        if info.scale is None:
            found[info.rows, info.cols].append(name)
    for name in source.dense_names():
        entry = source.entry(name)
        if is_candidate(entry) and refusal(entry, model_type, None) is None:
            rows, cols = entry.shape
            found[rows, cols].append(name)
    kept = {s: [n for n in names if tied or "embed" not in n] for s, names in found.items()}
    return {shape: names for shape, names in kept.items() if names}


def _dense(source: Checkpoint, name: str) -> torch.Tensor:
    return source.decode(name) if source.is_coded(name) else source.read(name)


def _wanted(nbytes: int) -> int:
    """How many matrices of a size are read in turn.

    Together four times the last cache, dense, so that also the coded ones (2/3 of that) come from
    memory, as they do when a whole model is read between two uses; at most 256 MiB, and at most 256
    matrices: such small ones cost their calls and not their bytes.
    """
    return max(1, min(256, -(-min(4 * cache_bytes(), 256 << 20) // nbytes)))


def is_compressed(folder: Path) -> bool:
    """Whether weights of a checkpoint are coded."""
    with Checkpoint(folder) as source:
        return bool(source.coded_names())


def dense_bytes(folder: Path) -> int:
    """Of all weights of a checkpoint, decoded."""
    with Checkpoint(folder) as source:
        coded = (source.checked_head(name) for name in source.coded_names())
        return sum(h.rows * h.cols * h.fmt.dtype.itemsize for h in coded) + sum(
            source.entry(name).nbytes for name in source.dense_names()
        )
