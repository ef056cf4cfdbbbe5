"""Measure how much of what a model has read it can say again, by distance in tokens.

    cacheshrink-hybrid recall MODEL [MODEL ...] --distances 64 256 1024 --json out.json

Exercises: strings of random letters and passages of text that return, and key: value lists that
are asked again. Accuracy is the share of remembered tokens that the model predicts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..evaluation.recall import DEFAULT_DISTANCES, measure_recall
from ..plan import format_table
from ..recall import RECALL_KINDS
from .arguments import add_model_arguments, load_given
from .report import write_json


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="cacheshrink-hybrid recall",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser, several=True)
    parser.add_argument("--distances", type=int, nargs="+", default=list(DEFAULT_DISTANCES))
    parser.add_argument("--kinds", nargs="+", choices=RECALL_KINDS, default=list(RECALL_KINDS))
    parser.add_argument("--exercises", type=int, default=16, help="per kind and distance")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=None, help="write the results here")
    given = parser.parse_args(argv)
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
