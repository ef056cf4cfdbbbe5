"""Measure whether models find in a long text what it holds, the first model beside the others.

    cacheshrink-hybrid retrieval MODEL [MODEL ...] --lengths 1024 2048 --json out.json

Task "needle" hides a few sentences with codes in a running text; task "keys" is a list of words and
their codes. Models answer in their chat template, or in plain text without one, and read the text
chunk by chunk through the cache that generation uses. All get the same prompts. Prints, by task
and length, the share of exact answers (greedy), the mean log-probability of a code's tokens and
the share of those than which none is more likely, and how far each lies from the first model's
with its standard error, question by question; and which tokens were read exactly. What the first
model cannot find tells nothing of what the others lost.
"""

from __future__ import annotations

import argparse

from ...evaluation.defaults import DEFAULT_CHUNK, RETRIEVAL_LENGTHS, RETRIEVAL_TASKS
from ..flags import NOT_SET, add_model_arguments, add_text_arguments, new_parser
from ..preflight import OutputFile, seed, whole


def parser() -> argparse.ArgumentParser:
    made = new_parser("retrieval", __doc__, "MODEL [MODEL ...]")
    add_model_arguments(made, several=True)
    made.add_argument(
        "--tasks",
        nargs="+",
        choices=RETRIEVAL_TASKS,
        default=list(RETRIEVAL_TASKS),
        help=f"what is to be found (default: {' '.join(RETRIEVAL_TASKS)})",
    )
    made.add_argument(
        "--lengths",
        type=whole(),
        nargs="+",
        default=None,
        help="tokens of a prompt and its answer (default: those of "
        f"{' '.join(map(str, RETRIEVAL_LENGTHS))} that the first model has positions for)",
    )
    made.add_argument("--texts", type=whole(), default=8, help="per task and length (default: 8)")
    made.add_argument("--questions", type=whole(), default=2, help="about each text (default: 2)")
    made.add_argument(
        "--chunk-length",
        type=whole(),
        default=DEFAULT_CHUNK,
        help=f"tokens per pass (default: {DEFAULT_CHUNK})",
    )
    made.add_argument(
        "--seed", type=seed(), default=0, help="of texts, codes and depths (default: 0)"
    )
    add_text_arguments(made)
    made.add_argument(
        "--json",
        type=OutputFile(),
        default=None,
        help=f"write the results here (default: {NOT_SET})",
    )
    return made
