"""Second moments of keys and values, and of what errors in them cost, from a stream of text.

Memory does not depend on the amount of text: per attention module two (2*J*D)^2 float64 matrices.
A float32 model's passes round the factors of its products to bfloat16 where the CPU multiplies that
faster; keys and values are projected in float32, and the moments are summed in float64. Not so for
keys that are to be split: what rotation alone can do for them is a difference of large numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, nullcontext

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..errors import CalibrationError
from ..families import layer_list_of
from ..latents.attention.parts import AttentionParts
from ..latents.fit.metrics import ActivationMetric, Labels, all_observing
from ..latents.fit.observe import frozen_and_checkpointed, observed_inputs
from ..latents.fit.statistics import FirstTokens, LatentStatistics, Moments, Samples
from ..methods import METRICS
from ..paired_text import Text, arguments_of, ids_of
from ..precision import fast_products, without_autocast
from ..states.fit.observe import StateCalibration

__all__ = [
    "LatentStatistics",
    "Moments",
    "calibrate",
    "decoder_layers",
    "weight_statistics",
]


def calibrate(
    model: PreTrainedModel,
    parts: list[AttentionParts],
    sequences: Iterable[Text],
    *,
    metric: str,
    labels: Labels | None = None,
    sinks: Sequence[int] | None = None,
    split: bool = False,
    states: StateCalibration | None = None,
    progress: bool = False,
) -> list[LatentStatistics]:
    """Run text through the source model and return statistics for each attention module.

    Args:
        model: the source model, unconverted. It is left as it was.
        parts: its attention modules.
        sequences: token ids, (1, T) each, or pairs, without padding.
        metric: one of `METRICS` that reads text.
        labels: that the loss of `fisher` is of; None for those of the text.
        sinks: first tokens of a sequence that each module reads exactly, which do not count; None
            for none.
        split: find `LatentStatistics.split_metric` as well, where keys rotate, and first tokens
            apart; by `fisher` only.
        states: watches recurrent layers in the same passes.
        progress: show a progress bar.

    Raises:
        CalibrationError: no tokens, or non-finite activations or gradients.
    """
    observer = METRICS[metric].observer_class()
    labels = Labels() if labels is None else labels
    sinks = [0] * len(parts) if sinks is None else sinks
    options = {"split": True} if split else {}
    watched = zip(parts, sinks, strict=True)
    metrics = [observer(part, skipped, **options) for part, skipped in watched]
    moments, of_first = ([Moments(part.width) for part in parts] for _ in range(2))
    samples = [Samples(part.width) for part in parts]
    needs_backward = METRICS[metric].backward
    counting = True
    num_tokens = 0

    with ExitStack() as stack:
        stack.enter_context(frozen_and_checkpointed(model, decoder_layers(model)))
        stack.enter_context(all_observing(metrics))
        of_parts = zip(parts, moments, of_first, samples, metrics, sinks, strict=True)
        for part, moment, first, sample, one_metric, skipped in of_parts:

            @torch.no_grad()
            def see(
                x,
                layer_idx,
                part=part,
                moment=moment,
                first=first,
                sample=sample,
                one_metric=one_metric,
                skipped=skipped,
            ):
                if not counting:  # a checkpointed layer runs a second time on the way back
                    return
                with without_autocast(x):
                    key_value = part.key_value(x, layer_idx)[:, skipped:]
                    if split:
                        first.add(key_value[:, :1])
                    moment.add(key_value[:, 1:] if split else key_value)
                    sample.add(key_value)
                    one_metric.see(x, layer_idx, key_value)

            stack.enter_context(observed_inputs(part, see))
        if states is not None:
            stack.enter_context(states.observing())
        products = nullcontext() if split else fast_products(next(model.parameters()))
        for text in tqdm(sequences, desc="calibrate", unit="seq", disable=not progress):
            counting = True
            ids = ids_of(text)
            num_tokens += ids.numel()
            if states is not None:
                states.counting = True
            with torch.set_grad_enabled(needs_backward), products:
                logits = model(**arguments_of(text, model), use_cache=False).logits
            counting = False
            if states is not None:
                states.counting = False
            if needs_backward:
                labels.backward(logits, ids)
            del logits
    if not num_tokens:
        raise CalibrationError("no calibration tokens were given; pass calibration_texts")
    if not all(moment.count for moment in moments):
        raise CalibrationError(
            f"calibration sequences are no longer than the {max(sinks)} first tokens that stay "
            "exact; give longer calibration_texts, or fewer exact_sinks"
        )
    return [
        _checked(
            LatentStatistics(
                mean=moment.mean,
                covariance=moment.covariance,
                metric=one_metric.matrix(moment.covariance),
                num_tokens=moment.count + first.count,
                samples=sample.stacked(),
                split_metric=one_metric.split_matrix(),
                first=_first_tokens(first, moment, one_metric),
            ),
            part,
        )
        for part, moment, first, sample, one_metric in zip(
            parts, moments, of_first, samples, metrics, strict=True
        )
    ]


def _first_tokens(first: Moments, others: Moments, metric: ActivationMetric) -> FirstTokens | None:
    matrix = metric.first_matrix()
    if matrix is None:
        return None
    return FirstTokens(
        share=first.count / (first.count + others.count),
        mean=first.mean,
        second_moment=first.second_moment,
        metric=matrix,
    )


def _checked(statistics: LatentStatistics, part: AttentionParts) -> LatentStatistics:
    for name in ("mean", "covariance", "metric"):
        if not torch.isfinite(getattr(statistics, name)).all():
            raise CalibrationError(
                f"the {name} of layer {part.layer_ids[0]} is not finite after "
                f"{statistics.num_tokens} tokens; run calibration in float32 or bfloat16"
            )
    return statistics


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The modules of the layer list, in order, which is where activations pile up."""
    return list(model.get_submodule(layer_list_of(model.config)))


def weight_statistics(parts: AttentionParts) -> LatentStatistics:
    """Statistics without any text: inputs taken as white, errors as their squared length."""
    weights = parts.white_weight().detach().to("cpu", torch.float64)
    return LatentStatistics(
        mean=parts.white_mean(),
        covariance=weights @ weights.T,
        metric=torch.eye(weights.shape[0], dtype=torch.float64),
        num_tokens=0,
    )
