"""docs/lguest-core.md names functions by file and line: they must really be there.

`python -m tests.unit.test_docs_lines` puts the right lines into it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "lguest-core.md"
NAMED = re.compile(r"`(\w+)` ([\w/]+\.(?:py|c)):(\d+)")
CORE = (
    *("map_switcher", "unmap_switcher", "lguest_address_ok", "__lgread", "__lgwrite"),
    *("run_guest", "init", "fini"),
)
"""All of core.c."""


@dataclass(frozen=True)
class Place:
    """What the document says."""

    name: str
    file: str
    line: int


def named(text: str) -> Iterator[Place]:
    """Every function that `text` names with its line."""
    for name, file, line in NAMED.findall(text):
        yield Place(name, file, int(line))


def definitions(name: str, file: str) -> list[int]:
    """Lines of `file` that define `name`: a Python function, a C function, a label of assembly."""
    if file.endswith(".py"):
        pattern = re.compile(rf"\s*def {name}\(")
    else:
        pattern = re.compile(rf'\w[\w\s*]*\b{name}\([^;]*$|\s*"{name}:')
    path = ROOT / file
    lines = path.read_text().splitlines() if path.exists() else []
    return [number for number, line in enumerate(lines, 1) if pattern.match(line)]


def nearest(place: Place) -> int | None:
    """The line of the definition that is meant; None if there is none."""
    found = definitions(place.name, place.file)
    return min(found, key=lambda line: abs(line - place.line), default=None)


def mended(text: str) -> str:
    """`text` with the right lines."""

    def mend(found: re.Match[str]) -> str:
        place = Place(found[1], found[2], int(found[3]))
        return f"`{place.name}` {place.file}:{nearest(place) or place.line}"

    return NAMED.sub(mend, text)


def test_every_function_is_where_the_document_says() -> None:
    places = list(named(DOCUMENT.read_text()))
    wrong = [
        f"{place.name} is at {place.file}:{nearest(place)}, not {place.line}"
        for place in places
        if nearest(place) != place.line
    ]
    assert len(places) > len(CORE)
    assert not wrong, "\n".join([*wrong, "mend them: python -m tests.unit.test_docs_lines"])


def test_all_of_core_c_is_there() -> None:
    chapter = DOCUMENT.read_text().split("## core.c")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)\(\)` \| (.*?) \|", chapter, re.MULTILINE)
    assert [name for name, _ in rows] == list(CORE)
    assert all(list(named(here)) for _, here in rows)


def test_a_line_that_moved_is_mended() -> None:
    here = "tests/unit/test_docs_lines.py"
    (line,) = definitions("mended", here)
    assert mended(f"| `mended` {here}:{line + 30} |") == f"| `mended` {here}:{line} |"
    assert nearest(Place("nobody", here, 1)) is None
    assert definitions("smp_text_leave", "switcher/native/text.c")
    # ... and not where it is called.
    assert len(definitions("smp_set_interrupt", "switcher/native/irq.c")) == 1


if __name__ == "__main__":
    DOCUMENT.write_text(mended(DOCUMENT.read_text()))
