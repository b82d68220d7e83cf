"""What a run makes its result from and how. A later run may go on with it only if this is equal."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .checkpoint import Checkpoint


@dataclass(frozen=True)
class Job:
    """Everything that decides the bytes of the result.

    Attributes:
        source: absolute path of the source folder.
        files: its shards and config.json by name: [size, mtime_ns].
    """

    command: str
    source: str
    files: dict[str, list[int]]
    options: dict[str, Any] = field(default_factory=dict)

    @staticmethod
    def of(command: str, source: Checkpoint, options: dict[str, Any] | None = None) -> Job:
        files = {name: [f.size, f.mtime_ns] for name, f in source.files.items()}
        config = source.folder / "config.json"
        if config.is_file():
            stat = config.stat()
            files[config.name] = [stat.st_size, stat.st_mtime_ns]
        return Job(command, str(source.folder.resolve()), files, options or {})

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def load(path: Path) -> Job | None:
        """The job of a file, None where there is none that can be read."""
        try:
            return Job(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def difference(self, begun: Job) -> str:
        """What was another in `begun`, as the end of a sentence; "" if they are equal."""
        if begun.command != self.command:
            return f"of codecllm {begun.command}, not {self.command}"
        if begun.source != self.source:
            return f"from {begun.source}, not {self.source}"
        for key in sorted({*begun.options, *self.options}):
            before, now = begun.options.get(key), self.options.get(key)
            if before != now:
                return f"with {key} {_shown(before)}, not {_shown(now)}"
        for name in sorted({*begun.files, *self.files}):
            if begun.files.get(name) != self.files.get(name):
                return f"from a {name} that has changed since"
        return ""


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)
