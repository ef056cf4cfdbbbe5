"""Measuring what a conversion cost, on the text that was held out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..cache_argument import cache_argument
from ..caches import make_cache
from ..certificate import Certificate
from ..latents.fit.held_out import HeldOutText
from ..next_token import mean_next_token_loss
from ..placement import input_device


def certify(model: PreTrainedModel, text: HeldOutText, *, self_check: bool) -> Certificate:
    """The certificate of a model that was just converted.

    Args:
        text: with the losses that its source had.
        self_check: whether layers were compared before.
    """
    return Certificate.of_losses(
        text.losses,
        cached_losses(model, text.sequences),
        sum(ids.shape[1] - 1 for ids in text.sequences),
        self_check=self_check,
    )


@torch.no_grad()
def cached_losses(model: PreTrainedModel, sequences: Sequence[Tensor]) -> list[float]:
    """Mean loss of each sequence (1, T) of token ids, in nats per token, every token read from what
    the cache stores of it."""
    name = cache_argument(model)
    losses = []
    training = model.training
    model.eval()
    try:
        for ids in sequences:
            cache = make_cache(model)
            cache.codes_every_boundary = True
            logits = model(
                input_ids=ids.to(input_device(model)), use_cache=True, **{name: cache}
            ).logits
            losses.append(mean_next_token_loss(logits, ids))
    finally:
        model.train(training)
    return losses
