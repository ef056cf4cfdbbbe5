"""Trainings in two processes, each with whole and with cut frozen weights, for tests.

For each NAME in `TRAININGS`, way (`whole`, `cut`, and for one `resumed`: cut, from the second step
on) and process RANK they leave `NAME.WAY.RANK.pt`: the results of `trained`, and by how much the
bytes of all tensors grew from before the training to a step behind the first.
"""

from __future__ import annotations

import copy
import gc
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from cacheshrink_hybrid.training import MLATrainer
from cacheshrink_hybrid.training.attachment import BASES
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, random_ids


@dataclass(frozen=True)
class Training:
    case: str
    settings: dict[str, Any]
    conversion: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    has_teacher: bool = False

    def model(self) -> PreTrainedModel:
        settings = {"store_original_weights": not self.has_teacher, **self.conversion}
        return converted_copy(tiny_model(self.case), 4.0, **settings).to(self.dtype)


TRAININGS = {
    "attention": Training("llama", {"loss": "distillation"}),
    "hybrid": Training(
        "falcon_h1",
        {"loss": "distillation", "gradient_checkpointing": True},
        {"state_ratio": 2.0, "state_dtype": "float32"},
    ),
    "teacher": Training(
        "gpt2",
        {"loss": "reconstruction", "gradient_accumulation_steps": 2},
        dtype=torch.bfloat16,
        has_teacher=True,
    ),
}
WAYS = {name: ("whole", "cut") for name in TRAININGS} | {"attention": ("whole", "cut", "resumed")}
SETTINGS = {"max_steps": 4, "logging_steps": 1, "save_steps": 2, "eval_steps": 2, "seed": 1}


def texts() -> list[Tensor]:
    """Of unequal lengths, and not a multiple of the batch."""
    return [random_ids(1, 20 - i, seed=i)[0] for i in range(10)]


def trained(
    training: Training, model: PreTrainedModel, output: Path, *, resume: bool = False, **settings
) -> dict[str, Any]:
    teacher = tiny_model(training.case).to(training.dtype) if training.has_teacher else None
    trainer = MLATrainer(
        model,
        None,
        teacher_model=teacher,
        output_dir=output,
        **SETTINGS,
        **training.settings,
        **settings,
    )
    stats = trainer.train(texts(), eval_dataset=texts()[:5], resume_from_checkpoint=resume)
    return {"stats": stats, "weights": model.state_dict()}


def live_bytes() -> int:
    """Of all tensors in this process."""
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if issubclass(type(found), Tensor):
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def measured(
    training: Training, source: PreTrainedModel, output: Path, **settings
) -> dict[str, Any]:
    """As `trained`, of a copy of `source`, with `grown_bytes`: the least from the second pass on,
    since what one process sends may be alive a little longer while the other one is late."""
    model = copy.deepcopy(source)
    passes = 0
    grown_bytes: float = math.inf
    before = live_bytes()

    def see(module: nn.Module, _args) -> None:
        nonlocal passes, grown_bytes
        if hasattr(module, BASES) and torch.is_grad_enabled():
            passes += 1
            if passes >= 2:
                grown_bytes = min(grown_bytes, live_bytes() - before)

    hook = model.register_forward_pre_hook(see)
    found = trained(training, model, output, batch_size=2, **settings)
    hook.remove()
    return {**copy.deepcopy(found), "grown_bytes": grown_bytes}


def train_whole_and_cut(name: str, output: Path) -> None:
    """In every process of a group."""
    source = TRAININGS[name].model()
    for way in WAYS[name]:
        if way == "resumed":
            if dist.get_rank() == 0:
                shutil.copytree(
                    output / name / "cut" / "checkpoint-2", output / name / way / "checkpoint-2"
                )
            dist.barrier()
        found = measured(
            TRAININGS[name],
            source,
            output / name / way,
            shard_frozen_weights=way != "whole",
            resume=way == "resumed",
        )
        torch.save(found, output / f"{name}.{way}.{dist.get_rank()}.pt")
