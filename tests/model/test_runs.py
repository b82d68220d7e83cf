"""Runs that stop, go on or meet another one: what exists under the destination's name is whole."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file, save_file

import codecllm
from codecllm.model import spool, workspace
from codecllm.model.job import Job
from codecllm.model.lock import FileLock
from model_cases import assert_same_folder, tensors

JOB = Job("compress", "/nowhere", {})


@pytest.fixture
def packed(folder, tmp_path):
    codecllm.compress_checkpoint(folder, tmp_path / "dst")
    return tmp_path / "dst"


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def compress_until(monkeypatch, count, src, dst, **options):
    """A run that is interrupted before it encodes matrix number `count`."""
    real, calls = codecllm.Codec.encode_matrix, []

    def encode(*args):
        calls.append(1)
        if len(calls) == count:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(codecllm.Codec, "encode_matrix", encode)
        with pytest.raises(KeyboardInterrupt):
            codecllm.compress_checkpoint(src, dst, **options)


def count_encoded(monkeypatch, *args, **options):
    """How many matrices a run encodes."""
    real, calls = codecllm.Codec.encode_matrix, []

    def encode(*args):
        calls.append(1)
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(codecllm.Codec, "encode_matrix", encode)
        codecllm.compress_checkpoint(*args, **options)
    return len(calls)


def test_existing_destination_is_left_alone(folder, packed):
    before = {p.name: p.stat().st_mtime_ns for p in packed.iterdir()}
    with pytest.raises(FileExistsError, match="--force"):
        codecllm.compress_checkpoint(folder, packed)
    assert {p.name: p.stat().st_mtime_ns for p in packed.iterdir()} == before
    codecllm.compress_checkpoint(folder, packed, resume=True)  # finished: nothing to do
    assert {p.name: p.stat().st_mtime_ns for p in packed.iterdir()} == before
    codecllm.compress_checkpoint(folder, packed, force=True)
    assert codecllm.verify_checkpoint(folder, packed).ok


def test_one_run_at_a_time(folder, tmp_path):
    dst = tmp_path / "dst"
    with workspace.Workspace(dst, JOB):
        for options in ({}, {"resume": True}, {"force": True}):
            with pytest.raises(BlockingIOError, match="another process"):
                codecllm.compress_checkpoint(folder, dst, **options)
    assert not (tmp_path / "dst.partial.lock").exists()


def test_the_lock_lasts_until_the_destination_is_there(tmp_path, monkeypatch):
    dst, real, refused = tmp_path / "dst", os.rename, []

    def rename(a, b):
        with pytest.raises(BlockingIOError):
            workspace.Workspace(dst, JOB, force=True)
        refused.append(a)
        real(a, b)
        with pytest.raises(BlockingIOError):
            workspace.Workspace(dst, JOB, force=True)

    with workspace.Workspace(dst, JOB) as work:
        monkeypatch.setattr(os, "rename", rename)
        work.publish()
    assert refused == [work.folder] and names(tmp_path) == ["dst"]


def test_a_lock_file_that_its_holder_has_deleted_locks_nothing(tmp_path, monkeypatch):
    path, real, late = tmp_path / "lock", os.open, []
    first = FileLock(path, "it")

    def slow_open(*args):
        fd = real(*args)
        if not late:  # the holder finishes between our open and our lock
            late.append(fd)
            first.release()
        return fd

    monkeypatch.setattr(os, "open", slow_open)
    second = FileLock(path, "it")
    assert path.exists()
    with pytest.raises(BlockingIOError):
        FileLock(path, "it")
    second.release()


def test_resume_uses_what_is_there(folder, tmp_path, monkeypatch):
    compress_until(monkeypatch, 5, folder, tmp_path / "dst")
    assert list((tmp_path / "dst.partial").rglob("*.safetensors"))
    assert count_encoded(monkeypatch, folder, tmp_path / "dst", resume=True) == 7 - 4
    assert codecllm.verify_checkpoint(folder, tmp_path / "dst").ok


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("format", "with format lossless, not int8"),
        ("codec", "with tile_cols unset, not 64"),
        ("shard", r"from a model-00002-of-00002.safetensors that has changed"),
        ("config", r"from a config.json that has changed"),
        ("folder", r"from .*src, not .*other"),
    ],
)
def test_resume_of_another_job_is_refused(folder, tmp_path, monkeypatch, change, sentence):
    dst, options = tmp_path / "dst", {}
    compress_until(monkeypatch, 5, folder, dst)
    if change == "format":
        options["format"] = "int8"
    elif change == "codec":
        options["codec"] = codecllm.Codec(tile_cols=64)
    elif change == "shard":
        shard = sorted(folder.glob("*.safetensors"))[1]
        save_file({k: v * 2 for k, v in load_file(shard).items()}, shard)
    elif change == "config":
        (folder / "config.json").write_text('{"model_type": "gpt2"}')
    else:
        folder = shutil.copytree(folder, tmp_path / "other")
    with pytest.raises(FileExistsError, match=sentence) as error:
        codecllm.compress_checkpoint(folder, dst, resume=True, **options)
    assert "--force starts over" in str(error.value) and not dst.exists()
    codecllm.compress_checkpoint(folder, dst, resume=True, force=True, **options)
    assert codecllm.verify_checkpoint(folder, dst).ok


def test_a_run_publishes_only_what_it_wrote_or_finished(make_checkpoint, tmp_path, monkeypatch):
    src, dst = make_checkpoint(tmp_path / "src", shards=3), tmp_path / "dst"
    compress_until(monkeypatch, 5, src, dst)
    partial = tmp_path / "dst.partial"
    done = [p.name for p in partial.glob("*.safetensors")]
    assert done
    (partial / "model-00009-of-00009.safetensors").write_bytes(b"stale")
    (partial / "old_folder").mkdir()
    (partial / ".hidden").write_text("stale")
    codecllm.compress_checkpoint(src, dst, resume=True)
    assert names(dst) == sorted([*names(src), "README.md", "codecllm_report.json"])


def test_decompress_publishes_only_what_it_wrote(packed, tmp_path):
    (tmp_path / "back.partial").mkdir()
    (tmp_path / "back.partial" / "model-00001-of-00002.safetensors").write_bytes(b"stale")
    (tmp_path / "back.partial" / "stale.json").write_text("{}")
    codecllm.decompress_checkpoint(packed, tmp_path / "back", resume=True)
    assert names(tmp_path / "back") == names(tmp_path / "src")
    assert_same_folder(tmp_path / "src", tmp_path / "back")


@pytest.mark.parametrize("damage", ["cut", "touched"])
def test_a_finished_shard_that_changed_is_written_again(
    make_checkpoint, tmp_path, monkeypatch, damage
):
    src, dst = make_checkpoint(tmp_path / "src", shards=3), tmp_path / "dst"
    compress_until(monkeypatch, 7, src, dst)
    shard = sorted((tmp_path / "dst.partial").glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] if damage == "cut" else whole[:-1] + b"\xff")
    codecllm.compress_checkpoint(src, dst, resume=True)
    assert (dst / shard.name).read_bytes() == whole


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_resume_of_a_finished_and_damaged_folder_is_no_success(folder, packed, damage):
    shard = sorted(packed.glob("*.safetensors"))[0]
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        shard.unlink()
    said = {"cut": r"bytes instead of \d+", "missing": "is missing"}[damage]
    with pytest.raises(FileExistsError, match=f"{shard.name}.*{said}.*--force"):
        codecllm.compress_checkpoint(folder, packed, resume=True)
    codecllm.compress_checkpoint(folder, packed, resume=True, force=True)
    assert codecllm.verify_checkpoint(folder, packed).ok


@pytest.mark.parametrize("name", ["", ".", "..", "sub/.."])
def test_a_destination_needs_a_name(folder, tmp_path, monkeypatch, name):
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match="give the name of a folder"):
        codecllm.compress_checkpoint(folder, name, force=True)


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "circle", "partial link"])
def test_what_a_rename_cannot_replace_is_refused_before_work(folder, packed, tmp_path, kind):
    dst = tmp_path / "taken"
    if kind == "file":
        dst.write_text("mine")
    elif kind == "partial link":
        (tmp_path / "taken.partial").symlink_to(packed)
    else:
        dst.symlink_to({"link": packed, "dangling link": "nowhere", "circle": dst}[kind])
    before = names(tmp_path)
    for work in (codecllm.compress_checkpoint, codecllm.decompress_checkpoint):
        source = folder if work is codecllm.compress_checkpoint else packed
        with pytest.raises(FileExistsError, match="cannot be replaced"):
            work(source, dst, force=True)
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    "kill",
    [
        "os.rename = lambda a, b: os._exit(9) if a.suffix == '.partial' else real(a, b)",
        "workspace._sync_folder = lambda folder: os._exit(9)",
    ],
    ids=["between the renames", "after them"],
)
def test_a_kill_while_publishing_loses_nothing(folder, packed, tmp_path, kill):
    inode, expected = packed.stat().st_ino, tensors(packed)
    program = (
        "import os, sys, codecllm\n"
        "from codecllm.model import workspace\n"
        "real = os.rename\n"
        f"{kill}\n"
        "codecllm.compress_checkpoint(sys.argv[1], sys.argv[2], force=True)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", program, str(folder), str(packed)]
    assert subprocess.run(command, env=environment, check=False).returncode == 9
    assert ".dst.old" in names(tmp_path)
    moved_back = not packed.exists()
    with pytest.raises(FileExistsError, match="moved back" if moved_back else "exists; choose"):
        codecllm.compress_checkpoint(folder, packed)
    assert (packed.stat().st_ino == inode) == moved_back
    assert tensors(packed).keys() == expected.keys()
    codecllm.compress_checkpoint(folder, packed, force=True)
    assert names(tmp_path) == ["dst", "src"]
    assert codecllm.verify_checkpoint(folder, packed).ok


def test_a_failed_rename_keeps_the_old_destination_and_the_work(
    folder, packed, tmp_path, monkeypatch
):
    inode, real = packed.stat().st_ino, os.rename

    def rename(a, b):
        if a == tmp_path / "dst.partial":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(a))
        real(a, b)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(OSError, match=r"dst\.partial"):
        codecllm.compress_checkpoint(folder, packed, force=True)
    assert packed.stat().st_ino == inode


def test_a_full_disk_leaves_no_destination_and_can_be_resumed(folder, tmp_path, monkeypatch):
    real, calls = spool.write_tensors, []

    def full(path, *args, **kwargs):
        calls.append(path)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(spool, "write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        codecllm.compress_checkpoint(folder, tmp_path / "dst")
    assert not (tmp_path / "dst").exists()
    monkeypatch.setattr(spool, "write_tensors", real)
    with pytest.raises(FileExistsError, match="unfinished run"):
        codecllm.compress_checkpoint(folder, tmp_path / "dst")
    codecllm.compress_checkpoint(folder, tmp_path / "dst", resume=True)
    assert codecllm.verify_checkpoint(folder, tmp_path / "dst").ok
    assert not (tmp_path / "dst.partial").exists()


def test_kill_at_any_moment_then_resume(make_checkpoint, tmp_path):
    src = make_checkpoint(tmp_path / "src", shards=3, width=128, vocab=512, layers=6)
    codecllm.compress_checkpoint(src, tmp_path / "expected")
    # Slowed down so that the kill falls between any two writes.
    program = (
        "import sys, time, codecllm\n"
        "real = codecllm.Codec.encode_matrix\n"
        "def slow(*a):\n"
        "    time.sleep(0.05)\n"
        "    return real(*a)\n"
        "codecllm.Codec.encode_matrix = slow\n"
        "print('go', flush=True)\n"
        "codecllm.compress_checkpoint(sys.argv[1], sys.argv[2], resume=True)\n"
        "print('done', flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(src), str(tmp_path / "dst")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    kills = 0
    for delay in (0.1, 0.25, 0.4, None):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        assert process.stdout.readline() == "go\n"
        if delay is not None:
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            kills += process.returncode == -signal.SIGKILL
            continue
        assert process.communicate()[0] == "done\n" and process.returncode == 0
    assert kills >= 2
    assert_same_folder(tmp_path / "expected", tmp_path / "dst")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dst", "expected", "src"]
