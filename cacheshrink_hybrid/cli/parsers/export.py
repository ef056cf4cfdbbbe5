"""Write a converted model as a DeepSeek-V3 checkpoint, which other engines load by themselves.

    cacheshrink-hybrid convert MODEL CONVERTED --compression-method decoupled_rope
    cacheshrink-hybrid export CONVERTED OUTPUT

The checkpoint computes what the converted model does, and is compared with it before it is written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from ...checkpoint.load_faults import is_converted_directory
from ..flags import NOT_SET, add_model_arguments, new_parser
from ..preflight import OutputDirectory, whole


def parser() -> argparse.ArgumentParser:
    made = new_parser("export", __doc__, "MODEL OUTPUT")
    add_model_arguments(made)
    made.add_argument(
        "output", metavar="OUTPUT", type=OutputDirectory(model=True), help="directory to write"
    )
    made.add_argument(
        "--pad-to",
        nargs=2,
        type=whole(2),
        default=None,
        metavar=("KV_LORA_RANK", "QK_ROPE_HEAD_DIM"),
        help="fill latents and rotary keys up with zeros, for kernels that take one width only, "
        f"such as 512 64 (default: {NOT_SET})",
    )
    return made


def faults(given: argparse.Namespace) -> Iterator[str]:
    if not is_converted_directory(given.model):
        yield f"MODEL: {given.model} is not converted; run `cacheshrink-hybrid convert` first"
