"""The program `recall`: what models can say again, by distance."""

from __future__ import annotations

import argparse

from ..evaluation.recall import measure_recall
from ..plan import format_table
from .arguments import load_given
from .report import write_json


def run(given: argparse.Namespace) -> int:
    results, rows = {}, []
    for name in given.models:
        model, tokenizer = load_given(given, name)
        measured = measure_recall(
            model,
            tokenizer,
            given.distances,
            kinds=given.kinds,
            num_exercises=given.exercises,
            seed=given.seed,
            progress=True,
        )
        results[name] = measured
        rows += [
            {"model": name, "distance": distance, **accuracy}
            for distance, accuracy in measured.items()
        ]
    print(format_table(rows))
    if given.json is not None:
        write_json(given.json, {"program": "recall", "models": results})
    return 0
