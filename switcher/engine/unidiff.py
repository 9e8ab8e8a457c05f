"""Applies unified diffs, strictly: exact context, no fuzz, no guessing, no `patch` program.

A hunk fits where its line number says, moved by as much as the hunk before it; or, since another
patch may have been left out, at the only other place where its old lines stand.

A patch is applied to a dictionary of files, path -> bytes, all or nothing.  The paths are those of
`git diff` (a/… and b/…); /dev/null on one side adds or removes a file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_HUNK = re.compile(rb"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_NO_NEWLINE = b"\\ No newline at end of file"


class PatchError(ValueError):
    """The patch is malformed or does not fit the files; the message names the place."""


@dataclass
class Hunk:
    start: int  # first line of the old text, from 1 (0: the old file is empty)
    old: list[bytes] = field(default_factory=list)
    new: list[bytes] = field(default_factory=list)


@dataclass
class FileDiff:
    old: str | None
    new: str | None
    hunks: list[Hunk] = field(default_factory=list)


def apply(patch: bytes, files: dict[str, bytes], name: str = "patch") -> dict[str, bytes]:
    """A copy of `files` with the patch applied."""
    result = dict(files)
    diffs = parse(patch, name)
    if not diffs:
        raise PatchError(f"{name}: no file is changed by it")
    for diff in diffs:
        path = diff.new or diff.old
        assert path is not None
        if diff.old is None:
            if path in result:
                raise PatchError(f"{name}: {path} is to be added but is already there")
            before = b""
        else:
            if diff.old not in result:
                raise PatchError(f"{name}: {diff.old} is not there")
            before = result.pop(diff.old)
        after = _patched(before, diff.hunks, f"{name}: {path}")
        if diff.new is not None:
            if diff.new in result:
                raise PatchError(f"{name}: {path} is already there")
            result[diff.new] = after
        elif after:
            raise PatchError(f"{name}: {path} is removed but lines of it are left")
    return result


def _patched(before: bytes, hunks: list[Hunk], place: str) -> bytes:
    lines = _split(before)
    out: list[bytes] = []
    at = 0  # lines of `before` already copied or replaced
    drift = 0
    for number, hunk in enumerate(hunks, 1):
        # A hunk without old lines names the line *after which* it inserts.
        expected = hunk.start + drift - (1 if hunk.old else 0)
        start = _find(lines, at, expected, hunk.old)
        if start is None:
            raise PatchError(f"{place}: hunk {number} (line {hunk.start}) does not fit")
        drift += start - expected
        out += lines[at:start] + hunk.new
        at = start + len(hunk.old)
    return b"".join(out + lines[at:])


def _find(lines: list[bytes], begin: int, expected: int, old: list[bytes]) -> int | None:
    def fits(start: int) -> bool:
        return lines[start : start + len(old)] == old

    if expected >= begin and fits(expected):
        return expected
    if not old:
        return None
    places = [start for start in range(begin, len(lines) - len(old) + 1) if fits(start)]
    return places[0] if len(places) == 1 else None


def _split(data: bytes) -> list[bytes]:
    """Lines with their \\n; a \\r belongs to its line (bytes.splitlines would cut there too)."""
    return re.findall(rb"[^\n]*\n|[^\n]+", data)


def parse(patch: bytes, name: str = "patch") -> list[FileDiff]:
    """The files of a unified diff.  Text before, between and after them is ignored, as it is by
    patch(1): commit messages, `diff --git` and `index` lines."""
    lines = _split(patch)
    diffs: list[FileDiff] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        following = lines[at + 1] if at + 1 < len(lines) else b""
        if line.startswith(b"--- ") and following.startswith(b"+++ "):
            diffs.append(FileDiff(_path(line, b"a/", name), _path(following, b"b/", name)))
            if diffs[-1].old is None and diffs[-1].new is None:
                raise PatchError(f"{name}:{at + 1}: a diff of nothing")
            at += 2
        elif match := _HUNK.match(line):
            if not diffs:
                raise PatchError(f"{name}:{at + 1}: a hunk before any file")
            old, new = (int(match[group] or 1) for group in (2, 4))
            hunk, at = _parse_hunk(lines, at + 1, int(match[1]), old, new, name)
            diffs[-1].hunks.append(hunk)
        elif line.startswith((b"rename ", b"GIT binary patch", b"Binary files ")):
            raise PatchError(f"{name}:{at + 1}: renames and binary files are not supported")
        elif line.startswith(b"@@"):
            raise PatchError(f"{name}:{at + 1}: not a hunk header")
        else:
            at += 1
    for diff in diffs:
        if not diff.hunks:
            raise PatchError(f"{name}: {diff.new or diff.old} has no hunk")
    return diffs


def _parse_hunk(
    lines: list[bytes], at: int, start: int, old: int, new: int, name: str
) -> tuple[Hunk, int]:
    hunk = Hunk(start)
    while len(hunk.old) < old or len(hunk.new) < new:
        if at >= len(lines):
            raise PatchError(f"{name}: the last hunk is cut off")
        line, at = lines[at], at + 1
        if line == b"\n":  # editors strip the single space of an empty context line
            line = b" \n"
        sign, text = line[:1], line[1:]
        if at < len(lines) and lines[at].startswith(_NO_NEWLINE):
            text, at = text.removesuffix(b"\n"), at + 1
        if sign not in (b" ", b"-", b"+"):
            raise PatchError(f"{name}:{at}: a hunk has fewer lines than its header says")
        if sign in b" -":
            hunk.old.append(text)
        if sign in b" +":
            hunk.new.append(text)
    if len(hunk.old) != old or len(hunk.new) != new:
        raise PatchError(f"{name}:{at}: a hunk has more lines than its header says")
    if at < len(lines) and _looks_like_hunk_text(lines, at):
        raise PatchError(f"{name}:{at + 1}: a hunk has more lines than its header says")
    return hunk, at


def _looks_like_hunk_text(lines: list[bytes], at: int) -> bool:
    """After a complete hunk: a stray +, - or context line, which patch(1) would drop silently."""
    line = lines[at]
    if line.startswith(b"--- ") and at + 1 < len(lines) and lines[at + 1].startswith(b"+++ "):
        return False
    if line.rstrip() in (b"--", b"-- "):  # the signature of git format-patch
        return False
    return line[:1] in (b" ", b"+", b"-")


def _path(line: bytes, prefix: bytes, name: str) -> str | None:
    path = line[4:].split(b"\t")[0].strip()
    if path == b"/dev/null":
        return None
    if not path.startswith(prefix):
        raise PatchError(f"{name}: {path.decode()} does not begin with {prefix.decode()}")
    path = path[len(prefix) :]
    if path.startswith(b"/") or b".." in path.split(b"/"):
        raise PatchError(f"{name}: {path.decode()} leaves the tree")
    return path.decode()

