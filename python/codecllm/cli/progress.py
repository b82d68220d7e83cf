"""Progress on stderr: a bar where somebody watches, plain lines where a file collects them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

_LINE_EVERY = 5.0  # seconds between plain lines


@contextmanager
def progress(label: str) -> Iterator[Callable[[str, int, int], None]]:
    """Yields a callback (tensor name, bytes done, bytes in all)."""
    if not sys.stderr.isatty():
        yield _lines(label)
        return
    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)

        def show(name: str, done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield show


@contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """Yields a callback that is told what is done next. Only who watches sees it."""
    if not sys.stderr.isatty():
        yield lambda what: None
        return
    with Console(stderr=True).status("") as shown:
        yield shown.update


def _lines(label: str) -> Callable[[str, int, int], None]:
    last = time.monotonic()

    def show(name: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _LINE_EVERY and done < total:
            last = now
            mib = f"{done >> 20} of {total >> 20} MiB"
            print(f"{label}: {100 * done // max(1, total)} % ({mib})", file=sys.stderr)

    return show
