"""Tables of prefix reuse have the best of each kind."""

from __future__ import annotations

from scripts.figures.prefixes import held_out, kept_states, policies, strategies, widths


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
    *_, line, mean = strategies([{"rows": rows}]).splitlines()
    assert line == (
        "| mixed | 25 % | 45.0 % | 30.0 % (branch, lru) | 1.50 | 40.0 % (branch, learned) |"
    )
    assert mean == "| mean |  |  |  | 1.50 | within 1 % in 1 of 1 |"
    behind = [*rows, row("learned", "lru", 455)]  # by 1.1 %
    assert strategies([{"rows": behind}]).endswith("within 1 % in 0 of 1 |")


def test_widths_side_by_side() -> None:
    rows = [row("learned", "learned", 100), row("learned", "learned", 250, "int8 states")]
    head, _, line = widths([{"rows": rows}]).splitlines()
    assert head == "| workload | budget | bf16 states | int8 states |"
    assert line == "| mixed | 25 % | 10.0 % | 25.0 % |"


def test_what_kept_states_lose() -> None:
    run = {"model": "some", "states kept": "int8", "bytes": 2048, "recalled": 9, "asked": 12}
    run |= {"recalled cold": 10}
    for group, change in (("once", 0.0123), ("turns", -0.5)):
        run |= {f"{group}: change %": change, f"{group}: error %": 0.01, f"{group}: KL": 0.00012}
    line = kept_states([{"runs": [run]}]).splitlines()[-1]
    assert line == (
        "| some | int8 | 2 | +0.012 % ± 0.010 | 1.2e-04 | -0.500 % ± 0.010 | 1.2e-04 | 9 of 10 |"
    )


def test_other_seeds_are_compared_by_the_same_strategies() -> None:
    own = [row("learned", "learned", 450), row("dp_3", "seconds_per_byte", 300)]
    other = [row("learned", "learned", 330), row("dp_3", "seconds_per_byte", 300)]
    first = {"seed": 0, "rows": [*own, row("branch", "lru", 400)]}
    lines = held_out([first, {"seed": 1, "rows": other}]).splitlines()
    assert lines[0] == "| workload | budget | seed 0 | seed 1 |"
    assert lines[2:] == [
        "| mixed | 25 % | 1.50 | 1.10 |",
        "| mean of the other seeds |  |  | 1.10 |",
    ]


def test_policies_by_the_mean_of_all_cells() -> None:
    rows = [row("branch", "lru", 300), {**row("branch", "lru", 500), "workload": "chats"}]
    rows += [
        row("learned", "lru", 600),
        row("branch", "marconi", 100),
        row("learned", "marconi", 9),
    ]
    head, _, *lines = policies([{"rows": rows}]).splitlines()
    assert head == "| eviction | branch | learned |"
    assert lines == ["| lru | 40.0 % | 60.0 % |", "| marconi | 10.0 % | 0.9 % |"]
