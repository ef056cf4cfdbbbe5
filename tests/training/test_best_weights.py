"""The best weights of a training are put back as they were."""

from __future__ import annotations

import torch
from torch import nn

from cacheshrink_hybrid.training.best_weights import BestWeights


def test_best_of_all_offers_is_restored() -> None:
    model = nn.Linear(2, 2)
    best = BestWeights(model, ["weight"])
    seen = []
    for step, perplexity in enumerate((5.0, 3.0, 4.0)):
        with torch.no_grad():
            model.weight.fill_(step)
            model.bias.fill_(step)
        best.offer(perplexity, step)
        seen.append(perplexity)
    best.restore()
    assert (best.perplexity, best.step) == (min(seen), 1)
    assert (model.weight == 1).all()
    assert (model.bias == 2).all()  # not among the names
