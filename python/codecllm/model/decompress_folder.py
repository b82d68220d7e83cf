"""Decompress a checkpoint folder into the dense one. Shard by shard; no model is built."""

from __future__ import annotations

import json
import time
from pathlib import Path

from .checkpoint import Checkpoint
from .config_file import original_config
from .folder_files import (
    Meter,
    Progress,
    copy_files,
    other_files,
    refuse_nesting,
    write_index,
)
from .job import Job
from .model_card import remove_section
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
        others, _ = other_files(source)
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
                        items.append(file.item(name))
                weight_map.update({item.name: shard for item in items})
                total += sum(item.nbytes for item in items)
                if work.finished_shard(shard) is None:
                    write_tensors(work.folder / shard, items, {"format": "pt", **file.notes})
                    work.finish_shard(shard, True)
            if len(source.files) > 1:
                write_index(work.folder, weight_map, total, source)
            config = source.config
            if config:
                text = json.dumps(original_config(config), indent=2) + "\n"
                write_text(work.folder / "config.json", text)
            copy_files(others, work.folder)
            remove_section(work.folder)
            work.publish()
    return CompressionReport("dense", tuple(layers), time.perf_counter() - start)


def _decoded_item(source: Checkpoint, name: str, layers: list[LayerReport], meter: Meter) -> Item:
    info = source.head(name)
    dtype = info.fmt.dtype if info.scale is None else source.dtype
    nbytes = source.coded_bytes(name)
    layer = LayerReport.of(
        name,
        (info.rows, info.cols),
        dtype,
        CODED,
        coded_bytes=nbytes,
        weight_format=info.fmt.name,
    )
    layers.append(layer)

    def chunks():
        yield from tensor_item(name, source.decode(name, dtype)).chunks()
        meter.add(name, nbytes)

    return Item(name, dtype, layer.shape, chunks)
