"""A whole lguest machine on a terminal, with a guest that never reads it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.assembly import assemble
from tests.helpers.images import write_file
from tests.helpers.launch import command, needs_engine
from tests.helpers.lguest_images import elf
from tests.helpers.sessions import assert_nothing_is_left
from tests.helpers.terminal import Session

# Prints its words by the early console and spins.
SPINS = """
    mov $0x200000, %ebx
    movl $0x80, 0x56c(%ebx)
    movl $0xc0000000, 0x568(%ebx)
    mov $1, %eax
    int $0x1f
    mov $0x1000, %ebx
    mov $17, %eax
    int $0x1f
    jmp .
"""


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    needs_engine()
    kernel = write_file(tmp_path, elf(assemble(tmp_path, SPINS)))
    made = Session(command("run", "--timeout", "30", "--log-level", "error", kernel, "spins"))
    made.expect(b"spins")
    yield made
    made.close()


def test_three_ctrl_c(session: Session) -> None:
    pid = session.pid
    session.type(b"\x03\x03\x03")
    assert session.end() == 130
    assert session.seen == b"spins"
    assert_nothing_is_left(pid)


def test_kill_restores_the_terminal(session: Session) -> None:
    session.type(b"\x03\x03typed")
    os.kill(session.pid, signal.SIGTERM)
    assert session.end() == 143
