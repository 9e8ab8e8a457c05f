"""What is run when: in each round every contestant does everything once, taking turns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perf import memory, tiny
from perf.contestants import GUESTS, OURS, STOCK, Booting, lguest, run_stock
from perf.errors import PerfError
from perf.parse import bench_lines, cost_cycles, halt_cycles, ipi_cycles
from perf.process import Look
from perf.samples import Quantity, Samples

GUESTS_OF = {
    "loops": ("bench",),
    "latency": ("ipi", "halt"),
    "start": (),
    "memory": ("demo",),
    "lguest": ("cost",),
}
PARTS = tuple(GUESTS_OF)
TIMEOUT = 300.0
"""Seconds for one run; a contestant that needs longer hangs."""
STOCK_SHARE = 8
"""The stock engine gets fewer operations, or most of the time would be spent waiting for it."""
DEMO_WORKS, DEMO_SECONDS = b"5. Speed", 0.3
"""The guest demo has used everything by then, and works on every vCPU for a while."""


@dataclass(frozen=True)
class Plan:
    """What the user wants."""

    rounds: int
    vcpus: int
    bits: int
    parts: tuple[str, ...]
    loops: tuple[str, ...]
    with_stock: bool
    quick: bool


class Rounds:
    """Fills `samples`; `say` hears what is going on, `failures` are sentences about what failed."""

    def __init__(
        self,
        plan: Plan,
        booting: list[Booting],
        samples: Samples,
        say: Callable[[str], object],
    ) -> None:
        self.failures: list[str] = []
        self._plan = plan
        self._booting = booting
        self._samples = samples
        self._say = say
        self._ops: dict[str, int] = {}  # loop → operations of smpguest's last run
        self._number = 0

    def run(self) -> None:
        """All rounds; PerfError when a guest is not built."""
        work = {
            "loops": self._loops,
            "latency": self._latency,
            "start": self._start,
            "memory": self._memory,
            "lguest": self._lguest,
        }
        for part in self._plan.parts:
            for guest in GUESTS_OF[part]:
                self._kernel(guest)
        for number in range(1, self._plan.rounds + 1):
            self._number = number
            for part in self._plan.parts:
                work[part]()

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        """One failed run is told in the report, and does not cost all the others."""
        try:
            yield
        except PerfError as error:
            self.failures.append(f"round {self._number}: {error}")

    # Loops ----------------------------------------------------------------------------

    def _loops(self) -> None:
        for contestant in self._booting:
            with self._forgiving():
                text = self._boot(contestant, "bench", 1, self._bench_words())
                for line in bench_lines(text):
                    self._add(contestant.name, Quantity.loop(line.name), line.cost)
                    if contestant.name == OURS:
                        self._ops[line.name] = line.ops
            if contestant.name == OURS and self._ops and self._plan.with_stock:
                with self._forgiving():
                    self._stock()
        if self._plan.vcpus == 1:
            return
        for contestant in self._booting:
            with self._forgiving():
                text = self._boot(contestant, "bench", self._plan.vcpus, self._bench_words())
                for line in bench_lines(text):
                    group = Quantity.alone if line.cpus == 1 else Quantity.together
                    self._add(contestant.name, group(line.name), line.cost)

    def _stock(self) -> None:
        self._tell(STOCK, "bench", 1)
        wishes = [(name, max(1, ops // STOCK_SHARE)) for name, ops in self._ops.items()]
        for line in bench_lines(run_stock(self._kernel("bench"), wishes, timeout=TIMEOUT)):
            self._add(STOCK, Quantity.loop(line.name), line.cost)

    def _bench_words(self) -> str:
        words = []
        if self._plan.loops:
            words.append("only=" + ",".join(self._plan.loops))
        if self._plan.quick:
            words.append("quick")
        return " ".join(words)

    # Everything else --------------------------------------------------------------------

    def _latency(self) -> None:
        if self._plan.vcpus == 1:
            return
        for contestant in self._booting:
            with self._forgiving():
                text = self._boot(contestant, "ipi", self._plan.vcpus, "rounds=100")
                best, mean = ipi_cycles(text)
                self._add(contestant.name, Quantity.IPI_BEST, best)
                self._add(contestant.name, Quantity.IPI_MEAN, mean)
        for contestant in self._booting:
            with self._forgiving():
                text = self._boot(contestant, "halt", self._plan.vcpus, "rounds=1000")
                self._add(contestant.name, Quantity.HALT, halt_cycles(text))

    def _start(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            kernel = tiny.write(Path(folder))
            for vcpus in sorted({1, self._plan.vcpus}):
                for contestant in self._booting:
                    self._start_of(contestant, kernel, vcpus)

    def _start_of(self, contestant: Booting, kernel: Path, vcpus: int) -> None:
        with self._forgiving():
            self._tell(contestant.name, "the smallest guest", vcpus)
            times = contestant.boot(kernel, vcpus, timeout=TIMEOUT)
            self._add(contestant.name, Quantity.first(vcpus), times.first)
            self._add(contestant.name, Quantity.whole(vcpus), times.whole)

    def _memory(self) -> None:
        for vcpus in sorted({1, self._plan.vcpus}):
            for contestant in self._booting:
                with self._forgiving():
                    self._memory_of(contestant, vcpus)

    def _memory_of(self, contestant: Booting, vcpus: int) -> None:
        found: list[memory.Memory] = []
        look = Look(DEMO_WORKS, DEMO_SECONDS, memory.into(found))
        self._boot(contestant, "demo", vcpus, look=look)
        for seen in found:
            self._add(contestant.name, Quantity.memory(vcpus), seen.total)
            if seen.workers:
                one = sum(seen.workers) / len(seen.workers)
                self._add(contestant.name, Quantity.worker(vcpus), one)

    def _lguest(self) -> None:
        """The lguest machine, and the same guest where there is a pc."""
        for contestant in self._booting:
            with self._forgiving():
                self._ways(contestant, self._kernel("cost"))
        with self._forgiving():
            self._ways(lguest(clocked=True), GUESTS / "lguest" / "cost.elf", "clock")
        with tempfile.TemporaryDirectory() as folder:
            if "start" not in self._plan.parts:
                for contestant in self._booting:
                    self._start_of(contestant, tiny.write(Path(folder)), 1)
            self._start_of(lguest(), tiny.write_lguest(Path(folder)), 1)

    def _ways(self, contestant: Booting, kernel: Path, append: str = "") -> None:
        self._tell(contestant.name, "cost", self._plan.vcpus)
        run = contestant.boot(kernel, self._plan.vcpus, append, timeout=TIMEOUT)
        for name, cycles in cost_cycles(run.text).items():
            self._add(contestant.name, Quantity.way(name), cycles)

    # Common -----------------------------------------------------------------------------

    def _boot(
        self, contestant: Booting, guest: str, vcpus: int, append: str = "", **more: Any
    ) -> str:
        self._tell(contestant.name, guest, vcpus)
        run = contestant.boot(self._kernel(guest), vcpus, append, timeout=TIMEOUT, **more)
        return run.text

    def _kernel(self, guest: str) -> Path:
        path = GUESTS / f"{guest}{'64' if self._plan.bits == 64 else ''}.elf"
        if not path.exists():
            raise PerfError(f"the guest {path.name} is not built: run `make guests`")
        return path

    def _add(self, contestant: str, quantity: str, value: float) -> None:
        self._samples.add(self._number, contestant, quantity, value)

    def _tell(self, contestant: str, what: str, vcpus: int) -> None:
        cpus = f"{vcpus} vCPU{'s' if vcpus > 1 else ''}"
        self._say(f"round {self._number} of {self._plan.rounds}: {contestant}, {what}, {cpus}")
