"""Which texts and conversations are taken, and how many of each."""

from __future__ import annotations

from pathlib import Path

import pytest

from cacheshrink_hybrid.calibration.material import load_material
from cacheshrink_hybrid.calibration.text import calibration_sequences
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.errors import CalibrationError
from tests.engine.tokenizers import byte_level_tokenizer
from tests.texts import CHAT, CHAT_TEMPLATE, TEXTS, chat_tokenizer


def chats(number: int) -> list[list[dict[str, str]]]:
    return [[{"role": "user", "content": f"chat {i}"}] for i in range(number)]


def texts(number: int) -> list[str]:
    return [f"text {i}" for i in range(number)]


@pytest.mark.parametrize(
    ("num_texts", "num_chats", "samples", "taken"),
    [
        (20, 20, 8, (4, 4)),
        (20, 20, 7, (3, 4)),
        (2, 20, 8, (2, 6)),
        (20, 2, 8, (6, 2)),
        (2, 3, 8, (2, 3)),
        (20, 20, 1, (0, 1)),
    ],
)
def test_each_kind_gives_half(num_texts, num_chats, samples, taken) -> None:
    found = load_material(texts(num_texts), None, None, chats(num_chats), samples)
    assert (len(found.texts), len(found.chats)) == taken
    assert found.name == "chats of the caller and texts of the caller"


def test_chats_alone_are_all_that_is_read(tmp_path: Path) -> None:
    found = load_material(None, None, None, chats(20), 8)
    assert (found.texts, len(found.chats), found.name) == ([], 8, "chats of the caller")
    assert found.chats[-1] == chats(20)[17]  # spread over all of them
    path = tmp_path / "text.txt"
    path.write_text("one\n<|endoftext|>\ntwo")
    found = load_material(None, path, None, chats(20), 8)
    assert (found.texts, len(found.chats)) == (["one", "two"], 6)
    assert found.name == f"chats of the caller and {path}"


def test_without_chats_it_is_text() -> None:
    found = load_material(texts(20), None, None, None, 8)
    assert (len(found.texts), found.chats, found.name) == (8, [], "texts of the caller")
    with pytest.raises(CalibrationError, match="holds no conversation"):
        load_material(texts(20), None, None, [], 8)


def test_kinds_take_turns_and_chats_are_as_the_template_writes_them() -> None:
    tokenizer = chat_tokenizer()
    config = CompressionConfig(num_calibration_samples=4)
    found = calibration_sequences(tokenizer, TEXTS, config, [CHAT] * 9).texts
    shown = [tokenizer.decode(ids[0]) for ids in found]
    assert len(shown) == 4
    assert shown[0] == shown[2]
    assert shown[0].startswith("<bos>")
    assert "four" in shown[0]
    assert shown[1::2] == TEXTS[:2]


def test_nothing_is_added_to_a_template_without_a_first_token() -> None:
    """The conversation is calibrated on as it is read when it is answered."""
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE.replace("{{ bos_token }}", "")
    try:
        (ids,) = calibration_sequences(tokenizer, [], CompressionConfig(), [CHAT]).texts
    finally:
        tokenizer.chat_template = None
    assert tokenizer.bos_token_id not in ids[0].tolist()


def test_exercises_take_their_filler_from_chats_alone() -> None:
    config = CompressionConfig(num_recall_samples=2)
    found = calibration_sequences(chat_tokenizer(), [], config, [CHAT] * 3)
    assert (len(found.texts), len(found.exercises)) == (3, 2)
