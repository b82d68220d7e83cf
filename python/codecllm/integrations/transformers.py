"""transformers: a quantizer for folders that `codecllm compress` wrote.

READ ME FIRST
1. Only what the headers of the checkpoint files hold as streams gets replaced: no configuration
   per layer, and meta tensors have their true sizes, which device_map="auto" adds up.
2. A tied output layer has no tensors in the file. It becomes compressed because its source is, and
   transformers ties all four streams.
3. A module that cannot hold streams (nn.obstacle) is loaded as streams and decoded afterwards:
   small on disk, dense in memory.
4. config.json names a file that does not exist (config_file.HINT), for loaders without codecllm;
   the quantizer takes that away before transformers looks for the file.
5. transformers moves non-persistent buffers after loading, without their values: tables are built
   in the step after that, from heads that were read before.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.quantizers import auto
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from codecllm_ops.format import CorruptStreamError, UnsupportedFormatError
from codecllm_ops.format.head import Head

from ..model.checkpoint import Checkpoint
from ..model.coding import coded_groups, recode
from ..model.compress import decompress_model, decompress_modules
from ..model.config_file import FILE_FIELD, HINT, QUANT_METHOD, VERSION
from ..model.plugins import after_compressing
from ..model.select import kept_dense
from ..nn import (
    STREAM_DTYPES,
    STREAM_NAMES,
    CodedModule,
    coded_form,
    count_weights,
    obstacle,
)
from ..nn.coding import AUTO, check_wish, wish
from .keys import key_finder, loaded_dtype


@register_quantization_config(QUANT_METHOD)
class CodecllmConfig(QuantizationConfigMixin):
    """`quantization_config` in config.json.

    Attributes:
        version: of the layout of the folder.
        modules_to_not_convert: modules that stayed dense; for information.
        dequantize: decode once while loading and go on with the plain model. Also counts where it
            is given to from_pretrained beside a compressed folder.
        coding: "fixed", "rans" or "auto": what weights are in memory. Counts beside a folder as
            well, and is never written into one.
        original: fields of the original config.json that had to make room.
    """

    def __init__(
        self,
        quant_method: str = QUANT_METHOD,
        version: int = VERSION,
        modules_to_not_convert: list[str] | None = None,
        dequantize: bool = False,
        coding: str = AUTO,
        original: dict[str, Any] | None = None,
        **ignored: Any,
    ) -> None:
        if not (isinstance(version, int) and version <= VERSION):
            raise UnsupportedFormatError(
                f"this checkpoint has codecllm version {version}, this build reads up to "
                f"{VERSION}; upgrade codecllm"
            )
        self.quant_method = QUANT_METHOD
        self.version = version
        self.modules_to_not_convert = modules_to_not_convert
        self.dequantize = dequantize
        self.coding = check_wish(coding)
        self.original = original or {}

    def get_loading_attributes(self) -> dict[str, Any]:
        """Options of from_pretrained(quantization_config=...) that count beside a folder's own."""
        options = {"dequantize": self.dequantize, "coding": self.coding}
        return {k: v for k, v in options.items() if v not in (False, AUTO)}

    def to_dict(self) -> dict[str, Any]:
        """For config.json: what the weights are in memory is nothing that a folder says."""
        return {k: v for k, v in super().to_dict().items() if k != "coding"}


@register_quantizer(QUANT_METHOD)
class CodecllmQuantizer(HfQuantizer):
    """Puts compressed modules where the checkpoint has streams, and checks them after loading."""

    requires_calibration = False

    def __init__(self, quantization_config: CodecllmConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._dense: set[str] = set()  # modules that get streams now and are decoded after loading
        self._heads: dict[str, tuple[Head, str]] = {}  # by module: head, "file: tensor"

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        quantized = self.quantization_config.original.get("quantization_config")
        if quantized:
            method = quantized.get("quant_method")
            raise ValueError(
                f"the original is quantized with {method}, whose modules cannot multiply with "
                "coded weights: decode them while loading, with "
                'codecllm.load_compressed_model(folder, mode="disk"), or write the original again, '
                "with `codecllm decompress`"
            )
        if not self.pre_quantized:
            raise ValueError(
                "compressing while loading is not supported; run `codecllm compress SRC DST` once "
                "and load DST, or call codecllm.compress_model_weights on the loaded model"
            )

    def update_dtype(self, dtype: torch.dtype | None) -> torch.dtype:
        return torch.bfloat16 if dtype is None else dtype

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        """True for streams: the loader then leaves their shapes to us."""
        module_name, _, leaf = param_name.rpartition(".")
        return leaf in STREAM_DTYPES and isinstance(model.get_submodule(module_name), CodedModule)

    def _process_model_before_weight_loading(
        self, model: Any, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> None:
        if getattr(model.config, "distributed_config", None) is not None:
            raise NotImplementedError(
                "codecllm: tensor parallel loading is not supported in transformers yet"
            )
        files = [Path(f) for f in checkpoint_files or []]
        wrong = [f for f in files if f.suffix != ".safetensors"]
        if wrong or not files:
            raise ValueError(f"codecllm checkpoints are safetensors, not {wrong or 'in memory'}")
        with Checkpoint(files[0].parent, files) as source:
            self._replace(model, source)
        if not self._heads:
            raise ValueError(
                f"{files[0].parent}: config.json says the weights are compressed by codecllm, but "
                "none of this model's are; run `codecllm compress` on the original folder again, "
                "or delete quantization_config from config.json if the weights are dense"
            )
        self._tie_streams(model)

    def _replace(self, model: Any, source: Checkpoint) -> None:
        key_of = key_finder(model)
        modules = dict(model.named_modules())
        for name in source.coded_names():
            info, where = source.checked_head(name), f"{source.where[name].path}: {name}"
            key, converted = key_of(name)
            module_name = key.rpartition(".")[0]
            module = modules.get(module_name)
            if converted:
                raise ValueError(
                    f"{where}: merged with others into one weight while loading; compress again "
                    f"with --skip '{name}'"
                )
            if module is None:
                continue  # transformers lists it among the unexpected keys
            self._put(model, module_name, module, info, where)
            self._heads[module_name] = info, where

    def _put(self, model: Any, name: str, module: nn.Module, info: Head, where: str) -> None:
        reason = obstacle(module)
        if not isinstance(module, nn.Linear | nn.Embedding):
            raise ValueError(f"{where}: {reason}; compress again with --skip '{name}'")
        if reason is not None or kept_dense(model, name):
            self._dense.add(name)
        shape = tuple(module.weight.shape)
        if (info.rows, info.cols) != shape:
            raise CorruptStreamError(
                f"{where}: head: a matrix of {[info.rows, info.cols]}, the model has {list(shape)}"
            )
        sizes = (info.stream_bytes, info.raw_bytes, info.index_ints, len(info.pack()))
        streams = {
            part: torch.empty(size, dtype=dtype, device="meta")
            for (part, dtype), size in zip(STREAM_DTYPES.items(), sizes, strict=True)
        }
        new = coded_form(module, streams, loaded_dtype(model, f"{name}.weight", module.weight))
        if type(module) not in (nn.Linear, nn.Embedding):
            # Its class may have buffers that _init_weights fills (Gemma's embed_scale).
            new._is_hf_initialized = False
        model.set_submodule(name, new)

    def _tie_streams(self, model: Any) -> None:
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        for target, source in list(tied.items()):
            names = [n.removesuffix(".weight") for n in (target, source)]
            if not all(n.endswith(".weight") for n in (target, source)):
                continue
            coded = [n for n in names if n in self._heads]
            if not coded:
                continue
            info, where = self._heads[coded[0]]
            for name in names:
                if name not in self._heads:
                    module = model.get_submodule(name)
                    self._put(model, name, module, info, where)
                    self._heads[name] = info, where
            for part in STREAM_NAMES[1:]:
                tied[f"{names[0]}.{part}"] = f"{names[1]}.{part}"

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        modules = {name: model.get_submodule(name) for name in self._heads}
        for name, module in modules.items():
            _cut_bias(module)
            if module.streams[0].is_meta:  # offloaded to disk: streams come with each forward
                module.rebuild(self._heads[name][0])
        self._check_and_convert(modules)
        for module in modules.values():
            if not module.streams[0].is_meta and not module.ready:
                module.rebuild()
        self._decode_those_that_must_be_dense(model)
        self._heads.clear()
        count_weights(model)
        if self.quantization_config.dequantize:
            decompress_model(model)
        return model

    def _check_and_convert(self, modules: dict[str, CodedModule]) -> None:
        """Compares checksums, and gives weights the coding that they shall have in memory."""
        groups: dict[int, dict[str, CodedModule]] = {}
        for name, module in modules.items():
            if not module.streams[0].is_meta:
                groups.setdefault(id(module.streams[0]), {})[name] = module
        named = {next(iter(group)): group for group in groups.values()}
        dense = {name for name, group in named.items() if self._dense.intersection(group)}
        asked = None if self.quantization_config.dequantize else _asked.get()
        stay = set(named) if asked is None else dense
        with ThreadPoolExecutor() as pool:  # checksums let other threads run
            list(pool.map(lambda name: self._check(name, modules[name]), stay))
        if asked is not None:
            said = wish(asked, self.quantization_config.coding)
            recode({n: g for n, g in named.items() if n not in stay}, said, self._check)

    def _decode_those_that_must_be_dense(self, model: Any) -> None:
        streams = {n: id(model.get_submodule(n).streams[0]) for n in self._heads}
        dense = {streams[name] for name in self._dense}
        tied = {name for name, stream in streams.items() if stream in dense}
        if tied:
            decompress_modules(model, tied)

    def _check(self, name: str, module: CodedModule) -> None:
        try:
            module.coded.check(checksums=True)
        except (CorruptStreamError, UnsupportedFormatError) as error:
            raise type(error)(f"{self._heads[name][1]}: {error}") from error

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        return decompress_model(model)

    # Between reading the configuration and looking for its files, transformers up to 5.20 asks the
    # first of these and since 5.19 the second.

    def update_tp_plan(self, config: Any) -> Any:
        return self._without_hint(config)

    def update_attn_implementation(self, config: Any) -> Any:
        return self._without_hint(config)

    def _without_hint(self, config: Any) -> Any:
        if getattr(config, FILE_FIELD, None) == HINT:
            delattr(config, FILE_FIELD)
            if named := self.quantization_config.original.get(FILE_FIELD):
                setattr(config, FILE_FIELD, named)
        return config

    def update_parallel_plan(self, model: Any, plan: Any) -> None:
        return None

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        return True

    def get_state_dict_and_metadata(
        self, model: Any
    ) -> tuple[dict[str, torch.Tensor] | None, dict[str, str]]:
        """The state, where transformers would write a stream that is tied and empty (a list without
        weights) under both its names: it knows tied tensors by their addresses."""
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        empty = {n for n in tied if n.rpartition(".")[2] in STREAM_NAMES and _is_empty(model, n)}
        state = None
        if empty:
            state = {k: v for k, v in model.state_dict().items() if k not in empty}
        return state, {"codecllm_version": str(VERSION)}

    @property
    def is_trainable(self) -> bool:
        return True  # adapters; the streams are frozen

    @property
    def is_compileable(self) -> bool:
        return True


_asked: ContextVar[str | None] = ContextVar("codecllm_asked", default=AUTO)


@contextmanager
def loading_as(coding: str | None) -> Iterator[None]:
    """What load_compressed_model() is asked for; None: weights stay as they are in the folder."""
    token = _asked.set(coding)
    try:
        yield
    finally:
        _asked.reset(token)


def choose_codings(model: nn.Module, coding: str) -> None:
    """What loading does otherwise, for a model that has gone to its device after it."""
    recode(coded_groups(model), wish(coding))


def attach(model: nn.Module) -> None:
    """Tells transformers that a model in memory is compressed now, as if it had been loaded so.

    save_pretrained then writes a folder that loads again, and Trainer wants an adapter.
    """
    from transformers import PreTrainedModel  # its module is what is importing this one

    if not isinstance(model, PreTrainedModel):
        return
    dense = sorted(
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.Linear | nn.Embedding) and not isinstance(m, CodedModule)
    )
    config = CodecllmConfig(modules_to_not_convert=dense or None)
    model.config.quantization_config = config
    model.hf_quantizer = CodecllmQuantizer(config, pre_quantized=True)
    model.is_quantized, model.quantization_method = True, QUANT_METHOD
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for target, source in list(tied.items()):
        names = [n.removesuffix(".weight") for n in (target, source)]
        if all(isinstance(_submodule(model, n), CodedModule) for n in names):
            for part in STREAM_NAMES[1:]:
                tied[f"{names[0]}.{part}"] = f"{names[1]}.{part}"


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _is_empty(model: nn.Module, name: str) -> bool:
    module = _submodule(model, name.rpartition(".")[0])
    if not isinstance(module, CodedModule):
        return False
    return not module._parameters[name.rpartition(".")[2]].numel()  # type: ignore[union-attr]


def _cut_bias(module: nn.Module) -> None:
    """Tying pads the bias of an output layer to weight.shape[0], which is bytes here."""
    bias = getattr(module, "bias", None)
    if bias is not None and bias.shape[0] > module.out_features:
        bias.data = bias.data[: module.out_features].clone()


def _register_loading_attributes() -> None:
    """transformers ignores options beside a compressed folder unless the class is in this tuple."""
    types = getattr(auto, "LOADING_ATTRIBUTES_CONFIG_TYPES", None)
    if isinstance(types, tuple) and CodecllmConfig not in types:
        auto.LOADING_ATTRIBUTES_CONFIG_TYPES = (*types, CodecllmConfig)


_register_loading_attributes()
after_compressing.append(attach)
