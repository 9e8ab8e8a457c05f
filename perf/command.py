"""The command: options, the run, where the report goes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from perf import contestants
from perf import report as reports
from perf.errors import PerfError
from perf.machine import Watch, describe
from perf.render import Report, as_markdown, as_text
from perf.rounds import PARTS, Plan, Rounds
from perf.samples import Samples

STATUS_USER = 2
STATUS_FAILED = 1
STATUS_INTERRUPTED = 130

DESCRIPTION = """\
Benchmarks smpguest, stock Unicorn (one vCPU: more it cannot) and, where it is
installed, QEMU's multi-threaded TCG, side by side: the same guests, the same
loops, taking turns in each round.  What others do on the machine falls on all
of them, so trust the ratios; the figures in cycles are good on a quiet machine.
"""

EPILOG = """\
examples:
  python -m perf                          everything, 5 rounds
  python -m perf --quick                  a first look
  python -m perf --part loops --loop store,call --rounds 9
  python -m perf --vcpus 4 --bits 32      four vCPUs, 32-bit guests
  python -m perf --json out.json          every single sample beside the tables
  python -m perf --markdown > table.md    the table of docs/performance.md

An aim that is missed is said in the table; the exit status is 0 all the same.
A run that failed is said at the end, and the exit status is 1.
docs/performance.md tells what is measured and how to read it.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, and where to read more."""
        self.exit(STATUS_USER, f"perf: {message} (see python -m perf --help)\n")


def _number(low: int, high: int, what: str) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number of {what}, {low} to {high}")
        return int(text)

    return parse


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = _Parser(
        prog="python -m perf",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--rounds", metavar="N", type=_number(1, 1000, "rounds"), help="how often (default 5)"
    )
    parser.add_argument("--quick", action="store_true", help="2 rounds and shorter loops")
    parser.add_argument(
        "--vcpus",
        metavar="N",
        type=_number(1, 16, "vCPUs"),
        default=2,
        help="how many are compared with one (default 2)",
    )
    parser.add_argument(
        "--bits", type=int, choices=(32, 64), default=64, help="which guests (default 64)"
    )
    parser.add_argument(
        "--part",
        metavar="P",
        type=_names,
        default=[],
        help=f"only these, with commas between: {', '.join(PARTS)}",
    )
    parser.add_argument(
        "--loop", metavar="L", type=_names, default=[], help="only these loops, with commas between"
    )
    parser.add_argument(
        "--without",
        metavar="C",
        type=_names,
        default=[],
        help="leave out stock or qemu, or both with a comma between",
    )
    parser.add_argument("--json", metavar="F", help="write samples, machine and versions there")
    parser.add_argument("--markdown", action="store_true", help="print Markdown")
    return parser


def make_plan(options: argparse.Namespace) -> Plan:
    """What the options mean; PerfError where they mean nothing."""
    for given, known, what in (
        (options.part, PARTS, "part"),
        (options.without, ("stock", "qemu"), "contestant that can be left out"),
    ):
        for name in given:
            if name not in known:
                raise PerfError(f"'{name}' is no {what}; choose from {', '.join(known)}")
    return Plan(
        rounds=options.rounds or (2 if options.quick else reports.FEW_ROUNDS),
        vcpus=options.vcpus,
        bits=options.bits,
        parts=tuple(part for part in PARTS if not options.part or part in options.part),
        loops=tuple(options.loop),
        with_stock="stock" not in options.without,
        quick=options.quick,
    )


def perform(plan: Plan, *, with_qemu: bool, json_file: str | None) -> tuple[Report, bool]:
    """Run everything and make the report; whether nothing failed."""
    booting, left_out = [contestants.ours()], []
    qemu = contestants.qemu()
    if qemu is None:
        left_out.append(contestants.NO_QEMU)
    elif with_qemu:
        booting.append(qemu)
    machine, samples, watch = describe(), Samples(), Watch()
    rounds = Rounds(plan, booting, samples, _say)
    rounds.run()
    load = watch.load()
    run = reports.Run(plan.rounds, plan.vcpus, plan.bits, plan.quick)
    if json_file is not None:
        result = {
            "machine": machine.as_dict(),
            "load": vars(load),
            "run": vars(run),
            "failures": rounds.failures,
            "samples": samples.as_list(),
        }
        Path(json_file).write_text(json.dumps(result, indent=1) + "\n")
    made = reports.make(samples, run, machine, load, left_out)
    made.warnings += rounds.failures
    return made, not rounds.failures


def _say(text: str) -> None:
    """Progress, on one line where that is possible."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
    else:
        print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print; errors are one sentence."""
    options = build_parser().parse_args(arguments)
    try:
        if options.json is not None:
            _check_writable(options.json)
        made, good = perform(
            make_plan(options), with_qemu="qemu" not in options.without, json_file=options.json
        )
    except PerfError as error:
        print(f"\nperf: {error}" if sys.stderr.isatty() else f"perf: {error}", file=sys.stderr)
        return STATUS_FAILED
    except KeyboardInterrupt:
        return STATUS_INTERRUPTED
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    print(as_markdown(made) if options.markdown else as_text(made), end="")
    return 0 if good else STATUS_FAILED


def _check_writable(path: str) -> None:
    try:
        with Path(path).open("a"):
            pass
    except OSError as error:
        raise PerfError(f"--json {path} cannot be written: {error.strerror}") from error
