"""Keys that meet queries without rotation: attention with none of them is the source's."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from cacheshrink_hybrid.families import model_spec, read_attention
from cacheshrink_hybrid.latents.fit.observe import (
    attention_beside,
    observed_gradients,
    observed_inputs,
)
from tests.families.tiny_configs import tiny_model
from tests.models import random_ids
from tests.tolerances import assert_same_computation

CASES = ["llama", "llama-biases", "llama-yarn", "phi3-partial", "mistral-window", "smollm3"]
CASES += ["falcon_h1", "zamba2", "ministral3"]


@pytest.mark.parametrize("case", CASES)
def test_attention_beside_no_unrotated_keys_is_the_source_s(case: str) -> None:
    model = tiny_model(case)
    for parts in read_attention(model, model_spec(model.config)):
        if parts.rotary is None:
            continue
        seen = {}

        def see(x, layer_idx, seen=seen):
            seen[layer_idx] = x

        outputs = {}

        def keep(module, args, output, layer_idx, outputs=outputs):
            outputs[layer_idx] = output[0]

        handles = [
            source.register_forward_hook(partial(keep, layer_idx=layer_idx))
            for layer_idx, source in parts.sources.items()
        ]
        with torch.no_grad(), observed_inputs(parts, see):
            model(random_ids(1, 19), use_cache=False)
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for layer_idx, x in seen.items():
                none = x.new_zeros(1, 19, parts.key_width)
                found = attention_beside(parts, x, layer_idx, none)
                assert_same_computation(found, outputs[layer_idx])


def test_gradients_of_unrotated_keys_are_those_of_the_loss() -> None:
    """By small steps along them, beside gradients of keys and values as they were."""
    model = tiny_model("llama").double()
    parts = read_attention(model, model_spec(model.config))[1]
    ids, found = random_ids(1, 7), {}
    for split in (False, True):
        with observed_gradients(parts, lambda g, at=split: found.update({at: g}), split=split):
            _loss(model, ids).backward()
    width = parts.key_width
    torch.testing.assert_close(found[True][:, : 2 * width], found[False])
    step = torch.randn(1, 7, width, generator=torch.Generator().manual_seed(0)).double()
    source = parts.source

    def moved(size: float) -> float:
        def add(module, args, kwargs, output):
            x = args[0] if args else kwargs["hidden_states"]
            return attention_beside(parts, x, 1, size * step), *output[1:]

        handle = source.register_forward_hook(add, with_kwargs=True)
        with torch.no_grad():
            loss = float(_loss(model, ids))
        handle.remove()
        return loss

    slope = (moved(1e-2) - moved(-1e-2)) / 2e-2  # norms compute in float32
    due = float((found[True][:, 2 * width :] * step[0]).sum())
    assert slope == pytest.approx(due, rel=1e-3)
    model.float()


def _loss(model, ids):
    logits = model(ids, use_cache=False).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
