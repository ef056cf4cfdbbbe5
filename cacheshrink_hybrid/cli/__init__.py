"""The console command `cacheshrink-hybrid`, one program per module of this package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from ..errors import CacheShrinkError
from ..version import __version__

PROGRAMS = {
    "demo": "convert the model that ships with the package, and show what it costs and saves",
    "inspect": "print what a model caches per layer, from its config",
    "convert": "rewrite a model so that it caches latents, and save it",
    "finetune": "recover what compression lost, on text",
    "perplexity": "measure perplexity through the cache",
    "memory": "count the bytes of live caches",
    "recall": "measure how much a model remembers, by distance",
    "states": "perplexity and recall against bytes of recurrent state",
    "sweep": "perplexity against stored bytes over ratios, methods and codes",
    "allocator": "replay request traces over cache allocators",
    "throughput": "serve many requests with the engine, and one by one",
    "generate": "continue a prompt",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one program; returns its exit status, 2 for errors that a user can mend."""
    parser = argparse.ArgumentParser(
        prog="cacheshrink-hybrid",
        description="Compress what Hugging Face language models remember.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="programs:\n"
        + "\n".join(f"  {name:12s}{purpose}" for name, purpose in PROGRAMS.items()),
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("program", choices=PROGRAMS, metavar="PROGRAM")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    given = parser.parse_args(argv)
    return run(given.program, given.arguments)


def run(program: str, argv: Sequence[str] | None) -> int:
    """Run `program` with its own arguments (None for those of the process)."""
    try:
        return import_module(f".{program}", __name__).main(argv)
    except CacheShrinkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
