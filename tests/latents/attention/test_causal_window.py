"""A window behind masks that do not show it."""

from __future__ import annotations

from dataclasses import replace

import torch

from cacheshrink_hybrid.caches import LatentCache
from cacheshrink_hybrid.conversion.self_check import full_rank_attention
from cacheshrink_hybrid.families import model_spec, read_attention
from cacheshrink_hybrid.latents.attention.cached_layer import CachedLayer
from cacheshrink_hybrid.latents.attention.causal_window import within_window
from tests.families.tiny_configs import tiny_model

SEEN = torch.tensor(
    [
        [False, True, True, True, False, False],
        [False, False, True, True, True, False],
        [False, False, False, True, True, True],
    ]
)
"""Of three new tokens behind three others, in a window of three."""


def test_masks_of_all_kinds_say_the_same() -> None:
    model = tiny_model("gpt_neo")
    parts = read_attention(model, model_spec(model.config))[1]
    assert parts.narrows_mask and parts.sliding_window == 6
    head = replace(full_rank_attention(parts).head, window=3)
    cache = LatentCache(config=model.config)
    cache.update(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 0), 1)
    layer, hidden = CachedLayer(cache, 1), torch.zeros(1, 3, 32)
    causal = torch.ones(3, 6, dtype=torch.bool).tril(3)[None, None]
    assert torch.equal(within_window(None, head, hidden, layer)[0, 0], SEEN)
    assert torch.equal(within_window(causal, head, hidden, layer)[0, 0], SEEN)
    least = torch.finfo(torch.float32).min
    additive = torch.zeros(1, 1, 3, 6).masked_fill(~causal, least)
    found = within_window(additive, head, hidden, layer)
    assert torch.equal(found[0, 0] == 0, SEEN)
    assert torch.equal(additive == 0, causal)


def test_layers_that_see_everything_are_left_alone() -> None:
    model = tiny_model("gpt_neo")
    parts = read_attention(model, model_spec(model.config))[0]
    assert not parts.narrows_mask and parts.sliding_window is None
