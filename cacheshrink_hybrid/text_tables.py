"""Records as text tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MAX_WIDTH = 100
"""Characters that a printed table may take in a row."""


def format_table(records: Sequence[dict[str, Any]]) -> str:
    """Align records (dicts with possibly different keys) as a Markdown table."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    cells = [columns] + [
        [_cell(record[column]) if column in record else "" for column in columns]
        for record in records
    ]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def fitting_table(records: Sequence[dict[str, Any]], max_width: int = MAX_WIDTH) -> str:
    """As `format_table`, cut into tables that fit `max_width` characters; each begins with the
    first column."""
    columns = list(dict.fromkeys(key for record in records for key in record))
    key, *rest = columns
    parts: list[list[str]] = [[key]]
    for column in rest:
        wider = _only(records, [*parts[-1], column])
        if len(parts[-1]) > 1 and len(format_table(wider).split("\n", 1)[0]) > max_width:
            parts.append([key])
        parts[-1].append(column)
    return "\n\n".join(format_table(_only(records, part)) for part in parts)


def _only(records: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Records with these columns; what one lacks stays empty."""
    return [{column: record.get(column, "") for column in columns} for record in records]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
