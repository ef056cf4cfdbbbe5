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
    """Commits and versions under which `results` were measured. A run that went on where another
    one stopped has records of several commits, which say so themselves."""
    found = []
    for result in results:
        environment = result.get("environment", result)
        own = [record["commit"] for record in result.get("records", ()) if "commit" in record]
        names = [str(name or "unknown")[:8] for name in own or [environment.get("commit")]]
        changed = " with changes" if environment.get("modified") else ""
        found.append(
            f"commit {', '.join(dict.fromkeys(names))}{changed}, torch {environment['torch']}, "
            f"transformers {environment['transformers']}"
        )
    return "; ".join(dict.fromkeys(found))
