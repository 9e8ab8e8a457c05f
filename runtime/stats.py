"""The file of `--stats`: afterwards it is whole, or what it was before; never empty or half."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.errors import HostError, SmpError, UserError

SPECIAL = os.O_WRONLY | os.O_NONBLOCK
"""A device, a pipe: opened and written without waiting for who would read it."""


class StatsFile:
    """A path that was found writable."""

    def __init__(self, path: str) -> None:
        """Raises UserError when it cannot be written."""
        self._named = path
        self._path = Path(os.path.realpath(path))
        self._beside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with self._failing_as(UserError):
            if self._is_special():
                os.close(os.open(self._path, SPECIAL))
            else:
                self._beside.touch()
                self._beside.unlink()

    def write(self, values: dict[str, Any]) -> None:
        """`values` as JSON; raises HostError."""
        text = json.dumps(values, indent=2) + "\n"
        with self._failing_as(HostError):
            if self._is_special():
                with open(os.open(self._path, SPECIAL), "w") as file:
                    file.write(text)
                return
            try:
                self._beside.write_text(text)
                self._beside.replace(self._path)
            except OSError:
                with contextlib.suppress(OSError):
                    self._beside.unlink()
                raise

    def _is_special(self) -> bool:
        return self._path.exists() and not stat.S_ISREG(self._path.stat().st_mode)

    @contextlib.contextmanager
    def _failing_as(self, kind: type[SmpError]) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise kind(f"--stats {self._named} cannot be written: {error.strerror}") from error
