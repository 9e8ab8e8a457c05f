"""A terminal that is the Guest's: three Ctrl-C, and the Launcher on a terminal of its own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.terminal import CtrlCCounter
from tests.helpers.images import code_kernel, write_file
from tests.helpers.lguest_images import elf
from tests.helpers.terminal import Session

# The counter --------------------------------------------------------------------------------------


class Ears:
    """A counter with a clock that stands until it is set."""

    def __init__(self) -> None:
        self.now = 100.0
        self.enough = 0
        self._counter = CtrlCCounter(self._enough, lambda: self.now)

    def _enough(self) -> None:
        self.enough += 1

    def hear(self, *pieces: tuple[float, bytes]) -> int:
        """Pieces and when they come, in seconds; how often it was enough."""
        for at, data in pieces:
            self.now = 100.0 + at
            self._counter.hear(data)
        return self.enough


@pytest.mark.parametrize(
    ("pieces", "enough"),
    [
        ([(0, b"\x03"), (0.5, b"\x03"), (1.0, b"\x03")], 1),
        ([(0, b"\x03"), (0.5, b"\x03"), (1.01, b"\x03")], 0),
        ([(0, b"\x03"), (0.9, b"\x03"), (1.8, b"\x03"), (1.85, b"\x03")], 1),  # the last three
        ([(0, b"\x03"), (0.1, b"\x03")], 0),
        ([(0, b"\x03"), (0.1, b"\x03"), (0.2, b"x"), (0.3, b"\x03")], 0),
        ([(0, b"\x03\x03\x03")], 1),
        ([(0, b"\x03\x03x\x03")], 0),
        ([(0, b"ls\x03\x03"), (0.1, b""), (0.2, b"\x03")], 1),
        ([(0, b"\x03" * 6)], 2),
        ([(0, b"\x03" * 3), (0.1, b"\x03\x03")], 1),  # a new count
        ([(0, b"hello")], 0),
    ],
)
def test_three_within_a_second(pieces: list[tuple[float, bytes]], enough: int) -> None:
    assert Ears().hear(*pieces) == enough


# The Launcher on a terminal -----------------------------------------------------------------------

# A machine that prints in hexadecimal what is typed, until it is interrupted.  A
# typed 0x12 restarts it, a typed 0x04 ends it, a typed 0x06 fails.
MACHINE = r"""
import os, select, signal, sys
import launcher, runtime.machine
from runtime.exits import Exit, Reason

class Machine:
    def __init__(self, *_, source, **wishes):
        self.source, self.signal = source, 0
    def __enter__(self): return self
    def __exit__(self, *_): pass
    def interrupt(self, number): self.signal = number
    def run(self, _):
        os.write(1, b"ready ")
        while not self.signal:
            if not select.select([self.source.fd], [], [], 0.01)[0]:
                continue
            data = self.source.read(4096)
            os.write(1, data.hex().encode() + b" ")
            if data == b"\x12": return Exit(Reason.RESTART, 0)
            if data == b"\x04": return Exit(Reason.POWEROFF, 0)
            if data == b"\x06": raise KeyError("failure")
        return Exit(Reason.INTERRUPTED, 128 + self.signal, code=self.signal)

runtime.machine.Machine = Machine
sys.exit(launcher.main(sys.argv[1:]))
"""


def launcher(kernel: Path) -> Session:
    """The Launcher with that machine."""
    return Session([sys.executable, "-c", MACHINE, "run", "--log-level", "error", str(kernel)])


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = launcher(write_file(tmp_path, elf(b"\xf4")))
    made.expect(b"ready ")
    yield made
    made.close()


def test_every_byte_arrives_unchanged_and_unechoed(session: Session) -> None:
    # Except those three in a row, all that terminals are wont to act upon.
    typed = bytes(byte for byte in range(256) if byte not in (0x04, 0x06, 0x12))
    session.type(typed)
    session.until(lambda: len(session.seen) >= len("ready ") + 2 * len(typed))
    assert bytes.fromhex(session.seen.removeprefix(b"ready ").decode()) == typed
    session.type(b"\x04")
    assert session.end() == 0


def test_three_ctrl_c_end_it(session: Session) -> None:
    for count in range(1, 4):
        session.type(b"\x03")
        session.expect(b"03 " * count)  # the guest gets all of them
    assert session.end() == 130


def test_other_keys_in_between_do_not(session: Session) -> None:
    for key in (b"\x03", b"\x03", b"a", b"\x03"):
        before = len(session.seen)
        session.type(key)
        session.until(lambda before=before: len(session.seen) > before)  # type: ignore[misc]
    assert session.seen == b"ready 03 03 61 03 "
    session.type(b"\x04")
    assert session.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_it_and_restore_the_terminal(session: Session, number: int) -> None:
    os.kill(session.pid, number)
    assert session.end() == 128 + number


def test_the_terminal_is_restored_after_a_failure_of_ours(session: Session) -> None:
    session.type(b"\x06")
    assert session.end() == 6


def test_a_restart_keeps_the_terminal(session: Session) -> None:
    session.type(b"\x12")
    session.expect(b"ready 12 ready ")
    for count in range(1, 4):
        session.type(b"\x03")
        session.expect(b"ready 12 ready " + b"03 " * count)
    assert session.end() == 130


def test_a_pc_keeps_ctrl_c_as_a_signal(tmp_path: Path) -> None:
    session = launcher(write_file(tmp_path, code_kernel(b"\xf4")))
    try:
        session.expect(b"ready ")
        session.type(b"\x03")
        assert session.end() == 130
        assert session.seen == b"ready "
    finally:
        session.close()


def test_on_a_pipe_ctrl_c_is_a_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    from runtime import terminal
    from runtime.console import Input

    read, write = os.pipe()
    monkeypatch.setattr(terminal, "stdin_input", lambda: Input(read))
    os.write(write, b"\x03" * 3)
    source = terminal.raw_stdin()
    assert source is not None
    assert source.read(10) == b"\x03" * 3  # and no SIGINT, which would end the tests
    os.close(read)
    os.close(write)
