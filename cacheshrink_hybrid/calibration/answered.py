"""Which exercises in remembering a model can do: what it does not remember, no code can lose.

Errors on the others are large and say nothing, and calibration would spend bits on them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ..placement import input_device
from ..precision import fast_products
from .exercises import RecallExercise

RECALLED_SHARE = 0.5
"""Share of an exercise's answers that a model finds which can do it."""


@torch.no_grad()
def answered(model: PreTrainedModel, exercises: Sequence[RecallExercise]) -> list[RecallExercise]:
    """The exercises of which the model, in evaluation mode, recalls at least half of what is
    asked."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        return [exercise for exercise in exercises if _recalled(model, exercise) >= RECALLED_SHARE]
    finally:
        for module in training:
            module.training = True


def _recalled(model: PreTrainedModel, exercise: RecallExercise) -> float:
    """Share of the answers that are the likeliest tokens; 0 of none."""
    if not exercise.answer_positions:
        return 0.0
    ids = torch.tensor([exercise.token_ids], device=input_device(model))
    with fast_products(next(model.parameters())):
        likeliest = model(input_ids=ids, use_cache=False).logits[0].argmax(-1)
    asked = torch.tensor(exercise.answer_positions, device=likeliest.device)
    return (likeliest[asked - 1] == ids[0].to(likeliest.device)[asked]).float().mean().item()
