"""Convert a compressed folder to another coding. Shard by shard; no model is built."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import codecllm_ops
from codecllm_ops.codec.coded import CodedMatrix

from ..nn import Codec
from ..nn.coding import FIXED, RANS
from ..nn.recode import keeps, recoded
from .checkpoint import REPORT, Checkpoint, naming
from .coding import report_of
from .compress_folder import file_coding, finished
from .config_file import VERSION
from .folder_files import Meter, Progress, copy_files, other_files, refuse_nesting, write_index
from .job import Job
from .report import CODED, OTHER, STORED, CompressionReport, LayerReport
from .tensor_file import Item, TensorFile, tensor_item, write_tensors, write_text
from .threads import in_threads
from .workspace import Workspace, require_replaceable

_GREW = "coding does not shrink it"


def convert_checkpoint(
    src: Path | str,
    dst: Path | str,
    coding: str = FIXED,
    *,
    codec: Codec | None = None,
    jobs: int = 1,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> CompressionReport:
    """Writes a compressed folder in another coding, without loss.

    The same source gives the same shards, and "rans" those that compressing the original gives.
    What cannot gain from "fixed" keeps its coding; what does not shrink as rans becomes dense.

    Args:
        coding: "fixed" or "rans".
        codec: for "rans": tile_cols, scale_bits, predictor; for "fixed": tile_cols.
        jobs: matrices that are converted at the same time.

    Raises:
        ValueError: not a compressed folder; a wrong argument; "fixed", and no weight can have it.
        FileExistsError, CorruptStreamError, OSError: as compress_checkpoint.
    """
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}; at least 1 is needed")
    codec = replace(codec or Codec(), coding=file_coding(coding))
    dst, start = Path(dst), time.perf_counter()
    require_replaceable(dst)
    with Checkpoint(src) as source:
        source.require_coded()
        if coding == FIXED:
            _require_fixed(source)
        refuse_nesting(source.folder, dst)
        others, left_out = other_files(source)
        job = Job.of("convert", source, {**codec.__dict__})
        if resume and (done := finished(dst, job, force)) is not None:
            return done
        with Workspace(dst, job, force=force, resume=resume) as work:
            meter = Meter(source, progress)
            parts = {p for name in source.coded_names() for p in source.stream_names(name)}
            layers: list[LayerReport] = []
            weight_map: dict[str, str] = {}
            for shard, file in source.files.items():
                rows = work.finished_shard(shard)
                if rows is None:
                    rows = _convert_shard(work, source, file, parts, codec, jobs, meter)
                    work.finish_shard(shard, rows)
                    for row in rows:
                        work.spool.drop(row["name"])
                else:
                    meter.add(shard, sum(e.nbytes for e in file.entries.values()))
                layers += map(LayerReport.from_dict, rows)
                with TensorFile(work.folder / shard) as written:
                    weight_map.update(dict.fromkeys(written.entries, shard))
            sizes = {shard: (work.folder / shard).stat().st_size for shard in source.files}
            extra = {
                "options": job.options,
                "source": job.files,
                "shards": sizes,
                "left_out": left_out,
            }
            report = CompressionReport(coding, tuple(layers), time.perf_counter() - start, extra)
            copy_files(others, work.folder)
            _write_rest(work, source, report, weight_map)
            work.publish()
    return report


def _require_fixed(source: Checkpoint) -> None:
    heads = [source.head(name) for name in source.coded_names()]
    reasons = {"" if info.coding == FIXED else keeps(info) for info in heads}
    if "" not in reasons:
        raise ValueError(
            f'{source.folder}: coding "fixed" is asked for, and no weight can have it: '
            f"{'; '.join(sorted(reasons))}"
        )


def _convert_shard(
    work: Workspace,
    source: Checkpoint,
    file: TensorFile,
    parts: set[str],
    codec: Codec,
    jobs: int,
    meter: Meter,
) -> list[dict[str, Any]]:
    """Converts the matrices of a shard into the spool, then assembles the new shard from it."""

    def convert(name: str) -> tuple[dict[str, Any] | None, str]:
        """Puts a matrix into the spool, unless it has to become dense; what the report says."""
        coded, why = work.spool.kept(name), ""
        if coded is None:
            coded, why = _converted(source, name, codec)
            if coded is None:
                return None, why
            work.spool.put(name, coded)
        return report_of(coded), why

    names = [name for name in file.entries if source.is_coded(name)]
    said: dict[str, tuple[dict[str, Any] | None, str]] = {}
    for name, result in in_threads(jobs, convert, names):
        said[name] = result
        meter.add(name, source.coded_bytes(name))
    items: list[Item] = []
    layers: list[LayerReport] = []
    for name, entry in file.entries.items():
        if name in said:
            info, (known, why) = source.head(name), said[name]
            layer = partial(LayerReport.of, name, (info.rows, info.cols), info.fmt.dtype)
            if known is None:
                items.append(_dense_item(source, name))
                layers.append(layer(STORED, reason=why))
                continue
            streams = work.spool.items(name)
            items += streams
            size = sum(item.nbytes for item in streams)
            layers.append(layer(CODED, coded_bytes=size, reason=why, **known))
        elif name not in parts:
            items.append(file.item(name))
            layers.append(LayerReport.of(name, entry.shape, entry.torch_dtype, OTHER))
            meter.add(name, entry.nbytes)
    notes = {**file.notes, "format": "pt", "codecllm_version": str(VERSION)}
    write_tensors(work.folder / file.path.name, items, notes)
    return [asdict(layer) for layer in layers]


def _converted(source: Checkpoint, name: str, codec: Codec) -> tuple[CodedMatrix | None, str]:
    """The matrix as the codec wants it, and why if it is not; None where it has to become dense."""
    coded = source.coded(name)
    with naming(source.where[name].path, name):
        if codec.coding == FIXED or coded.coding == RANS:
            return recoded(coded, codec.coding, tile_cols=codec.tile_cols)
        if coded.info.stored:
            return coded, keeps(coded.info)
        # The way that compress_checkpoint() goes, so that the bytes are its bytes.
        dense = codecllm_ops.decode(coded)
        new = codec.encode_matrix(dense)
        return (None, _GREW) if new.nbytes >= dense.nbytes else (new, "")


def _dense_item(source: Checkpoint, name: str) -> Item:
    info = source.head(name)

    def chunks():
        yield from tensor_item(name, source.decode(name)).chunks()

    return Item(name, info.fmt.dtype, (info.rows, info.cols), chunks)


def _write_rest(
    work: Workspace, source: Checkpoint, report: CompressionReport, weight_map: dict[str, str]
) -> None:
    if len(source.files) > 1:
        write_index(work.folder, weight_map, report.coded_bytes, source)
    config = source.config
    if config:
        dense = [x.name.removesuffix(".weight") for x in report.of(STORED)]
        ours = config.get("quantization_config")
        if dense and isinstance(ours, dict):
            before = ours.get("modules_to_not_convert") or []
            ours["modules_to_not_convert"] = sorted({*before, *dense})
        write_text(work.folder / "config.json", json.dumps(config, indent=2) + "\n")
    write_text(work.folder / REPORT, report.to_json() + "\n")
