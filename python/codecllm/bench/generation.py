"""Tokens per second of whole models, greedy, one sequence; and the time of a long prompt."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from .timing import DENSE, Effort, Ratio, Times, collect

Load = Callable[[str], Any]
"""A model by the name of a side: "dense" or a coding."""


@dataclass(frozen=True)
class Work:
    """What is generated.

    Attributes:
        prompt: tokens that a text begins with.
        tokens: new ones per run.
        long_prompt: tokens of the prompt whose time is taken; 0: none.
    """

    prompt: int = 16
    tokens: int = 24
    long_prompt: int = 512


@dataclass(frozen=True)
class GenerationResult:
    """By side: "dense" is the model with dense weights.

    Attributes:
        tokens_per_second: medians, the prompt's time left out.
        speed, prefill_speed: relative to the dense model.
        same_tokens: of the new tokens, how many are those of the dense model until the first other.
        in_turns: whether all models were in memory at once and took turns. Otherwise they ran one
            after another, and ratios hold the machine's changes meanwhile.
    """

    work: Work
    rounds: int
    in_turns: bool
    tokens_per_second: dict[str, float]
    speed: dict[str, Ratio]
    prefill_seconds: dict[str, float]
    prefill_speed: dict[str, Ratio]
    same_tokens: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return {
            **vars(self.work),
            "rounds": self.rounds,
            "in_turns": self.in_turns,
            "tokens_per_second": {k: round(v, 2) for k, v in self.tokens_per_second.items()},
            "of_dense_speed": {k: r.to_dict() for k, r in self.speed.items()},
            "prefill_seconds": {k: round(v, 4) for k, v in self.prefill_seconds.items()},
            "prefill_of_dense_speed": {k: r.to_dict() for k, r in self.prefill_speed.items()},
            "same_tokens": self.same_tokens,
        }


def measure_generation(
    load: Load,
    sides: Sequence[str],
    work: Work,
    effort: Effort,
    *,
    at_once: bool,
    absent: dict[str, str],
) -> GenerationResult | None:
    """Generates with every side.

    Args:
        sides: "dense" first.
        at_once: keep all models in memory, so that they can take turns.
        absent: gets why there is nothing to measure: of "tokens", or of a coding.

    Returns:
        None for a model that does not generate.
    """
    decode: dict[str, tuple[float, ...]] = {}
    prefill: dict[str, tuple[float, ...]] = {}
    texts: dict[str, list[int]] = {}
    for group in [sides] if at_once else [[side] for side in sides]:
        models = _loaded(load, group, absent)
        if any(not model.can_generate() for model in models.values()):
            absent["tokens"] = "the model does not generate text"
            return None
        for side, model in models.items():
            texts[side] = generate(model, work.prompt, work.tokens).tokens
        runs = {s: partial(token_seconds, m, work) for s, m in models.items()}
        decode |= collect(runs, effort).seconds
        if work.long_prompt:
            runs = {s: partial(_prefill_seconds, m, work) for s, m in models.items()}
            prefill |= collect(runs, replace(effort, rounds=max(2, effort.rounds // 2))).seconds
        models, model, runs = {}, None, {}  # before the next one is loaded
        gc.collect()
    taken, prompts = _even(decode), _even(prefill)
    sides = list(decode)
    others = [side for side in sides if side != DENSE]
    return GenerationResult(
        work,
        taken.rounds,
        at_once,
        {side: 1 / taken.median(side) for side in sides},
        {side: taken.speed(side, DENSE) for side in others},
        {side: prompts.median(side) for side in prefill},
        {side: prompts.speed(side, DENSE) for side in others if prefill},
        {side: _common(texts[side], texts[DENSE]) for side in others},
    )


def _loaded(load: Load, sides: Sequence[str], absent: dict[str, str]) -> dict[str, Any]:
    models = {}
    for side in sides:
        try:
            models[side] = load(side)
        except ValueError as error:
            if side == DENSE:
                raise
            absent[side] = str(error)
    return models


def _even(seconds: dict[str, tuple[float, ...]]) -> Times:
    """Sides that ran one after another may have had more rounds than others in the same time."""
    least = min(map(len, seconds.values()), default=0)
    return Times({side: taken[:least] for side, taken in seconds.items()})


def _common(a: list[int], b: list[int]) -> int:
    return next((i for i, (p, q) in enumerate(zip(a, b, strict=True)) if p != q), len(a))


@dataclass(frozen=True)
class Generated:
    """New tokens, and when each was there: seconds since the prompt went in."""

    tokens: list[int]
    at: list[float]


class _Clock:
    """What generate() calls a streamer: told of the prompt first, then of every token."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, tokens: torch.Tensor) -> None:
        self.at.append(time.perf_counter())

    def end(self) -> None:
        pass


@torch.inference_mode()
def generate(model: Any, prompt: int, tokens: int, **options: Any) -> Generated:
    """Continues a prompt of arbitrary tokens greedily by exactly `tokens` new ones."""
    ids = 5 + 37 * torch.arange(prompt) % max(1, model.config.get_text_config().vocab_size - 5)
    ids, clock = ids[None], _Clock()
    begin = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        pad_token_id=0,
        streamer=clock,
        **options,
    )
    return Generated(out[0, prompt:].tolist(), [at - begin for at in clock.at[1:]])


def token_seconds(model: Any, work: Work, **options: Any) -> float:
    """Seconds of a token after the first, on average over a text."""
    at = generate(model, work.prompt, work.tokens, **options).at
    return (at[-1] - at[0]) / (len(at) - 1)


def _prefill_seconds(model: Any, work: Work) -> float:
    return generate(model, work.long_prompt, 1).at[0]
