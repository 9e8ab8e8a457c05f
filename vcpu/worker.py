"""The process of one vCPU: set-up, run_guest(), last words.

A worker is forked by the Host, so RAM, the control block, the eventfds and the
loaded engine are inherited; nothing is sent at the start.  At the end one
message goes back: what the user's hooks returned, the times used and, after a
failure, the traceback.  The last words themselves are in the control block,
where they survive anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime import closures, nursery
from runtime.control import clip
from runtime.errors import HostError, SmpError
from vcpu.cpu import VCpu
from vcpu.engine import Engine
from vcpu.guest import run_guest
from vcpu.lguest.cpu import LguestCpu

PR_SET_PDEATHSIG = 1
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""They go to the whole process group; the Host decides, once, for everybody."""
STATUS_FAILED = 1

Hook = Callable[[Any, int], Any]
"""`hook(uc, index)`, in the worker before it starts; may return a callable or a value."""


@dataclass(frozen=True)
class Setup:
    """All a worker is given; under fork nothing of it is copied."""

    switcher: Any
    control: Any
    ram: Any
    ram_size: int
    index: int
    host_pid: int
    ready_fd: int  # eventfd: +1 from every worker that is ready
    report_fd: int  # pipe: one message at the end
    keep_fds: frozenset[int]  # of this machine
    hooks: tuple[Hook, ...]


@dataclass(frozen=True)
class Report:
    """A worker's one message to the Host."""

    result: Any
    cpu_seconds: float
    trace: str = ""


def main(setup: Setup) -> None:
    """The worker from birth to death; its exit status is 0 or STATUS_FAILED."""
    result: Any = None
    trace = ""
    failed = True
    try:
        _become_worker(setup)
        finish = _start(setup)
        result = finish()
        failed = False
    except SmpError as error:  # what the system or the engine refused: the sentence says all
        _last_words(setup, error)
    except BaseException as error:  # every death leaves last words
        trace = "".join(traceback.format_exception(error))
        _last_words(setup, error)
    _report(setup, result, trace)
    if failed:
        sys.exit(STATUS_FAILED)


def _become_worker(setup: Setup) -> None:
    """Signals, descriptors, and dying with the Host."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != setup.host_pid:
        os._exit(STATUS_FAILED)  # it died before the line above: nobody is left to tell
    take_cores(setup.index, int(setup.control.vcpus))
    nursery.close_private_fds(setup.keep_fds)
    try:
        _drop_memory_fds()
    except OSError as error:
        raise HostError(f"descriptors cannot be put in order: {error.strerror}") from error


def take_cores(index: int, vcpus: int) -> None:
    """No two vCPUs of a machine on one core, while there are cores for all.

    The cores we may use are dealt out like cards: each vCPU may roam in its own hand, so several
    machines still spread over the host.  Left to itself the kernel wakes a vCPU beside its waker
    and leaves two busy ones on one core for many milliseconds.
    """
    cores = sorted(os.sched_getaffinity(0))
    if 1 < vcpus <= len(cores):
        os.sched_setaffinity(0, cores[index::vcpus])


def _drop_memory_fds() -> None:
    """Descriptors of shared memory that `mmap` keeps: ours are not needed, others' not ours.

    They are pointed at /dev/null instead of closed, because their mmap objects
    will close them some day.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if str(Path(f"/proc/self/fd/{name}").readlink()).startswith("/dev/shm/smpguest-"):
                os.dup2(null, int(name), inheritable=False)
    os.close(null)


def _start(setup: Setup) -> Callable[[], Any]:
    """Open the engine, attach the user's hooks, run; returns what makes the result."""
    lib = setup.switcher.lib
    page = lib.smp_vcpu(setup.control, setup.index)
    page.pid = os.getpid()
    kind = Engine if setup.switcher.is_patched else _stock_engine()
    engine = kind(setup.switcher, setup.control, setup.ram, setup.ram_size, setup.index)
    outcomes = [hook(engine.uc, setup.index) for hook in setup.hooks]
    timer = lib.smp_timer_start(setup.control, setup.index)
    if timer < 0:
        raise HostError(f"the local APIC timer cannot be started: {os.strerror(-timer)}")
    cpu = _make_cpu(setup, engine)
    os.eventfd_write(setup.ready_fd, 1)
    try:
        run_guest(cpu)
    finally:
        lib.smp_timer_stop()
    lib.smp_set_state(setup.control, setup.index, lib.SMP_STOPPED)
    return lambda: [value() if callable(value) else value for value in outcomes]


def _make_cpu(setup: Setup, engine: Any) -> VCpu:
    """What the machine calls a CPU."""
    common = (setup.switcher, setup.control, setup.index, engine, setup.host_pid)
    if setup.control.machine == setup.switcher.lib.SMP_MACHINE_LGUEST:
        return LguestCpu(*common, setup.ram)
    return VCpu(*common)


def _stock_engine() -> Any:
    from vcpu.stock import StockEngine  # only here: importing it is not for free

    return StockEngine


def _last_words(setup: Setup, error: BaseException) -> None:
    """Into the control block, and the Guest is dead: a machine does not go on without a CPU."""
    lib = setup.switcher.lib
    said = str(error) if isinstance(error, SmpError) else f"{type(error).__name__}: {error}"
    text = f"vCPU {setup.index}'s worker failed: {said}"
    lib.smp_vcpu(setup.control, setup.index).last_error = clip(text, lib.SMP_TEXT)
    lib.smp_set_state(setup.control, setup.index, lib.SMP_CRASHED)
    lib.smp_kill_guest(setup.control, lib.SMP_DEAD_WORKER, setup.index, 0, clip(text, lib.SMP_TEXT))


def _report(setup: Setup, result: Any, trace: str) -> None:
    """Send the one message; a result that cannot be pickled becomes a trace."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    seconds = usage.ru_utime + usage.ru_stime
    try:
        message = closures.dumps(Report(result, seconds, trace))
    except Exception as error:  # whatever the user's objects raise
        message = closures.dumps(
            Report(None, seconds, trace or f"a hook's result cannot be sent: {error}")
        )
    with contextlib.suppress(OSError):  # the Host has stopped listening
        view = memoryview(message)
        while view:
            view = view[os.write(setup.report_fd, view) :]
        os.close(setup.report_fd)
