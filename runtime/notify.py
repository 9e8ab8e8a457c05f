"""Doorbells: an eventfd bound to an address, rung by workers without the Host's loop.

lguest's LHREQ_EVENTFD, KVM's ioeventfd.  The table is in the control block
(`smp_bind`); eventfds are created before the workers are forked, so that the
number means the same in all of them.  A bound write goes straight from the
worker to the eventfd; this module has the Host's end: who is called when it
rings.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from runtime import nursery
from runtime.errors import HostError


class Doorbells:
    """The eventfds of one machine and what each of them means."""

    def __init__(self, switcher: Any, control: Any) -> None:
        self._lib = switcher.lib
        self._control = control
        self._bound: dict[int, tuple[int, int, Callable[[], None]]] = {}

    def bind(self, kind: int, address: int, ring: Callable[[], None]) -> int:
        """Call `ring` in the Host's loop when the Guest writes to `address`; returns the eventfd.

        `kind` is an `enum smp_request_kind`, 0 for a NOTIFY.  Raises HostError
        when the address is taken or the table is full.
        """
        with nursery.opening("a doorbell"):
            fd = nursery.adopt(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        result = self._lib.smp_bind(self._control, kind, address, fd)
        if result != 0:
            nursery.close_fd(fd)
            raise HostError(f"cannot bind address {address:#x}: {os.strerror(-result)}")
        self._bound[fd] = (kind, address, ring)
        return fd

    @property
    def fds(self) -> frozenset[int]:
        """For the Host's selector, and for workers to keep."""
        return frozenset(self._bound)

    def rang(self, fd: int) -> None:
        """The selector says that `fd` is readable."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(fd)
            self._bound[fd][2]()

    def close(self) -> None:
        """Unbind and close all."""
        for fd, (kind, address, _) in self._bound.items():
            self._lib.smp_unbind(self._control, kind, address)
            nursery.close_fd(fd)
        self._bound.clear()
