"""Perplexity against stored bytes, over ratios, methods, metrics and codes, with baselines.

    cacheshrink-hybrid sweep MODEL --text test.txt --calibration train.txt --output DIR

For each combination the source model is converted and measured through its live cache. Baselines
on the same text: keys and values rounded to 8 and 4 bits as they are, and latents at 16 bits (rank
alone). With --state-ratios, recurrent states shrink too, in every combination with --ratios.
Writes sweep.json, sweep.md and sweep.png; the plot marks the front, the points that nothing beats
in bytes and in perplexity at once. The two files are renewed after every point.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path

from ...config import CompressionConfig
from ...demo.corpus import PYTHON_DOCS
from ...errors import ConfigError
from ...methods import AUTO, LATENT_KINDS, METRICS, WIDTHS_OF, choices
from ..flags import add_model_arguments, add_text_arguments, bits, new_parser
from ..preflight import DataSet, OutputDirectory, ratio, seed, whole

RATIOS = (2.0, 4.0, 8.0, 12.0, 16.0)
OUTPUT = Path("cacheshrink-sweep")
FILES = ("sweep.json", "sweep.md", "sweep.png")


def parser() -> argparse.ArgumentParser:
    made = new_parser("sweep", __doc__, "MODEL")
    add_model_arguments(made, source=True)
    made.add_argument(
        "--ratios",
        type=ratio(),
        nargs="+",
        default=list(RATIOS),
        help=f"of KV bytes (default: {' '.join(f'{r:g}' for r in RATIOS)})",
    )
    made.add_argument(
        "--state-ratios",
        type=ratio(),
        nargs="+",
        default=[1.0],
        help="of state bytes (default: 1)",
    )
    made.add_argument(
        "--methods",
        nargs="+",
        choices=choices(LATENT_KINDS),
        default=[AUTO],
        help=f"values of compression_method (default: {AUTO})",
    )
    made.add_argument(
        "--metrics",
        nargs="+",
        choices=tuple(METRICS),
        default=["fisher"],
        help="what counts as loss (default: fisher)",
    )
    made.add_argument(
        "--bits", nargs="+", default=["auto", "16"], help="values of cache_bits (default: auto 16)"
    )
    made.add_argument(
        "--output",
        type=OutputDirectory(FILES, plots=True),
        default=OUTPUT,
        help=f"directory to write (default: {OUTPUT})",
    )
    made.add_argument("--seed", type=seed(), default=0, help="of calibration (default: 0)")
    add_text_arguments(made)
    made.add_argument(
        "--max-length",
        type=whole(2),
        default=512,
        help="tokens per window, of calibration too (default: 512)",
    )
    made.add_argument("--batch-size", type=whole(), default=4, help="windows at once (default: 4)")
    group = made.add_argument_group("calibration")
    group.add_argument(
        "--calibration",
        type=DataSet(),
        default=PYTHON_DOCS,
        help=f"text file or data set to calibrate on (default: {PYTHON_DOCS})",
    )
    group.add_argument(
        "--calibration-samples", type=whole(), default=128, help="its documents (default: 128)"
    )
    return made


def faults(given: argparse.Namespace) -> Iterator[str]:
    unknown = [text for text in given.bits if bits(text) not in WIDTHS_OF]
    for text in unknown:
        allowed = ", ".join(map(str, WIDTHS_OF))
        yield f"--bits {text} is no value of cache_bits; choose from {allowed}"
    if not unknown:
        yield from dict.fromkeys(_faults_together(given))


def _faults_together(given: argparse.Namespace) -> Iterator[str]:
    """What settings that are combined say of each other, at a ratio that all may have."""
    for method, metric, text in itertools.product(given.methods, given.metrics, given.bits):
        try:
            CompressionConfig(
                compression_method=method, metric=metric, cache_bits=bits(text), seed=given.seed
            )
        except ConfigError as error:
            yield f"--methods {method} --metrics {metric} --bits {text}: {error}"
