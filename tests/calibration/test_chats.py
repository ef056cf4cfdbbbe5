"""Conversations as lists and as files, and what is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cacheshrink_hybrid.calibration.chats import load_chats
from cacheshrink_hybrid.errors import CalibrationError
from tests.texts import CHAT

CHATS = [CHAT, CHAT[:2]]
LINES = "\n\n".join(json.dumps(chat) for chat in CHATS)
OBJECTS = "\n".join(json.dumps({"id": 1, "messages": chat}) for chat in CHATS)


def test_a_list() -> None:
    assert load_chats(CHATS) == CHATS
    assert load_chats(tuple(CHATS)) == CHATS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chats.json", json.dumps(CHATS)),
        ("chats.json", json.dumps([{"messages": chat} for chat in CHATS], indent=1)),
        ("chats.jsonl", LINES),
        ("chats.jsonl", OBJECTS),
        ("one.jsonl", json.dumps(CHAT)),
    ],
)
def test_a_file(name: str, content: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    due = [CHAT] if name == "one.jsonl" else CHATS
    assert load_chats(path) == load_chats(str(path)) == due


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "calibration_chats holds no conversation; give at least one"),
        (CHAT, "calibration_chats holds messages, so it is one conversation; give a list of"),
        (CHAT[0], "calibration_chats is a dict; give a list of conversations, each a list"),
        (7, "calibration_chats is a int; give a list of conversations"),
        ([CHAT, "hello"], "number 2 of calibration_chats: str 'hello' is no conversation; give"),
        ([CHAT, []], "number 2 of calibration_chats: list .* is no conversation"),
        (["a", "b"], "number 1 of calibration_chats: str 'a' is no conversation"),
        (iter(CHATS), "calibration_chats is a list_iterator; give a list"),
    ],
    ids=[
        "none",
        "one",
        "message",
        "number",
        "text",
        "empty",
        "texts",
        "iterator",
    ],
)
def test_what_is_no_list_of_conversations(given: object, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        load_chats(given)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", LINES, r"a\.json is no JSON \(Extra data.*; give a JSON list .* or a \.jsonl"),
        ("a.jsonl", LINES + "\n{", r"line 4 of .*a\.jsonl is no JSON"),
        ("a.json", json.dumps({"messages": CHAT}), r"a\.json is a dict; give a list of conv"),
        ("a.json", json.dumps(CHAT), r"a\.json holds messages, so it is one conversation"),
        ("a.json", "[]", r"a\.json holds no conversation"),
        ("a.json", '[{"turns": []}]', r"a\.json holds messages|no conversation"),
    ],
)
def test_files_of_something_else(name: str, content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(CalibrationError, match=message):
        load_chats(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        CalibrationError, match=r"cannot be read \(No such file or directory\); give"
    ):
        load_chats(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(CalibrationError, match=r"is no text in UTF-8 \(byte 0\); give a JSON file"):
        load_chats(tmp_path / "bytes.json")
