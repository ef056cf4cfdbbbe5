"""Tiny converted models, and texts that they can learn."""

from __future__ import annotations

import copy

import torch

from cacheshrink_hybrid.certificate import Certificate
from cacheshrink_hybrid.training import MLATrainer
from tests.models import pair, random_ids

CERTIFICATE = Certificate.of_losses(
    [1.0, 2.0], [1.1, 2.1], num_tokens=30, num_reading_coded=20, self_check=True
)
"""Of no conversion, to see what becomes of one."""


def dataset(count: int = 6, length: int = 16) -> list[torch.Tensor]:
    """Texts of a bigram language, so that there is something to learn."""
    rows = [random_ids(1, length, seed=i)[0] for i in range(count)]
    for ids in rows:
        ids[1::2] = (ids[::2] * 7 + 5) % 96
    return rows


def student(case: str = "llama", ratio: float = 4.0, method: str = "joint", **settings):
    settings = {"store_original_weights": True, **settings}
    return copy.deepcopy(pair(case, method, ratio, **settings).converted)


def train(model, **settings):
    texts = settings.pop("texts", None) or dataset()
    arguments = {key: settings.pop(key) for key in ("resume_from_checkpoint",) if key in settings}
    settings = {"max_steps": 3, "batch_size": 2, "logging_steps": 1, **settings}
    return MLATrainer(model, None, **settings).train(texts, **arguments)


def losses(stats) -> list[float]:
    return [record["loss"] for record in stats["losses"] if "loss" in record]
