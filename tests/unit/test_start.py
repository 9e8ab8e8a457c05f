"""What a start costs: imports are most of it, so who needs little gets little."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from perf import tiny
from runtime.log import Log
from tests.helpers.launch import LAUNCHER, needs_engine

SLOW = {"asyncio", "cffi", "concurrent.futures", "json", "pycparser", "structlog", "vcpu.stock"}
"""Each takes milliseconds, and a run in which nothing is to be said needs none of them."""


def test_a_start_imports_only_what_it_needs(tmp_path: Path) -> None:
    needs_engine()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", LAUNCHER, "run", "--log-level", "error",
         tiny.write(tmp_path)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 1
    assert "runtime.machine" in imported
    assert not SLOW & imported


def test_the_log_says_what_its_level_lets_through(capfd: pytest.CaptureFixture[str]) -> None:
    log = Log("warning")
    log.info("not this")
    log.warning("lost", bytes=3)
    try:
        raise ValueError("a device")
    except ValueError:
        log.exception("failed")
    said = capfd.readouterr().err
    assert "not this" not in said
    assert "warning" in said.splitlines()[0]
    assert "lost" in said.splitlines()[0]
    assert "bytes=3" in said.splitlines()[0]
    assert "ValueError: a device" in said
