"""A control block without a machine, and processes that share it."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from switcher import binding

ffi = binding.ffi
TSC_KHZ = 2_000_000
PR_SET_PDEATHSIG = 1


class Block:
    """`b.c` is the control block, `b.v(i)` a vCPU, `b.l(i)` its local APIC; b.name(...) calls
    smp_name(c, ...)."""

    def __init__(self, lib: Any, vcpus: int, ram: int = 1 << 20, cpu_state: int = 4096) -> None:
        self.lib = lib
        self.size = lib.smp_control_size(vcpus, ram, cpu_state)
        self.memory = mmap.mmap(-1, self.size)  # shared with children
        self.c = ffi.cast("struct smp_control *", ffi.from_buffer(self.memory))
        error = lib.smp_control_init(self.c, self.size, vcpus, ram, cpu_state, TSC_KHZ)
        assert error == 0, error
        self.c.host_fd = os.eventfd(0, os.EFD_NONBLOCK)
        for index in range(vcpus):
            self.v(index).pause = 0

    def __del__(self) -> None:
        if self.c.host_fd >= 0:
            os.close(self.c.host_fd)

    def v(self, index: int) -> Any:
        return self.lib.smp_vcpu(self.c, index)

    def l(self, index: int) -> Any:  # noqa: E743  (the SDM's letter is as good as any)
        return self.v(index).lapic

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.lib, "smp_" + name)
        return lambda *arguments: function(self.c, *arguments)

    def take(self) -> tuple[int, int, int, int] | None:
        """One posted entry as (kind, vcpu, address, data)."""
        out = ffi.new("struct smp_posted *")
        if not self.post_take(out):
            return None
        return out.kind, out.vcpu, out.address, out.data

    def wait_host(self, timeout: float) -> bool:
        """What the Host's loop does between two looks; False when nobody rang."""
        if not select.select([self.c.host_fd], [], [], timeout)[0]:
            return False
        os.eventfd_read(self.c.host_fd)
        self.host_woken()
        return True


class Processes:
    def __init__(self) -> None:
        self.running: set[int] = set()

    def fork(self, work: Callable[[], object]) -> int:
        """Run `work` in a child; it ends with status 0, or 1 (and a traceback) if `work` raises."""
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                # When a time-out ends the test run itself, nobody is left to call end().
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        self.running.add(pid)
        return pid

    def join(self, timeout: float = 30) -> list[int]:
        """Exit statuses of all children that were not killed; fails when one does not end."""
        deadline = time.monotonic() + timeout
        statuses = []
        while self.running:
            for pid in list(self.running):
                gone, status = os.waitpid(pid, os.WNOHANG)
                if gone:
                    self.running.discard(pid)
                    statuses.append(os.waitstatus_to_exitcode(status))
            assert not self.running or time.monotonic() < deadline, "a child does not end"
            time.sleep(0.001)
        return statuses

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.running.discard(pid)

    def end(self) -> None:
        for pid in list(self.running):
            self.kill(pid)


def until(condition: Callable[[], object], timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it does not come to pass"
        time.sleep(0.0005)
