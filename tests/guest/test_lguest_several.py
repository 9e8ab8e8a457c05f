"""Several lguest machines at once, pauses, and workers that are killed: the Host's side of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from runtime.machine import Exit, Machine, Reason
from tests.helpers.assembly import assemble
from tests.helpers.images import write_file
from tests.helpers.launch import guest, needs_engine, start
from tests.helpers.leaks import no_leaks
from tests.helpers.lguest_images import elf
from tests.helpers.sessions import assert_nothing_is_left, workers

DATA = ".balign 4096; data: .fill 24, 1, 0; .fill 64, 1, 0xff; .fill 1288, 1, 0; .long 0, 0"
BEGIN = f"mov $stack, %esp; mov $1, %eax; mov $data, %ebx; int $0x1f; jmp go; {DATA}"
DATA_END = ".long 0xC0000000, 0x80; .space 4096; stack:"
GO = f"{BEGIN}; {DATA_END}; go:"
CODE = 0x10000C
BUSY = {
    "running": f"{GO} jmp go",
    "halted": f"{GO} mov $10, %eax; int $0x1f; jmp go",
    "calling": f"{GO} mov $5, %eax; mov $1, %ebx; int $0x1f; jmp go",
    "notifying": f"{GO} mov $17, %eax; mov $0x100, %ebx; int $0x1f; jmp go",
    "trapping": f"{GO} in $0x80, %al; jmp go",
}
"""What a vCPU may be busy with: nothing of it ever ends."""


@pytest.fixture(autouse=True)
def engine() -> None:
    needs_engine()


def busy(directory: Path, what: str) -> Path:
    return write_file(directory, elf(assemble(directory, BUSY[what]), CODE))


def run_to_the_end(ends: dict[str, Exit], name: str, **options: Any) -> None:
    with Machine(guest(name), vcpus=2, console="capture", **options) as machine:
        ends[name] = machine.run(100)


def test_two_machines_of_one_host() -> None:
    """Of this process: one lock each, one Switcher each, nothing in common that they notice."""
    ends: dict[str, Exit] = {}
    with no_leaks():
        threads = [
            threading.Thread(target=run_to_the_end, args=(ends, name), kwargs={"memory": "32M"})
            for name in ("lguest/demo", "lguest/ipi", "demo")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert ends["lguest/demo"].reason is Reason.POWEROFF, ends["lguest/demo"].text
    assert ends["lguest/ipi"].reason is Reason.POWEROFF, ends["lguest/ipi"].text
    assert ends["demo"].reason is Reason.DEBUG_EXIT
    assert all(b": PASS (" in end.console for end in ends.values())


def test_two_launchers() -> None:
    processes = [
        start("run", "--vcpus", "2", "--timeout", "100", guest(f"lguest/{name}"))
        for name in ("demo", "halt")
    ]
    for process in processes:
        out, err = process.communicate(timeout=115)
        assert process.returncode == 0, err
        assert b": PASS (" in out


@pytest.mark.parametrize("what", BUSY)
def test_pause_and_resume(tmp_path: Path, what: str) -> None:
    """lguest's freezer: everybody stands still, and goes on."""
    ends: list[Exit] = []
    with Machine(busy(tmp_path, what), memory="16M", console=lambda _: None) as machine:
        runner = threading.Thread(target=lambda: ends.append(machine.run(60)))
        runner.start()
        for _ in range(20):
            machine.pause()
            machine.resume()
        machine.stop()
        runner.join(30)
    assert [end.reason for end in ends] == [Reason.STOPPED]


def test_paused_it_stands_still(tmp_path: Path) -> None:
    """A word that the Guest counts up does not change while it is paused, but afterwards."""
    source = f"{GO} incl 0x200000; xor %eax, %eax; int $0x1f; jmp go"
    kernel = write_file(tmp_path, elf(assemble(tmp_path, source), CODE))
    with Machine(kernel, memory="16M", console="capture") as machine:
        runner = threading.Thread(target=machine.run, args=(60,))
        runner.start()

        def count() -> int:
            return int.from_bytes(machine.ram.read(0x200000, 4), "little")

        before = 0
        for _ in range(10):
            machine.pause()
            still = count()
            assert count() == still
            machine.resume()
            deadline = time.monotonic() + 20
            while count() == still:
                assert time.monotonic() < deadline
            assert still > before or before == 0
            before = still
        machine.stop()
        runner.join(30)


def kill_a_worker(kernel: Path, seed: int) -> None:
    process = start("run", "--memory", "16M", "--timeout", "60", "--log-level", "error", kernel)
    dice = random.Random(seed)
    deadline = time.monotonic() + 20
    while not workers(process.pid):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(dice.random() * 0.3)
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 6, err
    assert b"vCPU 0's worker was killed by SIGKILL" in err
    assert_nothing_is_left(process.pid)


@pytest.mark.parametrize("what", BUSY)
def test_a_killed_worker_is_told(tmp_path: Path, what: str) -> None:
    kernel = busy(tmp_path, what)
    for seed in range(4):
        kill_a_worker(kernel, seed)


@pytest.mark.parametrize("what", BUSY)
def test_signals_end_it(tmp_path: Path, what: str) -> None:
    process = start("run", "--memory", "16M", "--log-level", "error", busy(tmp_path, what))
    deadline = time.monotonic() + 20
    while not workers(process.pid):
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert_nothing_is_left(process.pid)
