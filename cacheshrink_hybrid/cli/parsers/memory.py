"""Fill real caches and count their bytes (keys and values, states, both), next to the plan's.

Counts are those of the tensors as they lie in memory, in the dtype of the model. Ratios are against
the source's keys and values at 16 bits and its states as models keep them (float32), as
everywhere. `pooled` is what the same sequences take in the pool that `generate()` and the engine
cache in: whole frames, with keys, values and states together. A second table has what the plan says
at 1k, 8k and 32k tokens, at 16 bits for what is not coded.

cacheshrink-hybrid memory MODEL [MODEL ...] --lengths 128 512 1024 --json out.json
"""

from __future__ import annotations

import argparse

from ...evaluation.defaults import DEFAULT_LENGTHS
from ..flags import NOT_SET, add_model_arguments, new_parser
from ..preflight import OutputFile, whole


def parser() -> argparse.ArgumentParser:
    made = new_parser("memory", __doc__, "MODEL [MODEL ...]")
    add_model_arguments(made, several=True)
    made.add_argument(
        "--lengths",
        type=whole(2),
        nargs="+",
        default=list(DEFAULT_LENGTHS),
        help=f"tokens per sequence (default: {' '.join(map(str, DEFAULT_LENGTHS))})",
    )
    made.add_argument(
        "--batch-size", type=whole(), default=1, help="sequences at once (default: 1)"
    )
    made.add_argument(
        "--json",
        type=OutputFile(),
        default=None,
        help=f"write the results here (default: {NOT_SET})",
    )
    return made
