"""Pairs of texts in a file, under two names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cacheshrink_hybrid import convert_to_mla, plan_of
from cacheshrink_hybrid.calibration.pair_files import load_pairs
from cacheshrink_hybrid.calibration.pairs import tokenized
from cacheshrink_hybrid.errors import CalibrationError, ConfigError
from tests.families.encoder_configs import tiny_model
from tests.families.tiny_configs import tiny_model as tiny_decoder
from tests.texts import TEXTS, word_tokenizer

FIELDS = ("article", "summary")


def written(path: Path, pairs: Any) -> Path:
    lines = [json.dumps(pair) for pair in pairs] if path.suffix == ".jsonl" else [json.dumps(pairs)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["pairs.json", "pairs.jsonl"])
def test_two_fields_are_read(tmp_path: Path, name: str) -> None:
    pairs = [{"id": 7, "article": "one two", "summary": "one"}, {"summary": "b", "article": "a"}]
    found = load_pairs(written(tmp_path / name, pairs), FIELDS)
    assert found == [("one two", "one"), ("a", "b")]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([], r"holds no pair; give a JSON list of objects such as {\"article\": "),
        ({"article": "a", "summary": "b"}, "is a dict; give a JSON list"),
        ("text", "is a str; give a JSON list"),
        ([["a", "b"]], "pair 1 of .* is a list; give an object such as"),
        ([{"article": "a", "summary": "b"}, "a\tb"], "pair 2 of .* is a str; give an object"),
        ([{"article": "a", "text": "b"}], "pair 1 of .* lacks summary and has article, text; name"),
        ([{}], "pair 1 of .* lacks article and summary and has nothing; name"),
        ([{"article": "a", "summary": 3}], "summary of pair 1 of .* is a int; give a string"),
        ([{"article": " ", "summary": "b"}], "article of pair 1 of .* is no text; give a string"),
    ],
)
def test_what_is_no_pairs_is_refused(tmp_path: Path, pairs: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        load_pairs(written(tmp_path / "pairs.json", pairs), FIELDS)


def test_what_is_no_file_of_pairs_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    with pytest.raises(CalibrationError, match=r"cannot be read .*; give a JSON file of pairs"):
        load_pairs(path, FIELDS)
    path.write_bytes(b"\xff")
    with pytest.raises(CalibrationError, match=r"no text in UTF-8 \(byte 0\)"):
        load_pairs(path, FIELDS)
    path.write_text("one two\tone\n")
    with pytest.raises(CalibrationError, match=r"line 1 of .* is no JSON .* list of pairs"):
        load_pairs(path, FIELDS)
    for fields in (("input",), ("input", "input"), ("", "target"), ("a", "b", "c")):
        with pytest.raises(CalibrationError, match="are no two different names"):
            load_pairs(path, fields)


def test_both_texts_are_cut_to_what_is_read() -> None:
    model, tokenizer = tiny_model("t5"), word_tokenizer()
    (found,) = tokenized(model, tokenizer, [(TEXTS[0], TEXTS[1])], 6)
    assert torch.equal(found["input_ids"], torch.arange(3, 9)[None])
    assert torch.equal(found["labels"], torch.arange(4, 9)[None])


@pytest.mark.parametrize("case", ["t5", "bart"])
def test_a_model_is_converted_on_a_file(tmp_path: Path, case: str) -> None:
    pairs = [{"article": text, "summary": text[:30]} for text in TEXTS]
    path = written(tmp_path / "pairs.jsonl", pairs)
    given = {"tokenizer": word_tokenizer(), "calibration_inputs": path, "pair_fields": FIELDS}
    model, _ = convert_to_mla(tiny_model(case), 2.0, num_calibration_samples=12, **given)
    told = plan_of(model).calibrated_on
    assert told.startswith(f"pairs of {path}: 12 sequences, ") and "1 of the sequences" in told


def test_files_of_pairs_that_nothing_reads_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.json", [{"input": "one", "target": "two three"}])
    given = {"calibration_inputs": str(path), "verbose": False}
    with pytest.raises(ConfigError, match=r"a model object needs tokenizer=\.\.\. to calibrate"):
        convert_to_mla(tiny_model("bart"), **given)
    given["tokenizer"] = word_tokenizer()
    with pytest.raises(ConfigError, match="this llama model reads one text"):
        convert_to_mla(tiny_decoder("llama"), **given)
    with pytest.raises(CalibrationError, match="encoder of a whisper model reads input_features"):
        convert_to_mla(tiny_model("whisper"), **given)
    with pytest.raises(ConfigError, match=r"calibration_texts and calibration_inputs both say"):
        convert_to_mla(tiny_model("bart"), calibration_texts=TEXTS, **given)
    del given["calibration_inputs"]
    with pytest.raises(ConfigError, match=r"pair_fields=.* are of a file of pairs; give its path"):
        convert_to_mla(tiny_model("bart"), pair_fields=FIELDS, **given)
