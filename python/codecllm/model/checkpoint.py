"""A checkpoint folder as Hugging Face writes it: shards, index, config, other files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import codecllm_ops
from codecllm_ops.codec.coded import CodedMatrix
from codecllm_ops.format import FORMATS as WEIGHT_FORMATS
from codecllm_ops.format import CorruptStreamError, Head, UnsupportedFormatError

from ..nn import STREAM_DTYPES, STREAM_NAMES
from .config_file import QUANT_METHOD, VERSION
from .select import POSITION_TABLE
from .tensor_file import Entry, TensorFile

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
REPORT = "codecllm_report.json"
MIN_WEIGHTS = 4096  # below, the head outweighs what coding saves

# Methods that keep each weight as fp8 under its own name. The tensors are coded as they are.
_FP8_METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors")

_SOURCE_DTYPES = {f.dtype for f in WEIGHT_FORMATS.values() if not f.scaled}

# Two-dimensional weights that are not read through nn.Linear or nn.Embedding, as far as names tell.
_NOT_OURS = (
    (re.compile(r"\.experts\.\d+\."), "weights of single experts are not supported yet"),
    (re.compile(r"(^|\.)(router|gate|shared_expert_gate)\.weight$"), "a router"),
    (POSITION_TABLE, "a position or type table"),
)
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)\.weight$")


@contextmanager
def naming(path: Path, tensor: str) -> Iterator[None]:
    """Errors about a stream get the file and the tensor in front of the field."""
    try:
        yield
    except (CorruptStreamError, UnsupportedFormatError) as error:
        text = str(error)
        if text.startswith(str(path)):
            raise
        raise type(error)(f"{path}: {tensor}: {text}") from error


class Checkpoint:
    """An open checkpoint folder. Only headers are read until a tensor is asked for."""

    def __init__(self, folder: Path | str, files: Sequence[Path] | None = None) -> None:
        """Opens all shards.

        Args:
            files: the shards, where somebody else found them (a hub cache).

        Raises:
            FileNotFoundError: no such folder, or no weights in it.
            ValueError: weights of another kind than safetensors, or a broken index.
            CorruptStreamError: a shard is malformed; names file and tensor.
        """
        self.folder = Path(folder)
        self.files: dict[str, TensorFile] = {}
        try:
            for path in files or [self.folder / name for name in _shard_names(self.folder)]:
                self.files[path.name] = TensorFile(path)
            self.where = _owners(self.files)
            if not files:
                _check_index(self.folder, self.where)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for f in self.files.values():
            f.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def config(self) -> dict[str, Any]:
        """config.json, or nothing where there is none."""
        path = self.folder / "config.json"
        return _read_object(path) if path.is_file() else {}

    @property
    def quantization(self) -> dict[str, Any]:
        found = self.config.get("quantization_config") or {}
        if not isinstance(found, dict):
            path = self.folder / "config.json"
            raise ValueError(f"{path}: quantization_config is not a JSON object")
        return found

    @property
    def dtype(self) -> torch.dtype:
        """What config.json names; bfloat16 where that is no floating dtype."""
        named = str(self.config.get("dtype") or self.config.get("torch_dtype"))
        dtype = getattr(torch, named.removeprefix("torch."), None)
        found = isinstance(dtype, torch.dtype) and dtype.is_floating_point
        return dtype if found else torch.bfloat16

    @property
    def index_metadata(self) -> dict[str, Any]:
        """What the index says beside the place of every tensor; nothing without an index."""
        path = self.folder / INDEX
        found = _read_object(path).get("metadata") if path.is_file() else None
        return found if isinstance(found, dict) else {}

    def entry(self, name: str) -> Entry:
        return self.where[name].entries[name]

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        return self.where[name].read(name, rows)

    def is_coded(self, name: str) -> bool:
        """Whether `name` (`<module>.weight`) is the main stream of a coded matrix.

        Also where one of the four is missing or has a wrong dtype: then checked_head() says so, and
        the rest is not taken for dense tensors.
        """
        if not name.endswith("weight"):
            return False
        return sum(part in self.where for part in self.stream_names(name)[1:]) >= 2

    def coded_names(self) -> list[str]:
        names = {*self.where, *(name.removesuffix("_head") for name in self.where)}
        return [name for name in sorted(names) if self.is_coded(name)]

    def stream_names(self, name: str) -> list[str]:
        """Names of the four tensors of a coded matrix, `name` first."""
        return [name.removesuffix("weight") + part for part in STREAM_NAMES]

    def dense_names(self) -> list[str]:
        """Tensors that are not part of a coded matrix."""
        parts = {part for name in self.coded_names() for part in self.stream_names(name)}
        return [name for name in sorted(self.where) if name not in parts]

    def head(self, name: str) -> Head:
        """The parsed head of a coded matrix; reads nothing else."""
        self._require_parts(name)
        with naming(self.where[f"{name}_head"].path, name):
            return Head.parse(self.read(f"{name}_head").numpy().tobytes())

    def checked_head(self, name: str) -> Head:
        """The head of a coded matrix whose four tensors are there and as large as it says.

        Raises:
            CorruptStreamError, UnsupportedFormatError: names file, tensor and field.
        """
        self._require_parts(name)
        info = self.head(name)
        sizes = (info.stream_bytes, info.raw_bytes, info.index_ints)
        fields = ("stream", "raw", "index")
        for part, field, size in zip(self.stream_names(name), fields, sizes, strict=False):
            found = self.entry(part).numel
            if found != size:
                raise CorruptStreamError(
                    f"{self.where[part].path}: {part}: {field}: {found} elements, "
                    f"the head says {size}"
                )
        return info

    def coded_bytes(self, name: str) -> int:
        """Bytes of the four tensors of a coded matrix; raises as checked_head() does."""
        self._require_parts(name)
        return sum(self.entry(part).nbytes for part in self.stream_names(name))

    def _require_parts(self, name: str) -> None:
        parts = self.stream_names(name)
        for part, dtype in zip(parts, STREAM_DTYPES.values(), strict=True):
            if part not in self.where:
                path = next(self.where[other].path for other in parts if other in self.where)
                raise CorruptStreamError(f"{path}: {name}: {part} is missing")
            entry = self.entry(part)
            if len(entry.shape) != 1 or entry.torch_dtype != dtype:
                raise CorruptStreamError(
                    f"{self.where[part].path}: {part}: {entry.dtype} {list(entry.shape)}, "
                    f"not one dimension of {dtype}"
                )

    def coded(self, name: str, checksums: bool = True) -> CodedMatrix:
        """Reads and checks a coded matrix; raises as checked_head() does."""
        self._require_parts(name)
        parts = [self.read(part) for part in self.stream_names(name)]
        with naming(self.where[name].path, name):
            return CodedMatrix(*parts).check(checksums)

    def decode(self, name: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        coded = self.coded(name)
        with naming(self.where[name].path, name):
            return codecllm_ops.decode(coded, dtype)

    def require_dense(self) -> None:
        """Raises ValueError when the weights are compressed already, or cannot be coded."""
        method = self.quantization.get("quant_method")
        if method == QUANT_METHOD or self.coded_names():
            raise ValueError(f"{self.folder} is compressed already")
        if (self.folder / "adapter_config.json").is_file() and not self.config:
            raise ValueError(
                f"{self.folder} is a PEFT adapter, not a model: compress the base model and put "
                "the adapter on it as it is, or merge both (merge_and_unload, save_pretrained) and "
                "compress the result"
            )
        if method and not self.is_fp8:
            raise ValueError(
                f"{self.folder} is quantized with {method}; compress the original checkpoint"
            )

    @property
    def is_fp8(self) -> bool:
        """Whether weights are fp8 with scales beside them: then fp8 is the original."""
        return self.quantization.get("quant_method") in _FP8_METHODS and any(
            e.dtype.startswith("F8_E") and e.name.endswith(".weight") and len(e.shape) == 2
            for file in self.files.values()
            for e in file.entries.values()
        )

    def require_coded(self) -> None:
        """Raises ValueError when the folder holds no coded matrix, or of a newer version."""
        version = self.quantization.get("version", VERSION)
        if isinstance(version, int) and version > VERSION:
            raise UnsupportedFormatError(
                f"{self.folder} has version {version}, this build reads up to {VERSION}; "
                "upgrade codecllm"
            )
        names = self.coded_names()
        if not names:
            raise ValueError(f"{self.folder} is not compressed: no weight in it is coded")
        for name in names:
            self._require_parts(name)


def _shard_names(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    names = sorted(p.name for p in folder.glob("*.safetensors") if p.is_file() and p.name[0] != ".")
    if (folder / INDEX).is_file():
        return sorted(set(_weight_map(folder).values()))
    if WEIGHTS in names:
        return [WEIGHTS]
    if names:
        return names
    for pattern, kind in (("*.bin", "PyTorch .bin"), ("*.pt*", "PyTorch"), ("*.gguf", "GGUF")):
        if any(folder.glob(pattern)):
            raise ValueError(
                f"{folder} holds {kind} weights; only safetensors are read (load the model and "
                "save it again with save_pretrained)"
            )
    raise FileNotFoundError(f"{folder} holds no *.safetensors")


def _owners(files: dict[str, TensorFile]) -> dict[str, TensorFile]:
    """The file of every tensor. Two files with one name: nobody can say which of them is meant."""
    owners: dict[str, TensorFile] = {}
    for file in files.values():
        for name in file.entries:
            if name in owners:
                raise ValueError(
                    f"{name} is in two files, {owners[name].path} and {file.path}; "
                    "move away the one that does not belong to this checkpoint"
                )
            owners[name] = file
    return owners


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a JSON object")
    return found


def _weight_map(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    weight_map = _read_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path} is not a weight index: no weight_map from tensors to files")
    for tensor, name in weight_map.items():
        if not isinstance(name, str):
            raise ValueError(f"{path}: weight_map: {tensor}: {name!r} is not a file name")
        if Path(name).name != name:
            raise ValueError(f"{path} names {name!r}, which is outside the folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; {INDEX} names it")
    return weight_map


def _check_index(folder: Path, where: dict[str, TensorFile]) -> None:
    if (folder / INDEX).is_file():
        missing = sorted(set(_weight_map(folder)) - set(where))
        if missing:
            raise CorruptStreamError(f"{folder}: {missing[0]} is in {INDEX} but in no shard")


def is_candidate(entry: Entry) -> bool:
    """Whether a tensor of a checkpoint may be coded: a floating `*.weight` with two dimensions."""
    named = entry.name.endswith(".weight") and len(entry.shape) == 2
    return named and entry.torch_dtype in _SOURCE_DTYPES


def refusal(
    entry: Entry, model_type: str, skip: re.Pattern[str] | None, *, loads_coded: bool = True
) -> str | None:
    """Why a candidate is not coded, or None: it is.

    Names and shapes decide, so that no model needs to be built.

    Args:
        loads_coded: False where all is decoded before a module sees it: then any matrix will do.
    """
    if skip is not None and skip.search(entry.name):
        return "--skip"
    if loads_coded:
        for pattern, reason in _NOT_OURS:
            if pattern.search(entry.name):
                return reason
        if model_type in _CONV1D_MODELS and _CONV1D.search(entry.name):
            return "Conv1D, not nn.Linear"
    if entry.numel < MIN_WEIGHTS:
        return f"fewer than {MIN_WEIGHTS} weights"
    return None
