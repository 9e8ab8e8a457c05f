"""A report as text for a terminal or as Markdown, and figures as words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from perf.stats import Spread

NONE = "–"


@dataclass(frozen=True)
class Table:
    """Cells are text already; the first column is left-aligned, the others right."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass
class Report:
    """`intro` and `summary` are lines, `warnings` sentences."""

    intro: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def number(value: float) -> str:
    """Three digits that count: 0.00123, 1.23, 12.3, 123, 1,230."""
    if abs(value) >= 999.5:
        return f"{float(f'{value:.3g}'):,.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.6f}"


def with_spread(found: Spread | None, unit: float = 1) -> str:
    """`median (smallest–largest)`, each times `unit`; a single round has no spread."""
    if found is None:
        return NONE
    median = number(found.median * unit)
    if found.count == 1:
        return median
    return f"{median} ({number(found.low * unit)}–{number(found.high * unit)})"


def as_text(report: Report) -> str:
    """For a terminal."""
    parts = ["\n".join(report.intro)]
    parts += [_text_table(table) for table in report.tables]
    parts += ["\n".join(report.summary)] if report.summary else []
    parts += [f"WARNING: {sentence}" for sentence in report.warnings]
    return "\n\n".join(part for part in parts if part) + "\n"


def as_markdown(report: Report) -> str:
    """To be put into docs/performance.md as it is."""
    parts = ["\n".join(f"{line}  " for line in report.intro).rstrip()]
    parts += [_markdown_table(table) for table in report.tables]
    parts += ["\n".join(f"{line}  " for line in report.summary).rstrip()]
    parts += [f"**Warning:** {sentence}" for sentence in report.warnings]
    return "\n\n".join(part for part in parts if part) + "\n"


def _text_table(table: Table) -> str:
    lines = [table.header, *table.rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(table.header))]
    text = [f"{table.title}", f"  {table.note}", ""]
    for line in lines:
        first = line[0].ljust(widths[0])
        rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        text.append("  " + "   ".join([first, *rest]).rstrip())
    return "\n".join(text)


def _markdown_table(table: Table) -> str:
    columns = len(table.header)
    text = [f"### {table.title}", "", table.note, ""]
    for line in (table.header, ["---", *["---:"] * (columns - 1)], *table.rows):
        text.append("| " + " | ".join(line) + " |")
    return "\n".join(text)
