"""Measuring what a conversion cost, on the text that was held out."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from ..cache_argument import cache_argument
from ..caches import make_cache
from ..certificate import Certificate
from ..checkpoint.saved_weights import saved_weights, weights_fingerprint
from ..errors import CacheShrinkWarning
from ..latents.fit.held_out import HeldOutText
from ..model.attached_plan import plan_of
from ..next_token import mean_next_token_loss
from ..paired_text import Text, arguments_of, ids_of
from ..plan import CompressionPlan


def certify(model: PreTrainedModel, text: HeldOutText, *, self_check: bool) -> Certificate | None:
    """The certificate of a model that was just converted; None, with a warning, if the text is so
    short that exact tokens are all that is read.

    Args:
        text: with the losses that its source had.
        self_check: whether layers were compared before.
    """
    exact = exact_reach(plan_of(model))
    scored = [ids_of(sequence).shape[1] - 1 for sequence in text.sequences]
    reading_coded = sum(max(0, count - exact) for count in scored)
    if not reading_coded:
        warnings.warn(
            f"the loss is not measured: of held-out sequences of {1 + max(scored)} tokens nothing "
            f"coded is read, as {exact} tokens stay exact; give a larger max_calibration_length, "
            "or keep fewer tokens exact",
            CacheShrinkWarning,
            stacklevel=4,
        )
        return None
    weights = saved_weights(model)
    return Certificate.of_losses(
        text.losses,
        cached_losses(model, text.sequences),
        num_tokens=sum(scored),
        num_reading_coded=reading_coded,
        self_check=self_check,
        weights=None if weights is None else weights_fingerprint(weights),
    )


def exact_reach(plan: CompressionPlan) -> int:
    """Tokens of a sequence up to which no token reads anything coded."""
    if plan.states or plan.cross is not None or not plan.latents:
        return 0
    return min(latent.exact_sinks + latent.exact_window for latent in plan.latents)


@torch.no_grad()
def cached_losses(model: PreTrainedModel, sequences: Sequence[Text]) -> list[float]:
    """Mean loss of each sequence (1, T) of token ids, or pair, in nats per token, everything read
    from what the cache stores of it."""
    name = cache_argument(model)
    losses = []
    training = model.training
    model.eval()
    try:
        for text in sequences:
            cache = make_cache(model)
            cache.codes_every_boundary = True
            given = arguments_of(text, model)
            logits = model(**given, use_cache=True, **{name: cache}).logits
            losses.append(mean_next_token_loss(logits, ids_of(text)))
    finally:
        model.train(training)
    return losses
