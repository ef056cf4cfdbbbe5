"""Convert the model that ships with the package, and show what that costs and saves.

    cacheshrink-hybrid demo --output DIR [--ratios 2 4 8 16] [--full]

For the source model and each ratio: perplexity on documentation it has never seen, recall of what
it read 64, 256 and 1024 tokens ago, and the bytes of a live bfloat16 cache of 1024 tokens. Then
text from the model at ratio 4 (or the nearest), which is saved, loaded again and compared bit for
bit. One thread computes, unless OMP_NUM_THREADS says otherwise: the model is too small for two.
Writes results.json, tradeoff.png and the converted model. The source's figures come within half a
minute, the rest within two; --full reads all documents and twice the exercises, in about three.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..flags import new_parser
from ..preflight import OutputDirectory, ratio

OUTPUT = Path("cacheshrink-demo")
FILES = ("results.json", "tradeoff.png")
RATIOS = [2.0, 4.0, 8.0, 16.0]


def parser() -> argparse.ArgumentParser:
    made = new_parser("demo", __doc__, "")
    made.add_argument(
        "--output",
        type=OutputDirectory(FILES, model=True, plots=True),
        default=OUTPUT,
        help=f"directory to write (default: {OUTPUT})",
    )
    made.add_argument(
        "--ratios",
        type=ratio(),
        nargs="+",
        default=RATIOS,
        help="times fewer bytes of keys and values (default: 2 4 8 16)",
    )
    made.add_argument(
        "--full", action="store_true", help="all documents, twice the exercises (default: off)"
    )
    return made
