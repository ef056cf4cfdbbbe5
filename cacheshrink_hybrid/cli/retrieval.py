"""The program `retrieval`: what models find in a long text, the first beside the others."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..calibration.amount import positions_of
from ..errors import ConfigError
from ..evaluation.defaults import RETRIEVAL_LENGTHS
from ..evaluation.paired import mean_with_error, paired_difference
from ..evaluation.retrieval import ALL, Answer, check_positions, exact_reads, measure_retrieval
from ..evaluation.retrieval_questions import Question, retrieval_texts
from ..text_tables import fitting_table
from .arguments import load_given, read_texts
from .report import write_json

MEASURES = ("exact", "log_probability", "likeliest")
FEW_FOUND = 0.25
"""Share of exact answers of the first model below which the others' say little."""
Answers = list[tuple[Answer, ...]]
Case = tuple[str, int]
"""Task and length."""


def run(given: argparse.Namespace) -> int:
    cases: dict[Case, list[tuple[Question, ...]]] = {}
    found: dict[str, dict[Case, Answers]] = {}
    records: dict[str, Any] = {}
    vocabulary: Mapping[str, int] = {}
    for name in given.models:
        model, tokenizer = load_given(given, name)
        if not cases:
            cases, vocabulary = _texts(given, model, tokenizer), tokenizer.get_vocab()
        if tokenizer.get_vocab() != vocabulary:
            raise ConfigError(
                f"{name} has another tokenizer than {given.models[0]}, so it cannot be asked in "
                "the same tokens; measure it by itself"
            )
        for _, length in cases:
            check_positions(model, length)
        reads = exact_reads(model)
        found[name] = {
            case: measure_retrieval(
                model, tokenizer, texts, chunk_length=given.chunk_length, progress=True
            )
            for case, texts in cases.items()
        }
        records[name] = {
            "read_exactly": reads.words(),
            "results": [
                _result(case, texts, found[name][case], found[given.models[0]][case])
                | {"facts_read_exactly": sum(reads.cover(q) for text in texts for q in text)}
                for case, texts in cases.items()
            ],
        }
    print(fitting_table(_rows(records)))
    for line in notes(records):
        print(line)
    if given.json is not None:
        names = ("texts", "questions", "chunk_length", "seed")
        settings = {name: getattr(given, name) for name in names}
        write_json(given.json, {"program": "retrieval", **settings, "models": records})
    return 0


def _texts(
    given: argparse.Namespace, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[Case, list[tuple[Question, ...]]]:
    """The texts of every task and length, for all models.

    Raises:
        ConfigError: a length beyond the first model's positions, or at which nothing fits.
    """
    lengths = given.lengths
    if lengths is None:
        limit = positions_of(model.config)
        lengths = [one for one in RETRIEVAL_LENGTHS if limit is None or one <= limit]
        if not lengths:
            raise ConfigError(
                f"{given.models[0]} has {limit} positions, fewer than any usual length; give "
                "--lengths"
            )
    for length in lengths:
        check_positions(model, length)
    documents = read_texts(given)
    return {
        (task, length): retrieval_texts(
            tokenizer,
            task,
            length,
            documents,
            num_texts=given.texts,
            num_questions=given.questions,
            seed=given.seed,
        )
        for task in given.tasks
        for length in lengths
    }


def _result(
    case: Case, texts: Sequence[Sequence[Question]], answers: Answers, first: Answers
) -> dict[str, Any]:
    """What one model found at one task and length, and how far it lies from the first model."""
    result: dict[str, Any] = {"task": case[0], "length": case[1]}
    result["questions"] = sum(map(len, texts))
    for measure in MEASURES:
        values, others = (
            [[float(getattr(one, measure)) for one in text] for text in asked]
            for asked in (answers, first)
        )
        result[measure], result[f"{measure}_error"] = mean_with_error(values)
        change, error = paired_difference(others, values)
        result |= {f"{measure}_change": change, f"{measure}_change_error": error}
    pairs = zip(
        (one for text in texts for one in text),
        (one for text in answers for one in text),
        strict=True,
    )
    result["answers"] = [
        {"code": question.code, "depth": question.depth, "distance": question.distance}
        | asdict(answer)
        for question, answer in pairs
    ]
    return result


def notes(records: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What was read exactly, and which figures say little."""
    for name, record in records.items():
        yield f"read exactly by {name}: {record['read_exactly']}"
        for result in record["results"]:
            if result["facts_read_exactly"] and not record["read_exactly"].startswith(ALL):
                yield (
                    f"note: {result['facts_read_exactly']} of {result['questions']} facts of "
                    f"{result['task']} at {result['length']} tokens lie among these"
                )
    first = next(iter(records))
    for result in records[first]["results"]:
        if result["exact"] < FEW_FOUND:
            yield (
                f"note: {first} finds {result['exact']:.0%} in {result['task']} at "
                f"{result['length']} tokens, so that the others' say little there"
            )


def _rows(records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The table, the models of one task and length below each other."""
    first = next(iter(records))
    by_case = zip(*(record["results"] for record in records.values()), strict=True)
    rows = []
    for results in by_case:
        for name, result in zip(records, results, strict=True):
            row = {"model": name, "task": result["task"], "tokens": result["length"]}
            for measure, title in zip(MEASURES, ("exact", "log p", "likeliest"), strict=True):
                row[title] = result[measure]
                row[f"{title} change"] = (
                    None
                    if name == first
                    else _with_error(result[f"{measure}_change"], result[f"{measure}_change_error"])
                )
            rows.append(row)
    return rows


def _with_error(value: float, error: float | None) -> str:
    return f"{value:+.3f}" + ("" if error is None else f" +- {error:.3f}")
