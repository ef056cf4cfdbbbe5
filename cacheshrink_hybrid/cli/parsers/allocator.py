"""Replay request traces over cache allocators, for seven hybrid models by their published sizes.

    cacheshrink-hybrid allocator [--requests 800] [--traces churn FILE ...] [--output DIR]

For each trace, model and width (keys and values as they are with bfloat16 states, or latents at 4x
with int8 states) every allocator gets the same bytes and the same requests, first come, first
served. `bytes alone` is no allocator, but the bound of them all. Printed: mean running sequences
while others wait, useful bytes of the arena, preemptions, bytes moved, and requests that never fit;
then how many times as many sequences frames run, next to what the bound allows. Another table has
the figures of simulators that admit without asking, next to the requests that are corrupted there.
Then the time per call of the frame ledger. Writes allocator.json, allocator.md and allocator.png.
Two minutes on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ...evaluation.allocation.traces import SYNTHETIC
from ...evaluation.reference_models import REFERENCE_MODELS
from ..flags import new_parser
from ..preflight import NamedOrFile, OutputDirectory, seed, whole

OUTPUT = Path("cacheshrink-allocator")
FILES = ("allocator.json", "allocator.md", "allocator.png")


def parser() -> argparse.ArgumentParser:
    made = new_parser("allocator", __doc__, "")
    names = [model.name for model in REFERENCE_MODELS]
    made.add_argument(
        "--traces",
        nargs="+",
        type=NamedOrFile(SYNTHETIC),
        default=list(SYNTHETIC),
        help=f"of {', '.join(SYNTHETIC)}, or files in the formats of Azure, Mooncake or ShareGPT "
        "lengths (default: all synthetic ones)",
    )
    made.add_argument(
        "--models", nargs="+", choices=names, default=names, help="models to serve (default: all)"
    )
    made.add_argument("--requests", type=whole(), default=800, help="per trace (default: 800)")
    made.add_argument(
        "--concurrency",
        type=whole(),
        default=40,
        help="requests of mean size that the memory is made for (default: 40)",
    )
    made.add_argument("--seed", type=seed(), default=0, help="of the traces (default: 0)")
    made.add_argument(
        "--output",
        type=OutputDirectory(FILES, plots=True),
        default=OUTPUT,
        help=f"directory to write (default: {OUTPUT})",
    )
    return made
