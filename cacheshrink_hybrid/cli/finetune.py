"""The program `finetune`: train a converted model, or convert a source model and train it."""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml

from ..calibration.text import load_texts
from ..checkpoint.load_faults import is_converted_directory, weight_bytes
from ..checkpoint.save import save_mla_model
from ..config import CompressionConfig
from ..conversion.convert import convert_to_mla
from ..demo.corpus import PYTHON_DOCS
from ..errors import CacheShrinkWarning, ConfigError
from ..model.attached_plan import is_converted
from ..training import MLATrainer, TrainingConfig
from ..training.arguments import check_launcher
from ..training.output import check_writable
from ..writing import write_text
from .arguments import load_given
from .parsers.finetune import CHECKPOINTS, RESOLVED, conversion_settings, settings
from .plots import plot_losses
from .preflight import no_matplotlib
from .report import write_json

HELD_OUT_SHARE = 10
ONCE = ("config", "overwrite", "resume")
"""Flags of one run, which the resolved config leaves out."""


def run(given: argparse.Namespace) -> int:
    if given.loss is None:
        given.loss = "distillation" if _has_original(given) else "lm"
    output: Path = given.output
    chosen = settings(given)
    check_launcher(TrainingConfig.from_dict(chosen))
    first = int(os.environ.get("RANK", "0")) == 0
    check_writable(output, weight_bytes(given.model))
    texts, held_out = _documents(given)
    model, tokenizer = _model(given, texts)
    check_writable(output, 2 * sum(p.nbytes for p in model.parameters()))
    if first:
        resolved = {name: _plain(value) for name, value in vars(given).items() if name not in ONCE}
        write_text(output / RESOLVED, yaml.safe_dump(resolved))
    teacher = None
    if given.teacher is not None:
        teacher, _ = load_given(given, given.teacher, tokenizer=False)
    trainer = MLATrainer(
        model, tokenizer, teacher_model=teacher, output_dir=output / CHECKPOINTS, **chosen
    )
    stats = trainer.train(texts, eval_dataset=held_out, resume_from_checkpoint=given.resume)
    if first:
        save_mla_model(model, tokenizer, output / "model")
        write_json(output / "metrics.json", {"program": "finetune", "model": given.model, **stats})
        if not list(no_matplotlib()):
            plot_losses(
                output / "loss.png", stats["losses"], f"Fine-tuning by {trainer.config.loss}"
            )
        if stats["perplexity_last"] > stats["perplexity_after"]:
            kept = stats["kept_step"]
            warnings.warn(
                f"training ended at perplexity {stats['perplexity_last']:.4f}; the better weights "
                + (f"of step {kept} are kept" if kept else "from before training are kept")
                + (": it only got worse than before" if not kept else ""),
                CacheShrinkWarning,
                stacklevel=2,
            )
        elif stats["perplexity_after"] > stats["perplexity_before"]:
            warnings.warn("the model is worse than before", CacheShrinkWarning, stacklevel=2)
        print(
            f"perplexity {stats['perplexity_before']:.4f} -> {stats['perplexity_after']:.4f} on "
            f"{stats['perplexity_of']} text after {stats['steps']} steps, "
            f"{stats['tokens']} tokens, {stats['seconds']:.0f} s\nsaved to {output / 'model'}"
        )
    return 0


def _has_original(given: argparse.Namespace) -> bool:
    return given.teacher is not None or not is_converted_directory(given.model)


def _documents(given: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Training and held-out documents."""
    documents: list[str] = []
    for name in given.data:
        documents += load_texts(None, name, given.data_subset, num_samples=given.samples)
    if given.eval_data is not None:
        held_out = load_texts(
            None,
            given.eval_data,
            given.data_subset,
            num_samples=given.samples,
            split="test" if given.eval_data == PYTHON_DOCS else "train",
        )
        return documents, held_out
    if len(documents) < HELD_OUT_SHARE:
        raise ConfigError(
            f"the data has {len(documents)} documents, too few to hold a tenth out; give "
            "--eval-data, or more documents"
        )
    held_out = documents[HELD_OUT_SHARE - 1 :: HELD_OUT_SHARE]
    kept = [d for i, d in enumerate(documents) if i % HELD_OUT_SHARE != HELD_OUT_SHARE - 1]
    return kept, held_out


def _model(given: argparse.Namespace, texts: list[str]):
    """The converted model to train, and its tokenizer."""
    model, tokenizer = load_given(given, given.model)
    if is_converted(model):
        return model, tokenizer
    chosen = {"max_calibration_length": given.max_length} | conversion_settings(given)
    number = chosen.get("num_calibration_samples", CompressionConfig().num_calibration_samples)
    return convert_to_mla(
        model,
        tokenizer=tokenizer,
        calibration_texts=texts[:: max(1, len(texts) // number)][:number],
        store_original_weights=given.loss != "lm" and given.teacher is None,
        verbose=int(os.environ.get("RANK", "0")) == 0,
        **chosen,
    )


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, (Path, torch.dtype)) else value
