"""Consoles that go away, do not read, or never were."""

from __future__ import annotations

import contextlib
import os
import pty
import resource
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from runtime.errors import STATUS_HOST
from tests.helpers.images import code_kernel, debug_exit_code, print_code, write_file
from tests.helpers.launch import command, launch, needs_engine, start
from tests.helpers.sessions import assert_nothing_is_left

PRINTING = b"\x66\xba\xf8\x03\xb0\x2e\xee\xeb\xfd"
# again: in al, LSR; test al, THRE; jz again; out THR, '.'; jmp again
POLITE = b"\x66\xba\xfd\x03\xec\xa8\x20\x74\xf7\x66\xba\xf8\x03\xb0\x2e\xee\xeb\xee"
ECHO = b"\x66\xba\xfd\x03\xec\xa8\x01\x74\xf7\x66\xba\xf8\x03\xec\xee\x3c\x0a\x75\xed"


@pytest.fixture(autouse=True)
def engine() -> None:
    needs_engine()


def test_reader_that_goes_away(tmp_path: Path) -> None:
    kernel = write_file(tmp_path, code_kernel(PRINTING))
    process = start("run", "--vcpus", "2", "--timeout", "30", "--log-level", "warning", kernel)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(100) == b"." * 100
    process.stdout.close()
    assert process.wait(10) == 128 + signal.SIGPIPE
    err = process.stderr.read().decode()
    process.stderr.close()
    assert "Traceback" not in err
    assert_nothing_is_left(process.pid)


@pytest.mark.parametrize("code", [PRINTING, print_code(b"hi") + debug_exit_code(0)])
def test_full_disk(tmp_path: Path, code: bytes) -> None:
    """Also of a guest that has passed before anybody noticed: its output is not there."""
    kernel = write_file(tmp_path, code_kernel(code))
    with Path("/dev/full").open("wb") as full:
        end = launch("run", "--log-level", "error", "--timeout", "30", kernel, stdout=full)
    assert end.returncode == STATUS_HOST
    sentence = b"the console cannot be written: No space left on device\n"
    assert end.stderr.endswith(sentence)
    assert end.stderr.count(b"\n") == 1


@pytest.mark.parametrize("fds", ["0", "1", "2", "012"])
def test_closed_descriptors(tmp_path: Path, fds: str) -> None:
    kernel = write_file(tmp_path, code_kernel(print_code(b"hi") + debug_exit_code(3)))
    closing = " ".join({"0": "<&-", "1": ">&-", "2": "2>&-"}[fd] for fd in fds)
    script = f'"$@" {closing}'
    end = subprocess.run(
        ["sh", "-c", script, "sh", *command("run", "--vcpus", "2", kernel)],
        capture_output=True,
        check=False,
    )
    assert end.returncode == 7
    assert end.stdout == (b"" if "1" in fds else b"hi")


def test_reader_that_does_not_read_stops_nobody(tmp_path: Path) -> None:
    """The pipe fills, the time-out still comes, memory stays bounded."""
    for code in (PRINTING, POLITE):
        kernel = write_file(tmp_path, code_kernel(code))
        process = start("run", "--timeout", "1.5", "--log-level", "error", kernel)
        assert process.wait(10) == 124
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert usage.ru_maxrss < 1 << 20  # KiB
        assert process.stdout is not None
        assert set(process.stdout.read()) == {0x2E}
        process.communicate()


def test_slow_reader_gets_everything(tmp_path: Path) -> None:
    text = bytes(range(32, 127)) * 20
    kernel = write_file(tmp_path, code_kernel(print_code(text) + debug_exit_code(0)))
    read, write = os.pipe()
    process = start("run", kernel, stdout=write)
    os.close(write)
    got = b""
    while piece := os.read(read, 61):
        got += piece
    os.close(read)
    assert process.wait(10) == 1
    process.communicate()
    assert got == text


def on_terminal(kernel: Path, typed: bytes, until: bytes) -> tuple[int, bytes, bool]:
    """(status, what was seen, whether the terminal was as before)."""
    pid, terminal = pty.fork()
    if pid == 0:
        arguments = command("run", "--timeout", "20", "--log-level", "error", kernel)
        os.execv(sys.executable, arguments)
    before = termios.tcgetattr(terminal)
    seen = b""
    sent = False
    deadline = time.monotonic() + 20
    status = None
    while status is None:
        assert time.monotonic() < deadline, seen
        if select.select([terminal], [], [], 0.05)[0]:
            with contextlib.suppress(OSError):  # its other end is closed
                seen += os.read(terminal, 4096)
        if until in seen and not sent:
            os.write(terminal, typed)
            sent = True
        done, raw = os.waitpid(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(raw)
    after = termios.tcgetattr(terminal)
    os.close(terminal)
    return status, seen, before == after


def test_typing_on_a_terminal(tmp_path: Path) -> None:
    kernel = write_file(tmp_path, code_kernel(print_code(b"?") + ECHO + debug_exit_code(0)))
    status, seen, same = on_terminal(kernel, b"typed\n", b"?")
    assert status == 1
    assert seen.startswith(b"?typed")  # once: the guest's echo, not the terminal's
    assert same


def test_ctrl_c_on_a_terminal(tmp_path: Path) -> None:
    kernel = write_file(tmp_path, code_kernel(print_code(b"?") + b"\xeb\xfe"))
    status, seen, same = on_terminal(kernel, b"\x03", b"?")
    assert (status, seen) == (130, b"?")
    assert same


def test_terminal_is_restored_after_a_failure(tmp_path: Path) -> None:
    kernel = write_file(tmp_path, code_kernel(print_code(b"?") + ECHO + b"\x0f\x0b"))
    status, _, same = on_terminal(kernel, b"\n", b"?")
    assert status == 4
    assert same
