"""A machine from Python: build → start → wait → tear down.

with Machine(kernel="kernel.elf", vcpus=2, console="capture") as machine:
    end = machine.run(timeout=10)
print(end.reason, end.status, end.console)
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from runtime import nursery
from runtime.afraid import refuse_inside_ourselves
from runtime.biglock import BigLock, Site
from runtime.console import Callback, Capture, FdOutput, Input, Output
from runtime.control import ControlBlock, control_size, sample_clock
from runtime.errors import HostError, SmpError, UserError
from runtime.exits import Exit, Reason, Registers
from runtime.host import Host
from runtime.lguest.loader import load_lguest, looks_like_lguest
from runtime.lguest.machine import LguestMachine, block_size
from runtime.loader import Boot, Start, load
from runtime.loader.image import read_image
from runtime.log import Log
from runtime.memory import DmaRam, GuestRam, SharedBlock, check_room, sweep_leftovers
from runtime.notify import Doorbells
from runtime.pc import PcMachine
from runtime.platform import Platform
from runtime.report import log_traces, make_exit
from runtime.sizes import DEFAULT_MEMORY, check_ram_size, format_size, parse_size
from runtime.workers import Worker
from switcher import binding
from vcpu.engine import preload
from vcpu.worker import Hook, Setup

binding.aim()  # scripts import unicorn for their hooks, often before they make a machine

PAUSE_SECONDS = 1.0
"""How long a vCPU has to acknowledge a pause before the machine is killed."""
STDOUT = 1
MODE_32 = 32


def _whole(name: str, value: int) -> int:
    """`value`, which a program without types may have given as anything."""
    if not isinstance(value, int):
        raise UserError(f"{name}={value!r} is not a whole number")
    return value


class Machine:
    """One machine and its Guest.

    `kernel` is a file; `memory` bytes or text like "64M"; `console` is
    "inherit" (stdout), "capture" (`Exit.console`, the newest 64 MiB) or a function that takes
    bytes; `source` feeds the console's input.  `on_vcpu(uc, index)`, and
    `hooks[i](uc, i)` for one vCPU, run in that vCPU's process before it starts
    and may attach Unicorn's own hooks; what they return (called first if it is
    callable) comes back as `Exit.results[i]`.  A hook on IN (UC_HOOK_INSN with
    UC_X86_INS_IN) takes the device's place: what it returns is what the Guest
    reads.  Once the Guest is dead the callables have 30 seconds
    (`runtime.host.RESULT_SECONDS`), after `interrupt()` one: a vCPU that is not
    done by then has no entry in `results`, and the log says so.

    Used as a context manager; entering builds it and starts the workers,
    paused.  Raises UserError, HostError.  Methods are called from the thread
    that runs the machine, except pause, resume, stop, interrupt and send.
    """

    def __init__(
        self,
        kernel: str | Path,
        *,
        vcpus: int = 1,
        memory: int | str = DEFAULT_MEMORY,
        machine: str | None = None,
        devices: tuple[Any, ...] = (),
        append: str = "",
        initrd: str | Path | None = None,
        console: str | Callable[[bytes], object] = "inherit",
        source: Input | None = None,
        on_vcpu: Hook | None = None,
        hooks: Mapping[int, Hook] | None = None,
        log: Any = None,
    ) -> None:
        self.vcpus = _whole("vcpus", vcpus)
        self.ram_size = parse_size(memory) if isinstance(memory, str) else _whole("memory", memory)
        self._kernel = Path(kernel)
        self._machine_wish = machine
        self._devices = devices
        self._append = append
        self._initrd = Path(initrd) if initrd is not None else None
        self._console_wish = console
        self._source = source
        self._on_vcpu = on_vcpu
        self._hooks = dict(hooks or {})
        self._log = log if log is not None else Log("warning")
        self._stack = ExitStack()
        # Guards the three below against close() in another thread, or in ourselves
        # when a signal handler calls interrupt().
        self._guard = threading.RLock()
        self._idle = threading.Condition(self._guard)
        self._visitors = 0  # other threads that use the control block without the guard
        self._control: ControlBlock | None = None
        self._host: Host | None = None
        self._interrupted: int | None = None
        self._console: Output = Capture()
        self._block: SharedBlock | None = None
        self._what = ""  # this machine in a line
        self._end: Exit | None = None
        self._runner: int | None = None  # the thread in run()
        self._started_at = 0.0
        self._host_cpu = 0.0

    # Build and tear down --------------------------------------------------------

    def __enter__(self) -> Machine:
        """Build everything; on failure what was built is taken down in reverse order."""
        self._started_at = time.monotonic()
        self._host_cpu = time.thread_time()
        try:
            self._build()
        except BaseException:
            self._abandon()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Whatever happened: nothing of the machine remains."""
        self._abandon()

    def _build(self) -> None:
        self._end = None
        switcher = self._load_switcher()
        self._check_wishes(switcher)
        sample_clock(switcher)
        sweep_leftovers()
        self._kind = self._choose_machine(switcher)
        is_lguest = self._kind == LguestMachine.name
        whole = block_size(self.ram_size) if is_lguest else self.ram_size
        with nursery.no_births():
            check_room(
                whole + control_size(switcher, self.vcpus, whole),
                f"a machine with {format_size(self.ram_size)} of memory",
            )
            self._block = block = SharedBlock(whole, "guest memory")
            self._stack.callback(block.close)
            control = ControlBlock(switcher, self.vcpus, whole)
        self._stack.callback(self._forget_control, control)
        with self._guard:
            self._control = control
        ram_buffer = switcher.ffi.from_buffer(block.map)
        self._stack.callback(switcher.ffi.release, ram_buffer)
        ram_pointer = switcher.ffi.cast("void *", ram_buffer)
        self._console = self._make_console()
        self._stack.callback(self._console.close)
        doorbells = Doorbells(switcher, control.pointer)
        self._stack.callback(doorbells.close)
        self.ram = DmaRam(block, self._kill_for_bad_address, switcher, control.pointer, ram_pointer)
        self._stack.callback(self.ram.close)
        platform: Platform
        if is_lguest:
            platform = lguest = LguestMachine(
                control,
                self.ram,
                self.ram_size,
                self._devices,
                self._console.put,
                self._call_host,
                self._log,
            )
            self._stack.callback(platform.close)
            start = self._load_lguest(block)
            lguest.start(start.entry)
        else:
            platform = pc = PcMachine(control, self.ram_size, self._console.put)
            start = self._load_kernel(block, pc, patched=switcher.is_patched)
            self._set_start(control, start)
        host = Host(control, platform, doorbells, self._console, self._source, self._log)
        self._stack.callback(host.close)
        with self._guard:
            self._host = host
        self._start_workers(switcher, control, host, ram_pointer, platform.fds)
        for warning in start.warnings:
            self._log.warning(warning)
        guessed = " (guessed from the image)" if self._machine_wish is None else ""
        self._what = (
            f"{platform.name} machine{guessed}: {start.kind} kernel, "
            f"{self.vcpus} vCPU{'s' if self.vcpus > 1 else ''}, {format_size(self.ram_size)}"
        )

    def _load_switcher(self) -> Any:
        try:
            switcher = binding.load()
        except binding.BindingError as error:
            raise UserError(str(error)) from error
        refuse_inside_ourselves(switcher)
        preload(switcher)
        return switcher

    def _check_wishes(self, switcher: Any) -> None:
        most = int(switcher.lib.SMP_MAX_VCPUS)
        if not 1 <= self.vcpus <= most:
            raise UserError(f"{self.vcpus} vCPUs cannot be had; choose 1 to {most}")
        check_ram_size(self.ram_size)
        if self.vcpus > 1 and (why := binding.why_not_parallel()):
            raise UserError(
                f"this engine may run only one vCPU ({why}): build ours (make engine) "
                "or use --vcpus 1"
            )
        strangers = [index for index in self._hooks if not 0 <= index < self.vcpus]
        if strangers:
            raise UserError(f"there is no vCPU {strangers[0]} to hook")

    def _make_console(self) -> Output:
        wish = self._console_wish
        if callable(wish):
            return Callback(wish)
        if wish == "inherit":
            return FdOutput(STDOUT)
        if wish == "capture":
            return Capture()
        raise UserError(f"console={wish!r} is not 'inherit', 'capture' or a function")

    def _call_host(self, order: Callable[[], None]) -> None:
        """For devices' threads: run `order` in the Host's loop, if there still is one."""
        host = self._host
        if host is not None:
            host.call(order)

    def _choose_machine(self, switcher: Any) -> str:
        """The machine that was asked for, or the one that the image looks like."""
        wish = self._machine_wish
        if wish is None:
            wish = LguestMachine.name if looks_like_lguest(read_image(self._kernel)) else "pc"
        if wish not in ("pc", LguestMachine.name):
            raise UserError(f"there is no machine {wish!r}; choose pc or lguest")
        if wish == LguestMachine.name and not switcher.is_patched:
            raise UserError("the lguest machine needs our engine: make engine")
        return wish

    def _load_lguest(self, block: SharedBlock) -> Start:
        def refuse(text: str) -> None:
            raise HostError(f"the loader made a {text}")

        boot = Boot(self.ram_size, GuestRam(block, refuse).write, self._append, self._initrd)
        return load_lguest(self._kernel, boot)

    def _load_kernel(self, block: SharedBlock, pc: PcMachine, *, patched: bool) -> Start:
        def refuse(text: str) -> None:
            raise HostError(f"the loader made a {text}")

        ram = GuestRam(block, refuse)
        boot = Boot(self.ram_size, ram.write, self._append, self._initrd)
        start = load(self._kernel, boot)
        if start.mode != MODE_32 and not patched:
            raise UserError("the stock Unicorn engine starts 32-bit kernels only: make engine")
        pc.write_tables(ram.write, self.vcpus)
        return start

    @staticmethod
    def _set_start(control: ControlBlock, start: Start) -> None:
        page = control.vcpu(0)
        page.start_eip = start.entry
        page.start_eax = start.eax
        page.start_ebx = start.ebx
        page.start_esi = start.esi
        page.start_mode = start.mode
        page.start_cr3 = start.cr3

    def _start_workers(
        self,
        switcher: Any,
        control: ControlBlock,
        host: Host,
        ram_pointer: Any,
        device_fds: frozenset[int],
    ) -> None:

        for index in range(self.vcpus):
            hooks = [self._hooks[index]] if index in self._hooks else []
            if self._on_vcpu is not None:
                hooks.append(self._on_vcpu)

            def make_setup(send: int, index: int = index, hooks: list[Hook] = hooks) -> Setup:
                return Setup(
                    switcher=switcher,
                    control=control.pointer,
                    ram=ram_pointer,
                    ram_size=control.ram_size,
                    index=index,
                    host_pid=os.getpid(),
                    ready_fd=host.ready_fd,
                    report_fd=send,
                    keep_fds=host.worker_fds | device_fds,
                    hooks=tuple(hooks),
                )

            worker = Worker(index)
            worker.start(make_setup)
            host.watch(worker)
        if self._block is not None:
            self._block.hide_from_later_workers()
        control.hide_from_later_workers()
        host.wait_ready()
        verdict = control.verdict()
        if verdict.reason is Reason.WORKER:
            host.end()
            log_traces(control, host.workers, self._log)
            raise HostError(verdict.text)

    def _abandon(self) -> None:
        """Kill the Guest if it lives, let the workers end, take everything down."""
        self._stop_other_runner()
        with self._guard:
            control, host = self._control, self._host
            self._host = None
        try:
            if control is not None and host is not None:
                control.kill(Reason.STOPPED, "the machine was closed")
                host.hurry()
                host.end()
        finally:
            self._stack.close()

    def _stop_other_runner(self) -> None:
        """If another thread runs the machine: end it there, and wait until that thread has left."""
        with self._guard:
            if self._runner in (None, threading.get_ident()):
                return
            self._kill_from_outside(Reason.STOPPED, "the machine was closed", 0)
            self._idle.wait_for(lambda: self._runner is None)

    def _forget_control(self, control: ControlBlock) -> None:
        with self._guard:
            self._control = None
            self._idle.wait_for(lambda: self._visitors == 0)
            control.close()

    def _kill_for_bad_address(self, text: str) -> None:
        # Without the guard: devices call this with the Big Lock, which pause() takes inside it.
        # They run in the Host's thread, which also takes the control block down.
        control = self._control
        if control is not None:
            control.kill(Reason.KILLED, text)

    # Run --------------------------------------------------------------------------

    def run(self, timeout: float | None = None) -> Exit:
        """Let the Guest run until it ends, at most `timeout` seconds; the same Exit if it has."""
        if self._end is not None:
            return self._end
        control, host = self._control, self._host
        if control is None or host is None:
            raise HostError("the machine is not built; use it as a context manager")
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._guard:
            self._runner = threading.get_ident()
        try:
            return self._run(control, host, deadline)
        finally:
            with self._guard:
                self._runner = None
                self._idle.notify_all()

    def _run(self, control: ControlBlock, host: Host, deadline: float | None) -> Exit:
        try:
            self._kill_interrupted()
            self.resume()
            self._log.info(self._what)  # the log's first line takes a while: the Guest runs already
            host.run(deadline)
        except Exception as error:  # a device of ours failed: the Guest ends, with our traceback
            control.kill(Reason.HOST, f"the Host failed: {type(error).__name__}: {error}")
            self._log.exception("the Host failed")
        except BaseException:
            control.kill(Reason.STOPPED, "the caller was interrupted")
            raise
        host.end()
        log_traces(control, host.workers, self._log)
        self._end = make_exit(
            control,
            host.workers,
            self._captured(),
            host.console_failure,
            time.monotonic() - self._started_at,
            time.thread_time() - self._host_cpu,
        )
        return self._end

    def _captured(self) -> bytes:
        if not isinstance(self._console, Capture):
            return b""
        newest = self._console.newest()
        if self._console.lost:
            self._log.warning(
                "console output lost: only the newest is kept", bytes=self._console.lost
            )
        return newest

    # From other threads and signal handlers ------------------------------------------

    def pause(self) -> None:
        """Every vCPU stands still, acknowledged; raises HostError (and kills) if one does not.

        Raises UserError, without harm, in the thread that runs the machine (in a console
        function): a vCPU that waits for that thread would never stand still.
        """
        with self._guard:
            control = self._control
            if control is None:
                return
            if self._runner == threading.get_ident():
                raise UserError("pause() cannot be called in the thread that runs the machine")
            self._ask_pause(control, on=True)
            self._visitors += 1
        try:
            self._wait_paused(control)
        finally:
            with self._guard:
                self._visitors -= 1
                self._idle.notify_all()

    def _wait_paused(self, control: ControlBlock) -> None:
        deadline = time.monotonic() + PAUSE_SECONDS
        for index in range(self.vcpus):
            if not control.wait_paused(index, deadline):
                text = f"vCPU {index} did not pause in time"
                control.kill(Reason.HOST, text, vcpu=index)
                raise HostError(text)

    def resume(self) -> None:
        """Let every vCPU go on."""
        with self._guard:
            if self._control is not None:
                self._ask_pause(self._control, on=False)

    def _ask_pause(self, control: ControlBlock, *, on: bool) -> None:
        with BigLock(control.switcher, control.pointer, Site.LIFECYCLE):
            for index in range(self.vcpus):
                control.pause(index, on=on)

    def stop(self) -> None:
        """End the Guest: `Reason.STOPPED`."""
        self._kill_from_outside(Reason.STOPPED, "stopped", 0)

    def interrupt(self, signum: int) -> None:
        """A signal wants the machine to end; may be called at any time, also before it is built.

        For signal handlers: it only leaves word with the Host's loop.  A
        handler may have interrupted cffi, whose lock is not re-entrant.
        """
        self._interrupted = signum
        host = self._host
        if host is not None:
            host.call(self._kill_interrupted)

    def _kill_interrupted(self) -> None:
        if self._control is not None and self._interrupted is not None:
            text = f"interrupted by signal {self._interrupted}"
            self._control.kill(Reason.INTERRUPTED, text, code=self._interrupted)
            if self._host is not None:
                self._host.hurry()

    def _kill_from_outside(self, reason: Reason, text: str, code: int) -> None:
        with self._guard:
            if self._control is not None:
                self._control.kill(reason, text, code=code)
                if self._host is not None:
                    self._host.wake()

    def send(self, data: bytes) -> None:
        """Type `data` on the console.

        At most 4096 bytes (`runtime.devices.uart.WAITING_MAX`) wait for the Guest to read
        them: what is more is lost, and the log says so.
        """
        with self._guard:
            host = self._host
            if host is not None:
                host.call(lambda: host.send(data))

    def state(self, index: int) -> str:
        """`paused`, `running`, `halted`, `in_host`, `stopped` or `crashed`."""
        with self._guard:
            return self._control.state(index) if self._control is not None else "stopped"

    def registers(self, index: int) -> Registers | None:
        """Live registers (a moment old while the vCPU runs)."""
        with self._guard:
            return self._control.registers(index) if self._control is not None else None

    def worker_pids(self) -> list[int]:
        """Process IDs of the vCPU workers, by index."""
        with self._guard:
            return [worker.pid for worker in self._host.workers] if self._host is not None else []


__all__ = ["Exit", "Machine", "Reason", "SmpError"]
