"""The three kinds of error (docs/journey.md): the Guest's, the user's, ours.

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


class GuestError(SmpError):
    """The Guest misbehaved: it is killed, the Host goes on."""

    status = STATUS_GUEST


class HostError(SmpError):
    """The Host or a worker failed: a bug of ours, or the system refused something."""

    status = STATUS_HOST
