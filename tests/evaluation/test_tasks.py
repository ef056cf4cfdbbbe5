"""Tasks of local files are found, asked, and counted by document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from cacheshrink_hybrid.errors import CalibrationError, ConfigError
from cacheshrink_hybrid.evaluation.tasks import checked_tasks, measure_tasks
from cacheshrink_hybrid.evaluation.text_tasks import write_text_tasks
from tests.families.tiny_configs import tiny_model
from tests.models import pair
from tests.texts import TEXT, TEXTS, chat_tokenizer, word_tokenizer

DOCUMENTS = [" ".join(TEXTS[i : i + 14]) for i in range(4)]
NO_LM_EVAL = "lm-eval is an extra of its own"


def test_tasks_made_of_a_text(tmp_path: Path) -> None:
    names = write_text_tasks(tmp_path, DOCUMENTS, num_documents=3)
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open(encoding="utf-8")]
        for name in names
    }
    assert names == ["what_comes_next", "last_word", "whole_text"]
    assert all(len(found) == 3 for found in rows.values())
    texts = [row["text"] for row in rows["whole_text"]]
    for row, last, text in zip(rows["what_comes_next"], rows["last_word"], texts, strict=True):
        assert text == f"{row['context']} {row['choices'][row['answer']]}"
        assert row["context"] == f"{last['context']} {last['last']}"
        assert len(row["choices"]) == 4
        assert any(text in " ".join(document.split()) for document in DOCUMENTS)
    again = tmp_path / "again"
    write_text_tasks(again, DOCUMENTS, num_documents=3)
    for name in names:
        assert (again / f"{name}.jsonl").read_text() == (tmp_path / f"{name}.jsonl").read_text()
    settings = yaml.safe_load((tmp_path / "last_word.yaml").read_text())
    assert settings["dataset_kwargs"]["data_files"]["test"] == str(tmp_path / "last_word.jsonl")


def test_too_little_text(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="the text has 0 stretches of 108 words, and 4 are"):
        write_text_tasks(tmp_path, [TEXT])


@pytest.mark.slow("lm-eval")
def test_figures_by_document(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason=NO_LM_EVAL)
    write_text_tasks(tmp_path, DOCUMENTS, num_documents=3)
    assert checked_tasks(tmp_path) == ["last_word", "what_comes_next", "whole_text"]
    source, converted = pair("llama", ratio=4.0, cache_bits="auto").both()
    first, second = (
        measure_tasks(model, word_tokenizer(), tmp_path, limit=2, chunk_length=32)
        for model in (source, converted)
    )
    assert [(one.task, one.metric) for one in first] == [(r.task, r.metric) for r in second]
    figures = {(one.task, one.metric): one for one in first}
    accuracy = figures["what_comes_next", "acc"]
    assert accuracy.by_document is not None
    assert len(accuracy.by_document) == 2
    assert sum(accuracy.by_document) / 2 == accuracy.value
    assert figures["whole_text", "bits_per_byte"].by_document is None
    others = {(one.task, one.metric): one.value for one in second}
    assert others["whole_text", "bits_per_byte"] != figures["whole_text", "bits_per_byte"].value


@pytest.mark.slow("lm-eval")
def test_questions_are_running_text(tmp_path: Path) -> None:
    """A context and what is asked behind it are a stretch of a document, word by word."""
    pytest.importorskip("lm_eval", reason=NO_LM_EVAL)
    from lm_eval.tasks import TaskManager

    write_text_tasks(tmp_path, DOCUMENTS, num_documents=2)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    for name, task in manager.load(["last_word", "what_comes_next"])["tasks"].items():
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests()
        texts = ["".join(one.args) for one in task.instances]
        true = [text for text in texts if any(text in document for document in DOCUMENTS)]
        assert len(true) >= 2, name
        assert len(true) == len(texts) or name == "what_comes_next"


@pytest.mark.slow("lm-eval")
def test_groups_of_tasks(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason=NO_LM_EVAL)
    write_text_tasks(tmp_path, DOCUMENTS, num_documents=1)
    group = {"group": "both", "task": ["last_word", "whole_text"]}
    (tmp_path / "both.yaml").write_text(yaml.safe_dump(group))
    found = measure_tasks(tiny_model("llama"), word_tokenizer(), tmp_path, ["both"])
    assert {one.task for one in found} == {"last_word", "whole_text"}
    assert checked_tasks(tmp_path) == ["last_word", "what_comes_next", "whole_text"]


@pytest.mark.slow("lm-eval")
def test_questions_in_the_chat_template(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason=NO_LM_EVAL)
    write_text_tasks(tmp_path, DOCUMENTS, num_documents=2)
    plain, chat = (
        measure_tasks(tiny_model("llama"), chat_tokenizer(), tmp_path, ["last_word"], chat=chat)
        for chat in (False, True)
    )
    assert [one.value for one in plain] != [one.value for one in chat]


@pytest.mark.slow("lm-eval")
def test_tasks_that_are_not_there(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason=NO_LM_EVAL)
    asked = (tiny_model("llama"), word_tokenizer(), tmp_path)
    with pytest.raises(ConfigError, match="defines no task at all; it defines none, and tasks are"):
        measure_tasks(*asked)
    write_text_tasks(tmp_path, DOCUMENTS)
    with pytest.raises(ConfigError, match="no task first_word; it defines last_word, what_comes"):
        measure_tasks(*asked, ["first_word"])
    with pytest.raises(ConfigError, match="has no chat template"):
        measure_tasks(*asked, chat=True)
