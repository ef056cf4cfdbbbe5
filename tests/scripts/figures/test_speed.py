"""Tables of what is spent in time and memory."""

from __future__ import annotations

from scripts.figures.speed import long_contexts, scale


def test_conversions_of_real_and_of_random_models() -> None:
    common = {"sequences": 2, "length": 512}
    figures = {"parameters": 2_000_000, "convert_cpu_seconds": 7.4, "growth_bytes": 2**29}
    table = scale(
        [
            {"settings": {**common, "model": "out/some-model"}, **figures},
            {"settings": {**common, "model": None, "layers": 4, "hidden": 64}, **figures},
        ]
    )
    assert "| some-model | 2 M | 1,024 | 7 | 0.50 |" in table
    assert "| random Llama, 4 layers of 64 | 2 M | 1,024 | 7 | 0.50 |" in table


def test_readers_that_end_before_the_longest_context() -> None:
    records = [
        {"reader": reader, "context": context, "ms_per_step": 10.0, "ratio": ratio}
        for reader, context, ratio in (
            ("source", 512, 1.0),
            ("rotate_4x", 512, 0.9),
            ("other", 512, 2.0),
            ("source", 2048, 1.0),
            ("rotate_4x", 2048, 1.25),
        )
    ]
    growth = [{"reader": "rotate_4x", "batch": 1, "over_source": 0.5}]
    lines = long_contexts([{"records": records, "growth": growth}]).splitlines()
    assert lines[2:] == [
        "| source | 1 (10 ms) | 1 (10 ms) |  |",
        "| rotate, 4x | 0.90 | 1.25 | 0.50 |",
        "| other | 2.00 |  |  |",
    ]
