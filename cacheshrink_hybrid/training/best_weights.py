"""The best weights that a training came by."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BestWeights:
    """Trained tensors as they were at the lowest perplexity, kept on the CPU.

    Args:
        model: what trains.
        names: its tensors that change, by their names in its `state_dict`.

    Attributes:
        perplexity, step: of the best so far.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.model = model
        self.names = list(names)
        self.perplexity = math.inf
        self.step = 0
        self._tensors: dict[str, Tensor] = {}

    def offer(self, perplexity: float, step: int) -> None:
        """Keep the weights as they are now if they are better than all before."""
        if perplexity < self.perplexity:
            self.perplexity, self.step = perplexity, step
            state = self.model.state_dict()
            self._tensors = {name: state[name].detach().to("cpu", copy=True) for name in self.names}

    @torch.no_grad()
    def restore(self) -> None:
        """Put the best weights back."""
        state = self.model.state_dict()
        for name, tensor in self._tensors.items():
            state[name].copy_(tensor)
