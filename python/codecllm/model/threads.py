"""Work on many tensors, some at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def in_threads(
    jobs: int, work: Callable[[str], T], names: Iterable[str]
) -> Iterator[tuple[str, T]]:
    """Names and what `work` makes of them, in order; begun all at once, `jobs` at a time.

    What has not begun when one of them fails, or when the caller stops, never does.
    """
    with ThreadPoolExecutor(jobs) as pool:
        futures = {name: pool.submit(work, name) for name in names}
        try:
            for name, future in futures.items():
                yield name, future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
