"""What the figures are held against.  An aim is met or not met; it never fails a run."""

from __future__ import annotations

from dataclasses import dataclass

from perf.contestants import OURS, QEMU, STOCK
from perf.loops import title
from perf.samples import Quantity, Samples
from perf.stats import Spread

FASTER_THAN_STOCK = 8.0
ON_LOOPS = ("store", "load", "call", "matrix")
FASTER_THAN_QEMU = 1.0
OF_LINEAR = 0.95
"""All vCPUs at once, each on a free core: 1.9 times one vCPU for two."""
SHARED_LINE = "lock_shared"
"""All CPUs want one cache line: no machine gets faster by that, so it has no such aim."""


@dataclass(frozen=True)
class Aim:
    """At least so many times as fast."""

    what: str
    at_least: float
    reached: Spread
    #: False where the machine was not what the aim asks for: no judgement then.
    judged: bool = True

    @property
    def met(self) -> bool:
        """The median decides."""
        return self.reached.median >= self.at_least

    @property
    def verdict(self) -> str:
        """For a table's cell."""
        if not self.judged:
            return f"≥ {self.at_least:g} not judged"
        return f"≥ {self.at_least:g} {'met' if self.met else 'NOT met'}"


def against_stock(samples: Samples, loop: str) -> Aim | None:
    """None where there is no such aim or no figure."""
    if loop not in ON_LOOPS:
        return None
    reached = samples.faster(OURS, STOCK, Quantity.loop(loop))
    return (
        None if reached is None else Aim(f"{title(loop)} against stock", FASTER_THAN_STOCK, reached)
    )


def against_qemu(samples: Samples, loop: str) -> Aim | None:
    """None where there is no figure."""
    reached = samples.faster(OURS, QEMU, Quantity.loop(loop))
    return (
        None if reached is None else Aim(f"{title(loop)} against QEMU", FASTER_THAN_QEMU, reached)
    )


def all_at_once(samples: Samples, loop: str, vcpus: int, *, free: bool) -> Aim | None:
    """None where there is no such aim or no figure.  `free`: each vCPU had a free core."""
    if loop == SHARED_LINE:
        return None
    reached = samples.speedup(OURS, loop)
    return (
        None
        if reached is None
        else Aim(f"{title(loop)} on {vcpus} vCPUs", OF_LINEAR * vcpus, reached, free)
    )


def all_aims(samples: Samples, vcpus: int, *, free: bool) -> list[Aim]:
    """Every aim that has a figure."""
    found = []
    for loop in samples.loops():
        found += [
            against_stock(samples, loop),
            against_qemu(samples, loop),
            all_at_once(samples, loop, vcpus, free=free),
        ]
    return [aim for aim in found if aim is not None]
