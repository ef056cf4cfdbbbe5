"""Serve many requests with the engine, and some of them one by one with generate().

    cacheshrink-hybrid throughput [MODEL] [--trace chat | FILE] [--requests 64] [--output DIR]

MODEL is a source or converted model; without it, the model that ships with the package is converted
at `--compression-ratio`. Prompts are cut from held-out documentation, with the lengths of a trace
up to --max-prompt and --max-output tokens, and greedy. Prints tokens per second of both, how many
outputs are equal, and the same for a pool of a quarter of the memory that all requests would take
at once, where requests are preempted. Writes throughput.json. About three minutes on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from ...config import DEFAULT_RATIO
from ...evaluation.allocation.traces import SYNTHETIC
from ...kernels.backend import Backend
from ..flags import add_model_arguments, new_parser
from ..preflight import Memory, NamedOrFile, OutputDirectory, ratio, seed, whole

OUTPUT = Path("cacheshrink-throughput")


def parser() -> argparse.ArgumentParser:
    made = new_parser("throughput", __doc__, "[MODEL]")
    add_model_arguments(made, optional=True)
    made.add_argument(
        "--compression-ratio",
        type=ratio(),
        default=None,
        help=f"of the shipped model, without MODEL (default: {DEFAULT_RATIO:g})",
    )
    made.add_argument(
        "--trace",
        type=NamedOrFile(SYNTHETIC),
        default="chat",
        help=f"lengths: one of {', '.join(SYNTHETIC)}, or a recorded file (default: chat)",
    )
    made.add_argument("--requests", type=whole(), default=64, help="to serve (default: 64)")
    made.add_argument(
        "--baseline-requests",
        type=whole(),
        default=16,
        help="of these, served one by one as well (default: 16)",
    )
    made.add_argument(
        "--max-prompt", type=whole(), default=256, help="tokens of a prompt (default: 256)"
    )
    made.add_argument(
        "--max-output", type=whole(), default=64, help="tokens of an output (default: 64)"
    )
    made.add_argument(
        "--cache-memory",
        type=Memory(),
        default="256MiB",
        help="of the engine, such as 2GiB, or 60%% of what is free (default: 256MiB)",
    )
    made.add_argument(
        "--backend",
        choices=get_args(Backend),
        default="auto",
        help="of decoding: Triton kernels, functions compiled for the CPU, or torch; auto takes "
        "those of the device (default: auto)",
    )
    made.add_argument("--seed", type=seed(), default=0, help="of the trace (default: 0)")
    made.add_argument(
        "--output",
        type=OutputDirectory(("throughput.json",)),
        default=OUTPUT,
        help=f"directory to write (default: {OUTPUT})",
    )
    return made


def faults(given: argparse.Namespace) -> Iterator[str]:
    if given.model is not None and given.compression_ratio is not None:
        yield (
            f"--compression-ratio {given.compression_ratio:g} is of the shipped model, and "
            f"{given.model} is served as it is; leave it out, or convert that model first"
        )
