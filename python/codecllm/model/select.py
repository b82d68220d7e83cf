"""Which modules to compress: predicates `(full name, module) -> bool`, and what a model forbids."""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import nn

Predicate = Callable[[str, nn.Module], bool]

POSITION_TABLE = re.compile(
    r"(^|\.)(wpe|embed_positions|position_embeddings?|token_type_embeddings"
    r"|relative_attention_bias)\.weight$"
)
"""Small tables that models of transformers read, slice and initialise in ways of their own."""


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


def kept_dense(model: nn.Module, name: str) -> str | None:
    """Why a transformers model needs the dense weight of a module, or None."""
    if hasattr(model, "_init_weights") and POSITION_TABLE.search(f"{name}.weight"):
        return "a position or type table"
    rescaled = name.endswith((".attention.output", ".feed_forward.value"))
    if rescaled and any(hasattr(m, "_rescale_layers") for m in model.modules()):
        return "the model's code divides it in place"  # RWKV, before it generates
    return None
