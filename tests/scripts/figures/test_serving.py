"""Tables of the engine and of serving."""

from __future__ import annotations

from scripts.figures.serving import in_vllm, serving


def test_tokens_of_vllm_beside_those_of_generate() -> None:
    run = {"requests": 8, "preemptions": 0, "tokens from kept prefixes": 1200}
    same = {**run, "run": "in pieces", "requests with the same tokens": 8}
    other = {**run, "run": "preempted", "requests with the same tokens": 7, "preemptions": 3}
    result = {
        "model": "some-model",
        "compression_ratio": 4.0,
        "runs": [
            {**same, "leads where others part": []},
            {**other, "leads where others part": [0.00312]},
        ],
    }
    fit = {"tokens in 1 GiB": {"converted": 4000, "source": 1000}}
    assert in_vllm([{**result, **fit}]).splitlines()[2:] == [
        "| some-model, 4x, in pieces | 8 of 8 | none | 0 | 1,200 |",
        "| some-model, 4x, preempted | 7 of 8 | 0.003 | 3 | 1,200 |",
        "",
        "some-model, 4x: 4,000 tokens fit in 1 GiB, of the source 1,000: 4.00 times as many.",
    ]


def test_ways_to_serve_from_equal_bytes() -> None:
    run = {"serving": "engine", "tokens/s": 40.25, "speed-up": 2.5, "requests that fit": 9}
    asked = {"clients": 16, "prompt": 64, "output": 128}
    lines = serving([{**asked, "cache_bytes": 3 * 2**20, "runs": [run]}]).splitlines()
    assert lines[2:] == ["| engine | 64 + 128 | 16 | 9 | 3.0 | 40.2 | 2.50 |"]
