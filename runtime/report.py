"""What is told about a machine that has ended: from its control block and its workers' reports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from runtime.control import ControlBlock, Verdict
from runtime.exits import Exit, Reason, exit_status
from runtime.workers import Worker

GOOD_ENDS = (Reason.POWEROFF, Reason.DEBUG_EXIT, Reason.RESTART)


def final_verdict(control: ControlBlock, console_failure: str) -> Verdict:
    """The verdict, but what went wrong too late to decide it counts more than a good end."""
    verdict = control.verdict()
    if console_failure and verdict.reason in GOOD_ENDS:
        return Verdict(Reason.HOST, None, 0, console_failure)
    # An exception in a user's hook stops the Guest before its worker can say so.
    if verdict.reason is Reason.STOPPED and verdict.vcpu is not None:
        words = control.last_error(verdict.vcpu)
        if words:
            return Verdict(Reason.WORKER, verdict.vcpu, 0, words)
    return verdict


def make_exit(
    control: ControlBlock,
    workers: Iterable[Worker],
    console: bytes,
    console_failure: str,
    wall_seconds: float,
    host_seconds: float,
) -> Exit:
    """Everything that `Machine.run()` returns."""
    verdict = final_verdict(control, console_failure)
    results: dict[int, Any] = {}
    seconds = {"host": host_seconds}
    for worker in workers:
        report = worker.report()
        if report is None:
            continue
        seconds[f"vcpu{worker.index}"] = report.cpu_seconds
        if report.result:
            one = len(report.result) == 1
            results[worker.index] = report.result[0] if one else report.result
    return Exit(
        reason=verdict.reason,
        status=exit_status(verdict.reason, verdict.code),
        code=verdict.code,
        text=verdict.text,
        vcpu=verdict.vcpu,
        console=console,
        counters=tuple(control.counters(index) for index in range(control.vcpus)),
        registers=tuple(control.registers(index) for index in range(control.vcpus)),
        doings=tuple(control.doing(index) for index in range(control.vcpus)),
        results=results,
        locks=control.locks(),
        wall_seconds=wall_seconds,
        cpu_seconds=seconds,
    )


def log_traces(control: ControlBlock, workers: Iterable[Worker], log: Any) -> None:
    """The tracebacks of workers that failed (ours, or the user's hooks'), and missing reports."""
    for worker in workers:
        report = worker.report()
        if report is None:
            # Of a worker that died earlier the verdict or the log has told.
            if control.state(worker.index) == "stopped":
                log.error(f"vCPU {worker.index}'s report is missing: no results of its hooks")
        elif report.trace:
            log.error(f"vCPU {worker.index}'s worker:\n{report.trace.rstrip()}")
