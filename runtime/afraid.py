"""lguest is "afraid of being a guest"; we only refuse to run inside our own."""

from __future__ import annotations

from typing import Any

from runtime.errors import UserError

SIGNATURE = b"smpguestsmpg"
"""CPUID leaf 0x40000000: EBX, ECX, EDX."""


def refuse_inside_ourselves(switcher: Any) -> None:
    """Raises UserError when CPUID says that this machine is one of ours."""
    look = getattr(switcher.lib, "smp_inside_guest", None)
    if look is not None and look():
        raise UserError("smpguest does not run inside one of its own guests")
