"""Fixtures that everybody uses.  Tests are grouped by what they start: nothing of the runtime
(unit/), a guest (guest/), a fault (faults/)."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from switcher import binding
from switcher.native import build as native
from tests.helpers.block import Block, Processes

# A shell without job control starts what it puts in the background with SIGINT ignored, and so
# would everything be that the tests start, which then cannot be interrupted.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def lib() -> Any:
    """The engine-independent half of the Switcher."""
    return binding.open_native(native.build(quiet=True))


@pytest.fixture(scope="session")
def patient_lib() -> Any:
    """The same, but waiters look again only after a minute: a lost wake-up is a hang, not 50 ms."""
    return binding.open_native(native.build(quiet=True, defines=("-DSLICE_NS=60000000000ll",)))


@pytest.fixture
def block(lib: Any) -> Callable[..., Block]:
    """Makes a control block in memory that forked processes share: block(vcpus=2)."""
    return lambda vcpus=2, **more: Block(more.pop("lib", lib), vcpus, **more)


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Forks children; what is left of them at the end of the test is killed."""
    family = Processes()
    yield family
    family.end()
