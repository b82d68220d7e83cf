"""Ratios on noisy machines: both sides in one process, alternating, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def alternate(*calls: Callable[[], object], rounds: int = 15) -> list[float]:
    """Median seconds of each call, taken in turns after one warm-up each."""
    times: list[list[float]] = [[] for _ in calls]
    for call in calls:
        call()
    for _ in range(rounds):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    return [statistics.median(t) for t in times]
