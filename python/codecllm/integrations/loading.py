"""load_compressed_model: a ready transformers model from a folder or a repository of the hub."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, GenerationConfig

from ..model.checkpoint import Checkpoint
from ..model.compress import decompress_model
from ..model.config_file import FILE_FIELD, HINT
from ..model.tensor_file import NAMES
from ..nn import set_exact
from ..nn.coding import AUTO, check_wish
from .transformers import choose_codings, loading_as

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
_CONFIG_OPTIONS = ("trust_remote_code", "attn_implementation")


def load_compressed_model(
    path: Path | str,
    mode: str = "fused",
    device: torch.device | str = "cpu",
    *,
    coding: str = AUTO,
    exact: bool = False,
    **kwargs: Any,
) -> Any:
    """A ready model of the class that config.json names, from a compressed folder.

    Args:
        path: a folder, or the name of a repository of the Hugging Face hub, which is downloaded.
        mode: "fused" keeps weights coded and decodes inside the matmul; "disk" decodes once and
            returns the plain model. Its peak of memory is that of the plain model and a few
            tensors, one for each thread of transformers' loader.
        device: where the model goes.
        coding: in mode "fused", what weights are in memory: "fixed" (12 bits, fast), "rans"
            (smallest), or "auto": what is best on the device. What cannot gain from "fixed" keeps
            the coding of the folder: coding_of(model) says which have what, and why.
        exact: in mode "fused", decode and call F.linear: outputs equal the plain model's.
        kwargs: for from_pretrained; revision, token, cache_dir... also for the download.

    Raises:
        NotImplementedError: mode "on_demand".
        ValueError: any other mode, or not a compressed folder, or one of a quantized original in
            mode "fused"; a coding in mode "disk"; "fixed", and no weight can have it.
        FileNotFoundError: neither a folder nor a repository that can be downloaded.
        CorruptStreamError: names file, tensor and field.
    """
    if mode == "on_demand":
        raise NotImplementedError(
            'mode "on_demand" is not there yet; use "fused" (least memory) or "disk"'
        )
    if mode not in ("fused", "disk"):
        raise ValueError(f'mode {mode!r} is unknown; known: "fused", "disk"')
    if check_wish(coding) != AUTO and mode == "disk":
        raise ValueError(f'mode "disk" decodes all weights: coding {coding!r} is for mode "fused"')
    folder = local_folder(path, **{k: kwargs[k] for k in _HUB_OPTIONS if k in kwargs})
    kwargs = {k: v for k, v in kwargs.items() if k not in _HUB_OPTIONS}
    kwargs.setdefault("dtype", "auto")
    with Checkpoint(folder) as source:
        source.require_coded()
        options = {k: kwargs[k] for k in _CONFIG_OPTIONS if k in kwargs}
        config = kwargs.pop("config", None) or AutoConfig.from_pretrained(folder, **options)
        cls = model_class(config)
        if mode == "disk" and not cls.__name__.startswith("Auto"):
            model = _decoded(cls, config, source, kwargs)
        else:
            # On the way to another device: converted there, and fewer bytes go there.
            elsewhere = torch.device(device).type != "cpu"
            with loading_as(None if elsewhere or mode == "disk" else coding):
                model = cls.from_pretrained(folder, config=config, **kwargs)
            if mode == "disk":  # the model's code is in the folder: only the Auto class finds it
                decompress_model(model)
    if torch.device(device).type != "cpu":  # else it stays where a device_map has put it
        model.to(device)
        if mode == "fused":
            choose_codings(model, coding)
    set_exact(model, exact)
    return model


def model_class(config: Any) -> Any:
    """The class that config.json names; one of the Auto classes where its code is in the folder."""
    for name in getattr(config, "architectures", None) or ():
        if isinstance(cls := getattr(transformers, str(name), None), type):
            return cls
    for name in getattr(config, "auto_map", None) or ():
        if name.startswith("AutoModel"):
            return getattr(transformers, name)
    known = type(config) in transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    return transformers.AutoModelForCausalLM if known else transformers.AutoModel


def local_folder(path: Path | str, **options: Any) -> Path:
    """The folder itself, or where the hub's client has put the repository of this name.

    Args:
        options: for huggingface_hub.snapshot_download.

    Raises:
        FileNotFoundError: neither is there; says what the client said.
    """
    if Path(path).is_dir():
        return Path(path)
    if not _REPOSITORY.fullmatch(str(path)):
        raise FileNotFoundError(f"{path} is not a folder")
    import huggingface_hub  # transformers brings it; only names of repositories need it

    try:
        return Path(huggingface_hub.snapshot_download(str(path), **options))
    except Exception as error:  # of many types: no network, no such name, no permission
        reason = str(error).strip().partition("\n")[0]
        raise FileNotFoundError(
            f"{path} is no folder, and the hub did not give a repository of this name: {reason}"
        ) from error


class _Tensor:
    """A tensor of the checkpoint that is read, or decoded, when the loader takes `tensor[...]`.

    What transformers asks of a slice of a safetensors file. Mapped pages of a file would count as
    memory beside what is decoded from them; these reads own what they return.
    """

    def __init__(self, source: Checkpoint, name: str) -> None:
        self._source, self._name = source, name
        self._coded = source.is_coded(name)
        if self._coded:
            info = source.checked_head(name)
            self.shape = (info.rows, info.cols)
            self.dtype = info.fmt.dtype if info.scale is None else source.dtype
        else:
            entry = source.entry(name)
            self.shape, self.dtype = entry.shape, entry.torch_dtype

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return NAMES[self.dtype]

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def __getitem__(self, index: Any) -> torch.Tensor:
        if self._coded:
            return self._source.decode(self._name, self.dtype)[index]
        return self._source.read(self._name)[index]


def _decoded(cls: Any, config: Any, source: Checkpoint, kwargs: dict[str, Any]) -> Any:
    """The plain model, loaded from tensors that are decoded one by one."""
    config = copy.deepcopy(config)
    _take_out_ours(config)
    names = [*source.coded_names(), *source.dense_names()]
    state = {name: _Tensor(source, name) for name in names}
    model = cls.from_pretrained(None, config=config, state_dict=state, **kwargs)
    model.name_or_path = model.config._name_or_path = str(source.folder)
    if model.can_generate() and (source.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(source.folder)
    return model


def _take_out_ours(config: Any) -> None:
    """Makes a configuration that of the original, as config_file.original_config() does."""
    quantization = getattr(config, "quantization_config", None) or {}
    if not isinstance(quantization, dict):
        quantization = quantization.to_dict()
    for field in ("quantization_config", FILE_FIELD):
        if field == FILE_FIELD and getattr(config, field, HINT) != HINT:
            continue
        if hasattr(config, field):
            delattr(config, field)
    for field, value in (quantization.get("original") or {}).items():
        if field != FILE_FIELD:
            setattr(config, field, value)
