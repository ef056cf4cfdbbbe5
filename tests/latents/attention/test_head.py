"""The formulas of attention over latents, and which head a layer has now."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import skip_init

from cacheshrink_hybrid.latents.attention.dense_read import products_of
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from tests.latents.attention.heads import head_of
from tests.models import pair
from tests.tolerances import assert_same_computation

CASES = {
    "absorb": ("gpt2", "joint"),
    "rotate": ("llama", "rotate"),
    "rotate-joint": ("llama", "rotate_joint"),
    "rotate-partly": ("gpt_neox", "rotate"),
    "rotate-longer": ("llama-yarn", "rotate"),  # its cos and sin are not of length one
}


def layer_of(case: str, method: str = "joint") -> LatentAttention:
    model = copy.deepcopy(pair(case, method, 4.0).converted)
    return next(module for module in model.modules() if isinstance(module, LatentAttention))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("num_slots", [7, 150])
@torch.no_grad()
def test_absorbed_queries_meet_latents_as_queries_meet_keys(name: str, num_slots: int) -> None:
    head = head_of(*CASES[name])
    query = torch.randn(2, head.num_attention_heads, 3, head.head_dim)
    latent = torch.randn(2, num_slots, head.plan.kv_lora_rank)
    angles, first = None, 5
    if head.rotary is not None:
        cos, sin = head.rotary.angles(first + num_slots, query)
        angles = cos[:, first:], sin[:, first:]
    products = products_of(head, query, latent, angles, first)
    due = head.products(query, head.keys(latent, angles, first))
    assert_same_computation(products, due)


@pytest.mark.parametrize("case", ["gpt2", "llama"])
@torch.no_grad()
def test_mixed_latents_are_mixed_values(case: str) -> None:
    head = head_of(case, "joint")
    H, group = head.num_attention_heads, head.num_attention_heads // head.num_key_value_heads
    shares = torch.rand(2, H, 3, 7)
    latent = torch.randn(2, 7, head.plan.kv_lora_rank)
    mixed = shares.flatten(1, 2) @ head.value_channels(latent)
    values = head.values(latent).repeat_interleave(group, dim=1)
    due = (shares @ values).transpose(1, 2).flatten(2)
    assert_same_computation(head.outputs(mixed, shares.flatten(1, 2).sum(-1)), due)


@torch.no_grad()
def test_values_without_a_channel_are_their_mean() -> None:
    head = head_of("llama", "joint")
    J, D = head.num_key_value_heads, head.head_dim
    mean = skip_init(nn.Linear, 0, J * D)
    nn.init.normal_(mean.bias)
    up = replace(head.value_up, projection=mean, num_channels=0)
    head = replace(head, plan=replace(head.plan, value_rank=0), value_up=up)
    mixed = head.value_channels(
        torch.randn(2, 3 * head.num_attention_heads, head.plan.kv_lora_rank)
    )
    group = head.num_attention_heads // J
    due = mean.bias.view(J, D).repeat_interleave(group, dim=0).flatten()
    assert torch.equal(head.outputs(mixed), due.expand(2, 3, -1))


def test_scores() -> None:
    head = replace(head_of("llama", "joint"), scale=0.5, softcap=None)
    products = torch.tensor([-3.0, 0.0, 8.0])
    assert torch.equal(head.scores(products), torch.tensor([-1.5, 0.0, 4.0]))
    capped = replace(head, softcap=2.0).scores(products)
    torch.testing.assert_close(capped, 2 * torch.tanh(torch.tensor([-0.75, 0.0, 2.0])))


def wrap(layer: LatentAttention) -> None:
    layer.k_b_proj = nn.Sequential(layer.k_b_proj)


def exchange_sinks(layer: LatentAttention) -> None:
    layer.sinks = nn.Parameter(torch.zeros(layer.head.num_attention_heads))


def exchange_plan(layer: LatentAttention) -> None:
    layer.plan = replace(layer.plan, row_format=None)


CHANGES: list[Callable[[LatentAttention], None]] = [wrap, exchange_sinks, exchange_plan]


@pytest.mark.parametrize("change", CHANGES)
def test_a_head_is_kept_until_something_else_stands_in_its_place(
    change: Callable[[LatentAttention], None],
) -> None:
    layer = layer_of("gpt_oss")
    head = layer.head
    assert layer.head is head
    assert head.noted("sum", lambda: 1) == head.noted("sum", lambda: 2) == 1
    change(layer)
    assert layer.head is not head
    assert layer.head.noted("sum", lambda: 2) == 2
    assert layer.head is layer.head
    assert layer.head.key_up.projection is layer.k_b_proj
    assert layer.head.sinks is layer.sinks
    assert (layer.head.codec is not None) == layer.plan.coded


def test_a_copy_has_a_head_of_its_own() -> None:
    layer = layer_of("llama")
    copied = copy.deepcopy(layer)
    assert copied.head is copied.head
    assert copied.head.key_up.projection is copied.k_b_proj
    assert layer.head.key_up.projection is layer.k_b_proj
