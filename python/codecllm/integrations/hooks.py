"""Tell transformers about codecllm without importing it.

transformers has no plugin entry point and costs seconds to import. So we register at once where it
is imported already, and otherwise when it is: a finder on sys.meta_path waits for one module.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import sys
import types
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..model.plugins import skeleton_builders

if TYPE_CHECKING:
    from ..model.skeleton import Skeleton

_AWAITED = "transformers.quantizers.auto"


def register_transformers() -> None:
    """Makes transformers load folders with quant_method "codecllm". Never raises."""
    if _skeleton not in skeleton_builders:
        skeleton_builders.append(_skeleton)
    if _AWAITED in sys.modules:
        _register()
    elif not any(isinstance(f, _AfterImport) for f in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def _register() -> None:
    try:
        importlib.import_module("codecllm.integrations.transformers")
    except Exception as error:  # an unknown future version must not break `import codecllm`
        warnings.warn(
            f"codecllm could not register with transformers, compressed folders will not load: "
            f"{type(error).__name__}: {error}",
            stacklevel=2,
        )


def _skeleton(folder: Path) -> Skeleton:
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError("the folder has no config.json")
    if not json.loads(config.read_text(encoding="utf-8")).get("architectures"):
        raise ValueError("config.json names no architectures")
    if importlib.util.find_spec("transformers") is None:
        raise ValueError("transformers is not installed")
    return importlib.import_module("codecllm.integrations.skeleton").build(folder)


class _AfterImport(importlib.abc.MetaPathFinder):
    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: types.ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _AWAITED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            execute(module)
            _register()

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
