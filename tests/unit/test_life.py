"""A machine's life from birth to burial, with a Guest written in Python (no engine)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime import console, host
from runtime.devices import uart
from runtime.errors import HostError, UserError
from runtime.machine import Exit, Machine, Reason
from tests.helpers.fake_engine import Cpu, Guest, play
from tests.helpers.images import code_kernel, write_file
from tests.helpers.leaks import no_leaks


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    with no_leaks():
        yield


class Bench:
    """Runs Python Guests."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kernel: Path) -> None:
        self.monkeypatch = monkeypatch
        self.kernel = kernel

    def machine(self, guest: Guest, **options: Any) -> Machine:
        play(self.monkeypatch, guest)
        return Machine(self.kernel, **{"memory": "2M", "console": "capture"} | options)

    def run(self, guest: Guest, timeout: float | None = 20, **options: Any) -> Exit:
        with self.machine(guest, **options) as machine:
            return machine.run(timeout)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    return Bench(monkeypatch, write_file(tmp_path, code_kernel(b"\xf4")))


def spin(cpu: Cpu) -> None:
    """A Guest that computes for ever, as far as the Host can see."""
    while not cpu.control.dead:
        if cpu.lib.smp_vcpu(cpu.control, cpu.index).pause:
            return


# How a Guest ends ---------------------------------------------------------------------


@pytest.mark.parametrize(("value", "status"), [(0, 1), (1, 3), (0x10, 0x21), (0xFF, 0xFF)])
def test_debug_exit(bench: Bench, value: int, status: int) -> None:
    end = bench.run(lambda cpu: cpu.leave(value))
    assert (end.reason, end.status, end.code) == (Reason.DEBUG_EXIT, status, value)


def test_vcpu_that_asked_for_the_end(bench: Bench) -> None:
    def guest(cpu: Cpu) -> int | None:
        if cpu.index == 1:
            cpu.leave(0)
        return cpu.halt()

    assert bench.run(guest, vcpus=3).vcpu == 1


def test_run_after_the_end(bench: Bench) -> None:
    with bench.machine(lambda cpu: cpu.leave(0)) as machine:
        end = machine.run(20)
        assert machine.run(20) is end
    assert machine.run(20) is end
    with machine:  # built anew
        again = machine.run(20)
    assert again is not end
    assert again.status == 1


def test_power_off(bench: Bench) -> None:
    end = bench.run(lambda cpu: cpu.outb(0x604, 0x2000, 2))
    assert (end.reason, end.status) == (Reason.POWEROFF, 0)


@pytest.mark.parametrize(("port", "value"), [(0x64, 0xFE), (0xCF9, 6), (0x92, 3)])
def test_restart(bench: Bench, port: int, value: int) -> None:
    assert bench.run(lambda cpu: cpu.outb(port, value)).reason is Reason.RESTART


def test_timeout(bench: Bench) -> None:
    began = time.monotonic()
    end = bench.run(spin, timeout=0.3, vcpus=2)
    assert (end.reason, end.status) == (Reason.TIMEOUT, 124)
    assert 0.3 <= time.monotonic() - began < 3


def test_timeout_of_halted_vcpus(bench: Bench) -> None:
    def guest(cpu: Cpu) -> int | None:
        if cpu.index == 1:  # born like every other but the first: waiting for SIPI
            cpu.lib.smp_vcpu(cpu.control, 1).lapic.wait_sipi = 0
        if cpu.index:
            return cpu.halt()
        spin(cpu)
        return None

    end = bench.run(guest, timeout=0.3, vcpus=3)
    assert end.reason is Reason.TIMEOUT
    assert end.vcpu_lines() == ["vCPU 0: running", "vCPU 1: halted", "vCPU 2: waiting for SIPI"]


def test_misbehaviour(bench: Bench) -> None:
    def guest(cpu: Cpu) -> None:
        cpu.lib.smp_kill_guest(cpu.control, cpu.lib.SMP_DEAD_KILLED, cpu.index, 0, b"triple fault")

    end = bench.run(guest)
    assert (end.reason, end.status, end.text, end.vcpu) == (Reason.KILLED, 4, "triple fault", 0)


def test_everything_printed_before_the_end_arrives(bench: Bench) -> None:
    text = b"0123456789abcdef" * 2000

    def guest(cpu: Cpu) -> None:
        cpu.print(text)
        cpu.leave(0)

    assert bench.run(guest).console == text


def test_what_was_posted_before_a_sudden_death_arrives(bench: Bench) -> None:
    """Nobody asks the Host anything here: only the last look at the ring finds the text."""

    def guest(cpu: Cpu) -> None:
        cpu.print(b"last words" * 100)
        cpu.lib.smp_kill_guest(cpu.control, cpu.lib.SMP_DEAD_KILLED, cpu.index, 0, b"panic")

    for _ in range(5):
        assert bench.run(guest).console == b"last words" * 100


# Workers that die -----------------------------------------------------------------------


def test_killed_worker(bench: Bench) -> None:
    def guest(cpu: Cpu) -> None:
        if cpu.index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        spin(cpu)

    began = time.monotonic()
    end = bench.run(guest, vcpus=3)
    assert (end.reason, end.status, end.vcpu) == (Reason.WORKER, 6, 1)
    assert end.text == "vCPU 1's worker was killed by SIGKILL"
    assert time.monotonic() - began < 3


def test_killed_while_the_others_sleep(bench: Bench) -> None:
    def guest(cpu: Cpu) -> int | None:
        if cpu.index == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return cpu.halt()

    assert bench.run(guest, vcpus=3).reason is Reason.WORKER


def test_killed_with_the_big_lock(bench: Bench) -> None:
    def guest(cpu: Cpu) -> None:
        if cpu.index == 1:
            cpu.lib.smp_lock(cpu.control, cpu.lib.SMP_SITE_OTHER)
            os.kill(os.getpid(), signal.SIGKILL)
        while not cpu.control.dead:
            cpu.inb(0x71)  # the Host takes the lock for each

    end = bench.run(guest, vcpus=2)
    assert end.reason is Reason.WORKER
    assert sum(lock["recovered"] for lock in end.locks.values()) == 1


def test_killed_in_a_device_access(bench: Bench) -> None:
    def guest(cpu: Cpu) -> None:
        if cpu.index == 1:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGKILL)).start()
        while not cpu.control.dead:
            cpu.inb(0x71)
            cpu.outb(0x3F8, 0x2E)

    assert bench.run(guest, vcpus=2).reason is Reason.WORKER


def test_worker_that_raises_leaves_last_words(bench: Bench) -> None:
    def guest(cpu: Cpu) -> None:
        raise RuntimeError(f"the sky\nfell on {cpu.index}")

    end = bench.run(guest)
    assert end.status == 6
    assert end.text == "vCPU 0's worker failed: RuntimeError: the sky fell on 0"


def test_worker_that_does_not_leave_is_killed(bench: Bench) -> None:
    def guest(cpu: Cpu) -> None:
        if cpu.index == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.1)
        cpu.leave(0)

    began = time.monotonic()
    end = bench.run(guest, vcpus=2)
    assert (end.reason, end.status) == (Reason.DEBUG_EXIT, 1)
    assert time.monotonic() - began < 3


def test_signals_to_the_group_do_not_kill_workers(bench: Bench) -> None:
    def guest(cpu: Cpu) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(os.getpid(), number)
        cpu.leave(3)

    assert bench.run(guest).status == 7


def test_workers_die_with_their_host(bench: Bench) -> None:
    receive, send = os.pipe()
    host = os.fork()
    if host == 0:
        os.close(receive)
        with bench.machine(lambda cpu: cpu.halt(), vcpus=2) as machine:
            os.write(send, b" ".join(b"%d" % pid for pid in machine.worker_pids()))
            machine.run(30)
        os._exit(0)
    os.close(send)
    pids = [int(pid) for pid in os.read(receive, 100).split()]
    assert len(pids) == 2
    os.kill(host, signal.SIGKILL)
    os.waitpid(host, 0)
    # The workers are not our children; the pipe's end is what tells that all are gone.
    assert os.read(receive, 1) == b""
    os.close(receive)
    deadline = time.monotonic() + 5
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


# From outside ---------------------------------------------------------------------------


def in_thread(machine: Machine) -> tuple[threading.Thread, list[Exit]]:
    ends: list[Exit] = []
    thread = threading.Thread(target=lambda: ends.append(machine.run(20)))
    thread.start()
    return thread, ends


def wait_state(machine: Machine, index: int, state: str) -> None:
    deadline = time.monotonic() + 5
    while machine.state(index) != state:
        assert time.monotonic() < deadline


def test_pause_and_resume(bench: Bench) -> None:
    def guest(cpu: Cpu) -> int | None:
        if cpu.index == 1:
            return cpu.halt()
        spin(cpu)
        return None

    with bench.machine(guest, vcpus=2) as machine:
        assert [machine.state(i) for i in range(2)] == ["paused", "paused"]
        thread, ends = in_thread(machine)
        for _ in range(3):
            wait_state(machine, 0, "running")
            wait_state(machine, 1, "halted")
            machine.pause()
            assert [machine.state(i) for i in range(2)] == ["paused", "paused"]
            machine.resume()
        machine.stop()
        thread.join()
    assert ends[0].reason is Reason.STOPPED


def test_pause_that_nobody_acknowledges(bench: Bench) -> None:
    def guest(cpu: Cpu) -> None:
        while not cpu.control.dead:
            pass

    with bench.machine(guest) as machine:
        thread, ends = in_thread(machine)
        wait_state(machine, 0, "running")
        with pytest.raises(HostError, match="did not pause in time"):
            machine.pause()
        thread.join()
    assert ends[0].status == 6


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupt(bench: Bench, number: int) -> None:
    with bench.machine(lambda cpu: cpu.halt(), vcpus=2) as machine:
        thread, ends = in_thread(machine)
        machine.interrupt(number)
        thread.join()
    assert (ends[0].reason, ends[0].status) == (Reason.INTERRUPTED, 128 + number)


def test_interrupt_before_it_is_built(bench: Bench) -> None:
    machine = bench.machine(spin)
    machine.interrupt(signal.SIGINT)
    with machine:
        assert machine.run(20).status == 130
    machine.interrupt(signal.SIGINT)  # and after it is gone
    machine.pause()


def test_several_machines_at_a_time(bench: Bench) -> None:
    def guest(cpu: Cpu) -> None:
        for _ in range(200):
            cpu.inb(0x71)
        if cpu.index == 0:  # alone: one line for all would mix their bytes
            cpu.print(b"vCPU 0;")
            cpu.leave(5)
        spin(cpu)

    ends: list[Exit] = []
    play(bench.monkeypatch, guest)

    def one() -> None:
        with Machine(bench.kernel, vcpus=2, memory="2M", console="capture") as machine:
            ends.append(machine.run(20))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [end.status for end in ends] == [11] * 4
    assert all(b"vCPU 0;" in end.console for end in ends)


def test_machine_built_by_a_thread_that_is_gone(bench: Bench) -> None:
    machine = bench.machine(lambda cpu: cpu.leave(2))
    builder = threading.Thread(target=machine.__enter__)
    builder.start()
    builder.join()
    with machine._stack.pop_all() as stack:  # leave as __exit__ does, in this thread
        machine._stack = stack
        end = machine.run(20)
        machine.__exit__(None, None, None)
    assert end.status == 5


def test_never_run(bench: Bench) -> None:
    with bench.machine(spin, vcpus=2):
        pass


def test_bad_address_while_another_thread_holds_the_guard(bench: Bench) -> None:
    """A device that does DMA has the Big Lock; pause() has the guard and waits for that lock."""
    with bench.machine(spin) as machine:
        held, done = threading.Event(), threading.Event()

        def other() -> None:
            with machine._guard:
                held.set()
                done.wait(5)

        thread = threading.Thread(target=other)
        thread.start()
        held.wait()
        began = time.monotonic()
        machine.ram.write(1 << 40, b"x")
        waited = time.monotonic() - began
        done.set()
        thread.join()
        assert waited < 3
        end = machine.run(20)
    assert (end.reason, end.text) == (Reason.KILLED, "bad write address 0x10000000000 len 1")


def test_ram_of_a_closed_machine(bench: Bench) -> None:
    with bench.machine(spin) as machine:
        machine.ram.write(0x1000, b"abc")
        assert machine.ram.read(0x1000, 3) == b"abc"
    for use in (lambda: machine.ram.write(0x1000, b"x"), lambda: machine.ram.read(0x1000, 1)):
        with pytest.raises(HostError, match="the machine is closed"):
            use()


# Hooks, console ---------------------------------------------------------------------------


def test_hook_results_come_back(bench: Bench) -> None:
    offset = 40

    def on_vcpu(uc: Any, index: int) -> Any:
        return lambda: {"name": uc.name, "value": index + offset}

    def guest(cpu: Cpu) -> None:
        if cpu.index == 1:
            cpu.leave(0)
        spin(cpu)

    end = bench.run(guest, vcpus=2, on_vcpu=on_vcpu, hooks={1: lambda _, index: [index] * 300_000})
    assert end.results[0] == {"name": "engine 0", "value": 40}
    assert end.results[1] == [[1] * 300_000, {"name": "engine 1", "value": 41}]


def test_hook_that_fails_at_the_start(bench: Bench) -> None:
    def bad(_: Any, index: int) -> None:
        raise KeyError(index)

    with (
        pytest.raises(HostError, match=r"vCPU 1's worker failed: KeyError"),
        bench.machine(spin, vcpus=2, hooks={1: bad}),
    ):
        pass


def test_hook_for_nobody(bench: Bench) -> None:
    with pytest.raises(UserError, match="no vCPU 2"), bench.machine(spin, hooks={2: print}):
        pass


def test_result_that_cannot_be_sent(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    end = bench.run(lambda cpu: cpu.leave(0), on_vcpu=lambda *_: (x for x in "generator"))
    assert end.status == 1
    assert end.results == {}
    assert "cannot be sent" in capsys.readouterr().err


def test_result_that_takes_longer_than_leaving(bench: Bench) -> None:
    def slow() -> int:
        time.sleep(host.END_SECONDS + 0.5)
        return 7

    end = bench.run(lambda cpu: cpu.leave(0), on_vcpu=lambda *_: slow)
    assert (end.results, end.status) == ({0: 7}, 1)


def test_result_that_never_comes(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.monkeypatch.setattr(host, "RESULT_SECONDS", 1.5)
    hooks = {0: lambda *_: lambda: time.sleep(60), 1: lambda *_: 5}
    began = time.monotonic()
    end = bench.run(lambda cpu: cpu.leave(0) if cpu.index else spin(cpu), vcpus=2, hooks=hooks)
    assert 1.5 <= time.monotonic() - began < 5
    assert (end.results, end.status, end.reason) == ({1: 5}, 1, Reason.DEBUG_EXIT)
    said = capsys.readouterr().err
    assert "vCPU 0's hooks returned did not compute their results in 1.5 seconds" in said
    assert "vCPU 0's report is missing" in said


def test_worker_killed_while_it_computes_its_result(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    end = bench.run(
        lambda cpu: cpu.leave(0), on_vcpu=lambda *_: lambda: os.kill(os.getpid(), signal.SIGKILL)
    )
    assert (end.results, end.status, end.reason) == ({}, 1, Reason.DEBUG_EXIT)
    assert "vCPU 0's report is missing" in capsys.readouterr().err


def test_child_of_a_hook_that_outlives_a_killed_worker(bench: Bench, tmp_path: Path) -> None:
    def on_vcpu(_: Any, index: int) -> None:
        if (pid := os.fork()) == 0:
            time.sleep(60)
            os._exit(0)
        (tmp_path / "pid").write_text(str(pid))

    began = time.monotonic()
    end = bench.run(lambda cpu: os.kill(os.getpid(), signal.SIGKILL), on_vcpu=on_vcpu)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    assert end.text == "vCPU 0's worker was killed by SIGKILL"
    assert time.monotonic() - began < 5


def test_child_of_a_hook_that_outlives_the_worker(bench: Bench) -> None:
    """It holds the writing end of the report pipe, so that the pipe's end never comes."""

    def on_vcpu(_: Any, index: int) -> Any:
        if (pid := os.fork()) == 0:
            time.sleep(60)
            os._exit(0)
        return lambda: (pid, [index] * 300_000)

    began = time.monotonic()
    end = bench.run(lambda cpu: cpu.leave(0), on_vcpu=on_vcpu)
    pid, numbers = end.results[0]
    os.kill(pid, signal.SIGKILL)
    assert numbers == [0] * 300_000
    assert time.monotonic() - began < 5


def test_captured_console_has_a_bound(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.monkeypatch.setattr(console, "CAPTURE_MAX", 1000)
    bench.monkeypatch.setattr(console, "TRIM", 10)

    def guest(cpu: Cpu) -> None:
        cpu.print(b"%04d" * 500 % tuple(range(500)))
        cpu.leave(0)

    end = bench.run(guest)
    assert end.console == b"%04d" * 250 % tuple(range(250, 500))
    assert "console output lost" in (said := capsys.readouterr().err)
    assert "bytes=1000" in said


def test_console_function(bench: Bench) -> None:
    pieces: list[bytes] = []

    def guest(cpu: Cpu) -> None:
        cpu.print(b"abc")
        cpu.leave(0)

    bench.run(guest, console=pieces.append)
    assert b"".join(pieces) == b"abc"


def test_console_function_that_fails_is_our_caller_s_mistake(bench: Bench) -> None:
    def bad(_: bytes) -> None:
        raise ValueError("no")

    def guest(cpu: Cpu) -> None:
        cpu.print(b"abc")
        spin(cpu)

    end = bench.run(guest, console=bad)
    assert (end.reason, end.status) == (Reason.HOST, 6)


def test_pause_in_a_console_function_is_refused_without_harm(bench: Bench) -> None:
    def guest(cpu: Cpu) -> None:
        cpu.print(b"abc")
        cpu.leave(0)

    def pause(_: bytes) -> None:
        with pytest.raises(UserError, match="in the thread that runs the machine"):
            machine.pause()
        refused.append(True)

    refused: list[bool] = []
    with bench.machine(guest, console=pause) as machine:
        assert machine.run(20).status == 1
        machine.pause()
    assert refused


def test_console_input(bench: Bench) -> None:
    def guest(cpu: Cpu) -> None:
        text = b""
        while not text.endswith(b"\n") and not cpu.control.dead:
            if cpu.inb(0x3FD) & 1:
                text += bytes([cpu.inb(0x3F8)])
        cpu.print(text.upper())
        cpu.leave(0)

    with bench.machine(guest) as machine:
        machine.send(b"x" * 1000 + b"\n")
        assert machine.run(20).console == b"X" * 1000 + b"\n"


def test_lines_of_several_vcpus_keep_each_ones_order(bench: Bench) -> None:
    def guest(cpu: Cpu) -> None:
        cpu.print(bytes(range(0x40 * cpu.index, 0x40 * cpu.index + 0x40)) * 50)
        if cpu.index == 0:
            cpu.leave(0)
        spin(cpu)

    console = bench.run(guest, vcpus=2).console
    mine = bytes(byte for byte in console if byte < 0x40)
    assert mine == bytes(range(0x40)) * 50


# Mistakes ---------------------------------------------------------------------------------


def test_failed_build_leaves_nothing(bench: Bench, tmp_path: Path) -> None:
    bench.kernel = tmp_path / "missing"
    with pytest.raises(UserError, match="does not exist"), bench.machine(spin):
        pass


@pytest.mark.parametrize("vcpus", [0, 17, -1])
def test_bad_number_of_vcpus(bench: Bench, vcpus: int) -> None:
    with pytest.raises(UserError, match="cannot be had"), bench.machine(spin, vcpus=vcpus):
        pass


@pytest.mark.parametrize("wrong", [{"vcpus": "2"}, {"vcpus": 1.0}, {"memory": 2.5}])
def test_options_of_a_wrong_type(bench: Bench, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"is not a whole number$"):
        bench.machine(spin, **wrong)


def test_failing_fork_leaves_nothing(bench: Bench) -> None:
    real = os.fork
    births = []

    def fork() -> int:
        births.append(1)
        if len(births) == 3:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return real()

    def pipe() -> tuple[int, int]:
        ends = real_pipe()
        opened.append(ends)
        return ends

    # multiprocess itself forgets its two pipes when fork() fails.
    opened: list[tuple[int, int]] = []
    real_pipe = os.pipe
    bench.monkeypatch.setattr(os, "pipe", pipe)
    bench.monkeypatch.setattr(os, "fork", fork)
    with (
        pytest.raises(HostError, match="vCPU 2's worker cannot be started"),
        bench.machine(spin, vcpus=4),
    ):
        pass
    for ends in opened[-2:]:
        for fd in ends:
            os.close(fd)


# Hooks that do not come to an end -----------------------------------------------------------


def test_hook_that_never_returns(bench: Bench) -> None:
    bench.monkeypatch.setattr(host, "START_SECONDS", 1)
    began = time.monotonic()
    with pytest.raises(HostError, match="in 1 seconds: a hook that does not return"):
        bench.run(spin, hooks={0: lambda *_: time.sleep(60)})
    assert time.monotonic() - began < 5


def interrupt_soon() -> threading.Timer:
    """Ctrl-C, as a script without a handler of its own gets it."""
    timer = threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    return timer


def test_ctrl_c_ends_a_hook_that_never_returns(bench: Bench) -> None:
    began = time.monotonic()
    timer = interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        bench.run(spin, hooks={0: lambda *_: time.sleep(60)})
    timer.join()
    assert time.monotonic() - began < 5


def test_ctrl_c_ends_the_wait_for_results(bench: Bench) -> None:
    began = time.monotonic()
    timer = interrupt_soon()
    with pytest.raises(KeyboardInterrupt):
        bench.run(lambda cpu: cpu.leave(0), on_vcpu=lambda *_: lambda: time.sleep(60))
    timer.join()
    assert time.monotonic() - began < 5


def test_interrupt_ends_the_wait_for_results(bench: Bench) -> None:
    began = time.monotonic()
    with bench.machine(
        lambda cpu: cpu.leave(0), on_vcpu=lambda *_: lambda: time.sleep(60)
    ) as machine:
        timer = threading.Timer(0.7, machine.interrupt, (signal.SIGINT,))
        timer.start()
        assert machine.run(20).status == 1  # it had ended before
        timer.join()
    assert time.monotonic() - began < 5


def test_send_takes_what_there_is_room_for(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    def guest(cpu: Cpu) -> None:
        while not cpu.inb(0x3FD) & 1:
            pass
        for _ in range(uart.WAITING_MAX):
            cpu.outb(0x3F8, cpu.inb(0x3F8))
        cpu.leave(cpu.inb(0x3FD) & 1)

    with bench.machine(guest) as machine:
        machine.send(b"x" * uart.WAITING_MAX + b"y" * 5)
        end = machine.run(20)
    assert (end.console, end.code) == (b"x" * uart.WAITING_MAX, 0)
    said = capsys.readouterr().err
    assert "console input lost" in said
    assert "bytes=5" in said


def test_closed_while_another_thread_runs_it(bench: Bench) -> None:
    """It ends there first: who still runs must not find the control block gone."""
    ends: list[Exit] = []
    for _ in range(5):
        machine = bench.machine(spin)
        with machine:
            runner = threading.Thread(target=lambda m=machine: ends.append(m.run(20)))
            runner.start()
            while machine._runner is None:
                pass
        runner.join(10)
    assert [end.reason for end in ends] == [Reason.STOPPED] * 5
