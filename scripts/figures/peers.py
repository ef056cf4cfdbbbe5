"""Ways of keeping keys and values smaller, beside each other on one model: what `compare_peers`
measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .markdown import percent, table

OURS = "cacheshrink_hybrid"
TUNED = "fine-tuned"
"""In the names of ours that were trained after the conversion, which no other method is."""
SHORT, LONG, LONGEST = "1024", "8192", "32768"
"""Tokens at which bytes are shown."""
USEFUL_PERCENT = 10.0
"""Methods that lose more are left to the whole table."""
Record = dict[str, Any]
Results = list[dict[str, Any]]


def methods_table(results: Results) -> str:
    """A row per method, by bytes, beside what of ours takes no more bytes at both lengths; and what
    was not measured, and why."""
    records = _records(results)
    parts = [_table(_scored(records), _scored(records))]
    left_out = [f"- {r['method']}: {r['left_out']}" for r in records if "left_out" in r]
    if left_out:
        parts.append("Not measured:\n\n" + "\n".join(left_out))
    return "\n\n".join(parts)


def useful_methods(results: Results) -> str:
    """The same without methods that lose so much that nobody would use them."""
    scored = _scored(_records(results))
    return _table([r for r in scored if r["increase_percent"] < USEFUL_PERCENT], scored)


def ours_table(results: Results) -> str:
    """Ours, calibrated on one text: bytes with and without exact tokens, and the increase of
    perplexity on each text that was read."""
    texts = [result["settings"]["text"].removesuffix(".txt") for result in results]
    by_text = [
        {record["method"]: record for record in _scored(result["records"])} for result in results
    ]
    head = (
        "SmolLM2-135M-Instruct",
        "bytes per token of rows",
        "with exact tokens, at 1k",
        "at 8k",
        "at 32k",
        *(f"perplexity, {text}" for text in texts),
    )
    rows = []
    bases = {record["base"] for record in by_text[0].values() if record["family"] == OURS}
    for name, record in by_text[0].items():
        if record["family"] != OURS and name not in bases:
            continue
        sizes, exact = record["bytes_per_token"], record["exact_bytes_per_token"]
        rows.append(
            (
                name,
                f"{sizes[LONG] - exact[LONG]:,.0f}",
                *(f"{sizes[length]:,.0f}" for length in (SHORT, LONG, LONGEST)),
                *(_increase(records[name]) if name in records else "" for records in by_text),
            )
        )
    return table(head, rows)


def _records(results: Results) -> list[Record]:
    return [record for result in results for record in result["records"]]


def _scored(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if "losses" in record]


def _table(shown: Sequence[Record], scored: Sequence[Record]) -> str:
    head = (
        "method",
        "newest tokens",
        "bytes per token at 1k",
        "exact, of these",
        "at 8k",
        "perplexity",
        "increase",
        "ours at no more bytes",
    )
    ordered = sorted(shown, key=lambda record: record["bytes_per_token"][SHORT], reverse=True)
    return table(head, [_row(record, scored) for record in ordered])


def _row(record: Record, scored: Sequence[Record]) -> tuple[str, ...]:
    ours = record["family"] == OURS
    sizes = record["bytes_per_token"]
    exact = record["exact_bytes_per_token"][SHORT]
    rival = None if ours or record["method"] == record["base"] else best_within(record, scored)
    return (
        f"**{record['method']}**" if ours else record["method"],
        record["convention"],
        f"{sizes[SHORT]:,.0f}",
        f"{exact:,.0f}" if exact else "",
        f"{sizes[LONG]:,.0f}",
        f"{record['perplexity']:.2f}",
        _increase(record),
        f"{_increase(rival)} ({rival['method']})" if rival else "",
    )


def best_within(record: Record, scored: Sequence[Record]) -> Record | None:
    """Of ours that were not trained, the one that loses least in no more bytes than `record` has,
    at both lengths; where that reads all tokens back, of those that do as well."""
    sizes = record["bytes_per_token"]
    reads_all = record["convention"] == "read"
    smaller = [
        other
        for other in scored
        if other["family"] == OURS
        and TUNED not in other["method"]
        and (other["convention"] == "read" or not reads_all)
        and all(other["bytes_per_token"][length] <= sizes[length] for length in (SHORT, LONG))
    ]
    return min(smaller, key=lambda other: other["increase_percent"], default=None)


def _increase(record: Record) -> str:
    error = record["standard_error"]
    return percent(record["increase_percent"]) + (f" ± {error:.2f}" if error is not None else "")
