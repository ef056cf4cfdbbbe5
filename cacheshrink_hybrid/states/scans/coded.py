"""Scans of a state that is stored in codes: with a cache, and for training.

Decoding rewrites the state every L tokens, as codes, and reads inputs from its ring as rounded
(`states/layer.py`). A training pass has no cache, so it is run here in pieces of L tokens, with
what was coded in between: the same numbers, with gradients, which pass the codes straight through.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...codecs.state import StateCodec
from ...codecs.straight_through import straight_through
from ..layout import Recurrence, StateLayout, rounded


def scan_through_codes(
    owner: Recurrence, layout: StateLayout, inputs: Sequence[Tensor], reads: Tensor
) -> Tensor:
    """y (B, T, M, P) of texts from their start, differentiable.

    Args:
        owner: the mixer.
        layout: how it stores states.
        inputs: of T tokens, (B, T, ...) each.
        reads: (B, T, ...).
    """
    L, total = layout.replay_length, reads.shape[1]
    if L > 1:
        inputs = [rounded(x, layout.input_dtype(i)) for i, x in enumerate(inputs)]
    state, outputs = None, []
    for start in range(0, total, L):
        part = slice(start, start + L)
        y, state = owner.scan(state, [x[:, part] for x in inputs], reads[:, part])
        outputs.append(y)
        if part.stop < total:
            state = straight_through(
                state, layout.codec.decode(layout.codec.encode(state.detach()))
            )
    return torch.cat(outputs, dim=1)


def scan_with_cuts(
    owner: Recurrence,
    codec: StateCodec,
    codes: Tensor | None,
    inputs: Sequence[Tensor],
    reads: Tensor,
    cuts: Sequence[int],
    *,
    through_codes: bool,
) -> tuple[Tensor, Tensor | None]:
    """Run over `inputs` from a stored state, coding it at the `cuts`.

    Args:
        owner: the mixer.
        codes: of the state before, (B, row_bytes); None for none.
        inputs: (B, T, ...) each.
        reads: of the last tokens, (B, n, ...).
        cuts: numbers of tokens after which the state is coded.
        through_codes: behind a cut the state is read as coded; else as it was.

    Returns:
        y of the last n tokens, and the codes at the last cut, None without one.
    """
    total = inputs[0].shape[1]
    unread = total - reads.shape[1]
    state = None if codes is None else codec.decode(codes)
    start, outputs, codes = 0, [], None
    for end in sorted({*cuts, total}):
        if end not in cuts and end <= unread:
            break  # nothing is read, nothing is coded
        seen, part = reads, inputs
        if start or end < total:
            seen = reads[:, max(0, start - unread) : max(0, end - unread)]
            part = [x[:, start:end] for x in inputs]
        if end not in cuts:  # the last part, whose state is neither stored nor gone on from
            outputs.append(owner.read(state, part, seen))
            break
        y, state = owner.scan(state, part, seen)
        outputs.append(y)
        start = end
        codes = codec.encode(state.detach())
        if through_codes and end < total:
            state = straight_through(state, codec.decode(codes))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)), codes


def boundaries(inputs: Sequence[Tensor], replay_length: int) -> list[int]:
    """Where the state is rewritten, if the first input stands right behind a boundary."""
    total = inputs[0].shape[1]
    if replay_length == 1:
        return list(range(1, total + 1))
    return list(range(replay_length, total + 1, replay_length))
