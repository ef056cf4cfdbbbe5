"""Continue a prompt with a source or converted model.

cacheshrink-hybrid generate MODEL --prompt "Once upon a time" --max-new-tokens 64
"""

from __future__ import annotations

import argparse

from ..flags import add_model_arguments, new_parser
from ..preflight import Number, seed, whole


def parser() -> argparse.ArgumentParser:
    made = new_parser("generate", __doc__, "MODEL --prompt PROMPT")
    add_model_arguments(made)
    made.add_argument(
        "--prompt", action="append", required=True, help="text to continue; may be repeated"
    )
    made.add_argument(
        "--max-new-tokens", type=whole(), default=64, help="tokens to add (default: 64)"
    )
    made.add_argument(
        "--temperature",
        type=Number(float, 0.0),
        default=0.0,
        help="randomness of the choice; 0 is greedy (default: 0)",
    )
    made.add_argument("--seed", type=seed(), default=0, help="of random choices (default: 0)")
    return made
