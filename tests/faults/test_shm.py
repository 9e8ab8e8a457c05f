"""No room in /dev/shm, for real: one sentence, status 2, nothing left."""

from __future__ import annotations

import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.images import code_kernel, debug_exit_code, write_file
from tests.helpers.launch import command, launch, needs_engine


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    needs_engine()
    return write_file(tmp_path, code_kernel(debug_exit_code(0)))


def in_small_shm(size: str, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    """Run with a /dev/shm of `size` in a mount namespace of its own, and look what stays there."""
    unshare = shutil.which("unshare")
    if unshare is None:
        pytest.skip("no unshare")
    script = (
        f'mount -t tmpfs -o size={size} tmpfs /dev/shm || exit 99; "$@"; status=$?; '
        'ls /dev/shm; exit "$status"'
    )
    end = subprocess.run(
        [unshare, "-rm", "sh", "-c", script, "sh", *command(*arguments)],
        capture_output=True,
        check=False,
    )
    if end.returncode in (1, 99) and b"smpguest" not in end.stderr and b"info" not in end.stderr:
        pytest.skip("no mount namespaces here")
    return end


@pytest.mark.parametrize("size", ["8M", "64M", "65M"])
def test_full_shm(kernel: Path, size: str) -> None:
    end = in_small_shm(size, "run", "--memory", "64M", kernel)
    sentence = end.stderr.decode()
    assert (end.returncode, end.stdout) == (2, b"")
    assert sentence == (
        "smpguest: a machine with 64M of memory needs 66M of /dev/shm, where "
        f"{size} are free; try a smaller --memory or, in a container, a larger /dev/shm "
        "(docker run --shm-size=1g)\n"
    )


def test_just_enough(kernel: Path) -> None:
    assert in_small_shm("66M", "run", "--memory", "64M", kernel).returncode == 1


def test_default_fits_a_container_s_shm(kernel: Path) -> None:
    assert in_small_shm("64M", "run", "--vcpus", "16", kernel).returncode == 1


def test_file_size_limit(kernel: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    end = launch("run", kernel, preexec_fn=limit)
    assert end.returncode == 2
    assert end.stderr.startswith(b"smpguest: cannot get 48M of guest memory: ")


def test_too_few_descriptors(kernel: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))

    end = launch("run", "--vcpus", "16", kernel, preexec_fn=limit)
    assert end.returncode in (2, 6)
    assert b"Traceback" not in end.stderr
    assert end.stderr.startswith(b"smpguest: ")
