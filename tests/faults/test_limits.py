"""What `ulimit` takes away: one sentence, the status of the Host's fault, nothing left."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.images import code_kernel, debug_exit_code, write_file
from tests.helpers.launch import launch, needs_engine
from tests.helpers.leaks import no_leaks


@pytest.fixture(autouse=True)
def engine() -> Iterator[None]:
    needs_engine()
    with no_leaks():
        yield


@pytest.mark.parametrize(
    ("limit", "value", "sentence"),
    [
        ("AS", 350 << 20, "there is no room for 256M of translated code"),
        ("NOFILE", 7, "the system refuses what the Host waits with: Too many open files"),
        ("NOFILE", 8, "the system refuses what the Host waits with: Too many open files"),
        ("NOFILE", 12, "vCPU 0's worker cannot be started: Too many open files"),
        (
            "SIGPENDING",
            0,
            "the local APIC timer cannot be started: Resource temporarily unavailable",
        ),
    ],
)
def test_limit(tmp_path: Path, limit: str, value: int, sentence: str) -> None:
    def lower() -> None:
        resource.setrlimit(getattr(resource, f"RLIMIT_{limit}"), (value, value))

    kernel = write_file(tmp_path, code_kernel(debug_exit_code(0)))
    end = launch("run", "--vcpus", "2", "--memory", "4M", kernel, preexec_fn=lower)
    said = end.stderr.decode()
    assert end.returncode == 6, said
    assert said.startswith("smpguest: ")
    assert said.endswith(sentence + "\n")
    assert said.count("\n") == 1


def test_no_file_may_grow(tmp_path: Path) -> None:
    """Not even a temporary directory is found; it is guest memory that is the user's business."""
    kernel = write_file(tmp_path, code_kernel(debug_exit_code(0)))
    no_size = (0, 0)
    end = launch(
        "run", kernel, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, no_size)
    )
    assert end.returncode == 2
    assert end.stderr.startswith(b"smpguest: cannot get 48M of guest memory: ")
    assert end.stderr.count(b"\n") == 1
