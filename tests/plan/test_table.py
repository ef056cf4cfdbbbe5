"""Tables of records."""

from __future__ import annotations

from cacheshrink_hybrid.plan import format_table


def test_table_aligns_records_with_different_keys() -> None:
    assert format_table([{"a": 1, "b": 0.5}, {"a": 22}]).splitlines() == [
        "|  a |   b |",
        "|---:|----:|",
        "|  1 | 0.5 |",
        "| 22 |     |",
    ]
