"""The command line. No logic of its own: arguments in, functions of codecllm.model, lines out."""

from __future__ import annotations

import sys

from .errors import guarded, open_closed_streams


def main() -> None:
    """Entry point of `codecllm`."""
    open_closed_streams()
    sys.exit(guarded(_run, sys.argv[1:]))


def _run() -> int:
    try:
        from .app import run  # inside, so that an interrupt while it is imported is a sentence
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        raise ImportError(f"the command line needs {error.name}: pip install typer rich") from error
    return run(sys.argv[1:])
