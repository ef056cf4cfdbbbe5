"""Where figures come from, in words."""

from __future__ import annotations

from scripts.figures.markdown import source_of

ENVIRONMENT = {"commit": "c" * 40, "modified": False, "torch": "2", "transformers": "5"}


def test_records_of_other_commits_are_told() -> None:
    versions = "torch 2, transformers 5"
    records = [{"commit": letter * 40} for letter in "aba"]
    assert source_of([{"environment": ENVIRONMENT}]) == f"commit {'c' * 8}, {versions}"
    told = source_of([{"environment": ENVIRONMENT, "records": records}])
    assert told == f"commit {'a' * 8}, {'b' * 8}, {versions}"
    plain = {"environment": ENVIRONMENT, "records": [{"ratio": 4}]}
    assert source_of([plain]) == f"commit {'c' * 8}, {versions}"
