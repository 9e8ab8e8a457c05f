"""The stock wheel: one slow vCPU, or one sentence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from switcher import binding
from tests.helpers.images import Maker, code_kernel, debug_exit_code, print_code, write_file
from tests.helpers.launch import guest, launch


@pytest.fixture(autouse=True)
def native() -> None:
    if not binding.NATIVE.exists():
        pytest.skip("the native library is not built")


def stock(*arguments: str | Path, **options: Any) -> Any:
    return launch("run", *arguments, env=os.environ | {"SMPGUEST_ENGINE": "stock"}, **options)


@pytest.mark.parametrize("name", ["demo", "ipi"])
def test_guest(name: str) -> None:
    end = stock("--timeout", "100", guest(name), timeout=110)
    assert end.returncode == 1, end.stdout + end.stderr
    assert b"PASS" in end.stdout


def test_console_and_exit(tmp_path: Path) -> None:
    kernel = write_file(tmp_path, code_kernel(print_code(b"hello") + debug_exit_code(4)))
    end = stock(kernel)
    assert (end.returncode, end.stdout) == (9, b"hello")


def test_triple_fault(tmp_path: Path) -> None:
    end = stock(write_file(tmp_path, code_kernel(b"\x0f\x0b")))
    assert end.returncode == 4
    assert b"triple fault" in end.stderr


def test_two_vcpus_are_refused(tmp_path: Path) -> None:
    end = stock("--vcpus", "2", write_file(tmp_path, code_kernel(b"\xf4")))
    assert (end.returncode, end.stderr.count(b"\n")) == (2, 1)
    assert b"only one vCPU" in end.stderr


def test_long_mode_start_is_refused(tmp_path: Path) -> None:
    end = stock(write_file(tmp_path, Maker(bits=64).build()))
    assert (end.returncode, end.stderr.count(b"\n")) == (2, 1)


def test_time_out_of_a_halted_guest(tmp_path: Path) -> None:
    end = stock("--timeout", "1", write_file(tmp_path, code_kernel(b"\xfa\xf4\xeb\xfd")))
    assert end.returncode == 124


def test_time_out_of_a_running_guest(tmp_path: Path) -> None:
    end = stock("--timeout", "1", write_file(tmp_path, code_kernel(b"\xeb\xfe")))
    assert end.returncode == 124
