"""Keys rebuilt in pairs give the products of keys that are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cacheshrink_hybrid.latents.attention.paired_keys import keeps_pairs, products_in_pairs
from tests.latents.attention.heads import head_of
from tests.tolerances import assert_same_computation


@pytest.mark.parametrize("method", ["joint", "per_head"])
@torch.no_grad()
def test_products(method: str) -> None:
    head = head_of("llama", method)
    query = torch.randn(2, head.num_attention_heads, 3, head.head_dim)
    latent = torch.randn(2, 7, head.plan.kv_lora_rank)
    assert head.rotary is not None
    angles = head.rotary.angles(7, query)
    assert keeps_pairs(head, query, angles)
    due = head.products(query, head.keys(latent, angles, 0))
    assert_same_computation(products_in_pairs(head, query, latent, angles), due)


@torch.no_grad()
def test_what_is_not_rotated_in_pairs_is_not_taken() -> None:
    head = head_of("llama", "joint")
    query = torch.randn(1, head.num_attention_heads, 1, head.head_dim)
    assert head.rotary is not None
    angles = head.rotary.angles(1, query)
    assert keeps_pairs(head, query, angles)
    assert not keeps_pairs(replace(head, key_norm=torch.nn.Identity()), query, angles)
    assert not keeps_pairs(head, query.double(), angles)
    with torch.enable_grad():
        assert not keeps_pairs(head, query, angles)
    with torch.autocast("cpu", torch.bfloat16):
        assert not keeps_pairs(head, query, angles)
