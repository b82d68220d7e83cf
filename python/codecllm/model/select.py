"""Which modules to compress: predicates `(full name, module) -> bool` to pass or to combine."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn

Predicate = Callable[[str, nn.Module], bool]


def by_size(min_weights: int) -> Predicate:
    """Modules whose weight has at least this many elements."""

    def should_compress(name: str, module: nn.Module) -> bool:
        return module.weight.numel() >= min_weights

    return should_compress


def by_regex(include: str | None = None, exclude: str | None = None) -> Predicate:
    """Modules whose full name has a match for `include` (if given) and none for `exclude`.

    Raises:
        re.error: not a regular expression.
    """
    wanted = re.compile(include) if include else None
    unwanted = re.compile(exclude) if exclude else None

    def should_compress(name: str, module: nn.Module) -> bool:
        if unwanted and unwanted.search(name):
            return False
        return wanted is None or wanted.search(name) is not None

    return should_compress


def all_of(*predicates: Predicate) -> Predicate:
    """Modules that every predicate accepts."""
    return lambda name, module: all(p(name, module) for p in predicates)
