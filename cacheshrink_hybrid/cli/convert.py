"""The program `convert`: rewrite a model and save it."""

from __future__ import annotations

import argparse

import torch

from ..checkpoint.save import save_mla_model
from ..conversion.convert import convert_to_mla
from ..methods import METRICS
from .parsers.convert import pair_fields, settings


def run(given: argparse.Namespace) -> int:
    model, tokenizer = convert_to_mla(
        given.model,
        device=given.device,
        dtype=None if given.dtype == "auto" else getattr(torch, given.dtype),
        trust_remote_code=given.trust_remote_code,
        use_calibration=METRICS[given.metric].reads_text,
        calibration_dataset=given.calibration_dataset,
        calibration_dataset_subset=given.calibration_dataset_subset,
        calibration_chats=given.calibration_chats,
        calibration_inputs=given.calibration_pairs,
        pair_fields=pair_fields(given),
        self_check=given.self_check,
        **settings(given),
    )
    save_mla_model(model, tokenizer, given.output)
    print(f"saved to {given.output}")
    return 0
