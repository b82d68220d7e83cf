"""Decompress a checkpoint folder into the dense one. Shard by shard; no model is built."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from .checkpoint import Checkpoint
from .folder_files import (
    Meter,
    Progress,
    copy_files,
    other_files,
    refuse_nesting,
    write_index,
)
from .job import Job
from .report import CODED, CompressionReport, LayerReport
from .tensor_file import Item, tensor_item, write_tensors, write_text
from .workspace import Workspace, require_replaceable


def decompress_checkpoint(
    src: Path | str,
    dst: Path | str,
    *,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> CompressionReport:
    """Writes the dense checkpoint of a compressed folder: for lossless formats the original bits.

    int8 matrices become integer * scale in the dtype that config.json names (else bfloat16).

    Raises:
        FileExistsError, ValueError, CorruptStreamError, OSError: as compress_checkpoint.
    """
    dst, start = Path(dst), time.perf_counter()
    require_replaceable(dst)
    with Checkpoint(src) as source:
        source.require_coded()
        refuse_nesting(source.folder, dst)
        others = other_files(source)
        job = Job.of("decompress", source)
        with Workspace(dst, job, force=force, resume=resume) as work:
            meter = Meter(source, progress)
            coded = set(source.coded_names())
            layers: list[LayerReport] = []
            weight_map: dict[str, str] = {}
            total = 0
            parts = {p for name in coded for p in source.stream_names(name)}
            for shard, file in source.files.items():
                items = []
                for name in file.entries:
                    if name in coded:
                        items.append(_decoded_item(source, name, layers, meter))
                    elif name not in parts:
                        entry = file.entries[name]
                        items.append(
                            Item(
                                name,
                                entry.torch_dtype,
                                entry.shape,
                                lambda f=file, n=name: f.chunks(n),
                            )
                        )
                weight_map.update({item.name: shard for item in items})
                total += sum(item.nbytes for item in items)
                if work.finished_shard(shard) is None:
                    write_tensors(work.folder / shard, items, {"format": "pt"})
                    work.finish_shard(shard, True)
            if len(source.files) > 1:
                write_index(work.folder, weight_map, total)
            config = source.config
            if config:
                config.pop("quantization_config", None)
                write_text(work.folder / "config.json", json.dumps(config, indent=2) + "\n")
            copy_files(others, work.folder)
            work.publish()
    return CompressionReport("dense", tuple(layers), time.perf_counter() - start)


def _decoded_item(source: Checkpoint, name: str, layers: list[LayerReport], meter: Meter) -> Item:
    info = source.head(name)
    dtype = info.fmt.dtype
    if info.scale is not None:
        named = str(source.config.get("dtype") or source.config.get("torch_dtype"))
        dtype = getattr(torch, named.removeprefix("torch."), None)
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            dtype = torch.bfloat16
    shape = (info.rows, info.cols)
    nbytes = sum(source.entry(p).nbytes for p in source.stream_names(name))
    layers.append(
        LayerReport(
            name,
            "tensor",
            shape,
            str(dtype).removeprefix("torch."),
            CODED,
            info.rows * info.cols * dtype.itemsize,
            nbytes,
            info.fmt.name,
        )
    )

    def chunks():
        yield from tensor_item(name, source.decode(name, dtype)).chunks()
        meter.add(name, nbytes)

    return Item(name, dtype, shape, chunks)
