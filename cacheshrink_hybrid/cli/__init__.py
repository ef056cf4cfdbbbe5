"""The console command `cacheshrink-hybrid`, one program per module of this package.

`parsers` says what each takes; a program's own module has `run(given)`, and is imported when its
arguments have been read and found to be of use.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

from ..errors import CacheShrinkError, CacheShrinkWarning
from ..version import __version__
from . import overwriting, preflight

INTERRUPTED = 130
"""Exit status of a program that was stopped by the keyboard, as shells have it."""
OUTPUT_CLOSED = 141
"""Exit status of a program whose reader went away, as `| head` does, as shells have it."""
PROGRAMS = {
    "demo": "convert the model that ships with the package, and show what it costs and saves",
    "inspect": "print what a model caches per layer, from its config",
    "convert": "rewrite a model so that it caches latents, and save it",
    "export": "write a converted model as a DeepSeek checkpoint for other engines",
    "finetune": "recover what compression lost, on text",
    "perplexity": "measure perplexity through the cache",
    "memory": "count the bytes of live caches",
    "recall": "measure how much a model remembers, by distance",
    "retrieval": "measure what models find in a long text, beside their source",
    "tasks": "ask questions of lm-eval through the cache",
    "states": "perplexity and recall against bytes of recurrent state",
    "sweep": "perplexity against stored bytes over ratios, methods and codes",
    "allocator": "replay request traces over cache allocators",
    "prefix": "serve requests that begin alike by strategies of prefix reuse",
    "throughput": "serve many requests with the engine, and one by one",
    "serve": "answer OpenAI's requests over HTTP",
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
    """Run `program` with its own arguments (None for those of the process).

    Arguments are read and checked before anything heavy is imported, and before any work.
    """
    parsers = import_module(f".parsers.{program}", __name__)
    parser = parsers.parser()
    try:
        given = getattr(parsers, "parse", ArgumentParser.parse_args)(parser, argv)
        faults = [*preflight.faults(parser, given), *overwriting.faults(parser, given)]
        if hasattr(parsers, "faults"):
            faults += parsers.faults(given)
        if faults:
            return _refused(faults)
        with _quiet():
            status = import_module(f".{program}", __name__).run(given)
        sys.stdout.flush()
        return status
    except CacheShrinkError as error:
        return _refused([str(error)])
    except BrokenPipeError:
        if _stdout_is_open():
            raise
        return OUTPUT_CLOSED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _stdout_is_open() -> bool:
    """False if nobody reads stdout any more; what is still to be written there is then dropped."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers says of every model it loads, and with our warnings as lines."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("always", CacheShrinkWarning)
        warnings.showwarning = partial(_show_warning, warnings.showwarning)
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()


def _show_warning(
    otherwise: Callable[..., None], message: Any, category: type[Warning], *place: Any, **more: Any
) -> None:
    if issubclass(category, CacheShrinkWarning):
        print(f"warning: {message}", file=sys.stderr)
    else:
        otherwise(message, category, *place, **more)


def _refused(faults: Sequence[str]) -> int:
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 2
