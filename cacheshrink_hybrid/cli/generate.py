"""The program `generate`: text from a model."""

from __future__ import annotations

import argparse

from ..evaluation.outputs import generate_samples
from .arguments import load_given


def run(given: argparse.Namespace) -> int:
    model, tokenizer = load_given(given, given.model)
    for sample in generate_samples(
        model,
        tokenizer,
        given.prompt,
        max_new_tokens=given.max_new_tokens,
        temperature=given.temperature,
        seed=given.seed,
    ):
        print(sample)
    return 0
