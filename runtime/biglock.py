"""The Big Lock: what several vCPUs, or the Host and a vCPU, share beside atomics.

Protected: device state, the IOAPIC, routing tables, life-cycle changes.
Never held while the Guest runs, never across a blocking wait.  It is a robust
process-shared mutex (control.c): when its holder is killed the next taker gets
it and goes on.  This is the only module that calls smp_lock and smp_unlock;
the lock itself and its times live in the control block.
"""

from __future__ import annotations

import enum
import os
from types import TracebackType
from typing import Any

from runtime.errors import HostError


class Site(enum.Enum):
    """Call sites (`enum smp_site`), each with its own wait and hold times."""

    LIFECYCLE = "SMP_SITE_LIFECYCLE"
    BUS = "SMP_SITE_BUS"
    IRQ = "SMP_SITE_IRQ"
    NOTIFY = "SMP_SITE_NOTIFY"
    OTHER = "SMP_SITE_OTHER"


class BigLock:
    """One call site's handle: `with lock: ...`.  Not re-entrant."""

    def __init__(self, switcher: Any, control: Any, site: Site) -> None:
        self._control = control
        self._site = int(getattr(switcher.lib, site.value))
        self._take = switcher.lib.smp_lock
        self._release = switcher.lib.smp_unlock

    def __enter__(self) -> None:
        """Take it, from a dead holder too; raises HostError if the mutex itself is broken."""
        result = self._take(self._control, self._site)
        if result < 0:
            raise HostError(f"cannot take the Big Lock: {os.strerror(-result)}")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give it back."""
        self._release(self._control)
