"""The Switcher's pages in the Guest: map_switcher() and back, as in lguest.

One page of text, then two pages per vCPU (registers, then read-only state),
zeroed, at one high virtual address of every address space of the Guest, with a
guard page behind them.  The engine serves the window (switcher/native/window.c):
the Guest's own tables cannot cover it, and only ring 0 reaches it, where the
Guest never is on the machine that has a window.  What the pages hold is that
machine's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from switcher import binding

PAGE = 4096
SWITCHER_ADDRESS = 0xFFC0_0000
"""Where 3.x hosts had it; the Guest is told to keep out of everything from here up."""
TOP = 1 << 32


class SwitcherError(Exception):
    """The Switcher cannot be mapped; the message is one sentence."""


def total_pages(vcpus: int) -> int:
    """Pages of the window without its guard: 1 + 2 per vCPU."""
    return int(binding.SMP_SWITCHER_TEXT_PAGES + binding.SMP_SWITCHER_VCPU_PAGES * vcpus)


def map_switcher(control: Any, text: bytes, address: int = SWITCHER_ADDRESS) -> None:
    """Zero the pages, copy `text`, publish `address` (virtual, bytes) for engines attached later.

    Raises SwitcherError when the text does not fit its page, when the window with
    its guard does not lie page-aligned below 4 GiB, or when it is mapped already;
    then nothing has changed.
    """
    if control.switcher_address:
        raise SwitcherError(f"the Switcher is mapped already, at {control.switcher_address:#x}")
    if len(text) > PAGE:
        raise SwitcherError(
            f"the Switcher's text is {len(text)} bytes; it must fit one page ({PAGE})"
        )
    window = (total_pages(control.vcpus) + 1) * PAGE
    if address % PAGE or not 0 < address <= TOP - window:
        raise SwitcherError(
            f"the Switcher's {window} bytes cannot be at {address:#x}: page-aligned and below 4 GiB"
        )
    pages = _pages(control)
    pages[:] = bytes(len(pages))
    try:
        pages[0 : len(text)] = text
        control.switcher_address = address
    except BaseException:
        unmap_switcher(control)
        raise


def unmap_switcher(control: Any) -> None:
    """Take the window away (for engines attached later) and leave nothing in its pages."""
    control.switcher_address = 0
    pages = _pages(control)
    pages[:] = bytes(len(pages))


@contextmanager
def switcher_pages(control: Any, text: bytes, address: int = SWITCHER_ADDRESS) -> Iterator[None]:
    """Mapped inside the block, unmapped whatever happens in it."""
    map_switcher(control, text, address)
    try:
        yield
    finally:
        unmap_switcher(control)


def registers_page(control: Any, vcpu: int) -> memoryview:
    """The Host's view of vCPU `vcpu`'s registers page (struct lguest_regs goes at its end)."""
    return _page(control, binding.SMP_SWITCHER_TEXT_PAGES + binding.SMP_SWITCHER_VCPU_PAGES * vcpu)


def state_page(control: Any, vcpu: int) -> memoryview:
    """The Host's view of vCPU `vcpu`'s state page (IDT, GDT, TSS go there); read-only inside."""
    first = binding.SMP_SWITCHER_TEXT_PAGES + binding.SMP_SWITCHER_VCPU_PAGES * vcpu
    return _page(control, first + 1)


def _pages(control: Any) -> memoryview:
    start = binding.ffi.cast("char *", control) + control.switcher_offset
    return memoryview(binding.ffi.buffer(start, total_pages(control.vcpus) * PAGE))


def _page(control: Any, number: int) -> memoryview:
    return _pages(control)[number * PAGE : (number + 1) * PAGE]
