"""A lock file: one process holds it, and it is gone afterwards."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class FileLock:
    """Held from construction to release(). A killed process leaves a file that locks nothing."""

    def __init__(self, path: Path, what: str) -> None:
        """Takes the lock or fails at once.

        Args:
            what: what is being locked, for the message.

        Raises:
            BlockingIOError: somebody else holds it.
            OSError: the file cannot be made, or its file system knows no locks.
        """
        self.path = path
        while True:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(self._fd)
                if isinstance(error, BlockingIOError):
                    raise BlockingIOError(f"another process is writing {what}") from error
                raise OSError(error.errno, error.strerror, str(path)) from error
            # A holder deletes the file. If that fell between our open and our lock, we hold a
            # file that has no name any more, and others would make and lock a new one.
            if _is_named(self._fd, path):
                return
            os.close(self._fd)

    def release(self) -> None:
        # Deleted while it is still locked: see above.
        self.path.unlink(missing_ok=True)
        os.close(self._fd)


def _is_named(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
