"""What can go wrong here, as one sentence."""

from __future__ import annotations


class PerfError(RuntimeError):
    """A contestant failed, or is not there; `str()` is one sentence for the user."""
