"""Backends: each file or folder here is one, and registers itself when it is imported.

A backend decodes; `registry.py` chooses one per device. To add one: a module with a subclass of
Backend and `register(...)`, and its name in `MODULES`, in the order in which `auto` tries them.
"""

from __future__ import annotations

import importlib

from .protocol import Backend

MODULES = ("cpu", "cuda", "triton", "reference")

_table: dict[str, Backend] = {}


def register(backend: Backend) -> None:
    """What the module of a backend calls."""
    _table[backend.name] = backend


def table() -> dict[str, Backend]:
    """All backends by name, the ones that `auto` prefers first. None is loaded by this."""
    for name in MODULES:
        importlib.import_module(f".{name}", __name__)
    return {name: _table[name] for name in MODULES}


__all__ = ["MODULES", "Backend", "register", "table"]
