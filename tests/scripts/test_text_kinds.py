"""Kinds of text: two halves that share nothing, of every form of source."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.errors import ConfigError
from scripts.text_kinds import PYTHON_CODE, TextKind
from tests.texts import CHAT, chat_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_path())


def _file(folder: Path, name: str, count: int) -> Path:
    path = folder / f"{name}.txt"
    path.write_text("\n<|endoftext|>\n".join(f"{name} {i}" for i in range(count)))
    return path


def _texts(kind: TextKind, tokenizer, **given: int) -> tuple[list[str], ...]:
    halves = kind.windows(tokenizer, **given)
    return tuple(
        [tokenizer.decode(ids[0], skip_special_tokens=True) for ids in half] for half in halves
    )


def test_halves_share_nothing(tmp_path: Path, tokenizer) -> None:
    kind = TextKind.parse(f"a={_file(tmp_path, 'one', 12)}")
    seen, scored = _texts(kind, tokenizer, seen=4, scored=3, max_length=64)
    assert seen == ["one 0", "one 1", "one 3", "one 4"]
    assert scored == ["one 6", "one 8", "one 10"]
    every = _texts(kind, tokenizer, seen=99, scored=99, max_length=64)
    assert every == ([f"one {i}" for i in range(6)], [f"one {i}" for i in range(6, 12)])


def test_sources_of_a_mix_come_in_turn(tmp_path: Path, tokenizer) -> None:
    one, two = _file(tmp_path, "one", 12), _file(tmp_path, "two", 4)
    kind = TextKind.parse(f"both={one}+{two}")
    assert kind.described == "one.txt+two.txt"
    seen, scored = _texts(kind, tokenizer, seen=4, scored=3, max_length=64)
    assert seen == ["one 0", "two 0", "one 1", "two 1"]
    assert scored == ["one 6", "two 2", "one 8"]


def test_directories_and_the_standard_library(tmp_path: Path, tokenizer) -> None:
    _file(tmp_path, "one", 2)
    _file(tmp_path, "two", 2)
    seen, scored = _texts(
        TextKind("a", (str(tmp_path),)), tokenizer, seen=9, scored=9, max_length=9
    )
    assert (seen, scored) == (["one 0", "one 1"], ["two 0", "two 1"])
    for ids in TextKind("code", (PYTHON_CODE,)).windows(tokenizer, seen=2, scored=2, max_length=40):
        assert [one.shape for one in ids] == [(1, 40)] * 2


def test_conversations_take_the_template(tmp_path: Path) -> None:
    path = tmp_path / "chats.jsonl"
    path.write_text("\n".join(json.dumps({"messages": CHAT}) for _ in range(4)))
    seen, scored = TextKind("chats", (str(path),)).windows(
        chat_tokenizer(), seen=2, scored=2, max_length=99
    )
    assert len(seen) == len(scored) == 2 and seen[0].shape[1] > len(CHAT)


def test_faults_are_told(tmp_path: Path, tokenizer) -> None:
    for wrong in ("books", "=books", "books=", "a=one+"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not NAME=SOURCE"):
            TextKind.parse(wrong)
    kind = TextKind("a", (str(_file(tmp_path, "one", 1)),))
    with pytest.raises(ConfigError, match="has 1 documents; two halves need at least 2"):
        kind.windows(tokenizer, seen=1, scored=1, max_length=9)
