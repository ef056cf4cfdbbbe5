"""An engine for a model that is given by its directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from cacheshrink_hybrid import save_mla_model
from cacheshrink_hybrid.checkpoint.source_model import load_source
from cacheshrink_hybrid.demo import model_path
from cacheshrink_hybrid.engine import LLM, SamplingParams
from cacheshrink_hybrid.errors import ConfigError
from tests.engine.test_llm import MEMORY, model_of, one_by_one, prompts, tokens_of
from tests.gguf_files import write_tiny_gguf
from tests.models import pair
from tests.texts import word_tokenizer

WISH = SamplingParams(max_tokens=5)


def test_a_converted_model_with_its_tokenizer(tmp_path: Path) -> None:
    save_mla_model(model_of("llama"), word_tokenizer(), tmp_path)
    llm = LLM(tmp_path, cache_memory=MEMORY)
    assert tokens_of(llm.generate(prompts(2), WISH)) == one_by_one(model_of("llama"), prompts(2), 5)
    assert llm.generate("one two three", WISH)[0].prompt_ids == (3, 4, 5)
    assert LLM(str(tmp_path), llm.tokenizer, cache_memory=MEMORY).tokenizer is llm.tokenizer


def test_a_source_model_without_a_tokenizer(tmp_path: Path) -> None:
    source = pair("llama").source
    source.save_pretrained(tmp_path)
    llm = LLM(tmp_path, cache_memory=MEMORY)
    assert llm.tokenizer is None
    assert tokens_of(llm.generate(prompts(2), WISH)) == one_by_one(source, prompts(2), 5)


@pytest.mark.parametrize("whole", [False, True], ids=["file", "directory"])
def test_a_gguf_file(whole: bool, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    write_tiny_gguf(tmp_path / "tiny.gguf")
    llm = LLM(tmp_path if whole else tmp_path / "tiny.gguf", cache_memory=MEMORY)
    assert llm.tokenizer is not None
    source, _ = load_source(tmp_path / "tiny.gguf")
    assert tokens_of(llm.generate(prompts(2), WISH)) == one_by_one(source, prompts(2), 5)


def test_the_shipped_model() -> None:
    llm = LLM(model_path(), cache_memory=MEMORY)
    assert llm.generate("def main(", WISH)[0].text


@pytest.mark.parametrize("name", ["no-such-model", "/nowhere/at all", "empty"])
def test_names_of_nothing(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model .* give the directory"):
        LLM(tmp_path if name == "empty" else name)


@pytest.mark.parametrize("given", [None, 5, {"model": "x"}])
def test_what_is_no_model(given) -> None:
    with pytest.raises(ConfigError, match="is no model"):
        LLM(given)
