"""The memory table of the documents is the command's, and the command's the formula's."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.serving_memory import llama_8b, main, request_bytes, weight_bytes

ROOT = Path(__file__).parents[2]


def test_bytes_of_a_request() -> None:
    config = llama_8b()
    token = 2 * 32 * 8 * 128 * 2  # keys and values of 32 layers, 8 heads of 128, 2 bytes each
    assert request_bytes(config, 1.0, 100) == 100 * token
    assert request_bytes(config, 4.0, 100) == 25 * token + 36 * token
    assert weight_bytes(config) == 2 * 8_030_261_248


def test_the_documents_have_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out in (ROOT / "docs/SERVE.md").read_text(encoding="utf-8")
    assert main(["--tokens", "1000000", "--cards", "16"]) == 0
    assert " 0 |" in capsys.readouterr().out
