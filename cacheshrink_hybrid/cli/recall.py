"""The program `recall`: what models can say again, by distance."""

from __future__ import annotations

import argparse

from ..evaluation.recall import measure_recall
from ..text_tables import format_table
from .arguments import load_given
from .report import write_json

AT_CHANCE = 0.15
"""Accuracy that guessing reaches: of random digits one in ten is right, of letters fewer."""


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
    source = given.models[0]
    for distance, kinds in at_chance(results[source]).items():
        print(
            f"note: {source} is no better than guessing at {', '.join(kinds)} over {distance} "
            "tokens, so that says nothing of what is lost elsewhere (the exercises may be in a "
            "form that this model has not learned)"
        )
    if given.json is not None:
        write_json(given.json, {"program": "recall", "models": results})
    return 0


def at_chance(measured: dict[int, dict[str, float]]) -> dict[int, list[str]]:
    """Kinds of exercise, by distance, that a model does no better than by guessing."""
    found = {
        distance: [kind for kind, value in accuracy.items() if kind != "mean" and value < AT_CHANCE]
        for distance, accuracy in measured.items()
    }
    return {distance: kinds for distance, kinds in found.items() if kinds}
