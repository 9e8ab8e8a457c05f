"""What both builds (engine, native) share: results kept by the hash of all their inputs."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NATIVE_SOURCES = ROOT / "switcher" / "native"


class BuildError(RuntimeError):
    """The build cannot go on; the message is for the user."""


def digest(*parts: bytes | str) -> str:
    """A short hash over all parts, each with its length so that borders matter."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:16]


def digest_files(files: dict[str, bytes]) -> str:
    """Names and contents, in the order given."""
    return digest(*(part for item in files.items() for part in item))


def compiler() -> list[str]:
    """The C compiler as a command: CC, which may carry options, else cc."""
    command = shlex.split(os.environ.get("CC") or "cc")
    if not shutil.which(command[0]):
        raise BuildError(f"there is no C compiler '{command[0]}' (Debian: apt install gcc)")
    return command


def compiler_identity() -> str:
    command = compiler()
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    return " ".join(command) + "\n" + version.stdout.partition("\n")[0]


@contextmanager
def exclusive(directory: Path, what: str) -> Iterator[None]:
    """One build of this kind at a time; the kernel drops the lock if its holder is killed."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"== waiting for another build of {what}", file=sys.stderr, flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def switch(link: Path, target: str) -> None:
    """Point `link` at `target` at one stroke: nobody ever finds it missing."""
    if link.is_symlink() and os.readlink(link) == target:
        return
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    os.replace(fresh, link)


def install(built: Path, result: Path) -> None:
    """Put a finished file in its place at one stroke: a killed build leaves no half of it."""
    result.parent.mkdir(parents=True, exist_ok=True)
    fresh = result.with_name(f".{result.name}.{os.getpid()}")
    shutil.copyfile(built, fresh)
    os.replace(fresh, result)
