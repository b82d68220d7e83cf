"""Pages of mapped files are given back, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from codecllm.nn.mapped import MappedFiles

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux")
SIZE = 4 << 20


def resident(tensor):
    """Bytes of the map around a tensor that are in memory."""
    at, rss, inside = tensor.data_ptr(), 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(x, 16) for x in first.split("-"))
            inside = start <= at < end
        elif inside and first == "Rss:":
            rss += 1024 * int(line.split()[1])
    return rss


@pytest.fixture
def mapped(tmp_path):
    path = tmp_path / "bytes"
    path.write_bytes(bytes(range(256)) * (SIZE // 256))
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=SIZE)
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def test_a_mapped_tensor_is_known_and_its_pages_go(mapped):
    files = MappedFiles()
    part = mapped[100 : SIZE - 100]
    assert files.holds(mapped) and files.holds(part)
    total = int(part.sum())
    before = resident(mapped)
    assert before > SIZE // 2
    files.give_back([part])
    assert resident(mapped) < before // 8
    assert int(part.sum()) == total  # they come back from the file


def test_memory_of_its_own_is_left_alone(mapped):
    own = mapped.clone()
    files = MappedFiles()
    assert not files.holds(own) and not files.holds(own.to("meta")) and not files.holds(own[:0])
    files.give_back([own, own.to("meta"), own[:0]])
    assert torch.equal(own, mapped)


def test_a_tensor_that_reaches_beyond_its_map_is_not_mapped(mapped):
    files = MappedFiles()
    files._ends = [end - 4096 for end in files._ends]
    assert not files.holds(mapped)
