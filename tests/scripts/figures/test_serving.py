"""Tables of the engine and of serving."""

from __future__ import annotations

from scripts.figures.serving import serving


def test_ways_to_serve_from_equal_bytes() -> None:
    run = {"serving": "engine", "tokens/s": 40.25, "speed-up": 2.5, "requests that fit": 9}
    asked = {"clients": 16, "prompt": 64, "output": 128}
    lines = serving([{**asked, "cache_bytes": 3 * 2**20, "runs": [run]}]).splitlines()
    assert lines[2:] == ["| engine | 64 + 128 | 16 | 9 | 3.0 | 40.2 | 2.50 |"]
