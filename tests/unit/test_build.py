"""switcher/cached.py, engine/build.py, native/build.py: what is built again, and what is not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from switcher import cached
from switcher.engine import build
from switcher.native import build as native


def test_digests_know_where_parts_end() -> None:
    assert cached.digest("ab", "c") != cached.digest("a", "bc")
    assert cached.digest("ab") == cached.digest(b"ab")
    assert cached.digest_files({"a": b"1"}) != cached.digest_files({"a": b"2"})
    assert cached.digest_files({"a": b"1"}) != cached.digest_files({"b": b"1"})


def test_switch_is_never_seen_missing(tmp_path: Path) -> None:
    link, stop, gaps = tmp_path / "current", threading.Event(), []
    cached.switch(link, "first")

    def watch() -> None:
        while not stop.is_set():
            if not link.is_symlink():
                gaps.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for turn in range(500):
        cached.switch(link, str(turn))
    stop.set()
    watcher.join()
    assert os.readlink(link) == "499"
    assert not gaps
    assert [path.name for path in tmp_path.iterdir()] == ["current"]


def test_one_build_at_a_time(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from switcher import cached\n"
        f"with cached.exclusive(pathlib.Path({str(tmp_path)!r}), 'it'): print('in')"
    )
    with cached.exclusive(tmp_path, "it"):
        other = subprocess.Popen(
            [sys.executable, "-c", code], cwd=cached.ROOT, stdout=-1, stderr=-1, text=True
        )
        time.sleep(0.5)
        assert other.poll() is None
    out, err = other.communicate(timeout=20)
    assert out == "in\n"
    assert "waiting for another build of it" in err


def test_the_compiler_may_have_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc -pipe")
    assert cached.compiler() == ["cc", "-pipe"]
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(cached.BuildError, match="no C compiler 'no-such-compiler'"):
        cached.compiler()


def test_the_tree_is_laid_out_and_what_is_right_is_left_alone(tmp_path: Path) -> None:
    build.lay_out(tmp_path, {"a/b.c": b"one", "c.h": b"two", "old.c": b"three"})
    os.utime(tmp_path / "a/b.c", (1, 1))
    os.utime(tmp_path / "c.h", (1, 1))
    build.lay_out(tmp_path, {"a/b.c": b"one", "c.h": b"changed", "new/d.c": b""})
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {"a/b.c", "c.h", "new/d.c"}
    assert (tmp_path / "a/b.c").stat().st_mtime == 1
    assert (tmp_path / "c.h").stat().st_mtime > 1
    assert (tmp_path / "c.h").read_bytes() == b"changed"


def test_the_pin_has_a_hash() -> None:
    version, sha256 = build.pinned()
    assert version == "2.1.4"
    assert len(sha256) == 64


def test_a_wrong_archive_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "BUILD", tmp_path)
    kept = tmp_path / "download" / "unicorn-2.1.4.tar.gz"
    kept.parent.mkdir()
    kept.write_bytes(b"not it")

    def brings_rubbish(directory: Path) -> None:
        (directory / kept.name).write_bytes(b"neither")

    monkeypatch.setattr(build, "_pip_download", brings_rubbish)
    with pytest.raises(cached.BuildError, match="wrong sha256"):
        build.download(build.Progress(quiet=True))


def test_native_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = native.build(quiet=True)
    assert first.exists()
    assert os.readlink(native.BUILD / "current") == first.parent.name
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("compiled again"))
    assert native.build(quiet=True) == first


def test_a_variant_does_not_become_current() -> None:
    variant = native.build(quiet=True, defines=("-DSLICE_NS=60000000000ll",))
    assert os.readlink(native.BUILD / "current") != variant.parent.name


def test_what_the_compiler_says_is_shown(tmp_path: Path) -> None:
    broken = tmp_path / "broken.c"
    broken.write_text("int main(void) { return nothing_such; }\n")
    with pytest.raises(cached.BuildError, match="nothing_such"):
        native._compile([broken], native.BUILD / "never" / "libswitcher.so", native.FLAGS)
    assert not (native.BUILD / "never" / "libswitcher.so").exists()


def test_what_cannot_be_set_up_is_said_in_a_sentence(tmp_path: Path) -> None:
    script = cached.ROOT / "switcher" / "engine" / "preflight.sh"

    def preflight(python: str, cc: str) -> tuple[int, str]:
        done = subprocess.run(
            ["sh", str(script), python, cc], capture_output=True, text=True, check=False
        )
        return done.returncode, done.stderr

    def fake(name: str, body: str) -> str:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return str(path)

    assert preflight(sys.executable, "cc") == (0, "")
    old = fake("old", 'case "$1" in -V) echo Python 3.9.2;; *) exit 1;; esac')
    no_venv = fake("no_venv", 'case "$2" in *venv*) exit 1;; esac')
    no_headers = fake("no_headers", "exit 1")
    for python, cc, says in (
        ("no-such-python", "cc", "there is no 'no-such-python'"),
        (old, "cc", "is Python 3.9.2, but Python 3.11 or later is needed"),
        (no_venv, "cc", "python3-venv"),
        (sys.executable, "no-such-cc -m64", "no C compiler"),
        (sys.executable, no_headers, "libc6-dev"),
    ):
        status, stderr = preflight(python, cc)
        assert status == 1
        assert says in stderr
        assert stderr.count("\n") == 1
