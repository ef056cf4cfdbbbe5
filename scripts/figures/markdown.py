"""Markdown of measured figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is words and whose others are numbers."""
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))


def percent(value: float, digits: int = 2) -> str:
    """A change in percent, with its sign; three digits are enough for what is lost entirely."""
    return f"{value:+.{digits if abs(value) < 100 else 0}f} %"


def source_of(results: Sequence[dict[str, Any]]) -> str:
    """Commit and versions under which `results` were measured."""
    found = []
    for result in results:
        environment = result.get("environment", result)
        commit = str(environment.get("commit") or "unknown")[:8]
        changed = " with changes" if environment.get("modified") else ""
        found.append(
            f"commit {commit}{changed}, torch {environment['torch']}, "
            f"transformers {environment['transformers']}"
        )
    return "; ".join(dict.fromkeys(found))
