"""Where the time of one token goes: in products, and in all that is around them.

Hooks take the time before and after every nn.Linear, dense or compressed. They cost a few
microseconds each, which are taken off: measured by hooks on a module that does nothing.
"""

from __future__ import annotations

import statistics
import time

import pytest
import torch
from tinyllama import load
from torch import nn

from codecllm.bench.timing import DENSE

pytest.importorskip("transformers")

SIDES = (DENSE, "fixed", "rans")
ROUNDS, TOKENS, PAST = 5, 8, 16


class Stopwatch:
    """Adds up the time that modules take, from their forward's hooks."""

    def __init__(self) -> None:
        self.seconds, self.calls, self._begin = 0.0, 0, 0.0

    def watch(self, module: nn.Module) -> None:
        module.register_forward_pre_hook(self._before)
        module.register_forward_hook(self._after)

    def _before(self, module, args):
        self._begin = time.perf_counter()

    def _after(self, module, args, out):
        self.seconds += time.perf_counter() - self._begin
        self.calls += 1

    def take(self) -> tuple[float, int]:
        found = self.seconds, self.calls
        self.seconds, self.calls = 0.0, 0
        return found


def hook_seconds() -> tuple[float, float]:
    """What a watched call adds inside its own time, and in all."""
    module, watch, count = nn.Identity(), Stopwatch(), 20000

    def loop() -> float:
        begin = time.perf_counter()
        for _ in range(count):
            module(None)
        return time.perf_counter() - begin

    bare = loop()
    watch.watch(module)
    watched = loop()
    return watch.seconds / count, (watched - bare) / count


@torch.inference_mode()
def token(model, cache, ids) -> float:
    begin = time.perf_counter()
    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return time.perf_counter() - begin


@pytest.mark.parametrize("count", [1, 2])
def test_around_the_products(benchmark, threads, count):
    from transformers import DynamicCache

    threads(count)
    models = {side: load(side) for side in SIDES}
    watches = {side: Stopwatch() for side in SIDES}
    for side, model in models.items():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                watches[side].watch(module)
    inside, in_all = hook_seconds()
    ids, taken = torch.tensor([[7]]), {side: [] for side in SIDES}
    for _ in range(ROUNDS):
        for side, model in models.items():
            cache = DynamicCache(config=model.config)
            with torch.inference_mode():
                model(torch.arange(5, 5 + PAST)[None], past_key_values=cache, use_cache=True)
            watches[side].take()
            for _ in range(TOKENS):
                whole = token(model, cache, ids)
                products, calls = watches[side].take()
                taken[side].append((whole - calls * in_all, products - calls * inside, calls))
    benchmark.pedantic(lambda: None, rounds=1)
    for side, rows in taken.items():
        whole, products, calls = map(statistics.median, zip(*rows, strict=True))
        benchmark.extra_info[side] = {
            "token_ms": round(1e3 * whole, 2),
            "products_ms": round(1e3 * products, 2),
            "around_ms": round(1e3 * statistics.median(w - p for w, p, _ in rows), 2),
            "products": calls,
        }
    benchmark.extra_info["hook_us"] = round(1e6 * in_all, 2)
