"""What the Host asks of a machine, be it `pc` or `lguest`."""

from __future__ import annotations

from typing import Protocol


class ConsolePort(Protocol):
    """The device behind the Guest's console; called in the Host's loop, with the Big Lock."""

    @property
    def input_room(self) -> int:
        """How many bytes `receive` takes now."""

    def receive(self, data: bytes) -> None:
        """Bytes for the Guest."""

    def take_unread(self) -> bytes:
        """All input that the Guest has not read; it is the caller's again."""

    def set_line_busy(self, busy: bool) -> None:
        """Whoever reads the console does not keep up: take nothing more from the Guest."""


class Platform(Protocol):
    """The devices of one machine, built before its workers are forked.

    All is called in the Host's loop.  `answer` takes the Big Lock itself, for as long as it
    needs it; for `post` the Host has it.
    """

    name: str

    @property
    def console(self) -> ConsolePort:
        """Where the console's input goes."""

    @property
    def fds(self) -> frozenset[int]:
        """Eventfds that a worker must keep, because the Guest rings them."""

    def answer(self, vcpu: int, kind: int, address: int, size: int, data: int) -> int:
        """A vCPU waits: `enum smp_request_kind`; the value read, or anything for a write."""

    def post(self, kind: int, address: int, size: int, data: int) -> None:
        """Nobody waits: `enum smp_posted_kind`."""

    def finish(self) -> None:
        """The vCPUs have stopped: end what runs beside them, pass the last output on."""

    def close(self) -> None:
        """Give everything back."""
