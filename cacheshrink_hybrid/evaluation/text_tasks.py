"""Tasks of lm-eval made of a text: what comes next, which word is last, and the text itself."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import CalibrationError

CONTEXT_WORDS = 96
"""Words before what is to be told."""
NEXT_WORDS = 12
"""Words of a continuation."""
NUM_CHOICES = 4


def _metric(name: str, aggregation: str = "mean") -> dict[str, Any]:
    return {
        "metric": name,
        "aggregation": aggregation,
        "higher_is_better": aggregation == "mean",
    }


_CONFIGS: dict[str, dict[str, Any]] = {
    "what_comes_next": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "target_delimiter": " ",
        "metric_list": [_metric("acc"), _metric("acc_norm")],
    },
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{' ' + last}}",  # put behind the context as it is
        "target_delimiter": "",
        "metric_list": [_metric("acc"), _metric("perplexity", "perplexity")],
    },
    "whole_text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [
            _metric("word_perplexity", "weighted_perplexity"),
            _metric("bits_per_byte", "bits_per_byte"),
        ],
    },
}


def write_text_tasks(
    folder: Path, documents: Sequence[str], *, num_documents: int = 100, seed: int = 0
) -> list[str]:
    """Write YAML and JSON lines of three tasks, and return their names.

    `what_comes_next`: of four stretches of 12 words the one that follows 96 words; the others come
    from elsewhere in the text. `last_word`: the last of 96 words. `whole_text`: perplexity of
    stretches of 108 words.

    Args:
        documents: the text.
        num_documents: of each task, at most.

    Raises:
        CalibrationError: documents too short for four stretches.
    """
    stretches = list(_stretches(documents))
    if len(stretches) < NUM_CHOICES:
        raise CalibrationError(
            f"the text has {len(stretches)} stretches of {CONTEXT_WORDS + NEXT_WORDS} words, and "
            f"{NUM_CHOICES} are needed to choose between; give more text"
        )
    rng = random.Random(f"tasks {seed}")
    chosen = rng.sample(stretches, min(num_documents, len(stretches)))
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in _CONFIGS}
    for words in chosen:
        context, following = words[:CONTEXT_WORDS], words[CONTEXT_WORDS:]
        others = rng.sample([one for one in stretches if one is not words], NUM_CHOICES - 1)
        choices = [following, *(one[CONTEXT_WORDS:] for one in others)]
        answer = rng.randrange(NUM_CHOICES)
        choices.insert(answer, choices.pop(0))
        rows["what_comes_next"].append(
            {
                "context": " ".join(context),
                "choices": [" ".join(one) for one in choices],
                "answer": answer,
            }
        )
        rows["last_word"].append({"context": " ".join(context[:-1]), "last": context[-1]})
        rows["whole_text"].append({"text": " ".join(words)})
    for name, config in _CONFIGS.items():
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows[name]), encoding="utf-8")
        settings = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {
                "data_files": {"test": str(data.resolve())},
                "cache_dir": str(folder.resolve() / "datasets"),
            },
            "test_split": "test",
            **config,
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return list(_CONFIGS)


def _stretches(documents: Sequence[str]) -> Iterator[list[str]]:
    """Stretches of a context and what follows it, one behind the other, of each document."""
    length = CONTEXT_WORDS + NEXT_WORDS
    for document in documents:
        words = document.split()
        for start in range(0, len(words) - length + 1, length):
            yield words[start : start + length]
