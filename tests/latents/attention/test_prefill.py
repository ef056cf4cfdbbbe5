"""Chunks over expanded blocks of history are those over latents."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cacheshrink_hybrid.kernels.latents.decode import LatentRead
from cacheshrink_hybrid.latents.attention.kernel_view import latent_read, row_layout
from cacheshrink_hybrid.latents.attention.pool_read import append_to_pool, read_pool, rows_in_pool
from cacheshrink_hybrid.latents.attention.prefill import (
    attention_with_sums,
    expanded_operations,
    expanded_prefill,
    expanding_pays,
    latent_operations,
)
from cacheshrink_hybrid.pool.layout import compile_layout
from cacheshrink_hybrid.pool.lifetime import LayerRows
from tests.latents.attention.heads import head_of
from tests.tolerances import assert_same_computation

CASES = {
    "absorbed": ("gpt2", "joint"),
    "rebuilt": ("llama-biases", "joint"),
    "rebuilt-per-head": ("llama", "per_head"),
    "rotated": ("llama", "rotate"),
    "rotated-joint": ("llama-biases", "rotate_joint"),
    "normalised": ("qwen3", "joint"),
    "sinks": ("gpt_oss", "joint"),
}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_equals_prefill_over_latents(name: str) -> None:
    head = head_of(*CASES[name], windowed=False)
    num_slots, num_new, batch = 37, 11, 2
    layout = row_layout(head, torch.float32)
    frames = compile_layout(
        [LayerRows(layer_idx=0, row_bytes=48), LayerRows(layer_idx=1, row_bytes=layout.row_bytes)],
        tokens_per_frame=8,
    )
    arena = torch.full((11 * frames.frame_bytes,), 0xFF, dtype=torch.uint8)
    rows = rows_in_pool(layout, arena, frames.frame_bytes, frames.classes[0], 1)
    T = rows.frame_tokens
    table = (torch.randperm(10).int() + 1).view(batch, 5)
    token = torch.arange(num_slots)
    slots = (table.long()[:, token // T] * T + token % T).flatten()
    latent = torch.randn(batch * num_slots, head.plan.kv_lora_rank)
    append_to_pool(head, latent, rows, slots, backend="torch")
    query = torch.randn(batch, head.num_attention_heads, num_new, head.head_dim)
    due = read_pool(
        head,
        query,
        rows,
        table,
        torch.full((batch,), num_slots, dtype=torch.int32),
        read=latent_read(head, num_slots, query),
        backend="torch",
    )
    for block_slots in (5, 8, 64):
        got = expanded_prefill(head, query, rows, table, num_slots, block_slots=block_slots)
        assert_same_computation(got, due)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_with_sums(causal: bool) -> None:
    head = replace(head_of("gpt2", "joint"), num_key_value_heads=3, scale=0.4)
    query, key, value = torch.randn(2, 6, 9, 8), torch.randn(2, 3, 9, 8), torch.randn(2, 3, 9, 8)
    got, sums = attention_with_sums(head, query, key, value, causal=causal)
    due = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=causal, scale=0.4, enable_gqa=True
    )
    torch.testing.assert_close(got, due, rtol=1e-5, atol=1e-5)
    first = (query[:, :, 0] * key.repeat_interleave(2, dim=1)[:, :, 0]).sum(-1) * 0.4
    if causal:
        torch.testing.assert_close(sums[:, :, 0], first)


def test_expanding_pays_from_some_length_on() -> None:
    """Hand-counted for H = 4, J = 2, D = 8: absorbed latents of 24 + 24 channels cost 2 * 4 * 48
    per token; expanding 2 * 2 * 8 * 48 once and 4 * 4 * 8 per token."""
    head = head_of(*CASES["absorbed"], windowed=False)
    H, D = head.num_attention_heads, head.head_dim
    read = LatentRead(key_rank=24, value_rank=24, scale=1.0)
    J = head.num_key_value_heads
    assert latent_operations(head, read, 5) == 2 * 5 * H * 48
    assert expanded_operations(head, read, 5) == 2 * J * D * 48 + 4 * 5 * H * D
    pays = [expanding_pays(head, read, n) for n in (1, 10_000)]
    assert pays == [False, D < 24]
    windowed = LatentRead(key_rank=24, value_rank=24, scale=1.0, window=9)
    assert not expanding_pays(head, windowed, 10_000)
