"""The program `tasks`: questions of lm-eval, the first model beside the others."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..evaluation.paired import mean_with_error, paired_difference
from ..evaluation.tasks import TaskResult, checked_tasks, measure_tasks
from ..evaluation.text_tasks import write_text_tasks
from ..text_tables import fitting_table
from .arguments import load_given, read_texts
from .report import write_json


def run(given: argparse.Namespace) -> int:
    if given.folder is not None:
        found = _found(given, given.folder)
    else:
        with TemporaryDirectory() as directory:
            documents = read_texts(given)
            folder = Path(directory)
            write_text_tasks(folder, documents, num_documents=given.limit, seed=given.seed)
            found = _found(given, folder)
    first = found[given.models[0]]
    records = {
        name: [_record(one, other) for one, other in zip(results, first, strict=True)]
        for name, results in found.items()
    }
    print(fitting_table(_rows(records)))
    if given.json is not None:
        names = ("limit", "fewshot", "chat", "chunk_length", "seed")
        settings = {name: getattr(given, name) for name in names}
        write_json(given.json, {"program": "tasks", **settings, "models": records})
    return 0


def _found(given: argparse.Namespace, folder: Path) -> dict[str, list[TaskResult]]:
    found = {}
    checked_tasks(folder, given.tasks)
    for name in given.models:
        model, tokenizer = load_given(given, name)
        found[name] = measure_tasks(
            model,
            tokenizer,
            folder,
            given.tasks,
            limit=given.limit,
            num_fewshot=given.fewshot,
            chat=given.chat,
            chunk_length=given.chunk_length,
        )
    return found


def _record(result: TaskResult, first: TaskResult) -> dict[str, Any]:
    """A figure with its error, and how far it lies from the first model's."""
    record = asdict(result) | {"error": None, "change": result.value - first.value}
    record["change_error"] = None
    if result.by_document is not None and first.by_document is not None:
        values, others = ([[one] for one in each.by_document or ()] for each in (result, first))
        _, record["error"] = mean_with_error(values)
        _, record["change_error"] = paired_difference(others, values)
    return record


def _rows(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The table, the models of one figure below each other."""
    first = next(iter(records))
    filtered = any(record["filter"] != "none" for record in records[first])
    rows = []
    for results in zip(*records.values(), strict=True):
        for name, record in zip(records, results, strict=True):
            row = {"model": name, "task": record["task"], "figure": record["metric"]}
            if filtered:
                row["filter"] = record["filter"]
            row |= {"value": record["value"], "+-": record["error"]}
            compared = name != first
            row["change"] = f"{record['change']:+.4g}" if compared else None
            row["+- of it"] = record["change_error"] if compared else None
            rows.append(row)
    return rows
