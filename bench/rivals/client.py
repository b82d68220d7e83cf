"""llama.cpp in another process and environment, asked through a pipe."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

_WORKER = Path(__file__).with_name("llama_cpp_worker.py")


class LlamaCpp:
    """A model held by llama_cpp_worker.py; it sleeps between questions.

    Attributes:
        about: version, and the features of the processor that it uses.
    """

    def __init__(self, python: str, gguf: Path, threads: int) -> None:
        self._process = subprocess.Popen(
            [python, str(_WORKER), str(gguf), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},  # that of this one
        )
        self.about = self._answer()

    def ask(self, what: str, *numbers: int) -> dict[str, Any]:
        """{"seconds", "tokens"} of "decode" PROMPT TOKENS or "prefill" PROMPT."""
        assert self._process.stdin is not None
        print(what, *numbers, file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp ended with {self._process.wait()}")
        return json.loads(line)

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
