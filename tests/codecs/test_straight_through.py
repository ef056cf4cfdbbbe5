"""Straight-through latents: decoded values, the latents' gradients."""

from __future__ import annotations

import torch

from cacheshrink_hybrid.codecs import RowCodec
from cacheshrink_hybrid.codecs.straight_through import straight_through
from tests.families.tiny_configs import tiny_model
from tests.models import converted_copy, random_ids


def test_values_are_decoded_and_gradients_pass() -> None:
    codec = RowCodec(((8, 8), (8, 4)))
    latent = torch.randn(3, 5, 16, requires_grad=True)
    decoded = codec.decode(codec.encode(latent), latent.dtype)
    weight = torch.randn(16)
    read = straight_through(latent, decoded)
    torch.testing.assert_close(read, decoded)
    assert not torch.equal(read, latent)
    (read * weight).sum().backward()
    assert torch.equal(latent.grad, weight.expand(3, 5, 16))


def test_training_reads_what_inference_reads() -> None:
    """Coded attention gives the same logits in training, and its encoder then has gradients."""
    model = converted_copy(tiny_model("llama"), 4.0, "joint", cache_bits="auto")
    ids = random_ids(2, 20)
    with torch.no_grad():
        expected = model.eval()(ids, use_cache=False).logits
    logits = model.train()(ids, use_cache=False).logits
    torch.testing.assert_close(logits, expected)
    logits.square().sum().backward()
    for layer in model.model.layers:
        assert layer.self_attn.kv_a_proj.weight.grad.abs().max() > 0
