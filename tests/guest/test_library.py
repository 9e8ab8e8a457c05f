"""The guests' library, by a guest of a few lines that is built for the occasion."""

from __future__ import annotations

import subprocess

import pytest

from runtime.machine import Machine
from tests.helpers.launch import ROOT, needs_engine

LONG = 1000
SMALL = f"""
#include "guest.h"
const char guest_name[] = "small";
void guest_main(void)
{{
    printf("<%{LONG}s>\\n", "x");
    volatile uint32_t *free = (void *)FREE_VA;
    *free = 1;
    printf("nothing reads %x\\n", *free);
    map_page(FREE_VA, (uintptr_t)alloc_page(), PTE_W);
    *free = 1;
    printf("a page reads %x\\n", *free);
    pass("<%{LONG}s>", "y");
}}
"""


@pytest.fixture(scope="module", params=["small.elf", "small64.elf"])
def lines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What it prints."""
    needs_engine()
    directory = tmp_path_factory.mktemp("guest")
    (directory / "small.c").write_text(SMALL)
    where = (f"VPATH={directory}", f"OUT={directory}")
    subprocess.run(["make", "-s", "-C", ROOT / "guests", "GUESTS=small", *where], check=True)
    with Machine(directory / request.param, console="capture") as machine:
        return machine.run(30).console.decode().replace("\r", "").splitlines()


def test_lines_of_any_length(lines: list[str]) -> None:
    assert f"<{'x':>{LONG}}>" in lines
    assert lines[-1] == f"small: PASS (<{'y':>{LONG}}>)"


def test_free_addresses(lines: list[str]) -> None:
    assert "nothing reads ffffffff" in lines
    assert "a page reads 1" in lines
