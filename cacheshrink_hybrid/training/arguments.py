"""What the loop of transformers is told: device, precision, schedule, processes."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from ..errors import ConfigError
from .settings import TrainingConfig


def check_launcher(config: TrainingConfig) -> None:
    """Raise `ConfigError` if accelerate was told to cut all parameters into pieces, or if frozen
    ones are to be cut and there is one process."""
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ("1", "true", "yes"):
            raise ConfigError(
                f"{name} cuts all parameters into pieces, and those of a basis lie on no manifold; "
                "launch with torchrun, or with an accelerate config for several processes without "
                "it, and set shard_frozen_weights (--shard-frozen-weights) to cut what is frozen"
            )
    if config.shard_frozen_weights and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise ConfigError(
            "shard_frozen_weights cuts weights over several processes, and this is the only one; "
            "launch with torchrun --nproc-per-node N or accelerate launch, or leave it out"
        )


def training_arguments(config: TrainingConfig, directory: Path, bf16: bool) -> TrainingArguments:
    quiet = config.report_to == "none" and not sys.stderr.isatty()
    arguments = TrainingArguments(
        output_dir=str(directory),
        num_train_epochs=config.num_epochs,
        max_steps=-1 if config.max_steps is None else config.max_steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=1.0,  # every group has its own
        warmup_steps=config.warmup_steps,
        lr_scheduler_type=config.lr_scheduler_type,
        max_grad_norm=config.max_grad_norm,
        bf16=bf16,
        use_cpu=not torch.accelerator.is_available(),
        **_checkpointing(config.gradient_checkpointing),
        eval_strategy="no" if config.eval_steps is None else "steps",
        eval_steps=config.eval_steps,
        save_strategy="no" if config.save_steps is None else "steps",
        save_steps=config.save_steps or 500,
        save_total_limit=config.save_total_limit,
        load_best_model_at_end=config.early_stopping_patience is not None,
        metric_for_best_model="eval_perplexity" if config.early_stopping_patience else None,
        greater_is_better=False if config.early_stopping_patience else None,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        report_to=config.report_to,
        remove_unused_columns=False,
        label_names=["labels"],
        seed=config.seed,
        data_seed=config.seed,
        disable_tqdm=quiet,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    if arguments.n_gpu > 1:
        raise ConfigError(
            f"one process sees {arguments.n_gpu} devices; start one process per device with "
            "torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES"
        )
    return arguments


def _checkpointing(wanted: bool) -> dict[str, Any]:
    """Recomputation of activations, under the name that this version of transformers has for it."""
    name = "activation_checkpointing"
    if name not in TrainingArguments.__dataclass_fields__:
        name = "gradient_checkpointing"
    return {name: True, f"{name}_kwargs": {"use_reentrant": False}} if wanted else {}


def computes_in_bf16(config: TrainingConfig, model: nn.Module) -> bool:
    own = next(model.parameters()).dtype
    if own == torch.bfloat16 and config.bf16 is False:
        raise ConfigError("the model is in bfloat16; leave bf16 out, or load it in float32")
    return own == torch.bfloat16 if config.bf16 is None else config.bf16


def autocast(arguments: TrainingArguments):
    if not arguments.bf16:
        return nullcontext()
    return torch.autocast(arguments.device.type, dtype=torch.bfloat16)
