"""Who takes part: how each is started, and what it is called in the tables."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from perf.errors import PerfError
from perf.process import Look, Run, run
from switcher import binding

ROOT = Path(__file__).resolve().parent.parent
GUESTS = ROOT / "build" / "guests"

OURS, STOCK, QEMU = "smpguest", "stock", "QEMU"
LGUEST = "lguest"
QEMU_PROGRAM = "qemu-system-x86_64"
NO_QEMU = (
    f"{QEMU_PROGRAM} is not installed, so QEMU is left out "
    "(Debian, Ubuntu: apt install qemu-system-x86)"
)

PASSED = 1
"""A guest that passes writes 0 to the debug-exit port; both Launchers make status 1 of it."""
POWERED_OFF = 0
"""On the lguest machine there is no such port: it powers off."""
MEMORY = "64M"
#: No display and no network: nothing that a guest here uses, only what would start more slowly.
QEMU_MACHINE = (
    *("-accel", "tcg,thread=multi", "-nodefaults", "-no-reboot"),
    *("-display", "none", "-vga", "none", "-serial", "stdio", "-monitor", "none"),
    *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
)


@dataclass(frozen=True)
class Booting:
    """A contestant that boots whole machines."""

    name: str
    #: The command line up to the options that both understand in their own words.
    base: tuple[str, ...]
    vcpus_option: str
    memory_option: str
    kernel_option: tuple[str, ...]
    status: int = PASSED

    def command(self, kernel: Path, vcpus: int, append: str) -> list[str]:
        """The command line that boots `kernel`."""
        return [
            *self.base,
            *(self.vcpus_option, str(vcpus)),
            *(self.memory_option, MEMORY),
            *("-append" if self.name == QEMU else "--append", append),
            *self.kernel_option,
            os.fspath(kernel),
        ]

    def boot(
        self,
        kernel: Path,
        vcpus: int,
        append: str = "",
        *,
        timeout: float,
        look: Look | None = None,
    ) -> Run:
        """Boot `kernel` and let it run to its end; PerfError unless it passes."""
        command = self.command(kernel, vcpus, append)
        name = f"{self.name} with {kernel.name}"
        ours = _environment()
        return run(
            name, command, timeout=timeout, status=self.status, look=look, environment=ours
        )


def ours() -> Booting:
    """smpguest as a user runs it, with this Python."""
    if not binding.ENGINE.exists():
        raise PerfError("the engine is not built: run `make demo` or `make engine`")
    return Booting(
        OURS,
        (sys.executable, os.fspath(ROOT / "launcher.py"), "run", "--log-level", "error"),
        "--vcpus",
        "--memory",
        (),
    )


def lguest(*, clocked: bool = False) -> Booting:
    """smpguest's lguest machine; `clocked`: with a source of random numbers that tells the time."""
    launcher = ("-m", "perf.clocked") if clocked else (os.fspath(ROOT / "launcher.py"),)
    devices = ("--rng",) if clocked else ()
    return Booting(
        LGUEST,
        (sys.executable, *launcher, "run", "--log-level", "error", "--machine", "lguest", *devices),
        "--vcpus",
        "--memory",
        (),
        POWERED_OFF,
    )


def qemu() -> Booting | None:
    """QEMU with its own multi-threaded TCG; None where it is not installed."""
    program = shutil.which(QEMU_PROGRAM)
    if program is None:
        return None
    return Booting(QEMU, (program, *QEMU_MACHINE), "-smp", "-m", ("-kernel",))


def run_stock(kernel: Path, wishes: Sequence[tuple[str, int]], *, timeout: float) -> str:
    """The loops of `kernel` in the stock wheel's engine, (name, operations) each; what it printed.

    In a process of its own: one process can only ever load one libunicorn.
    """
    environment = _environment()
    environment.pop("LIBUNICORN_PATH", None)
    words = [f"{name}={count}" for name, count in wishes]
    command = [sys.executable, "-m", "perf.stock", os.fspath(kernel), *words]
    name = f"{STOCK} with {kernel.name}"
    return run(name, command, timeout=timeout, environment=environment).text


def _environment() -> dict[str, str]:
    """Ours, and a Python finds the project."""
    return {**os.environ, "PYTHONPATH": os.fspath(ROOT)}


def qemu_version() -> str:
    """The first line of `--version`."""
    program = shutil.which(QEMU_PROGRAM)
    if program is None:
        return "QEMU not installed"
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return told.stdout.partition("\n")[0] or "unknown"
