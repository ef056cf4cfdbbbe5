"""What decoding token by token reads from a coded state, for training: the same numbers, with
gradients.

Decoding rewrites the state every L tokens, as codes, and reads inputs from its ring as rounded
(`cache/state_layer.py`). A training pass has no cache, so it is run here in pieces of L tokens,
with what was coded in between; gradients pass the codes straight through.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...codecs.straight_through import straight_through
from ..layer import Recurrence, StateLayout, rounded


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
