"""How commands end: exit codes, and one sentence instead of a traceback."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

pytest.importorskip("typer")

import codecllm
from cli_cases import run, run_process


def assert_one_sentence(done, sentence, code=1):
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr and done.stderr.startswith("codecllm: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("compress", "nowhere", "x"), "nowhere is not a folder"),
        (("verify", "{src}"), "not compressed"),
        (("compress", "{src}", "{src}"), "two folders"),
        (("compress", "{src}", "x", "--skip", "("), "not a regular expression"),
        (("compress", "{src}", "x", "--format", "zip"), "known: lossless, int8"),
        (("compress", "{src}", "x", "--jobs", "0"), "at least 1"),
        (("compress", "{src}", "/proc/x"), "/proc/x"),
    ],
)
def test_errors_are_one_sentence_on_stderr(folder, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    done = run(*(a.format(src=folder) for a in arguments))
    assert done.returncode == 1 and done.stdout == ""
    assert sentence in done.stderr and done.stderr.startswith("codecllm: ")
    assert len(done.stderr.splitlines()) == 1


def test_usage_errors_are_exit_code_2():
    done = run_process("compres")
    assert done.returncode == 2 and "No such command" in done.stderr


def test_existing_destination_names_the_flag(folder, tmp_path):
    (tmp_path / "dst").mkdir()
    done = run("compress", folder, tmp_path / "dst")
    assert done.returncode == 1 and "--force" in done.stderr
    assert run("compress", folder, tmp_path / "dst", "--force").returncode == 0


def test_without_typer_it_says_what_to_install(tmp_path):
    (tmp_path / "typer.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'typer'\", name='typer')\n"
    )
    done = run_process(path=[tmp_path])
    assert done.returncode == 1 and "pip install typer rich" in done.stderr


def test_without_transformers_generate_says_what_to_install(tmp_path):
    (tmp_path / "transformers.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'transformers'\", name='transformers')\n"
    )
    done = run_process("generate", tmp_path, "--prompt", "x", path=[tmp_path])
    assert_one_sentence(done, "pip install 'transformers>=5,<6' accelerate")


def test_without_arguments_it_prints_help():
    done = run()
    assert (done.returncode, done.stderr) == (0, "")
    assert "Usage: codecllm" in done.stdout and "compress" in done.stdout


@pytest.mark.parametrize(
    ("device", "sentence"), [("nonsense", "not a device"), ("cuda:99", "cannot be used here")]
)
def test_a_device_that_is_not_there(tmp_path, device, sentence):
    pytest.importorskip("transformers")
    done = run("generate", tmp_path, "--prompt", "x", "--device", device)
    assert_one_sentence(done, sentence)


def test_a_backend_that_does_not_exist(folder):
    nonsense = {"CODECLLM_BACKEND": "nonsense"}
    done = run_process("info", folder, env=nonsense)
    assert_one_sentence(
        done, "CODECLLM_BACKEND=nonsense is not one of auto, cpu, cuda, triton, reference"
    )
    done = run_process("doctor", env=nonsense)
    assert done.returncode == 0 and "problem: " in done.stdout
    assert "CODECLLM_BACKEND=nonsense is not one of" in done.stdout


def test_what_nobody_expected_is_a_sentence_and_on_request_a_traceback(folder, monkeypatch):
    def broken(*args, **kwargs):
        raise TypeError("two\nlines")

    monkeypatch.setattr("codecllm.model.inspect_folder.checkpoint_info", broken)
    assert_one_sentence(run("info", folder), "TypeError: two lines (CODECLLM_DEBUG=1 shows where)")
    monkeypatch.setenv("CODECLLM_DEBUG", "1")
    assert "in broken" in run("info", folder).stderr


def test_an_interrupt_names_the_way_on(folder, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(codecllm.Codec, "encode_matrix", interrupted)
    resume = "interrupted; run the same command with --resume to go on"
    assert_one_sentence(run("compress", folder, tmp_path / "dst"), resume, 130)
    assert run("estimate", folder).stderr == "codecllm: interrupted\n"


def test_an_interrupt_during_the_imports(tmp_path):
    # A background job of a shell ignores SIGINT, and its children with it.
    (tmp_path / "torch.py").write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
        "time.sleep(9)\n"
    )
    done = run_process("info", tmp_path, path=[tmp_path])
    assert_one_sentence(done, "interrupted", 130)


def test_a_full_disk_names_the_file_and_the_way_on(folder, tmp_path, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    done = run("compress", folder, tmp_path / "dst")
    path = tmp_path / "dst.partial"
    assert_one_sentence(
        done, "No space left on device; free some space and run again with --resume"
    )
    assert f"codecllm: {path}{os.sep}" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_under_stdout_needs_no_resume(folder):
    done = run_process("info", folder, shell="> /dev/full")
    assert_one_sentence(done, "No space left on device")
    assert "--resume" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_change_nothing(folder, tmp_path, closed):
    assert run_process("info", folder, shell=closed).returncode == 0
    done = run_process("compress", folder, tmp_path / "dst", shell=closed)
    assert (done.returncode, done.stderr) == (0, "")
    assert codecllm.verify_checkpoint(folder, tmp_path / "dst").ok


@pytest.mark.parametrize("command", ["info", "doctor", "--help"])
def test_nobody_reads_stdout(folder, command):
    read, write = os.pipe()
    os.close(read)
    arguments = [command, folder] if command == "info" else [command]
    done = run_process(*arguments, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_nobody_reads_stderr(tmp_path):
    read, write = os.pipe()
    os.close(read)
    done = run_process("info", tmp_path / "nowhere", stdout=subprocess.PIPE, stderr=write)
    os.close(write)
    assert done.returncode == 1
