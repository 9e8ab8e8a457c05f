"""One run of one contestant: a process, its console, its times."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from perf.errors import PerfError

CHUNK = 65536
WORDS_MAX = 300
"""How much of what a failed run said on stderr goes into the error's sentence."""


@dataclass(frozen=True)
class Run:
    """What a run printed and when: seconds from its start to its first byte and to its end."""

    text: str
    first: float
    whole: float


@dataclass(frozen=True)
class Look:
    """Call `action(pid)` once, `after` seconds after `marker` was printed."""

    marker: bytes
    after: float
    action: Callable[[int], None]


def run(
    name: str,
    command: Sequence[str],
    *,
    timeout: float,
    status: int = 0,
    look: Look | None = None,
    environment: dict[str, str] | None = None,
) -> Run:
    """Run `command` to its end.  PerfError, about `name`, when it does not end with `status`."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    try:
        console, words, first = _read(process, started, timeout, look)
        process.wait(max(0.1, started + timeout - time.perf_counter()))
        whole = time.perf_counter() - started
    except subprocess.TimeoutExpired:
        raise PerfError(f"{name} did not end within {timeout:g} s") from None
    finally:
        _end(process)
    if process.returncode != status:
        said = " ".join((words or console).decode(errors="replace").split())[-WORDS_MAX:]
        raise PerfError(f"{name} ended with status {process.returncode}: {said}")
    return Run(console.decode(errors="replace"), first, whole)


def _read(
    process: subprocess.Popen[bytes], started: float, timeout: float, look: Look | None
) -> tuple[bytes, bytes, float]:
    """stdout, stderr and when the first byte came; both pipes are read until they are closed."""
    assert process.stdout is not None and process.stderr is not None
    out, err = process.stdout.fileno(), process.stderr.fileno()
    read = {out: b"", err: b""}
    first, open_fds, look_at = 0.0, [out, err], float("inf")
    while open_fds:
        now = time.perf_counter()
        if now >= look_at and look is not None:
            look.action(process.pid)
            look, look_at = None, float("inf")
            continue
        if now - started >= timeout:
            raise subprocess.TimeoutExpired(process.args, timeout)
        wait = min(look_at, started + timeout) - now
        for fd in select.select(open_fds, [], [], wait)[0]:
            data = os.read(fd, CHUNK)
            if not data:
                open_fds.remove(fd)
            elif fd == out and not first:
                first = time.perf_counter() - started
            read[fd] += data
        if look is not None and look_at == float("inf") and look.marker in read[out]:
            look_at = time.perf_counter() + look.after
    return read[out], read[err], first


def _end(process: subprocess.Popen[bytes]) -> None:
    """Whatever happened: nothing of it goes on running."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
