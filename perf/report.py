"""The tables, made from the samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perf.aims import Aim, against_qemu, against_stock, all_aims, all_at_once
from perf.contestants import LGUEST, OURS, QEMU, STOCK
from perf.loops import title
from perf.machine import Load, Machine
from perf.render import NONE, Report, Table, with_spread
from perf.samples import Quantity, Samples

FEW_ROUNDS = 5


@dataclass(frozen=True)
class Run:
    """How the samples were taken."""

    rounds: int
    vcpus: int
    bits: int
    quick: bool


def make(samples: Samples, run: Run, machine: Machine, load: Load, left_out: list[str]) -> Report:
    """The whole report; `left_out` are sentences about contestants that are not there."""
    report = Report(intro=_intro(run, machine, load) + left_out)
    free = machine.cores >= run.vcpus and not load.busy
    tables = (
        _loops(samples),
        _together(samples, run.vcpus, free=free),
        _latencies(samples, machine.tsc_mhz),
        _start(samples, run.vcpus),
        _memory(samples, run.vcpus),
        _ways(samples, machine.tsc_mhz),
        _lguest_start(samples),
    )
    report.tables += [table for table in tables if table.rows]
    report.summary += _summary(all_aims(samples, run.vcpus, free=free))
    report.warnings += _warnings(run, machine, load)
    return report


def _intro(run: Run, machine: Machine, load: Load) -> list[str]:
    versions = machine.versions
    return [
        f"Machine: {machine.cpu}, {machine.cores} cores for us, TSC {machine.tsc_mhz:.0f} MHz, "
        f"Linux {versions.kernel}",
        f"Load: average {load.before:.2f} before, {load.after:.2f} after; "
        f"others used {load.others:.0%} of the CPUs meanwhile",
        f"Engine {versions.engine}, stock Unicorn {versions.unicorn}, {versions.qemu}, "
        f"Python {versions.python}",
        f"{run.bits}-bit guests, {run.rounds} round{'s' if run.rounds > 1 else ''}, contestants "
        "taking turns in each; every figure is the median (smallest–largest)",
    ]


def _loops(samples: Samples) -> Table:
    rows = []
    for loop in samples.loops():
        quantity = Quantity.loop(loop)
        if samples.spread(OURS, quantity) is None:
            continue
        rows.append(
            [
                title(loop),
                *(with_spread(samples.spread(who, quantity)) for who in (OURS, STOCK, QEMU)),
                with_spread(samples.faster(OURS, STOCK, quantity)),
                _verdict(against_stock(samples, loop)),
                with_spread(samples.faster(OURS, QEMU, quantity)),
                _verdict(against_qemu(samples, loop)),
            ]
        )
    return Table(
        "One vCPU: cycles an operation",
        "Less is better in the first three columns; × stock and × QEMU say how many times faster "
        "smpguest is.",
        ["loop", OURS, STOCK, QEMU, "× stock", "aim", "× QEMU", "aim"],
        rows,
    )


def _together(samples: Samples, vcpus: int, *, free: bool) -> Table:
    rows = []
    for loop in samples.loops():
        if samples.speedup(OURS, loop) is None:
            continue
        rows.append(
            [
                title(loop),
                with_spread(samples.speedup(OURS, loop)),
                _verdict(all_at_once(samples, loop, vcpus, free=free)),
                with_spread(samples.speedup(QEMU, loop)),
                with_spread(samples.faster(OURS, QEMU, Quantity.together(loop))),
            ]
        )
    return Table(
        f"All {vcpus} vCPUs at once against one of them: throughput ratio",
        f"Of one machine with {vcpus} vCPUs; {vcpus} is perfect. × QEMU: all vCPUs of ours "
        "against all of QEMU's.",
        ["loop", OURS, "aim", QEMU, "× QEMU"],
        rows,
    )


def _latencies(samples: Samples, tsc_mhz: float) -> Table:
    named = (
        ("IPI to an awake vCPU and seen back, best", Quantity.IPI_BEST),
        ("IPI to an awake vCPU and seen back, mean", Quantity.IPI_MEAN),
        ("IPI wakes a halted vCPU, which sends the next", Quantity.HALT),
    )
    return Table(
        "Latency: µs",
        "From the guests ipi and halt. Less is better; × QEMU: how many times faster smpguest is.",
        ["what", OURS, QEMU, "× QEMU"],
        _against_qemu(samples, named, 1 / tsc_mhz),
    )


def _start(samples: Samples, vcpus: int) -> Table:
    named = []
    for count, cpus in _machines(vcpus):
        named += [
            (f"{cpus}: to the first guest instruction", Quantity.first(count)),
            (f"{cpus}: to the end of the process", Quantity.whole(count)),
        ]
    return Table(
        "Start of the smallest guest: ms",
        "From starting the Launcher or QEMU. Less is better.",
        ["what", OURS, QEMU, "× QEMU"],
        _against_qemu(samples, named, 1000),
    )


def _memory(samples: Samples, vcpus: int) -> Table:
    named = []
    for count, cpus in _machines(vcpus):
        named += [
            (f"{cpus}: all processes", Quantity.memory(count)),
            (f"{cpus}: the process of one vCPU", Quantity.worker(count)),
        ]
    return Table(
        "Memory (PSS): MiB",
        "While the guest demo works, the guest RAM that it touched included. Less is better.",
        ["what", OURS, QEMU, "× QEMU"],
        _against_qemu(samples, named),
    )


WAYS = (
    ("hypercall that does nothing", "hypercall", ""),
    ("hypercall in the ring, each of 64", "async", ""),
    ("NOTIFY that the Launcher answers", "notify", "port"),
    ("trap in the kernel, through the Host, and back", "trap0", "trap0"),
    ("trap in ring 3, through the Host, and back", "trap3", "trap3"),
    ("system call, a direct trap, and back", "syscall", "syscall"),
    ("IPI until the handler runs, CPU awake", "ipi", "ipi"),
    ("IPI until the handler runs, CPU halted", "ipi-halted", "ipi-halted"),
    ("one-shot clock due until the handler runs", "clock", "clock"),
    ("NOTIFY of a queue until its service has the request", "kick", ""),
    ("a service's interrupt until the handler runs", "irq", ""),
)
"""What it is called in the table, and in guests/cost.c on the lguest machine and on the pc."""


def _ways(samples: Samples, tsc_mhz: float) -> Table:
    rows = []
    for what, lguest, pc in WAYS:
        cells = ((LGUEST, lguest), (OURS, pc), (QEMU, pc))
        found = [samples.spread(who, Quantity.way(name)) for who, name in cells]
        if found[0] is not None:
            rows.append([what, *(with_spread(cell, 1 / tsc_mhz) for cell in found)])
    return Table(
        "The lguest machine, ways between Guest and Host: µs",
        "Medians within the guest cost, less is better.  No other machine runs lguest's guests, so "
        "beside it stands what the same guest finds on a pc, smpguest's and QEMU's: there a port "
        "read takes the place of the NOTIFY, and traps, clock and IPIs never leave the engine.",
        ["what", LGUEST, f"{OURS} pc", f"{QEMU} pc"],
        rows,
    )


def _lguest_start(samples: Samples) -> Table:
    named = (
        ("to the first guest instruction", Quantity.first(1)),
        ("to the end of the process", Quantity.whole(1)),
    )
    rows = [
        [what, *(with_spread(samples.spread(who, quantity), 1000) for who in (LGUEST, OURS, QEMU))]
        for what, quantity in named
        if samples.spread(LGUEST, quantity) is not None
    ]
    return Table(
        "The lguest machine, start of the smallest guest on 1 vCPU: ms",
        "From starting the Launcher or QEMU; beside it a pc.  Less is better.",
        ["what", LGUEST, f"{OURS} pc", f"{QEMU} pc"],
        rows,
    )


def _machines(vcpus: int) -> list[tuple[int, str]]:
    return [(count, f"{count} vCPU{'s' if count > 1 else ''}") for count in sorted({1, vcpus})]


def _against_qemu(
    samples: Samples, named: Sequence[tuple[str, str]], unit: float = 1
) -> list[list[str]]:
    """`unit`: what a sample is multiplied with for the table."""
    return [
        [
            what,
            *(with_spread(samples.spread(who, quantity), unit) for who in (OURS, QEMU)),
            with_spread(samples.faster(OURS, QEMU, quantity)),
        ]
        for what, quantity in named
        if samples.spread(OURS, quantity) is not None
    ]


def _verdict(aim: Aim | None) -> str:
    return NONE if aim is None else aim.verdict


def _summary(aims: list[Aim]) -> list[str]:
    if not aims:
        return []
    judged = [aim for aim in aims if aim.judged]
    missed = [aim for aim in judged if not aim.met]
    lines = [f"Aims met: {len(judged) - len(missed)} of {len(judged)}."]
    lines += [
        f"Not met: {aim.what}, {with_spread(aim.reached)} instead of ≥ {aim.at_least:g}"
        for aim in missed
    ]
    if len(judged) < len(aims):
        lines.append(
            f"Not judged: {len(aims) - len(judged)} that ask for a free core for each vCPU."
        )
    return lines


def _warnings(run: Run, machine: Machine, load: Load) -> list[str]:
    found = []
    if load.busy:
        found.append(
            f"others used {load.others:.0%} of the CPUs: run again on a quiet machine before "
            "these figures are believed."
        )
    if machine.cores < run.vcpus:
        found.append(
            f"{run.vcpus} vCPUs had {machine.cores} core{'s' if machine.cores > 1 else ''} to run "
            "on: the throughput ratios say nothing."
        )
    if run.quick or run.rounds < FEW_ROUNDS:
        found.append("this was a quick look; take the default rounds for figures to publish.")
    return found
