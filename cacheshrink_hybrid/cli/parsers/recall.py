"""Measure how much of what a model has read it can say again, by distance in tokens.

    cacheshrink-hybrid recall MODEL [MODEL ...] --distances 64 256 1024 --json out.json

Exercises: strings of random letters and passages of text that return, and key: value lists that
are asked again. Accuracy is the share of remembered tokens that the model predicts. An exercise
that the first model cannot do, at the accuracy of guessing, tells nothing of what the others lost.
"""

from __future__ import annotations

import argparse

from ...calibration.exercises import RECALL_KINDS
from ...evaluation.defaults import DEFAULT_DISTANCES
from ..flags import NOT_SET, add_model_arguments, new_parser
from ..preflight import OutputFile, seed, whole


def parser() -> argparse.ArgumentParser:
    made = new_parser("recall", __doc__, "MODEL [MODEL ...]")
    add_model_arguments(made, several=True)
    made.add_argument(
        "--distances",
        type=whole(),
        nargs="+",
        default=list(DEFAULT_DISTANCES),
        help="tokens between what is shown and its return "
        f"(default: {' '.join(map(str, DEFAULT_DISTANCES))})",
    )
    made.add_argument(
        "--kinds",
        nargs="+",
        choices=RECALL_KINDS,
        default=list(RECALL_KINDS),
        help=f"what is to be remembered (default: {' '.join(RECALL_KINDS)})",
    )
    made.add_argument(
        "--exercises", type=whole(), default=16, help="per kind and distance (default: 16)"
    )
    made.add_argument(
        "--seed", type=seed(), default=0, help="of what is to be remembered (default: 0)"
    )
    made.add_argument(
        "--json",
        type=OutputFile(),
        default=None,
        help=f"write the results here (default: {NOT_SET})",
    )
    return made
