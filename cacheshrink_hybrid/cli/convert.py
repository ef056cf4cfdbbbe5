"""Rewrite a model so that its attention caches latents, and save it.

    cacheshrink-hybrid convert MODEL OUTPUT --compression-ratio 4 --calibration-dataset FILE

Prints the plan. Every setting of `convert_to_mla` has a flag of its name.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path

import torch

from ..calibrate.text import PYTHON_DOCS
from ..checkpoint import save_mla_model
from ..codecs.row_format import SCALES
from ..codecs.state import STATE_CODES
from ..config import (
    METHODS,
    METRICS,
    OBJECTIVES,
    RANK_ALLOCATIONS,
    STATE_METHODS,
    CompressionConfig,
)
from ..convert import convert_to_mla
from .arguments import add_model_arguments

CHOICES = {
    "compression_method": METHODS,
    "metric": METRICS,
    "objective": OBJECTIVES,
    "scales": SCALES,
    "rank_allocation": RANK_ALLOCATIONS,
    "state_dtype": ("auto", *STATE_CODES),
    "state_method": STATE_METHODS,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="cacheshrink-hybrid convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser)
    parser.add_argument("output", metavar="OUTPUT", help="directory to write")
    parser.add_argument(
        "--calibration-dataset",
        default=PYTHON_DOCS,
        help=f"text file, {PYTHON_DOCS}, or a data set (default: {PYTHON_DOCS})",
    )
    parser.add_argument("--calibration-dataset-subset", default=None)
    for field in fields(CompressionConfig):
        flag = "--" + field.name.replace("_", "-")
        default = None if field.default is MISSING else field.default
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        elif default is None:  # d_latent, num_recall_samples and the like
            parser.add_argument(flag, type=int, default=None)
        elif field.name == "cache_bits":
            parser.add_argument(flag, type=_bits, default=default, help="(default: auto)")
        else:
            parser.add_argument(
                flag,
                type=type(default),
                default=default,
                choices=CHOICES.get(field.name),
                help=f"(default: {default})",
            )
    given = vars(parser.parse_args(argv))
    name, output, dtype = given.pop("model"), Path(given.pop("output")), given.pop("dtype")
    model, tokenizer = convert_to_mla(
        name,
        dtype=None if dtype == "auto" else getattr(torch, dtype),
        use_calibration=given["metric"] != "none",
        **given,
    )
    save_mla_model(model, tokenizer, output)
    print(f"saved to {output}")
    return 0


def _bits(text: str) -> int | str:
    return int(text) if text.isdigit() else text
