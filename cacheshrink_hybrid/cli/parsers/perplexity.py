"""Measure perplexity through the cache that generation uses, for one or more models.

    cacheshrink-hybrid perplexity MODEL [MODEL ...] --text FILE --json out.json --plot out.png

Prints a table (bytes of keys and values per token and of states per sequence, both together at 1k,
8k and 32k tokens, ratios, perplexity, change against the first model with the same tokenizer);
--by-position adds perplexity by position in the window. The plot shows perplexity against bytes, of
the models that have the first one's tokenizer.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ...evaluation.defaults import DEFAULT_CHUNK
from ..flags import NOT_SET, add_model_arguments, add_text_arguments, new_parser
from ..preflight import OutputFile, Plot, whole


def parser() -> argparse.ArgumentParser:
    made = new_parser("perplexity", __doc__, "MODEL [MODEL ...]")
    add_model_arguments(made, several=True)
    add_text_arguments(made)
    made.add_argument(
        "--max-length", type=whole(2), default=512, help="tokens per window (default: 512)"
    )
    made.add_argument(
        "--stride",
        type=whole(),
        default=None,
        help="tokens between the starts of windows (default: --max-length)",
    )
    made.add_argument("--batch-size", type=whole(), default=1, help="windows at once (default: 1)")
    made.add_argument(
        "--chunk-length",
        type=whole(),
        default=DEFAULT_CHUNK,
        help=f"tokens per pass (default: {DEFAULT_CHUNK})",
    )
    made.add_argument(
        "--by-position", action="store_true", help="also by position in the window (default: off)"
    )
    made.add_argument(
        "--json",
        type=OutputFile(),
        default=None,
        help=f"write the results here (default: {NOT_SET})",
    )
    made.add_argument(
        "--plot", type=Plot(), default=None, help=f"write the plot here (default: {NOT_SET})"
    )
    return made


def faults(given: argparse.Namespace) -> Iterator[str]:
    if given.stride is not None and given.stride > given.max_length:
        yield (
            f"--stride {given.stride} is above --max-length {given.max_length} and would skip "
            "tokens; give less"
        )
