"""Text that fitting does not see, for an honest prediction of what compression costs.

Bases, ranks and levels are chosen where the calibration text loses least, so that text shows less
loss than other text will. A tenth of its sequences is therefore kept from fitting, and the finished
factors are scored on it (`held_out_loss`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...methods import METRICS
from ...next_token import mean_next_token_loss
from ...paired_text import Text, arguments_of, ids_of
from ..attention.parts import AttentionParts
from .metrics import Labels
from .observe import frozen_and_checkpointed, observed_gradients, observed_inputs
from .statistics import HeldOutSamples, Samples

HELD_OUT_SHARE = 10
"""One sequence of so many is held out; fewer sequences than that are all needed for fitting."""
PER_SEQUENCE, TOTAL = 256, 1024
"""Tokens that are looked at, of each held-out sequence and of all."""


@dataclass(frozen=True, eq=False, slots=True)
class HeldOutText:
    """Sequences that no statistics have seen.

    Attributes:
        sequences: token ids, (1, T) each, or pairs.
        losses: mean loss of the source model on each, in nats per token.
        samples: of each attention module.
    """

    sequences: list[Text]
    losses: list[float]
    samples: list[HeldOutSamples]


def split_sequences(sequences: Sequence[Text]) -> tuple[list[Text], list[Text]]:
    """(to fit on, held out): every tenth is held out, none of fewer than ten."""
    held_out = list(sequences[HELD_OUT_SHARE - 1 :: HELD_OUT_SHARE])
    kept = [text for i, text in enumerate(sequences) if i % HELD_OUT_SHARE != HELD_OUT_SHARE - 1]
    return kept, held_out


def held_out_text(
    model: PreTrainedModel,
    layers: Sequence[nn.Module],
    parts: Sequence[AttentionParts],
    sequences: Sequence[Text],
    *,
    metric: str,
    labels: Labels | None = None,
    sinks: Sequence[int] | None = None,
    split: bool = False,
) -> HeldOutText:
    """Keys and values of each attention module on `sequences`, what errors in them cost there, and
    the losses of the model.

    Args:
        model: the source model. It is left as it was.
        layers: its decoder layers, which are recomputed on the way back.
        sequences: token ids, (1, T) each, or pairs, that no statistics have seen.
        metric: as of the statistics; costs are taken from this text where it has a backward pass.
        labels, sinks, split: as of the statistics.
    """
    splits = [split and part.rotary is not None for part in parts]
    vectors = [Samples(part.width, PER_SEQUENCE, TOTAL) for part in parts]
    gradients = [
        Samples(part.width + of_split * part.key_width, PER_SEQUENCE, TOTAL)
        for part, of_split in zip(parts, splits, strict=True)
    ]
    backward = METRICS[metric].backward
    labels = Labels() if labels is None else labels
    sinks = [0] * len(parts) if sinks is None else sinks
    losses: list[float] = []
    forward = True

    with ExitStack() as stack:
        stack.enter_context(frozen_and_checkpointed(model, layers))
        watched = zip(parts, vectors, gradients, sinks, splits, strict=True)
        for part, kept, costs, skipped, of_split in watched:

            @torch.no_grad()
            def see(x: Tensor, layer_idx: int, part=part, kept=kept, skipped=skipped) -> None:
                if forward:  # a checkpointed layer runs a second time on the way back
                    kept.add(part.key_value(x, layer_idx)[:, skipped:])

            stack.enter_context(observed_inputs(part, see))
            if backward:
                add = partial(_add_behind, costs, skipped)
                stack.enter_context(observed_gradients(part, add, split=of_split))
        for text in sequences:
            forward = True
            ids = ids_of(text)
            with torch.set_grad_enabled(backward):
                logits = model(**arguments_of(text, model), use_cache=False).logits
            forward = False
            losses.append(mean_next_token_loss(logits, ids))
            if backward:
                labels.backward(logits, ids)
            del logits
    samples = [
        HeldOutSamples(vectors=kept.stacked(), gradients=costs.stacked() if backward else None)
        for kept, costs in zip(vectors, gradients, strict=True)
    ]
    return HeldOutText(list(sequences), losses, samples)


def _add_behind(samples: Samples, sinks: int, gradients: Tensor) -> None:
    """Keep some of the gradients (tokens, n) of one sequence, none of its sinks'."""
    samples.add(gradients[sinks:])
