"""Builds the engine: Unicorn's source distribution, our patches, our C files, x86 only.

    python -m switcher.engine.build [--quiet] [--without HUNK]...      prints the library's path

The source distribution comes from the package index by pip, pinned by version and hash.  The
patches (switcher/engine/patch/*.patch, in sorted order) are `git diff`s relative to its src/
folder.  Our C files (switcher/native/*.c, *.h) are laid into it as qemu/smpguest/.

Results are kept in build/engine/<hash of all inputs>/ and `current` points at the newest one.  The
tree they are compiled in is kept too and brought up to date file by file, so that after a change
only what depends on it is compiled again.

--without leaves out a patch (its file name, with or without .patch), or, where no patch has that
name, defines SMP_WITHOUT_<NAME> for the sources to look at.  It is for the test that shows that
each hunk matters, and never becomes `current`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import deque
from pathlib import Path

from switcher import cached, declared
from switcher.engine import unidiff

HERE = Path(__file__).resolve().parent
PATCHES = HERE / "patch"
REQUIREMENTS = HERE / "requirements.txt"
BUILD = cached.ROOT / "build" / "engine"
LIBRARY = "libunicorn.so.2"
OURS = "qemu/smpguest/"

CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_POLICY_VERSION_MINIMUM=3.5",  # CMake 4 refuses older project files otherwise
    "-DUNICORN_ARCH=x86",
    "-DBUILD_SHARED_LIBS=ON",
    "-DUNICORN_BUILD_TESTS=OFF",
    "-DUNICORN_LEGACY_STATIC_ARCHIVE=OFF",
    "-DUNICORN_INSTALL=OFF",
)
DEFINES = ("-DSMP_ENGINE",)


def pinned() -> tuple[str, str]:
    """Version and sha256 of the source distribution, from requirements.txt."""
    match = re.search(r"^unicorn==(\S+)\s+--hash=sha256:([0-9a-f]{64})$",
                      REQUIREMENTS.read_text(), re.M)  # fmt: skip
    if not match:
        raise cached.BuildError(f"{REQUIREMENTS} does not pin unicorn by version and sha256")
    return match[1], match[2]


def download(say: Progress) -> bytes:
    """The source distribution, checked; asked from pip only the first time."""
    version, sha256 = pinned()
    kept = BUILD / "download" / f"unicorn-{version}.tar.gz"
    if not kept.exists() or hashlib.sha256(kept.read_bytes()).hexdigest() != sha256:
        say.step(f"fetching the sources of unicorn {version}")
        with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
            _pip_download(Path(scratch))
            got = Path(scratch) / kept.name
            if not got.exists():
                raise cached.BuildError(f"pip brought no {kept.name}")
            cached.install(got, kept)
    data = kept.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise cached.BuildError(f"{kept} has the wrong sha256; remove it and try again")
    return data


def _pip_download(directory: Path) -> None:
    # pip insists on preparing the package's metadata; with our own setuptools that takes a second,
    # in an isolated environment half a minute.
    command = [
        sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet",
        "--no-deps", "--no-build-isolation", "--no-binary", "unicorn", "--require-hashes",
        "--requirement", str(REQUIREMENTS), "--dest", str(directory),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise cached.BuildError(
            "pip could not fetch the sources of unicorn:\n" + done.stdout + done.stderr
        )


def read_patches(without: set[str]) -> dict[str, bytes]:
    """In the order in which they are applied."""
    paths = sorted(PATCHES.glob("*.patch"))
    return {path.name: path.read_bytes() for path in paths if path.stem not in without}


def read_our_files() -> dict[str, bytes]:
    paths = sorted([*cached.NATIVE_SOURCES.glob("*.c"), *cached.NATIVE_SOURCES.glob("*.h")])
    return {path.name: path.read_bytes() for path in paths}


def sources(sdist: bytes, patches: dict[str, bytes], ours: dict[str, bytes]) -> dict[str, bytes]:
    """Every file of the tree that is compiled: path relative to src/ -> contents."""
    files = {}
    with tempfile.TemporaryFile() as archive:
        archive.write(sdist)
        archive.seek(0)
        with tarfile.open(fileobj=archive, mode="r:gz") as tar:
            for member in tar:
                top, _, path = member.name.partition("/src/")
                if member.isfile() and path and "/" not in top:
                    extracted = tar.extractfile(member)
                    assert extracted is not None
                    files[path] = extracted.read()
    for name, patch in patches.items():
        try:
            files = unidiff.apply(patch, files, name)
        except unidiff.PatchError as problem:
            raise cached.BuildError(str(problem)) from None
    files.update({OURS + name: data for name, data in ours.items()})
    if header := ours.get("control.h"):
        files[OURS + "header_id.c"] = declared.id_source(header.decode())
    return files


def lay_out(tree: Path, files: dict[str, bytes]) -> None:
    """Make `tree` hold exactly `files`.  What is right already keeps its time stamp: make builds
    only what depends on the rest."""
    there = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    for extra in there - files.keys():
        (tree / extra).unlink()
    for name, data in files.items():
        path = tree / name
        if name in there and path.read_bytes() == data:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


class Progress:
    """What a person sees, on stderr, while it takes its minute."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.terminal = sys.stderr.isatty()
        self.shown = -10

    def step(self, text: str) -> None:
        if not self.quiet:
            print(f"== engine: {text}", file=sys.stderr, flush=True)

    def percent(self, line: str) -> None:
        """A line of make's output such as `[ 42%] Building C object …`."""
        match = re.match(r"\[ *(\d+)%\]", line)
        if not match or self.quiet:
            return
        percent = int(match[1])
        if self.terminal:
            end = "\n" if percent == 100 else ""
            print(f"\r   {percent:3} %", end=end, file=sys.stderr, flush=True)
        elif percent >= self.shown + 10:
            self.shown = percent
            print(f"   {percent:3} %", file=sys.stderr, flush=True)


def cmake() -> str:
    """The cmake that pip installed beside us, else the system's."""
    spec = importlib.util.find_spec("cmake")
    if spec and spec.origin:
        program = Path(spec.origin).parent / "data" / "bin" / "cmake"
        if program.exists():
            return str(program)
    program_on_path = shutil.which("cmake")
    if not program_on_path:
        raise cached.BuildError("there is no cmake; `make demo` installs one into .venv")
    return program_on_path


def run(command: list[str], directory: Path, log: Path, say: Progress) -> None:
    """A step of the build: its output goes to the log, its last lines to the user on failure."""
    last: deque[str] = deque(maxlen=60)
    with (
        open(log, "a") as out,
        subprocess.Popen(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        ) as process,
    ):  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            out.write(line)
            last.append(line)
            say.percent(line)
    if process.returncode:
        raise cached.BuildError(
            f"{' '.join(command[:3])} … failed (all of its output: {log})\n{''.join(last)}"
        )


def compile_engine(work: Path, files: dict[str, bytes], defines: list[str], say: Progress) -> Path:
    tree, objects, log = work / "src", work / "objects", work / "build.log"
    tree.mkdir(parents=True, exist_ok=True)
    objects.mkdir(exist_ok=True)
    log.write_text("")
    lay_out(tree, files)
    configured = objects / ".configured"
    # The C files are found by a glob: a new one needs a new look.
    layout = cached.digest(*sorted(files), files.get("CMakeLists.txt", b""))
    if not configured.exists() or configured.read_text() != layout:
        say.step("configuring")
        configured.unlink(missing_ok=True)
        flags = [*CMAKE_FLAGS, f"-DCMAKE_C_FLAGS={' '.join([*DEFINES, *defines])}"]
        run([cmake(), "-S", str(tree), "-B", str(objects), "-G", "Unix Makefiles", *flags],
            work, log, say)  # fmt: skip
        configured.write_text(layout)
    say.step("compiling")
    jobs = str(len(os.sched_getaffinity(0)))
    run([cmake(), "--build", str(objects), "--target", "unicorn", "--parallel", jobs],
        work, log, say)  # fmt: skip
    return objects / LIBRARY


def build(without: list[str] | None = None, quiet: bool = False) -> Path:
    """The path of the library, built now if its inputs changed."""
    say = Progress(quiet)
    left_out = {name.removesuffix(".patch") for name in without or []}
    known = {path.stem for path in PATCHES.glob("*.patch")}
    # Read once: what is hashed is what is compiled, whoever edits meanwhile.
    patches, ours = read_patches(left_out), read_our_files()
    defines = [f"-DSMP_WITHOUT_{name}" for name in sorted(left_out - known)]
    _, sha256 = pinned()
    compiler = cached.compiler_identity()
    key = cached.digest(
        sha256, cached.digest_files(patches), cached.digest_files(ours), compiler,
        " ".join([*CMAKE_FLAGS, *DEFINES, *defines]),
    )  # fmt: skip
    library = BUILD / key / LIBRARY
    if not library.exists():
        with cached.exclusive(BUILD, "the engine"):
            if not library.exists():
                begun = time.monotonic()
                # Engines with hunks left out have trees of their own, so that they do not take
                # turns with the real one in recompiling it.
                name = cached.digest(compiler, " ".join(defines), *CMAKE_FLAGS, *DEFINES)
                work = BUILD / f"work-{'without-' if left_out else ''}{name}"
                files = sources(download(say), patches, ours)
                cached.install(compile_engine(work, files, defines, say), library)
                say.step(f"built in {time.monotonic() - begun:.0f} s")
    if not left_out:
        cached.switch(BUILD / "current", key)
    return library


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="switcher.engine.build", description="Builds the patched Unicorn; prints its path."
    )
    parser.add_argument("--quiet", action="store_true", help="only print the path")
    parser.add_argument("--without", action="append", metavar="HUNK",
                        help="leave out a patch, or define SMP_WITHOUT_HUNK")  # fmt: skip
    arguments = parser.parse_args()
    try:
        print(build(arguments.without, arguments.quiet))
    except cached.BuildError as problem:
        print(f"engine build: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
