"""The Switcher's pages: what map_switcher() accepts, does and undoes."""

from __future__ import annotations

from typing import Any

import pytest

from switcher import pages
from switcher.pages import PAGE, SWITCHER_ADDRESS, SwitcherError


def test_one_text_page_and_two_a_vcpu() -> None:
    assert [pages.total_pages(n) for n in (1, 2, 4)] == [3, 5, 9]


def test_mapped_pages_are_zeroed_and_hold_the_text(block: Any) -> None:
    b = block(vcpus=2)
    pages._pages(b.c)[:] = b"\xaa" * (5 * PAGE)
    pages.map_switcher(b.c, b"text")
    assert bytes(pages._pages(b.c)) == b"text" + bytes(5 * PAGE - 4)
    assert b.c.switcher_address == SWITCHER_ADDRESS


def test_a_full_page_of_text_fits_and_one_byte_more_does_not(block: Any) -> None:
    b = block(vcpus=1)
    with pytest.raises(SwitcherError, match=r"4097 bytes; it must fit one page"):
        pages.map_switcher(b.c, bytes(PAGE + 1))
    assert b.c.switcher_address == 0
    pages.map_switcher(b.c, b"\x90" * PAGE)


@pytest.mark.parametrize("address", [0, 0xFFC00001, 0xFFFFF000, 0xFFFFD000, 1 << 32])
def test_the_window_and_its_guard_must_fit(block: Any, address: int) -> None:
    b = block(vcpus=1)
    with pytest.raises(SwitcherError, match="page-aligned and below 4 GiB"):
        pages.map_switcher(b.c, b"", address)
    assert b.c.switcher_address == 0


def test_the_highest_place(block: Any) -> None:
    b = block(vcpus=1)
    pages.map_switcher(b.c, b"", 0xFFFFC000)


def test_twice_is_refused_and_changes_nothing(block: Any) -> None:
    b = block(vcpus=1)
    pages.map_switcher(b.c, b"first")
    with pytest.raises(SwitcherError, match="mapped already"):
        pages.map_switcher(b.c, b"second")
    assert bytes(pages._pages(b.c)[:5]) == b"first"


def test_unwound_when_a_step_fails(block: Any) -> None:
    b = block(vcpus=1)

    class Refusing:
        """The control block, but its address cannot be published."""

        def __getattr__(self, name: str) -> Any:
            return getattr(b.c, name)

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "switcher_address" and value:
                raise OSError("no")

    refusing = Refusing()
    original = pages._pages
    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="no"):
        patch.setattr(pages, "_pages", lambda control: original(b.c))
        pages.map_switcher(refusing, b"text")
    assert bytes(original(b.c)) == bytes(3 * PAGE)


def test_unmapped_on_every_way_out(block: Any) -> None:
    b = block(vcpus=1)
    with pytest.raises(ZeroDivisionError), pages.switcher_pages(b.c, b"text"):
        assert b.c.switcher_address
        raise ZeroDivisionError
    assert b.c.switcher_address == 0
    assert bytes(pages._pages(b.c)) == bytes(3 * PAGE)


def test_pages_of_a_vcpu_are_its_own(block: Any) -> None:
    b = block(vcpus=2)
    pages.map_switcher(b.c, b"")
    pages.registers_page(b.c, 1)[-1] = 7
    pages.state_page(b.c, 0)[0] = 9
    where = [i for i, byte in enumerate(bytes(pages._pages(b.c))) if byte]
    assert where == [2 * PAGE, 4 * PAGE - 1]
