"""Tables of records."""

from __future__ import annotations

from cacheshrink_hybrid.text_tables import fitting_table, format_table


def test_table_aligns_records_with_different_keys() -> None:
    assert format_table([{"a": 1, "b": 0.5}, {"a": 22}]).splitlines() == [
        "|  a |   b |",
        "|---:|----:|",
        "|  1 | 0.5 |",
        "| 22 |     |",
    ]


def test_wide_tables_are_cut_to_a_terminal() -> None:
    """Each part begins with the first column, and nothing is left out."""
    records = [{"layer": i} | {f"column {n}": 10**n for n in range(20)} for i in range(3)]
    table = fitting_table(records)
    assert max(map(len, table.splitlines())) <= 100
    parts = table.split("\n\n")
    assert len(parts) > 1
    assert all("| layer |" in part and len(part.splitlines()) == 5 for part in parts)
    for name in (name for record in records for name in record):
        assert table.count(f" {name} |") == (len(parts) if name == "layer" else 1)


def test_narrow_tables_are_left_whole() -> None:
    records = [{"a": 1, "b": None}, {"a": 2}]
    assert fitting_table(records).splitlines()[2] == "| 1 | - |"
    assert fitting_table(records) == format_table(records)
    one = [{"model": "x" * 300, "value": 1}]  # a column that is too wide by itself stays
    assert fitting_table(one) == format_table(one)
