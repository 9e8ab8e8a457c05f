"""The Launcher as a user runs it: a process, bytes in and out, an exit status."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from switcher import binding

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCHER = ROOT / "launcher.py"
GUESTS = ROOT / "build" / "guests"


def needs_engine() -> None:
    """Skip where no engine is built (`make test` builds it first)."""
    if not binding.ENGINE.exists():
        pytest.skip("the engine is not built")


def guest(name: str) -> Path:
    """A built guest; skips when there is none."""
    needs_engine()
    path = GUESTS / f"{name}.elf"
    if not path.exists():
        pytest.skip(f"{path.name} is not built")
    return path


def command(*arguments: str | Path) -> list[str]:
    """The command line that runs the Launcher with this Python."""
    return [sys.executable, str(LAUNCHER), *map(str, arguments)]


def launch(
    *arguments: str | Path, timeout: float = 60, **options: Any
) -> subprocess.CompletedProcess[bytes]:
    """Run to the end; the process group is killed if it does not come."""
    with start(*arguments, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start it in a process group of its own."""
    settings: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "start_new_session": True,
    }
    return subprocess.Popen(command(*arguments), **(settings | options))
