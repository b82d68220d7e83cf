"""Running the command line."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from types import SimpleNamespace

from codecllm.cli import app


def run(*arguments):
    """In this process: importing torch takes longer than the commands do."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = app.run([str(a) for a in arguments])
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def run_process(*arguments, path=(), shell="", **options):
    """In one of its own.

    Args:
        path: folders searched for modules first.
        shell: redirections, for instance ">&-".
    """
    searched = [*map(str, path), *(p for p in sys.path if p)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(searched), **options.pop("env", {})}
    command = [sys.executable, "-m", "codecllm.cli", *map(str, arguments)]
    if shell:
        command = ["sh", "-c", f'exec "$@" {shell}', "sh", *command]
    if "stdout" not in options and "stderr" not in options:
        options["capture_output"] = True
    return subprocess.run(command, text=True, env=environment, check=False, **options)
