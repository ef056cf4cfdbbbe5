"""Chunks through a live cache compute what decoding computes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from cacheshrink_hybrid.caches import HybridCache, LatentCache, make_cache
from cacheshrink_hybrid.evaluation.cached_forward import cached_logits
from tests.models import pair, random_ids
from tests.tolerances import LOGITS, assert_same_logits, largest_difference


@pytest.mark.parametrize("dense", [False, True], ids=["pooled", "dense"])
@pytest.mark.parametrize("replay_length", [1, 3])
@pytest.mark.parametrize("case", ["granitemoehybrid", "qwen3_next", "jamba"])
def test_chunks_read_states_as_decoding_does(case: str, replay_length: int, dense: bool) -> None:
    model = pair(case, state_dtype="int8", replay_length=replay_length).converted
    ids = random_ids(2, 23)

    def new_cache() -> LatentCache | HybridCache:
        return LatentCache(config=model.config) if dense else make_cache(model)

    with torch.no_grad():
        cache = new_cache()
        stepwise = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(23)]
        chunked = [logits for _, logits in cached_logits(model, ids, 10, new_cache())]
        once = model(ids, past_key_values=new_cache()).logits
    assert_same_logits(torch.cat(chunked, 1), torch.cat(stepwise, 1))
    # A prefill codes its state once, so it computes something else, by more than is tolerated.
    assert largest_difference(once, torch.cat(stepwise, 1)) > LOGITS[torch.float32]


def test_models_of_unknown_families_are_measured_too() -> None:
    """By transformers' own cache; they are what others are compared with."""
    config = AutoConfig.for_model(
        "gptj",
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        rotary_dim=4,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(0, 64, (2, 11))
    with torch.no_grad():
        due = model(ids).logits
        chunks = torch.cat([logits for _, logits in cached_logits(model, ids, 4)], dim=1)
    assert_same_logits(chunks, due)
