"""What is said beside the table of retrieval."""

from __future__ import annotations

from cacheshrink_hybrid.cli.retrieval import notes
from cacheshrink_hybrid.evaluation.retrieval import ALL

FOUND = {"task": "keys", "length": 1024, "questions": 8, "exact": 0.5, "facts_read_exactly": 8}


def test_notes() -> None:
    source = {"read_exactly": ALL, "results": [FOUND]}
    windowed = "the first 4 and the last 32 tokens"
    covered = FOUND | {"exact": 0.0, "facts_read_exactly": 1}
    other = {"read_exactly": windowed, "results": [covered]}
    assert list(notes({"a": source, "b": other})) == [
        f"read exactly by a: {ALL}",
        f"read exactly by b: {windowed}",
        "note: 1 of 8 facts of keys at 1024 tokens lie among these",
    ]
    assert list(notes({"b": other}))[2:] == [
        "note: b finds 0% in keys at 1024 tokens, so that the others' say little there"
    ]
