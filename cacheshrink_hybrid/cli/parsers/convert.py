"""Rewrite a model so that its attention caches latents, and save it.

    cacheshrink-hybrid convert MODEL OUTPUT --compression-ratio 4 --calibration-dataset FILE

Prints the plan and what it was calibrated on. Every setting of `convert_to_mla` has a flag of its
name.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from ...calibration.pair_files import load_pairs
from ...checkpoint.load_faults import weight_bytes
from ...config import CompressionConfig
from ...config_faults import allowed_names
from ...conversion.options import ConversionOptions
from ...demo.corpus import PYTHON_DOCS
from ...errors import CalibrationError, ConfigError
from ...methods import TABLES
from ..flags import NOT_SET, add_model_arguments, add_settings, new_parser
from ..preflight import ChatFile, DataSet, OutputDirectory, TextFile, too_little_space

GROUPS = {
    "how far, and what keys and values become": (
        "compression_ratio",
        "compression_method",
        "cache_bits",
        "d_latent",
        "qk_rope_head_dim",
        "rank_allocation",
        "budget_bytes",
        "context_length",
        "objective",
        "device_profile",
        "hadamard",
        "head_groups",
        "exact_sinks",
        "exact_window",
        "cross_layer_group_size",
        "xkv_skip_early_layers",
        "keep_early_layers_original",
    ),
    "recurrent states": ("state_ratio", "state_dtype", "state_method", "replay_length"),
    "calibration": (
        "num_calibration_samples",
        "max_calibration_length",
        "num_recall_samples",
        "metric",
        "fisher_labels",
        "metric_damping",
        "seed",
    ),
    "output": ("store_original_weights",),
}


def parser() -> argparse.ArgumentParser:
    made = new_parser("convert", __doc__, "MODEL OUTPUT")
    add_model_arguments(made, source=True)
    made.add_argument(
        "output", metavar="OUTPUT", type=OutputDirectory(model=True), help="directory to write"
    )
    for title, names in GROUPS.items():
        group = made.add_argument_group(title)
        if title == "calibration":
            group.add_argument(
                "--calibration-dataset",
                type=DataSet(),
                default=None,
                help="text to calibrate on, best of the kind that the model will read: a text "
                "file, a data set on the Hub, or Python's documentation "
                f"(default: {PYTHON_DOCS}, or the chats alone)",
            )
            group.add_argument(
                "--calibration-chats",
                type=ChatFile(),
                metavar="FILE",
                default=None,
                help="conversations to calibrate a chat model on, in its chat template: a JSON "
                "list of lists of messages with role and content, or JSON lines. Beside a "
                f"--calibration-dataset either gives half (default: {NOT_SET})",
            )
            add_settings(group, ConversionOptions, ("calibration_dataset_subset",))
            group.add_argument(
                "--calibration-pairs",
                type=TextFile(),
                metavar="FILE",
                default=None,
                help="pairs of texts to calibrate an encoder-decoder model on: a JSON list of "
                f"objects, or JSON lines (default: {NOT_SET})",
            )
            group.add_argument(
                "--pair-fields",
                nargs=2,
                metavar=("INPUT", "TARGET"),
                default=None,
                help="names of what the encoder reads and of what the decoder is to give in these "
                f"objects (default: {' '.join(ConversionOptions().pair_fields)})",
            )
        add_settings(group, CompressionConfig, names, choices=allowed_names(), tables=TABLES)
        if title == "output":
            add_settings(group, ConversionOptions, ("self_check",))
    return made


def faults(given: argparse.Namespace) -> Iterator[str]:
    try:
        CompressionConfig(**settings(given))
    except ConfigError as error:
        yield str(error)
    yield from _pair_faults(given)
    yield from too_little_space(given.output, weight_bytes(given.model))


def pair_fields(given: argparse.Namespace) -> tuple[str, ...]:
    return tuple(given.pair_fields or ConversionOptions().pair_fields)


def _pair_faults(given: argparse.Namespace) -> Iterator[str]:
    """What is wrong with a file of pairs, beside what its type has found."""
    path = given.calibration_pairs
    if path is None:
        if given.pair_fields is not None:
            yield "--pair-fields are of a file of pairs; give one with --calibration-pairs"
        return
    if any(TextFile().faults(path)):
        return
    try:
        load_pairs(path, pair_fields(given))
    except CalibrationError as error:
        yield f"--calibration-pairs: {error}"


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """The fields of a `CompressionConfig`."""
    return {field.name: getattr(given, field.name) for field in fields(CompressionConfig)}
