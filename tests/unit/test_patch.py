"""switcher/engine/unidiff.py, and that our patches are what it takes."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switcher.engine import build, unidiff
from switcher.engine.unidiff import PatchError

OLD = b"".join(b"line %d\n" % number for number in range(1, 21))

CHANGE = b"""Why it is changed: the text before the diff is for people.

diff --git a/one.c b/one.c
index 1234567..89abcde 100644
--- a/one.c
+++ b/one.c
@@ -3,5 +3,6 @@ some function
 line 3
 line 4
-line 5
+line five
+line five and a half
 line 6
 line 7
@@ -18,3 +19,2 @@
 line 18
-line 19
 line 20
"""


def changed() -> bytes:
    return OLD.replace(b"line 5\n", b"line five\nline five and a half\n").replace(b"line 19\n", b"")


def test_a_change() -> None:
    files = {"one.c": OLD, "two.c": b"untouched"}
    assert unidiff.apply(CHANGE, files) == {"one.c": changed(), "two.c": b"untouched"}
    assert files["one.c"] == OLD, "the argument is not changed"


def test_hunks_may_have_moved_together() -> None:
    moved = b"// new first line\n" * 7
    assert unidiff.apply(CHANGE, {"one.c": moved + OLD}) == {"one.c": moved + changed()}


def test_where_the_first_hunk_moved_to_the_second_follows() -> None:
    again = OLD + OLD[OLD.index(b"line 17") :]  # the second hunk's lines stand twice
    moved = b"// new\n" * 7
    expected = moved + changed() + OLD[OLD.index(b"line 17") :]
    assert unidiff.apply(CHANGE, {"one.c": moved + again}) == {"one.c": expected}


def test_a_moved_hunk_must_fit_in_one_place_only() -> None:
    twice = b"new\n" + OLD + OLD
    with pytest.raises(PatchError, match=r"one\.c: hunk 1 \(line 3\) does not fit"):
        unidiff.apply(CHANGE, {"one.c": twice})


@pytest.mark.parametrize("number", [3, 4, 5, 6, 7, 18, 19, 20])
def test_context_must_be_exact(number: int) -> None:
    other = OLD.replace(b"line %d\n" % number, b"line %d \n" % number)
    with pytest.raises(PatchError, match="does not fit"):
        unidiff.apply(CHANGE, {"one.c": other})


def test_a_patch_does_not_apply_twice() -> None:
    with pytest.raises(PatchError, match="does not fit"):
        unidiff.apply(CHANGE, unidiff.apply(CHANGE, {"one.c": OLD}))


def test_add_and_remove() -> None:
    patch = (
        b"--- /dev/null\n+++ b/new/file.c\n@@ -0,0 +1,2 @@\n+one\n+two\n"
        b"--- a/old.c\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-alpha\n-beta\n"
    )
    assert unidiff.apply(patch, {"old.c": b"alpha\nbeta\n"}) == {"new/file.c": b"one\ntwo\n"}
    with pytest.raises(PatchError, match="already there"):
        unidiff.apply(patch, {"old.c": b"alpha\nbeta\n", "new/file.c": b""})
    with pytest.raises(PatchError, match="lines of it are left"):
        unidiff.apply(patch, {"old.c": b"alpha\nbeta\ngamma\n"})
    with pytest.raises(PatchError, match=r"old\.c is not there"):
        unidiff.apply(patch, {})


def test_no_newline_at_the_end() -> None:
    patch = (
        b"--- a/f\n+++ b/f\n@@ -1 +1 @@\n-old\n\\ No newline at end of file\n"
        b"+new\n\\ No newline at end of file\n"
    )
    assert unidiff.apply(patch, {"f": b"old"}) == {"f": b"new"}
    with pytest.raises(PatchError):
        unidiff.apply(patch, {"f": b"old\n"})


def test_carriage_returns_belong_to_their_lines() -> None:
    patch = b"--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n one\r\n-two\r\n+2\n"
    assert unidiff.apply(patch, {"f": b"one\r\ntwo\r\n"}) == {"f": b"one\r\n2\n"}
    with pytest.raises(PatchError):
        unidiff.apply(patch, {"f": b"one\ntwo\n"})


@pytest.mark.parametrize(
    "patch",
    [
        b"",
        b"just text\n",
        b"@@ -1 +1 @@\n-a\n+b\n",
        b"--- a/f\n+++ b/f\n",
        b"--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n-a\n+b\n",  # cut off
        b"--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n-a\n+b\nrubbish\n",
        b"--- a/f\n+++ b/f\n@@ -1 +1 @@\n-a\n+b\n+c\n",  # one line too many
        b"--- a/f\n+++ b/f\n@@ -1,1 +1,1 @@\n-a\n-b\n",
        b"--- a/f\n+++ b/f\n@@ what @@\n-a\n+b\n",
        b"--- f\n+++ f\n@@ -1 +1 @@\n-a\n+b\n",
        b"--- a/../f\n+++ b/../f\n@@ -1 +1 @@\n-a\n+b\n",
        b"--- a//f\n+++ b//f\n@@ -1 +1 @@\n-a\n+b\n",
        b"--- /dev/null\n+++ /dev/null\n@@ -1 +1 @@\n-a\n+b\n",
        b"rename from f\nrename to g\n",
        b"Binary files a/f and b/f differ\n",
    ],
)
def test_what_is_no_patch_of_ours_is_refused(patch: bytes) -> None:
    with pytest.raises(PatchError):
        unidiff.apply(patch, {"f": b"a\n", "../f": b"a\n", "/f": b"a\n"})


LINES = st.lists(st.sampled_from(["a\n", "b\n", "c\n", "\n", "-x\n", "+ y\n"]), max_size=40)


@given(LINES, LINES, st.integers(0, 5))
def test_what_difflib_writes_is_applied(old: list[str], new: list[str], context: int) -> None:
    lines = list(difflib.unified_diff(old, new, "a/f", "b/f", n=context))
    if old == new:
        return
    result = unidiff.apply("".join(lines).encode(), {"f": "".join(old).encode()})
    assert result == {"f": "".join(new).encode()}


@pytest.mark.parametrize("path", sorted(build.PATCHES.glob("*.patch")), ids=lambda p: p.stem)
def test_our_patches_are_well_formed_and_say_why(path: Path) -> None:
    patch = path.read_bytes()
    assert unidiff.parse(patch)
    assert len(patch.split(b"--- a/")[0].strip()) > 20, "which defect does it mend?"


def test_our_patches_fit_and_change_what_they_name() -> None:
    version, _ = build.pinned()
    sdist = build.BUILD / "download" / f"unicorn-{version}.tar.gz"
    if not sdist.exists():
        pytest.skip("the source distribution was not fetched yet")
    patches = build.read_patches(set())
    whole = build.sources(sdist.read_bytes(), patches, {"ours.c": b"x"})
    assert whole["qemu/smpguest/ours.c"] == b"x"
    pristine = build.sources(sdist.read_bytes(), {}, {})
    assert "CMakeLists.txt" in pristine
    touched = {diff.new for patch in patches.values() for diff in unidiff.parse(patch)}
    for path, text in whole.items():
        if path != "qemu/smpguest/ours.c":
            assert (pristine.get(path) != text) == (path in touched), path
