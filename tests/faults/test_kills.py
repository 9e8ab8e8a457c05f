"""kill -9, Ctrl-C and SIGTERM at random instants: it ends, it says so, nothing is left.

The default run does a few of each; `make soak` does SMPGUEST_SOAK_ROUNDS × 20
(200 by default).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.images import code_kernel, write_file
from tests.helpers.launch import ROOT, guest, needs_engine, start
from tests.helpers.sessions import assert_nothing_is_left, session_members, workers


def end_seconds() -> float:
    """From the kill to the end of the Launcher: 2 s, and more on a machine that is overloaded."""
    return 2.0 * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


RUNNING = b"\xeb\xfe"  # jmp $
HALTED = b"\xfa\xf4\xeb\xfd"  # cli; hlt
IN_DEVICE = b"\xe4\x71\xeb\xfc"  # again: in al, 0x71; jmp again
PRINTING = b"\x66\xba\xf8\x03\xb0\x2e\xee\xeb\xfd"  # out 0x3f8, '.' for ever
MMIO = b"\xa1\x10\0\xc0\xfe\xeb\xf9"  # mov eax, [0xfec00010] for ever
SMALL = {
    "running": RUNNING,
    "halted": HALTED,
    "device": IN_DEVICE,
    "printing": PRINTING,
    "mmio": MMIO,
}


def running(kernel: Path, vcpus: int) -> subprocess.Popen[bytes]:
    """A machine whose workers all exist."""
    process = start(
        *("run", "--vcpus", str(vcpus), "--timeout", "60", "--log-level", "error", kernel),
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 20
    while len(workers(process.pid)) < vcpus:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
    return process


def wait_a_bit(process: subprocess.Popen[bytes], most: float, dice: random.Random) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(dice.random() * most)


def finish(process: subprocess.Popen[bytes]) -> tuple[int, str, float]:
    """(status, stderr, seconds it took)."""
    began = time.monotonic()
    try:
        _, err = process.communicate(timeout=end_seconds() + 3)
    except subprocess.TimeoutExpired:
        wedged = session_members(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail(f"wedged: {wedged}")
    assert_nothing_is_left(process.pid)
    return process.returncode, err.decode("utf-8", "replace"), time.monotonic() - began


def kill_a_worker(kernel: Path, vcpus: int, seed: int) -> None:
    dice = random.Random(seed)
    process = running(kernel, vcpus)
    wait_a_bit(process, 0.4, dice)
    with contextlib.suppress(ProcessLookupError, IndexError):
        os.kill(dice.choice(workers(process.pid)), signal.SIGKILL)
    status, err, seconds = finish(process)
    if status != 1:  # else the guest was done before
        assert status == 6, err
        assert "was killed by SIGKILL" in err
        assert "Traceback" not in err
    assert seconds < end_seconds()


@pytest.mark.parametrize("name", SMALL)
def test_worker_killed(tmp_path: Path, name: str) -> None:
    needs_engine()
    kernel = write_file(tmp_path, code_kernel(SMALL[name]))
    for seed in range(2):
        kill_a_worker(kernel, 1 + seed, seed)


@pytest.mark.parametrize("name", ["ipi", "atomics", "coherence64", "halt64"])
def test_worker_killed_in_a_busy_guest(name: str) -> None:
    path = guest(name)
    for seed in range(3):
        kill_a_worker(path, 2 + seed % 3, seed)


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", ["ipi", "atomics", "coherence", "halt", "demo64", "atomics64"])
def test_many_workers_killed(name: str) -> None:
    path = guest(name)
    for seed in range(10 * int(os.environ.get("SMPGUEST_SOAK_ROUNDS", "20"))):
        kill_a_worker(path, 1 + seed % 4, 1000 + seed)


def kill_the_host(kernel: Path, seed: int) -> None:
    dice = random.Random(seed)
    process = running(kernel, 2)
    wait_a_bit(process, 0.3, dice)
    process.kill()
    process.communicate()
    assert_nothing_is_left(process.pid)


def test_host_killed(tmp_path: Path) -> None:
    needs_engine()
    for seed, code in enumerate(SMALL.values()):
        kill_the_host(write_file(tmp_path, code_kernel(code)), seed)


def test_host_killed_while_it_starts(tmp_path: Path) -> None:
    needs_engine()
    kernel = write_file(tmp_path, code_kernel(RUNNING))
    for seed in range(6):
        process = start("run", "--vcpus", "4", kernel, stdout=subprocess.DEVNULL)
        wait_a_bit(process, 0.6, random.Random(seed))
        process.kill()
        process.communicate()
        # A name that was not unlinked yet is swept by the next start.
        for name in os.listdir("/dev/shm"):
            if name.startswith(f"smpguest-{process.pid}-"):
                again = start("run", "--timeout", "0.1", kernel, stdout=subprocess.DEVNULL)
                again.communicate()
        assert_nothing_is_left(process.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("group", [False, True])
def test_signals(tmp_path: Path, number: int, group: bool) -> None:
    """To the Launcher alone, as `kill` does, and to the whole group, as a terminal does."""
    needs_engine()
    dice = random.Random(number)
    for code in (RUNNING, HALTED, PRINTING):
        process = running(write_file(tmp_path, code_kernel(code)), 2)
        wait_a_bit(process, 0.2, dice)
        (os.killpg if group else os.kill)(process.pid, number)
        status, err, seconds = finish(process)
        assert (status, err) == (128 + number, "")
        assert seconds < end_seconds()


def interrupt_the_start(kernel: Path, seed: int) -> None:
    dice = random.Random(seed)
    number = dice.choice([signal.SIGINT, signal.SIGTERM])
    process = start("run", "--vcpus", "3", kernel, stdout=subprocess.DEVNULL)
    wait_a_bit(process, 0.6, dice)
    os.killpg(process.pid, number)
    swallowed = False
    if number == signal.SIGINT:
        try:
            process.wait(end_seconds() + 3)
        except subprocess.TimeoutExpired:
            swallowed = True  # by the interpreter; what a user does is press it again
            os.killpg(process.pid, number)
    status, err, _ = finish(process)
    # Before the first line of ours runs, the signal ends the process, or the interpreter's
    # own start fails in one of its ways.
    too_early = "KeyboardInterrupt" in err or "Python runtime state: core initialized" in err
    assert status in (128 + number, -number) or too_early, err
    assert too_early or not swallowed, err
    assert "/runtime/" not in err


def test_ctrl_c_is_not_lost_while_it_goes_on_in_its_environment(tmp_path: Path) -> None:
    """`./launcher.py` is started by the system's Python and goes on in the checkout's: what comes
    in between waits.  20 rounds: one loss shows."""
    needs_engine()
    kernel = write_file(tmp_path, code_kernel(RUNNING))
    for seed in range(20):
        process = subprocess.Popen(
            [sys._base_executable, "launcher.py", "run", "--log-level", "error", kernel],  # type: ignore[attr-defined]
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        until_it_went_on(process.pid)
        wait_a_bit(process, 0.05, random.Random(seed))
        os.killpg(process.pid, signal.SIGINT)
        assert finish(process)[:2] == (130, "")


def until_it_went_on(pid: int) -> None:
    """Until the process is the second interpreter."""
    deadline = time.monotonic() + 20
    while b".venv/bin/python" not in Path(f"/proc/{pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_many_interrupts(tmp_path: Path) -> None:
    needs_engine()
    kernel = write_file(tmp_path, code_kernel(RUNNING))
    for seed in range(10 * int(os.environ.get("SMPGUEST_SOAK_ROUNDS", "20"))):
        interrupt_the_start(kernel, 1000 + seed)


def test_ctrl_c_twice(tmp_path: Path) -> None:
    needs_engine()
    process = running(write_file(tmp_path, code_kernel(RUNNING)), 4)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 130
