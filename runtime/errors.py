"""The kinds of error (docs/journey.md): the user's and ours; the Guest's is an `Exit`.

Each carries the exit status that the Launcher leaves with, so that no other
place has to know which exception means what.
"""

from __future__ import annotations

STATUS_USER = 2
STATUS_GUEST = 4
STATUS_HOST = 6


class SmpError(Exception):
    """Base of all errors of smpguest; `str()` is one sentence without a newline."""

    status = STATUS_HOST


class UserError(SmpError):
    """A mistake of the user: a bad option, a bad image, not enough room."""

    status = STATUS_USER


class HostError(SmpError):
    """The Host or a worker failed: a bug of ours, or the system refused something."""

    status = STATUS_HOST
