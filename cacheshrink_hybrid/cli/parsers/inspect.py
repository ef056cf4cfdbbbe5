"""Print what a model remembers per layer, from its config alone; no weights are loaded.

    cacheshrink-hybrid inspect MODEL [--lengths 1024 8192] [--kv-ratio 4 --state-ratio 4]
    cacheshrink-hybrid inspect eval/configs/*.json --kv-ratio 4 --state-ratio 4
    cacheshrink-hybrid inspect MODEL --try-row

Several models are printed as one table, a line each. One of which nothing is known has a line on
stderr in its place, and the status is 2 in the end.

MODEL is a config.json or a directory with one (of a source or a converted model), or a name on the
Hub. Keys and values grow with the tokens and are counted at 16 bits; recurrent states do not grow
and are counted in float32, as models keep them. Models that are not converted and of which it is
known what they remember are shown too, with the reason that `convert` gives: of some families, and
of models with other parts around a text model that is known.

With --try-row, rows for the table of families are guessed from how the model's attention is built,
and tried on a small model of the same config with random weights, which takes seconds, and of wide
models up to two minutes: each layer, rebuilt by a row, must compute what it computed before. What
is printed is the row that does so, or the one that comes nearest, and by how much it fails; the
status is 1 then. Of a model with other parts its text model is tried.
"""

from __future__ import annotations

import argparse

from ..flags import NOT_SET, add_remote_code_flag, new_parser
from ..preflight import Model, ratio, whole

LENGTHS = [1024, 8192, 32768, 131072]


def parser() -> argparse.ArgumentParser:
    made = new_parser("inspect", __doc__, "MODEL [MODEL ...]")
    made.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        type=Model(config_file=True),
        help="directory with a config.json, such a file, or a name on the Hub",
    )
    made.add_argument(
        "--lengths",
        type=whole(),
        nargs="+",
        default=LENGTHS,
        help=f"context lengths in tokens (default: {' '.join(map(str, LENGTHS))})",
    )
    made.add_argument(
        "--kv-ratio",
        type=ratio(),
        default=None,
        help=f"also show keys and values divided by this (default: {NOT_SET})",
    )
    made.add_argument(
        "--state-ratio",
        type=ratio(),
        default=None,
        help=f"also show states divided by this (default: {NOT_SET})",
    )
    made.add_argument(
        "--try-row",
        action="store_true",
        help="guess a row for a family that is not supported yet, and try it (default: off)",
    )
    add_remote_code_flag(made)
    return made
