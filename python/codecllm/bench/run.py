"""A whole run: products, tokens per second, memory; of a folder, or of normal matrices."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from codecllm_ops.format import UnsupportedFormatError

from ..model.compress_folder import compress_checkpoint
from .generation import GenerationResult, Work, measure_generation
from .linear import LinearResult, measure_group
from .machine import free_bytes, machine
from .memory import MemoryResult, measure_memory
from .report import BenchReport
from .timing import DENSE, Effort
from .weights import dense_bytes, is_compressed, model_groups, normal_groups

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 512)
CODINGS = ("fixed", "rans")
PARTS = ("linear", "tokens", "memory")
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        shapes: so many of a model's, those with most weights first.
        linear, tokens: how long.
    """

    batches: tuple[int, ...]
    shapes: int
    linear: Effort
    tokens: Effort
    work: Work


FULL = Plan(BATCHES, 4, Effort(5, 1.0), Effort(5, 30.0, 9), Work())
QUICK = Plan((1, 8, 64), 1, Effort(3, 0.2), Effort(2, 3.0, 5), Work(tokens=8, long_prompt=0))


def run_bench(
    folder: Path | None = None,
    *,
    batches: Sequence[int] | None = None,
    codings: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
    threads: int | None = None,
    quick: bool = False,
    progress: Progress = lambda what: None,
) -> BenchReport:
    """Measures dense against coded weights on this machine's CPU.

    Args:
        folder: a checkpoint, compressed or not; None: products of normal matrices only. One that is
            not is compressed into a temporary folder (TMPDIR), for tokens and memory.
        batches: rows of x; None: 1 to 512, quick: 1, 8 and 64.
        codings: of CODINGS, compared with the dense weights; None: those that the weights have.
        parts: of PARTS; None: those that are possible here.
        threads: of torch; None: as they are.
        quick: fewer shapes and rounds, and no long prompt.
        progress: told what is measured next.

    Raises:
        ValueError: an argument out of range, or nothing in the folder could be coded.
        UnsupportedFormatError: the weights do not have a coding that was asked for.
        ImportError: tokens or memory were asked for, and transformers is missing.
        WrongResultError: a kernel computes something else than it must.
        ChildError: the process that measures memory failed.
    """
    _check(folder, batches, codings, parts, threads)
    plan = QUICK if quick else FULL
    if batches:
        plan = replace(plan, batches=tuple(batches))
    with _threads(threads), contextlib.ExitStack() as stack:
        run = _Run(folder, plan, codings or CODINGS, progress, stack)
        for part in parts or PARTS:
            reason = run.obstacle(part)
            if reason is None:
                getattr(run, part)()
            elif parts:
                raise ImportError(reason)
            else:
                run.absent[part] = reason
        if codings and (missing := [c for c in codings if c in run.absent]):
            raise UnsupportedFormatError(run.absent[missing[0]])
        return run.report()


class _Run:
    """One run; each part is a method, and fills what the report is made from."""

    def __init__(
        self,
        folder: Path | None,
        plan: Plan,
        codings: Sequence[str],
        progress: Progress,
        stack: contextlib.ExitStack,
    ) -> None:
        self._folder, self._plan, self._progress, self._stack = folder, plan, progress, stack
        self._compressed: Path | None = None
        self._codings = tuple(codings)
        self._linear: list[LinearResult] = []
        self._generation: GenerationResult | None = None
        self._memory: dict[str, MemoryResult] = {}
        self._dense = "bfloat16"
        self.absent: dict[str, str] = {}

    def obstacle(self, part: str) -> str | None:
        """Why a part cannot be measured here."""
        if part == "linear":
            return None
        if self._folder is None:
            return "needs the folder of a model"
        if find_spec("transformers") is None:
            return "needs transformers: pip install 'transformers>=5,<6' accelerate"
        return None

    def linear(self) -> None:
        plan, groups = self._plan, normal_groups()
        if self._folder is not None:
            groups = model_groups(self._folder, plan.shapes)
        for group in groups:
            self._progress("decode_linear " + "x".join(map(str, group.shape)))
            self._dense = str(group.weights[0].dtype).removeprefix("torch.")
            self._linear += measure_group(
                group, plan.batches, self._codings, plan.linear, self.absent
            )

    def tokens(self) -> None:
        from ..integrations.any_folder import load_folder  # only this part needs transformers

        def load(side: str) -> Any:
            folder = self._folder_of(side)
            self._progress(f"tokens per second, {side}")
            return load_folder(folder, None if side == DENSE else side)

        self._generation = measure_generation(
            load,
            self._sides(),
            self._plan.work,
            self._plan.tokens,
            at_once=self._fits(),
            absent=self.absent,
        )

    def memory(self) -> None:
        for side in self._sides():
            folder = self._folder_of(side)
            self._progress(f"memory, {side}")
            self._memory[side] = measure_memory(
                folder, side, self._plan.work.tokens, torch.get_num_threads()
            )

    def _folder_of(self, side: str) -> Path:
        """What a side is loaded from. A plain folder is compressed for the others, once."""
        assert self._folder is not None
        if side == DENSE:
            return self._folder
        if self._compressed is None:
            self._compressed = self._folder if is_compressed(self._folder) else self._compress()
        return self._compressed

    def _compress(self) -> Path:
        """Compresses the folder into a temporary one."""
        assert self._folder is not None
        self._progress("compressing")
        target = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="codecllm-bench-"))
        compressed = Path(target) / "compressed"
        compress_checkpoint(self._folder, compressed, jobs=torch.get_num_threads())
        return compressed

    def _sides(self) -> list[str]:
        return [DENSE, *(c for c in self._codings if c not in self.absent)]

    def _fits(self) -> bool:
        """Whether all models are likely to fit into memory side by side, none larger than dense."""
        assert self._folder is not None
        return len(self._sides()) * dense_bytes(self._folder) < 0.8 * free_bytes()

    def report(self) -> BenchReport:
        return BenchReport(
            machine(),
            self._folder.resolve().name if self._folder else None,
            self._dense,
            tuple(self._linear),
            self._generation,
            self._memory,
            self.absent,
        )


def _check(
    folder: Path | None,
    batches: Sequence[int] | None,
    codings: Sequence[str] | None,
    parts: Sequence[str] | None,
    threads: int | None,
) -> None:
    if min(batches or [1]) < 1:
        raise ValueError(f"batch sizes are at least 1, not {min(batches or [1])}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads are at least 1, not {threads}")
    for what, given, known in (("coding", codings, CODINGS), ("part", parts, PARTS)):
        for name in given or ():
            if name not in known:
                raise ValueError(f"{what} {name!r} is unknown; known: {', '.join(known)}")
    if folder is None and set(parts or ()) - {"linear"}:
        raise ValueError("tokens and memory are those of a model: name its folder")


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
