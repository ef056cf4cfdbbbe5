"""A source without a tokenizer is said to have none, whatever its family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cacheshrink_hybrid import convert_to_mla
from cacheshrink_hybrid.checkpoint.tokenizer_files import load_tokenizer
from cacheshrink_hybrid.cli import main
from cacheshrink_hybrid.errors import ConfigError
from tests.families.tiny_configs import tiny_model
from tests.texts import word_tokenizer


@pytest.mark.parametrize("case", ["llama", "gpt2", "opt"])  # some get one of no words
def test_none(case: str, tmp_path: Path, capsys) -> None:
    tiny_model(case).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="holds no tokenizer; save the model's own beside it"):
        load_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        convert_to_mla(tmp_path)
    assert main(["generate", str(tmp_path), "--prompt", "a"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path} holds no tokenizer")
    assert main(["memory", str(tmp_path), "--lengths", "4"]) == 0  # which reads no text


def test_settings_of_one_alone(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 9}))
    with pytest.raises(ConfigError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_one(tmp_path: Path) -> None:
    word_tokenizer().save_pretrained(tmp_path / "sub")
    assert load_tokenizer(tmp_path / "sub").get_vocab() == word_tokenizer().get_vocab()
