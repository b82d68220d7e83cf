"""Ratios on noisy machines: all sides in one process, in turns, medians of ratios within a round.

A machine's speed may change by half between minutes, and all sides of a round change with it. So
what is compared is what stood side by side in time; seconds are for information.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

DENSE = "dense"
"""The side that codings are compared with: the library's GEMM on the weights as they are."""


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: at least so many.
        seconds: and then until these are over.
        most: but never more rounds than this.
    """

    rounds: int = 5
    seconds: float = 1.0
    most: int = 200


@dataclass(frozen=True)
class Times:
    """Seconds of every side, round by round."""

    seconds: Mapping[str, tuple[float, ...]]

    @property
    def rounds(self) -> int:
        return min(map(len, self.seconds.values()))

    def median(self, side: str) -> float:
        return statistics.median(self.seconds[side])

    def speed(self, side: str, of: str) -> Ratio:
        """Speed of `side` relative to that of `of`: 2 is twice as fast."""
        pairs = zip(self.seconds[of], self.seconds[side], strict=True)
        return Ratio.of(theirs / ours for theirs, ours in pairs)


@dataclass(frozen=True)
class Ratio:
    """The median of ratios and the middle half of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios) -> Ratio:
        found = sorted(ratios)
        if len(found) < 2:
            return cls(found[0], found[0], found[0])
        low, median, high = statistics.quantiles(found, n=4, method="inclusive")
        return cls(median, low, high)

    def to_dict(self) -> dict[str, float]:
        return {name: round(value, 3) for name, value in vars(self).items()}


def in_turns(calls: Mapping[str, Callable[[], object]], effort: Effort) -> Times:
    """Seconds of each call, taken in turns after one warm-up each."""
    return collect({name: _timed(call) for name, call in calls.items()}, effort)


def collect(calls: Mapping[str, Callable[[], float]], effort: Effort) -> Times:
    """As in_turns(), of calls that return the seconds that count."""
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    names, begin, done = list(calls), time.perf_counter(), 0
    while done < effort.rounds or (
        done < effort.most and time.perf_counter() - begin < effort.seconds
    ):
        # Each round another one begins: whoever follows finds the caches that the one before left.
        first = done % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(calls[name]())
        done += 1
    return Times({name: tuple(seconds) for name, seconds in taken.items()})


def _timed(call: Callable[[], object]) -> Callable[[], float]:
    def seconds() -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    return seconds
