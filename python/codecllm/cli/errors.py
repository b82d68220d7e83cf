"""How a command ends: results on stdout, or one sentence on stderr and an exit code.

Imports nothing that takes time: an interrupt or a failure during the imports of the commands ends
here, too. CODECLLM_DEBUG=1 adds the traceback.

Exit codes: 1 failure, 2 wrong usage, 130 interrupted, 141 nobody reads the output any more.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable

_RESUMABLE = ("compress", "convert", "decompress")


def guarded(work: Callable[[], int], arguments: list[str]) -> int:
    """Runs a command line's `work`; returns the exit code. Every error becomes a sentence."""
    resumable = bool(arguments) and arguments[0] in _RESUMABLE
    try:
        code = work()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        hint = "; run the same command with --resume to go on" if resumable else ""
        code = _fail(f"interrupted{hint}", 130)
    except (BrokenPipeError, SystemExit) as error:
        # typer and rich leave by SystemExit when a pipe breaks.
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        code = 141
    except OSError as error:
        code = _fail(_system_sentence(error, resumable), 1)
    except Exception as error:
        # A usage error of click, which typer may carry as a private copy: known by its method.
        if hasattr(error, "format_message"):
            code = _fail(error.format_message(), 2)
        else:
            code = _fail(_sentence(error), 1)
    _let_go_of_broken_streams()
    return code


def open_closed_streams() -> None:
    """Gives closed standard streams (`>&-`) a place to go.

    Otherwise the next file that is opened gets the number of stdout, and whatever a library
    prints lands in it.
    """
    while True:
        fd = os.open(os.devnull, os.O_RDWR)
        if fd > 2:
            os.close(fd)
            break
        os.set_inheritable(fd, True)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    ours = type(error).__module__.partition(".")[0] in ("codecllm", "codecllm_ops")
    expected = (ValueError, NotImplementedError, ImportError, MemoryError)
    if text and (ours or isinstance(error, expected)):
        return text
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{what} (CODECLLM_DEBUG=1 shows where)"


def _system_sentence(error: OSError, resumable: bool) -> str:
    if error.strerror is None:
        return " ".join(str(error).split())
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    path = (error.filename2 if full else None) or error.filename
    where = f"{path}: " if path else ""
    hint = "; free some space and run again with --resume" if full and path and resumable else ""
    return f"{where}{error.strerror}{hint}"


def _fail(sentence: str, code: int) -> int:
    try:
        if os.environ.get("CODECLLM_DEBUG") == "1":
            traceback.print_exc()
        print(f"codecllm: {sentence}", file=sys.stderr, flush=True)
    except OSError:
        pass  # nobody is there to read it
    return code


def _let_go_of_broken_streams() -> None:
    """Keeps the interpreter's last flush from failing again, with a traceback of its own."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
