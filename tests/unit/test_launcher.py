"""The command line: mistakes are one sentence and status 2; help teaches."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from launcher import build_parser
from runtime.exits import Exit, Reason, exit_status
from switcher import binding
from tests.helpers.images import Maker, Piece, code_kernel, debug_exit_code, write_file
from tests.helpers.launch import LAUNCHER, ROOT, launch, needs_engine


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required"),
        (["fly"], "invalid choice"),
        (["run"], "KERNEL"),
        (["run", "--vcpus", "0", "k"], "from 1 to 16"),
        (["run", "--vcpus", "17", "k"], "from 1 to 16"),
        (["run", "--vcpus", "two", "k"], "from 1 to 16"),
        (["run", "--timeout", "-1", "k"], "number of seconds"),
        (["run", "--timeout", "nan", "k"], "number of seconds"),
        (["run", "--log-level", "loud", "k"], "invalid choice"),
        (["run", "--fly", "k"], "unrecognized"),
        (["run", "k", "-s"], "go behind --"),
        (["run", "--machine", "vax", "k"], "not known"),
        (["run", "--memory", "lots", "k"], "not a size"),
        (["run", "--stats", "/no/such/place", "k"], "cannot be written"),
    ],
)
def test_mistakes(arguments: list[str], words: str) -> None:
    end = launch(*arguments)
    sentence = end.stderr.decode()
    assert end.returncode == 2
    assert end.stdout == b""
    assert words in sentence
    assert sentence.count("\n") == 1
    assert sentence.startswith("smpguest: ")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"MZ\x90", "is not a kernel"),
        (Maker(machine=40).build(), "another architecture"),
        (Maker([Piece(b"x", 0x7000000)]).build(), "does not fit in RAM"),
    ],
)
def test_bad_images(tmp_path: Path, data: bytes, words: str) -> None:
    needs_engine()
    path = write_file(tmp_path, data)
    end = launch("run", path)
    sentence = end.stderr.decode()
    assert (end.returncode, end.stdout) == (2, b"")
    assert sentence.startswith(f"smpguest: {path} ")
    assert words in sentence
    assert sentence.count("\n") == 1


@pytest.mark.parametrize("memory", ["1M", "4G", "64.5M", "67108865"])
def test_bad_memory(tmp_path: Path, memory: str) -> None:
    needs_engine()
    end = launch("run", "--memory", memory, write_file(tmp_path, code_kernel(b"\xf4")))
    assert end.returncode == 2
    assert end.stderr.count(b"\n") == 1


def test_most_vcpus_are_the_control_block_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(binding.constants, "SMP_MAX_VCPUS", 3)
    assert build_parser().parse_args(["run", "--vcpus", "3", "k"]).vcpus == 3
    with pytest.raises(SystemExit):
        build_parser().parse_args(["run", "--vcpus", "4", "k"])


def test_help_teaches() -> None:
    end = launch("run", "--help")
    text = end.stdout.decode()
    assert end.returncode == 0
    for words in ("examples:", "exit status:", "--vcpus 2", "0xf4", "124", "130", "--block disk"):
        assert words in text
    assert launch("--help").returncode == 0


def test_defaults() -> None:
    options = build_parser().parse_args(["run", "k"])
    assert (options.vcpus, options.memory, options.machine, options.timeout) == (
        1,
        "48M",
        None,
        None,
    )


def test_works_from_any_directory_and_through_a_link(tmp_path: Path) -> None:
    link = tmp_path / "smp"
    link.symlink_to(LAUNCHER)
    end = subprocess.run([link, "run", "missing"], cwd=tmp_path, capture_output=True, check=False)
    assert end.returncode == 2
    assert end.stderr.startswith(b"smpguest: ")


def test_goes_on_in_the_checkout_s_environment(tmp_path: Path) -> None:
    shutil.copy(LAUNCHER, tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nshift\necho "environment: $*"\nexit 7\n')
    python.chmod(0o755)
    end = subprocess.run(
        [tmp_path / "launcher.py", "run", "a b"], cwd="/", capture_output=True, check=False
    )
    assert (end.returncode, end.stdout) == (7, b"environment: run a b\n")


@pytest.mark.parametrize(
    ("reason", "code", "status"),
    [
        (Reason.POWEROFF, 0, 0),
        (Reason.DEBUG_EXIT, 0, 1),
        (Reason.DEBUG_EXIT, 5, 11),
        (Reason.DEBUG_EXIT, 0x80, 1),
        (Reason.KILLED, 0, 4),
        (Reason.WORKER, 0, 6),
        (Reason.HOST, 0, 6),
        (Reason.TIMEOUT, 0, 124),
        (Reason.INTERRUPTED, 2, 130),
        (Reason.INTERRUPTED, 15, 143),
    ],
)
def test_statuses(reason: Reason, code: int, status: int) -> None:
    assert exit_status(reason, code) == status


def test_stats_are_plain(tmp_path: Path) -> None:
    end = Exit(Reason.KILLED, 4, text="x", vcpu=0, counters=({"halts": 3},), doings=("halted",))
    assert end.as_dict()["vcpus"] == [{"index": 0, "doing": "halted", "counters": {"halts": 3}}]
    assert end.death is None


def test_stats_are_explained() -> None:
    text = (ROOT / "docs" / "stats.md").read_text()
    names = [*Exit(Reason.POWEROFF, 0).as_dict(), *(reason.value for reason in Reason)]
    for struct in ("struct smp_counters", "struct smp_lock_stats"):
        names += [name for name, _ in binding.ffi.typeof(struct).fields]
    assert [name for name in names if f"`{name}`" not in text] == ["alive"]


def test_stats_file_is_never_empty(tmp_path: Path) -> None:
    stats = tmp_path / "s.json"
    assert launch("run", "--stats", stats, tmp_path / "missing").returncode == 2
    said = json.loads(stats.read_text())
    assert (said["reason"], said["status"]) == ("not_started", 2)
    assert said["text"].endswith("missing does not exist")
    before = stats.read_text()
    end = main_with(f"{PASSES}\nimport json\njson.dumps = None", "run", "--stats", str(stats), "k")
    assert end.returncode == 6
    assert stats.read_text() == before
    assert main_with(PASSES, "run", "--stats", str(stats), "k").returncode == 1
    assert json.loads(stats.read_text())["reason"] == "debug_exit"
    assert os.listdir(tmp_path) == ["s.json"]


def test_stats_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("there")
    assert main_with(PASSES, "run", "--stats", str(tmp_path / "link"), "k").returncode == 1
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "there").read_text())["status"] == 1


def test_version() -> None:
    end = launch("--version")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert end.returncode == 0
    assert end.stdout.decode().startswith(f"smpguest {project['version']}, engine ")


def test_afraid_of_being_a_guest(lib: Any) -> None:
    from types import SimpleNamespace

    from runtime.afraid import refuse_inside_ourselves
    from runtime.errors import UserError

    refuse_inside_ourselves(SimpleNamespace(lib=lib))  # this is no guest of ours
    with pytest.raises(AttributeError):  # a Switcher that cannot say is not taken for a "no"
        refuse_inside_ourselves(SimpleNamespace(lib=object()))
    with pytest.raises(UserError, match="inside one of its own"):
        refuse_inside_ourselves(SimpleNamespace(lib=SimpleNamespace(smp_inside_guest=lambda: 1)))


# Failures of ours: status 1 would say that the guest passed ----------------------------------


def main_with(before: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`launcher.main()` in a process of its own, after `before` has been executed there."""
    program = f"import launcher, sys\n{before}\nsys.exit(launcher.main(sys.argv[1:]))"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_uncaught_exception_is_no_pass() -> None:
    end = main_with("def f(*_): raise KeyError('oops')\nlauncher.run_verb = f", "run", "k")
    assert end.returncode == 6
    assert "Traceback" in end.stderr
    assert "KeyError: 'oops'" in end.stderr


def test_stderr_that_is_full_changes_no_status() -> None:
    with open("/dev/full", "wb") as full:
        assert launch("run", "--machine", "vax", "k", stderr=full).returncode == 2


PASSES = """
import runtime.machine
from runtime.exits import Exit, Reason

class Machine:
    def __init__(self, *_, **__): pass
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def run(self, _): return Exit(Reason.DEBUG_EXIT, 1)

runtime.machine.Machine = Machine
"""


def test_stats_that_cannot_be_written_are_no_pass(tmp_path: Path) -> None:
    end = main_with(PASSES, "run", "--stats", "/dev/full", "k")
    assert end.returncode == 6
    assert end.stderr == "smpguest: --stats /dev/full cannot be written: No space left on device\n"
    end = main_with(PASSES, "run", "--stats", str(tmp_path), "k")
    assert end.returncode == 2
    assert end.stderr == f"smpguest: --stats {tmp_path} cannot be written: Is a directory\n"
    assert main_with(PASSES, "run", "--stats", str(tmp_path / "s.json"), "k").returncode == 1


@pytest.mark.parametrize("where", ["kernel", "stats"])
def test_a_fifo_is_refused_without_waiting_for_its_other_end(tmp_path: Path, where: str) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    kernel = write_file(tmp_path, code_kernel(debug_exit_code(0)))
    options = ["run", fifo] if where == "kernel" else ["run", "--stats", fifo, kernel]
    done = subprocess.run(
        [sys.executable, LAUNCHER, *options], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 2, done.stderr


def test_a_fifo_whose_reader_left_is_not_waited_for(tmp_path: Path) -> None:
    needs_engine()
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    kernel = write_file(tmp_path, code_kernel(b"\xeb\xfe"))
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    command = [sys.executable, LAUNCHER, "run", "--stats", fifo, "--timeout", "2", kernel]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"machine" in process.stderr.readline()  # it runs, and has looked at the FIFO
        os.close(reader)
        try:
            _, said = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 6
    assert f"--stats {fifo} cannot be written: No such device".encode() in said


def test_a_full_stderr_does_not_change_the_verdict(tmp_path: Path) -> None:
    needs_engine()
    kernel = write_file(tmp_path, code_kernel(b"\x0f\x0b"))  # ud2 without an IDT
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, LAUNCHER, "run", kernel],
            stdout=subprocess.DEVNULL,
            stderr=full,
            timeout=30,
            check=False,
        )
    assert done.returncode == 4
