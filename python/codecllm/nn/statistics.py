"""Counters of what compressed modules do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Statistics:
    """What a module did since statistics were switched on.

    Attributes:
        calls: forwards.
        vectors: rows of x, or ids, over all calls.
        seconds: wall time inside the op, with the device synchronised before and after.
    """

    calls: int = 0
    vectors: int = 0
    seconds: float = 0.0
