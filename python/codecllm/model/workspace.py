"""Where a run builds its result: a folder beside the destination that becomes it at the end.

READ ME FIRST
1. `<dst>.partial` is renamed to `<dst>` when everything is written: a destination that exists is
   complete. A kill at any moment leaves the partial folder, and --resume goes on from it.
2. All of this happens under a lock beside the folders, `<dst>.partial.lock`. Inside the partial
   folder it would vanish with the rename, and a second run could begin in between.
3. `.spool/job.json` says what the folder is being made from. When a run opens the folder,
   everything goes that this job has not finished; what is there at the end was made by this job.
4. A folder with content cannot be replaced in one step: the old destination becomes `.<dst>.old`,
   and after a kill between the two renames the next run moves it back.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from .job import Job
from .lock import FileLock
from .spool import Spool
from .tensor_file import write_text


class Workspace:
    """`<dst>.partial`, locked for this run."""

    def __init__(self, dst: Path, job: Job, *, force: bool = False, resume: bool = False) -> None:
        """Creates or reopens the folder.

        Raises:
            FileExistsError: `dst` or an unfinished run is there and nobody said what to do, or
                the unfinished run is another job.
            BlockingIOError: another process is at work on it.
        """
        require_replaceable(dst)
        self.dst = dst
        self.folder = dst.with_name(dst.name + ".partial")
        self.spool = Spool(self.folder / ".spool", job.digest)
        self._old = dst.with_name(f".{dst.name}.old")
        self._job_file = self.spool.folder / "job.json"
        dst.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder.with_name(self.folder.name + ".lock"), str(self.folder))
        try:
            self._open(job, force, resume)
        except BaseException:
            self.close()
            raise

    def _open(self, job: Job, force: bool, resume: bool) -> None:
        note = ", moved back after an interrupted --force" if self._restore() else ""
        if self.dst.exists() and not force:
            raise FileExistsError(
                f"{self.dst} exists{note}; choose another name, or --force to replace it"
            )
        if self.folder.exists() and not (resume or force):
            raise FileExistsError(
                f"{self.folder} is an unfinished run; --resume goes on, --force starts again"
            )
        begun = Job.load(self._job_file) if resume else None
        difference = job.difference(begun) if begun else ""
        if difference and not force:
            raise FileExistsError(
                f"{self.folder} is an unfinished run {difference}; --resume needs the same again, "
                "--force starts over"
            )
        same = begun is not None and not difference
        whole = [shard for shard in self._records() if self._is_whole(shard)] if same else []
        keep = {self.spool.folder.name, *whole} if same else set()
        self.folder.mkdir(exist_ok=True)
        for path in self.folder.iterdir():
            if path.name not in keep:
                _remove(path)
        if not same:
            self.spool.folder.mkdir()
            write_text(self._job_file, job.to_json())

    def _restore(self) -> bool:
        """Moves the old destination back if a run was killed before it put the new one there."""
        if not self._old.is_dir() or os.path.lexists(self.dst):
            return False
        os.rename(self._old, self.dst)
        return True

    def close(self) -> None:
        self._lock.release()

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def discard(self) -> None:
        """Removes the folder and everything in it."""
        shutil.rmtree(self.folder)

    def publish(self) -> None:
        """Turns the folder into the destination."""
        if self.dst.exists():
            _remove(self._old)
            os.rename(self.dst, self._old)
        try:
            shutil.rmtree(self.spool.folder)  # not earlier: it holds what --resume needs
            os.rename(self.folder, self.dst)
        except BaseException:
            self._restore()
            raise
        _sync_folder(self.dst.parent)
        _remove(self._old)

    def finish_shard(self, shard: str, result: Any) -> None:
        """Notes that a shard is written; `result` comes back from finished_shard()."""
        record = [*_stamp(self.folder / shard), result]
        write_text(self._record(shard), json.dumps(record))

    def finished_shard(self, shard: str) -> Any | None:
        """The result of a shard that this job has written, in this run or an earlier one."""
        return self._read_record(shard)[2] if self._is_whole(shard) else None

    def _record(self, shard: str) -> Path:
        return self.spool.folder / f"{shard}.done"

    def _records(self) -> list[str]:
        return [p.name.removesuffix(".done") for p in self.spool.folder.glob("*.done")]

    def _read_record(self, shard: str) -> list[Any]:
        try:
            size, mtime_ns, result = json.loads(self._record(shard).read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            return [None, None, None]
        return [size, mtime_ns, result]

    def _is_whole(self, shard: str) -> bool:
        """Whether the shard is as it was when it was finished."""
        try:
            return self._read_record(shard)[:2] == _stamp(self.folder / shard)
        except FileNotFoundError:
            return False


def require_replaceable(dst: Path) -> None:
    """Raises ValueError, FileExistsError unless `dst` is a name to create, or a folder that a
    rename can move away."""
    if dst.name in ("", ".."):
        raise ValueError(f"destination {str(dst)!r}: give the name of a folder to write")
    for path in (dst, dst.with_name(dst.name + ".partial")):
        kind = (
            "a symbolic link"
            if path.is_symlink()
            else "a mount point"
            if path.is_mount()
            else "not a folder"
            if path.exists() and not path.is_dir()
            else ""
        )
        if kind:
            raise FileExistsError(f"{path} is {kind} and cannot be replaced; choose another name")


def _stamp(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
