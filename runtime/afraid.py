"""lguest is "afraid of being a guest"; we only refuse to run inside our own."""

from __future__ import annotations

from typing import Any

from runtime.errors import UserError


def refuse_inside_ourselves(switcher: Any) -> None:
    """Raises UserError when CPUID says that this machine is one of ours."""
    if switcher.lib.smp_inside_guest():
        raise UserError("smpguest does not run inside one of its own guests")
