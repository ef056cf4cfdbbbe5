"""Continue a prompt with a source or converted model.

cacheshrink-hybrid generate MODEL --prompt "Once upon a time" --max-new-tokens 64
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..evaluation.outputs import generate_samples
from .arguments import add_model_arguments, load_given


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="cacheshrink-hybrid generate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    parser.add_argument("--prompt", action="append", required=True, help="may be repeated")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
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
