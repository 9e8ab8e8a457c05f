"""Where workers are born: one place in a process that creates file descriptors and forks.

Two machines may live in one Host process, each run by its own thread.  A fork
copies every open descriptor of both, so (1) whoever opens descriptors that
belong to one machine registers them here, and a newborn worker closes them
all except its own; (2) opening and forking exclude one another, so that no
descriptor is copied before it is registered.

Workers ask the kernel to die with their Host (PR_SET_PDEATHSIG), and Linux
means the *thread* that forked.  So workers of a machine that was built in a
side thread are forked by a thread of our own that lives as long as the process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from runtime.errors import HostError

if TYPE_CHECKING:  # slow to import, and only machines of side threads need them
    from concurrent.futures import Future
    from queue import SimpleQueue

    Orders = SimpleQueue[tuple[Callable[[], None], Future[None]]]

# Owner of these words: this module.  Process-wide on purpose: a fork copies the
# whole process, not one machine.
_births = threading.RLock()
_private_fds: set[int] = set()
_nurse: tuple[threading.Thread, Orders] | None = None


@contextmanager
def no_births() -> Iterator[None]:
    """While inside, no other thread forks a worker: descriptors can be opened and registered."""
    with _births:
        yield


@contextmanager
def opening(what: str) -> Iterator[None]:
    """As no_births(), around what opens descriptors; raises HostError when the system refuses."""
    with no_births():
        try:
            yield
        except OSError as error:
            raise HostError(f"the system refuses {what}: {error.strerror}") from error


def adopt(fd: int) -> int:
    """Register `fd` as private to the Host: newborn workers close it.  Returns `fd`."""
    with _births:
        _private_fds.add(fd)
    return fd


def disown(fd: int) -> None:
    """Forget `fd` (before it is closed)."""
    with _births:
        _private_fds.discard(fd)


def close_fd(fd: int) -> None:
    """Forget and close `fd`."""
    with _births:
        _private_fds.discard(fd)
        os.close(fd)


def close_private_fds(keep: frozenset[int]) -> None:
    """In a newborn worker: close what belongs to Hosts, except `keep`."""
    for fd in _private_fds - keep:
        try:
            os.close(fd)
        except OSError:
            continue  # closed by its owner already: what we want
    _private_fds.clear()


def _serve(orders: Orders) -> None:
    while True:
        order, done = orders.get()
        try:
            with _births:
                order()
        except BaseException as error:  # carried to the caller, whatever it is
            done.set_exception(error)
        else:
            done.set_result(None)


def fork(order: Callable[[], None]) -> None:
    """Run `order` (which forks) with births excluded, in a thread that outlives the machine."""
    global _nurse  # one a process
    if threading.current_thread() is threading.main_thread():
        with _births:
            order()
        return
    from concurrent.futures import Future
    from queue import SimpleQueue

    with _births:
        if _nurse is None or not _nurse[0].is_alive():
            orders: Orders = SimpleQueue()
            thread = threading.Thread(
                target=_serve, args=(orders,), name="smp-nursery", daemon=True
            )
            thread.start()
            _nurse = thread, orders
    done: Future[None] = Future()
    _nurse[1].put((order, done))
    done.result()
