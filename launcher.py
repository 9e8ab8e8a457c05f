#!/usr/bin/env python3
"""The Launcher: command line in, exit status out."""

from __future__ import annotations

import gc
import os
import signal
import sys

_HERE = os.path.dirname(os.path.realpath(__file__))
_VENV = os.path.join(_HERE, ".venv")
if __name__ == "__main__":
    # Until somebody handles it, Ctrl-C ends us without a traceback.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A closed standard descriptor would be given to the next file that is opened.
    while (_fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(_fd)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
    # Works from the checkout without activating anything: go on in its environment.
    _python = os.path.join(_VENV, "bin", "python")
    if os.path.exists(_python) and os.path.realpath(sys.prefix) != os.path.realpath(_VENV):
        # An interpreter that starts may swallow a Ctrl-C: this one waits until _Signals takes it.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
        os.execv(_python, [_python, os.path.realpath(__file__), *sys.argv[1:]])
    sys.path.insert(0, _HERE)
    gc.disable()  # a start makes many objects and no garbage; run_verb() lets it go on

# Now in the environment.  What only some runs need is imported where it is used.
import argparse
import contextlib
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from runtime.errors import STATUS_HOST, STATUS_USER
from runtime.lguest.options import add_options, parse_arguments, settle
from runtime.sizes import DEFAULT_MEMORY

if TYPE_CHECKING:
    from runtime.errors import SmpError
    from runtime.exits import Exit
    from runtime.machine import Machine

DESCRIPTION = """\
Runs SMP guests in Unicorn: every virtual CPU is a process of its own, all of
them share the guest's memory, and they run truly in parallel.
"""

RUN_DESCRIPTION = """\
Boot KERNEL and connect its console to the terminal.  For the pc machine KERNEL
is a multiboot image (ELF or with load addresses) or a bare 32- or 64-bit ELF
executable, for the lguest machine a 32-bit ELF or a bzImage.  Logs go to
stderr, only the guest's bytes to stdout.
"""

RUN_EPILOG = """\
examples:
  launcher.py run --vcpus 2 build/guests/demo.elf       two virtual CPUs
  launcher.py run --timeout 10 kernel.elf               end after 10 seconds, status 124
  launcher.py run --append "verbose" --initrd fs.img kernel.elf
  launcher.py run --stats out.json kernel.elf           explained in docs/stats.md

exit status:
  0    the guest powered off          124  --timeout ran out
  odd  the guest wrote v to port 0xf4: (v << 1) | 1, so 1 means v was 0
  2    a mistake in the command or the image
  4    the guest was killed or panicked; the reason is on stderr
  6    a vCPU's process or the Host failed, or stdout cannot be written (disk
       full); the report is on stderr
  130  Ctrl-C (other signals: 128 + number)
"""


class _Version(argparse.Action):
    """`--version`: worked out only when asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(_version())
        parser.exit()


def _version() -> str:
    import tomllib
    from pathlib import Path

    project = tomllib.loads(Path(_HERE, "pyproject.toml").read_text())["project"]
    engine = "not built"
    with contextlib.suppress(ModuleNotFoundError):  # nothing is set up yet
        from switcher import binding

        if chosen := os.environ.get(binding.ENGINE_VARIABLE):
            engine = f"{chosen} (from {binding.ENGINE_VARIABLE})"
        elif binding.ENGINE.exists():
            engine = binding.ENGINE.resolve().parent.name
    return f"{project['name']} {project['version']}, engine {engine}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, and where to read more."""
        self.exit(STATUS_USER, f"smpguest: {message} (see {self.prog} --help)\n")


def _vcpus(text: str) -> int:
    from switcher.binding import constants

    most = constants["SMP_MAX_VCPUS"]
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of vCPUs from 1 to {most}")
    return int(text)


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < float(text) < 1e9:
            return float(text)
    raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds")


def build_parser() -> argparse.ArgumentParser:
    """The verbs and their options."""
    parser = _Parser(prog="launcher.py", description=DESCRIPTION)
    parser.add_argument("--version", action=_Version, nargs=0, help="say it, and which engine")
    # With `prog` given, argparse need not work out a usage (and import what that takes).
    verbs = parser.add_subparsers(prog=parser.prog, dest="verb", metavar="VERB", required=True)
    run = verbs.add_parser(
        "run",
        help="boot a kernel",
        description=RUN_DESCRIPTION,
        epilog=RUN_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("kernel", metavar="KERNEL", help="the image to boot")
    run.add_argument(
        "--machine",
        metavar="M",
        help="pc or lguest (default: guessed from the image; a bzImage cannot be told apart)",
    )
    run.add_argument(
        "--vcpus", metavar="N", type=_vcpus, default=1, help="virtual CPUs (default 1)"
    )
    run.add_argument(
        "--memory",
        metavar="SIZE",
        default=DEFAULT_MEMORY,
        help=f"RAM, for example 64M or 1G (default {DEFAULT_MEMORY})",
    )
    run.add_argument("--append", metavar="TEXT", default="", help="the kernel's command line")
    run.add_argument("--initrd", metavar="F", help="the kernel's initrd (multiboot: its module)")
    run.add_argument("--timeout", metavar="S", type=_seconds, help="end after S seconds")
    run.add_argument("--stats", metavar="F.json", help="write counters and times there at the end")
    run.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="how much is said on stderr (default info)",
    )
    add_options(run)
    run.set_defaults(verb_function=run_verb)
    return parser


class _Signals:
    """SIGINT, SIGTERM and SIGHUP end the machine that runs now, or the next one to start."""

    def __init__(self) -> None:
        self.machine: Machine | None = None
        self.received: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Who starts us with SIGHUP ignored (nohup) means it.
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self.received = number
        if self.machine is not None:
            self.machine.interrupt(number)

    def watch(self, machine: Machine) -> None:
        """From now on signals go to `machine`."""
        self.machine = machine
        if self.received is not None:
            machine.interrupt(self.received)


def run_verb(options: argparse.Namespace, signals: _Signals) -> int:
    """`run`, with the statistics of how it ended."""
    from runtime.errors import HostError, SmpError

    gc.freeze()  # what was imported stays: nobody need look through it, and workers share it
    gc.enable()
    if options.stats is None:
        return _run_machines(options, signals, lambda _: None)

    from runtime.stats import StatsFile

    stats = StatsFile(options.stats)
    try:
        return _run_machines(options, signals, stats.write)
    except SmpError as error:
        status = _failed_status(error, signals)
        with contextlib.suppress(HostError):  # the first failure is the one to tell
            stats.write({"reason": "not_started", "status": status, "text": str(error)})
        raise


def _run_machines(
    options: argparse.Namespace, signals: _Signals, write_stats: Callable[[dict[str, Any]], None]
) -> int:
    """One machine, again after each restart, until it ends otherwise."""
    from runtime.console import character_mode, stdin_input
    from runtime.errors import HostError
    from runtime.exits import Reason
    from runtime.log import Log
    from runtime.machine import Machine
    from runtime.terminal import raw_mode, raw_stdin

    log = Log(options.log_level)
    wishes = settle(options)
    source, mode = (raw_stdin, raw_mode) if wishes else (stdin_input, character_mode)
    deadline = None if options.timeout is None else time.monotonic() + options.timeout
    while True:
        machine = Machine(
            options.kernel,
            vcpus=options.vcpus,
            memory=options.memory,
            append=options.append,
            initrd=options.initrd,
            source=source(),
            log=log,
            **({"machine": options.machine} | wishes),
        )
        signals.watch(machine)
        with machine, mode():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            end = machine.run(left)
        if end.reason is not Reason.RESTART:
            _tell(end, log)
        try:
            write_stats(end.as_dict())
        except HostError as error:
            _complain(str(error))
            return STATUS_HOST
        if end.reason is not Reason.RESTART:
            return end.status
        log.info("the guest restarts")


def _complain(text: str) -> None:
    """On stderr, which may be closed or full: that must not change the exit status."""
    with contextlib.suppress(OSError, ValueError):
        print(f"smpguest: {text}", file=sys.stderr, flush=True)


def _tell(end: Exit, log: Any) -> None:
    """The reason of an end that was not the guest's wish, on stderr."""
    from runtime.exits import Reason

    if end.reason in (Reason.POWEROFF, Reason.DEBUG_EXIT, Reason.INTERRUPTED):
        log.debug(f"the guest ended: {end.text}")
        return
    who = "" if end.vcpu is None or "vCPU" in end.text else f" (vCPU {end.vcpu})"
    what = "the guest was killed: " if end.reason is Reason.KILLED else ""
    report = [f"{what}{end.text}{who}"]
    if end.death is not None and end.reason in (Reason.KILLED, Reason.WORKER):
        report += ["  " + line for line in end.death.lines()]
    if end.reason is Reason.TIMEOUT:
        report += ["  " + line for line in end.vcpu_lines()]
    log.error("\n".join(report))


def _failed_status(error: SmpError, signals: _Signals) -> int:
    """Of a machine that failed; after a signal it is the signal that ended it."""
    return error.status if signals.received is None else 128 + signals.received


def main(arguments: list[str] | None = None) -> int:
    """Parse, run the verb, turn errors into one sentence and a status.

    No exception leaves: Python would end with status 1, which says that the Guest passed.
    """
    try:
        return _main(arguments)
    except ModuleNotFoundError as error:
        _complain(f"it is not set up yet ({error.name} is missing): run `make demo` first")
        return STATUS_USER
    except Exception:
        import traceback

        _complain("a failure of its own:\n" + traceback.format_exc().rstrip())
        return STATUS_HOST


def _main(arguments: list[str] | None) -> int:
    signals = _Signals()
    options = parse_arguments(build_parser(), arguments)
    verb: Callable[[argparse.Namespace, _Signals], int] = options.verb_function
    from runtime.errors import SmpError

    try:
        return verb(options, signals)
    except SmpError as error:
        if signals.received is None:
            _complain(str(error))
        return _failed_status(error, signals)


def _leave(status: int) -> NoReturn:
    """End here: nothing remains to be tidied up, but Python would take its time for it."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    _leave(main())
