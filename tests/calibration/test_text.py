"""Which texts are taken, how they are cut, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from cacheshrink_hybrid.calibration import text
from cacheshrink_hybrid.calibration.text import (
    calibration_exercises,
    calibration_sequences,
    checked_texts,
    load_texts,
    token_sequences,
)
from cacheshrink_hybrid.config import CompressionConfig
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.errors import CalibrationError
from tests.texts import TEXTS, WORDS, word_tokenizer

REFUSED = {
    "empty": ([], "texts holds no text; give at least one non-empty string"),
    "blank": (["", " \n"], "texts holds no text"),
    "plain-string": ("one two", r"texts is one string; give a list of strings: \[texts\]"),
    "number": (7, "texts is a int; give a list of strings"),
    "none": (None, "texts is a NoneType; give a list of strings"),
    "generator": ((text for text in TEXTS), "texts is a generator; give a list"),
    "dictionary": ({"a": "b"}, "texts is a dict; give a list"),
    "mixed": (["one", 2], "texts holds a int; give strings only"),
    "bytes": ([b"one"], "texts holds a bytes; give strings only"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    texts, message = REFUSED[name]
    with pytest.raises(CalibrationError, match=message):
        checked_texts(texts, "texts")


def test_blank_texts_are_left_out() -> None:
    assert checked_texts(("one", " ", "two"), "texts") == ["one", "two"]


def test_a_file_is_split_into_documents(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one two\n<|endoftext|>\n\n<|endoftext|>\nthree\n", encoding="utf-8")
    assert load_texts(None, file) == ["one two", "three"]
    assert load_texts(None, str(file)) == ["one two", "three"]


def test_empty_file(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("\n")
    with pytest.raises(CalibrationError, match=r"text.txt holds no text"):
        load_texts(None, file)


def test_texts_win_over_the_data_set() -> None:
    assert load_texts(["one"], "no/such-data-set") == ["one"]


def test_samples_are_spread_evenly() -> None:
    texts = [str(number) for number in range(10)]
    assert load_texts(texts, "", num_samples=5) == ["0", "2", "4", "6", "8"]
    assert load_texts(texts, "", num_samples=3) == ["0", "3", "6"]
    assert load_texts(texts, "", num_samples=99) == texts


@pytest.mark.parametrize("offline", [True, False], ids=["told to be offline", "no network"])
def test_data_set_that_cannot_be_had(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the Hub cannot be reached, that is said at once, and what needs no network."""

    def refuse(*args, **kwargs):
        raise OSError(-2, "Name or service not known")

    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", str(int(offline)))
    monkeypatch.setattr(text.socket, "create_connection", refuse)
    monkeypatch.setattr(text, "getproxies", dict)
    reason = "HF_HUB_OFFLINE is set" if offline else "huggingface.co: Name or service not known"
    with pytest.raises(CalibrationError, match=rf"no/such-data-set.*{reason}.*python-docs"):
        load_texts(None, "no/such-data-set")


@pytest.mark.parametrize("dataset", ["python-docs", "FILE"])
def test_configuration_of_what_has_none(dataset: str, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("some text", encoding="utf-8")
    name = str(path) if dataset == "FILE" else dataset
    with pytest.raises(CalibrationError, match="has no configurations, so 'small' cannot"):
        load_texts(None, name, "small")


def test_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CalibrationError, match=r"binary\.txt is no text in UTF-8 \(byte 0\)"):
        load_texts(None, path)


@pytest.mark.slow
def test_documentation_of_python() -> None:
    train = load_texts(None, "python-docs", num_samples=3)
    held_out = load_texts(None, "python-docs", num_samples=3, split="test")
    assert len(train) == len(held_out) == 3
    assert not set(train) & set(held_out)


def sequences(texts: list[str], **settings) -> list[list[int]]:
    return [ids[0].tolist() for ids in token_sequences(word_tokenizer(), texts, **settings)]


LONG = " ".join(WORDS)
LONG_IDS = list(range(3, 3 + len(WORDS)))


def test_texts_are_cut_to_length() -> None:
    assert sequences([LONG, LONG], max_length=8) == [LONG_IDS[:8]] * 2


def test_later_stretches_fill_up() -> None:
    found = sequences([LONG, "one two three"], max_length=8, num_sequences=4)
    assert found == [LONG_IDS[:8], LONG_IDS[:3], LONG_IDS[8:16], LONG_IDS[16:]]


def test_first_stretches_come_first() -> None:
    found = sequences([LONG] * 3, max_length=8, num_sequences=2)
    assert found == [LONG_IDS[:8]] * 2


def test_too_short() -> None:
    with pytest.raises(CalibrationError, match="the text has 15 tokens; give at least 16"):
        sequences(["one two three"] * 5, max_length=8)
    assert len(sequences(["one two three four"] * 4, max_length=8)) == 4


def test_single_tokens_predict_nothing() -> None:
    assert sequences([LONG, "one"], max_length=64) == [LONG_IDS]


def test_calibration_exercises_return_what_they_showed() -> None:
    texts = ["Some plain words that stand between, one after the other. " * 8]
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    first = calibration_exercises(tokenizer, texts, 6, max_length=500)
    assert calibration_exercises(tokenizer, texts, 6, max_length=500) == first
    other = calibration_exercises(tokenizer, texts, 6, max_length=500, seed=1)
    assert not set(first) & set(other)
    letters = tokenizer.decode(first[1].token_ids, skip_special_tokens=True)
    shown = letters.split("\n")[0]
    assert len(shown) > 20
    assert letters.endswith("\n" + shown)


def test_calibration_exercises_are_cut() -> None:
    texts = ["Some plain words that stand between, one after the other. " * 8]
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    whole = calibration_exercises(tokenizer, texts, 4, max_length=500)
    longest = max(len(exercise.token_ids) for exercise in whole)
    for before, cut in zip(
        whole, calibration_exercises(tokenizer, texts, 4, max_length=longest - 3), strict=True
    ):
        assert cut.token_ids == before.token_ids[: longest - 3]
        assert cut.answer_positions == tuple(i for i in before.answer_positions if i < longest - 3)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 32),
        ({"num_calibration_samples": 4}, 8),
        ({"num_recall_samples": 0}, 0),
        ({"num_recall_samples": 3}, 3),
    ],
    ids=str,
)
def test_exercises_join_the_text(settings: dict, expected: int) -> None:
    config = CompressionConfig(**settings)
    texts = ["Some plain words that stand between, one after the other. " * 8]
    found = calibration_sequences(word_tokenizer(), texts, config)
    assert (len(found.texts), len(found.exercises)) == (1, expected)
