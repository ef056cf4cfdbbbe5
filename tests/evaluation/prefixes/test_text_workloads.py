"""Requests over real texts begin like these texts, and end with passages of them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from cacheshrink_hybrid.demo.corpus import PYTHON_DOCS
from cacheshrink_hybrid.errors import ConfigError
from cacheshrink_hybrid.evaluation.prefixes.text_workloads import (
    BEGINNING_TOKENS,
    PASSAGE_TOKENS,
    read_texts,
    text_workload,
)

TEXTS = ["a" * 50 + "b" * 200, "a" * 50 + "c" * 300, "d" * 40]


def encode(text: str) -> list[int]:
    return list(text.encode())


def test_prompts_begin_with_texts_and_end_with_passages() -> None:
    requests = text_workload(TEXTS, encode, 200, seed=1)
    assert len(requests) == 200
    assert all(one.arrival <= other.arrival for one, other in pairwise(requests))
    counts = dict.fromkeys(TEXTS, 0)
    for request in requests:
        prompt = bytes(request.prompt.tolist()).decode()
        text = next(text for text in TEXTS if prompt.startswith(text))
        passage = prompt[len(text) :]
        counts[text] += 1
        assert PASSAGE_TOKENS[0] <= len(passage) <= PASSAGE_TOKENS[1]
        assert any(passage in other for other in TEXTS)
        assert PASSAGE_TOKENS[0] <= len(request.output) <= PASSAGE_TOKENS[1]
    assert min(counts.values()) > 0
    assert max(counts.values()) > 2 * min(counts.values())
    again = text_workload(TEXTS, encode, 200, seed=1)
    assert all(np.array_equal(x.prompt, y.prompt) for x, y in zip(requests, again, strict=True))


def test_texts_of_too_few_tokens() -> None:
    short = "x" * (BEGINNING_TOKENS[0] - 1)
    with pytest.raises(ConfigError, match="1 of 3 texts have 32 tokens"):
        text_workload([short, TEXTS[0], short], encode, 5)


def test_files_of_texts(tmp_path: Path) -> None:
    lines, plain = tmp_path / "lines.jsonl", tmp_path / "plain.txt"
    lines.write_text("\n".join(json.dumps({"name": "x", "text": text}) for text in TEXTS) + "\n")
    assert read_texts(str(lines)) == TEXTS
    plain.write_text("\n\n\n".join(["first\n\nstill first", "", "second"]))
    assert read_texts(str(plain)) == ["first\n\nstill first", "second"]
    assert len(read_texts(PYTHON_DOCS)) > 20


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("one.txt", "only one\n\ntext", "has 1 texts; give two or more"),
        ("torn.jsonl", '{"text": "a"}\n{"text"', "no texts as JSON lines"),
        ("other.jsonl", '{"prompt": "a"}\n', "no texts as JSON lines"),
        ("number.jsonl", '{"text": 5}\n{"text": "a"}\n', "a text that is no string"),
        ("absent.txt", None, "cannot be read"),
    ],
)
def test_files_of_other_content(name: str, content: str | None, what: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=what):
        read_texts(str(tmp_path / name))
