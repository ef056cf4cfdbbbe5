"""Training passes compute with recurrent states as inference stores them."""

from __future__ import annotations

import pytest
import torch

from cacheshrink_hybrid.caches import make_cache
from cacheshrink_hybrid.evaluation.cached_forward import cached_logits
from cacheshrink_hybrid.states.mixers.mixer import RecurrentMixer
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, random_ids

CASES = ["granitemoehybrid", "jamba", "qwen3_next"]
TOKENS = 17


def converted(case: str, code: str, replay_length: int):
    states = {"state_ratio": 2.0, "state_dtype": code, "replay_length": replay_length}
    return converted_copy(tiny_model(case), 1.0, **states)


def mixer_of(model) -> RecurrentMixer:
    return next(module for module in model.modules() if isinstance(module, RecurrentMixer))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("code", "replay_length"), [("int8", 1), ("int8", 4), ("float8", 3), ("float16", 2)]
)
def test_mixer_computes_what_it_stores(case: str, code: str, replay_length: int) -> None:
    """Bit for bit what the mixer gives when its cache is fed from one rewriting of the state to
    the next; so every state was the one that is stored."""
    model = converted(case, code, replay_length)
    mixer = mixer_of(model)
    x = torch.randn(2, TOKENS, model.config.hidden_size)
    cache = make_cache(model)
    with torch.no_grad():
        parts = [mixer(part, cache_params=cache) for part in x.split(replay_length, dim=1)]
        plain = mixer(x)
    stored = torch.cat(parts, dim=1)
    trained = mixer.train()(x)
    torch.testing.assert_close(trained.detach(), stored, atol=5e-6, rtol=0)
    assert not torch.equal(plain, stored)  # codes are felt


@pytest.mark.parametrize("case", CASES)
def test_model_in_training_decodes(case: str) -> None:
    """Logits of one training pass are those of decoding token by token through the cache, but for
    numbers that fall on the edge between two codes."""
    model = converted(case, "int8", 3)
    ids = random_ids(2, TOKENS)
    with torch.no_grad():
        decoded = torch.cat([logits for _, logits in cached_logits(model, ids, 1)], dim=1)
        plain = model(ids, use_cache=False).logits
    trained = model.train()(ids, use_cache=False).logits.detach()
    felt = (plain - decoded).square().mean().sqrt()
    assert (trained - decoded).square().mean().sqrt() < 0.1 * felt


@pytest.mark.parametrize("case", CASES)
def test_gradients_pass_the_codes(case: str) -> None:
    """As those of the same scan without codes, up to what the codes change."""
    model = converted(case, "int8", 2)
    mixer = mixer_of(model)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    x = torch.randn(1, TOKENS, model.config.hidden_size)
    weight = torch.randn_like(x)
    mixer.train()
    (mixer(x) * weight).sum().backward()
    coded = {name: p.grad.clone() for name, p in mixer.named_parameters() if p.grad is not None}
    mixer.zero_grad()
    (mixer.eval()(x) * weight).sum().backward()
    assert {"A_log", "conv1d.weight"} <= coded.keys()
    for name, parameter in mixer.named_parameters():
        if parameter.grad is not None:
            difference = (coded[name] - parameter.grad).norm()
            assert difference < 0.1 * parameter.grad.norm().clamp_min(1e-6), name


def test_lossless_states_are_scanned_at_once() -> None:
    mixer = mixer_of(converted("granitemoehybrid", "float32", 1))
    assert mixer.train().learns_codes is False
