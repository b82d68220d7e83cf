"""The command line. No logic of its own: arguments in, functions of codecllm.model, lines out."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of `codecllm`. Errors are one sentence on stderr and exit code 1."""
    try:
        from .app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        sys.exit(f"codecllm: the command line needs {error.name}: pip install 'codecllm[cli]'")
    sys.exit(run())
