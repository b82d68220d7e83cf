"""Greedy generation from a folder, with the figures that a comparison needs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..model.checkpoint import Checkpoint
from ..model.coding import coding_of
from .loading import load_compressed_model, local_folder


@dataclass(frozen=True)
class Generation:
    """Texts without their prompts, and what they cost.

    Attributes:
        tokens: ids of every text.
        weight_bytes: parameters and buffers, each storage once.
        peak_rss_bytes: of this process since it began; mapped pages of the checkpoint included.
        loaded_rss_bytes: of this process when the model was ready.
        seconds: time in generate() over all prompts, prefill included.
        chat: whether the prompts went through a chat template, as messages of a user.
        codings: which coding the weights have in memory and why, in lines for people.
    """

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    seconds: float
    weight_bytes: int
    loaded_rss_bytes: int
    peak_rss_bytes: int
    load_seconds: float
    chat: bool
    codings: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        return sum(map(len, self.tokens)) / max(self.seconds, 1e-9)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tokens_per_second": self.tokens_per_second}


def generate_text(
    path: Path | str,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 48,
    mode: str = "fused",
    coding: str = "auto",
    exact: bool = False,
    chat: bool = True,
    device: str = "cpu",
) -> Generation:
    """Loads a folder, compressed or not, and continues each prompt greedily.

    Args:
        mode, coding, exact: for compressed folders, see load_compressed_model.
        chat: put prompts through the tokenizer's chat template, where it has one.

    Raises:
        ValueError, OSError: the folder is no model, or has no tokenizer; no such device here.
    """
    require_device(device)
    start = time.perf_counter()
    path = local_folder(path)
    with Checkpoint(path) as source:
        is_coded = bool(source.coded_names())
    if is_coded:
        model = load_compressed_model(path, mode, device, coding=coding, exact=exact)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype="auto").to(device)
    tokenizer = AutoTokenizer.from_pretrained(path)
    chat = chat and bool(getattr(tokenizer, "chat_template", None))
    loaded = time.perf_counter() - start
    loaded_rss = _status_bytes("VmRSS")
    batches = [_encode(tokenizer, prompt, chat).to(device) for prompt in prompts]
    with torch.inference_mode():
        _continue(model, tokenizer, batches[0], 2)  # first calls allocate and choose kernels
        start = time.perf_counter()
        outputs = [_continue(model, tokenizer, ids, max_new_tokens) for ids in batches]
        seconds = time.perf_counter() - start
    tokens = tuple(tuple(out.tolist()) for out in outputs)
    texts = tuple(tokenizer.decode(t, skip_special_tokens=True) for t in tokens)
    held, peak = weight_bytes(model), _status_bytes("VmHWM")
    codings = tuple(coding_of(model).lines())
    return Generation(texts, tokens, seconds, held, loaded_rss, peak, loaded, chat, codings)


def require_device(name: str) -> None:
    """Raises ValueError unless tensors can be used on this device: before minutes of loading."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"{name!r} is not a device; cpu, cuda and cuda:1 are") from error
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # of which type, differs from device to device
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"device {name!r} cannot be used here: {reason}") from error


def _encode(tokenizer: Any, prompt: str, chat: bool) -> torch.Tensor:
    if chat:
        messages = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    return tokenizer(prompt, return_tensors="pt").input_ids


def _continue(model: Any, tokenizer: Any, ids: torch.Tensor, count: int) -> torch.Tensor:
    """New tokens only, [at most count]."""
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
    )
    return out[0, ids.shape[1] :]


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers; what several modules share counts once."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storages[tensor.data_ptr(), tensor.device] = tensor.numel() * tensor.element_size()
    return sum(storages.values())


def _status_bytes(field: str) -> int:
    """From /proc, because getrusage's peak includes that of the parent before exec; else 0."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0
