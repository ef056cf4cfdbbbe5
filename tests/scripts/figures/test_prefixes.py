"""Tables of prefix reuse have the best of each kind."""

from __future__ import annotations

from scripts.figures.prefixes import strategies, widths


def row(placement: str, eviction: str, saved: int, width: str = "bf16 states") -> dict:
    return {
        "workload": "mixed",
        "width": width,
        "placement": placement,
        "eviction": eviction,
        "budget_share": 0.25,
        "saved_tokens": saved,
        "saved_share": saved / 1000,
    }


def test_ours_beside_others() -> None:
    rows = [
        row("branch", "lru", 300),
        row("grid", "lru", 350),
        row("branch", "learned", 400),
        row("learned", "learned", 450),
    ]
    line = strategies([{"rows": rows}]).splitlines()[-1]
    assert line == (
        "| mixed | 25 % | 45.0 % | 30.0 % (branch, lru) | 1.50 | 40.0 % (branch, learned) |"
    )


def test_widths_side_by_side() -> None:
    rows = [row("learned", "learned", 100), row("learned", "learned", 250, "int8 states")]
    head, _, line = widths([{"rows": rows}]).splitlines()
    assert head == "| workload | budget | bf16 states | int8 states |"
    assert line == "| mixed | 25 % | 10.0 % | 25.0 % |"
