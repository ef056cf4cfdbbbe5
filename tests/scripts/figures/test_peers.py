"""Tables of ways of keeping keys and values smaller."""

from __future__ import annotations

import json
from pathlib import Path

from scripts.figures.peers import (
    OURS,
    best_within,
    methods_table,
    ours_table,
    useful_methods,
)

RESULTS = Path(__file__).parents[3] / "eval/results"


def record(method: str, at_1k: float, at_8k: float, increase: float, **more) -> dict:
    sizes = {"1024": at_1k, "8192": at_8k, "32768": at_8k}
    return {
        "method": method,
        "family": OURS if method.startswith("ours") else "others",
        "convention": "read",
        "base": "source",
        "losses": [3.0, 3.1],
        "perplexity": 20.0,
        "increase_percent": increase,
        "standard_error": 0.25,
        "bytes_per_token": sizes,
        "exact_bytes_per_token": dict.fromkeys(sizes, 0.0),
    } | more


SOURCE = record("source", 23040, 23040, 0.0)
# More than the peer at 1k tokens because of its exact ones, less at 8k.
WITH_WINDOW = record("ours 4x", 6480, 5850, 0.1)
WITH_WINDOW["exact_bytes_per_token"] = {"1024": 720.0, "8192": 90.0, "32768": 22.5}
RECORDS = [
    SOURCE,
    WITH_WINDOW,
    record("ours 8x", 2880, 2880, 1.4),
    record("a", 6300, 6300, 4.8),
    record("b", 7000, 6500, 2.0),
    record("useless", 3600, 3600, 530.0),
    record("a source of its own", 23040, 23040, 0.0, base="a source of its own"),
    record("ours 8x fine-tuned", 2880, 2880, 0.05),
    {"method": "c", "left_out": "not installed: pip install c==1"},
]
RESULT = {"settings": {"text": "test.txt"}, "records": RECORDS}


def rows(table: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0]: row[1:] for row in cells if len(row) > 1}


def test_ours_stands_beside_what_takes_at_least_its_bytes_at_both_lengths() -> None:
    scored = [r for r in RECORDS if "losses" in r]
    assert best_within(RECORDS[3], scored) is RECORDS[2]
    assert best_within(RECORDS[4], scored) is WITH_WINDOW
    assert best_within(record("tiny", 100, 100, 1.0), scored) is None
    exact = record("ours 6x", 3000, 3000, 0.2, convention="exact")
    assert best_within(RECORDS[3], [*scored, exact]) is RECORDS[2]
    assert best_within(record("raw", 6300, 6300, 4.8, convention="raw"), [*scored, exact]) is exact
    table = rows(methods_table([RESULT]))
    assert table["a"][-1] == "+1.40 % ± 0.25 (ours 8x)"
    assert table["b"][-1] == "+0.10 % ± 0.25 (ours 4x)"
    assert table["**ours 4x**"] == [
        "read",
        "6,480",
        "720",
        "5,850",
        "20.00",
        "+0.10 % ± 0.25",
        "",
    ]


def test_what_is_of_no_use_or_was_not_measured() -> None:
    whole = methods_table([RESULT])
    assert "useless" in whole
    assert whole.endswith("Not measured:\n\n- c: not installed: pip install c==1")
    assert "useless" not in useful_methods([RESULT])
    assert "Not measured" not in useful_methods([RESULT])


def test_ours_on_two_texts() -> None:
    book = {"settings": {"text": "book.txt"}, "records": [SOURCE, record("ours 8x", 1, 1, 7.0)]}
    table = rows(ours_table([RESULT, book]))
    assert list(table)[2:] == ["source", "ours 4x", "ours 8x", "ours 8x fine-tuned"]
    assert table["ours 4x"] == ["5,760", "6,480", "5,850", "5,850", "+0.10 % ± 0.25", ""]
    assert table["ours 8x"][-2:] == ["+1.40 % ± 0.25", "+7.00 % ± 0.25"]


def test_committed_table_is_that_of_its_records() -> None:
    records = json.loads((RESULTS / "peers.json").read_text(encoding="utf-8"))
    written = (RESULTS / "peers.md").read_text(encoding="utf-8")
    assert written == methods_table([records]) + "\n"
