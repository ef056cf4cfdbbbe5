"""Decoding from the pool by kernels gives what the module makes of decoded latents."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.kernels.latents.paged_rows import PagedRows
from cacheshrink_hybrid.latents.attention.dense_read import read_latents
from cacheshrink_hybrid.latents.attention.head import LatentHead
from cacheshrink_hybrid.latents.attention.kernel_view import latent_read, row_layout
from cacheshrink_hybrid.latents.attention.pool_read import append_to_pool, read_pool, rows_in_pool
from cacheshrink_hybrid.pool.layout import compile_layout
from cacheshrink_hybrid.pool.lifetime import LayerRows
from tests.latents.attention.heads import head_of
from tests.tolerances import assert_same_computation

LENS = [21, 9]
CASES = {
    "absorbed": ("gpt2", "joint", "absorb"),
    "rebuilt": ("llama-biases", "joint", "reconstruct"),
    "rebuilt-partly-rotated": ("phi3-partial", "joint", "reconstruct"),
    "rebuilt-per-head": ("llama", "per_head", "reconstruct"),
    "rotated": ("llama-yarn", "rotate", "rotate"),
    "rotated-in-part": ("gpt_neox", "rotate_joint", "rotate"),
    "rebuilt-normalised": ("qwen3", "joint", "reconstruct"),
    "sinks": ("gpt_oss", "joint", "reconstruct"),
    "softcap-and-window": ("gemma2", "rotate", "rotate"),
}


def _stored(head: LatentHead, latents: list[Tensor]) -> tuple[PagedRows, Tensor]:
    """Latents of sequences, in frames of a layout with another layer before this one."""
    assert head.codec is not None
    layout = compile_layout(
        [
            LayerRows(layer_idx=0, row_bytes=48),
            LayerRows(layer_idx=1, row_bytes=head.codec.row_bytes),
        ],
        tokens_per_frame=8,
    )
    arena = torch.full((9 * layout.frame_bytes,), 0xFF, dtype=torch.uint8)
    rows = rows_in_pool(
        row_layout(head, latents[0].dtype), arena, layout.frame_bytes, layout.classes[0], 1
    )
    table = torch.full((len(latents), 4), -1, dtype=torch.int32)
    frames = iter(torch.randperm(8).int() + 1)
    for i, latent in enumerate(latents):
        for frame in range(-(-len(latent) // rows.frame_tokens)):
            table[i, frame] = next(frames)
        token = torch.arange(len(latent))
        slots = table[i].long()[token // rows.frame_tokens] * rows.frame_tokens
        append_to_pool(head, latent, rows, slots + token % rows.frame_tokens, backend="torch")
    return rows, table


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_equals_the_module(name: str, backend: str) -> None:
    case, method, read_mode = CASES[name]
    head = head_of(case, method)
    assert head.plan.read_mode == read_mode
    if head.stores_rotated:  # in more than one block
        head = replace(head, plan=replace(head.plan, block_slots=16))
    assert head.codec is not None
    if backend == "triton":
        pytest.importorskip("triton")
        if not _interpreting():
            pytest.skip("needs TRITON_INTERPRET=1 in a process without a GPU")
    latents = [torch.randn(n, head.plan.kv_lora_rank) for n in LENS]
    rows, table = _stored(head, latents)
    query = torch.randn(len(LENS), head.num_attention_heads, 2, head.head_dim)
    angles = None
    if head.rotary is not None:
        angles = head.rotary.angles(32, query)
    got = read_pool(
        head,
        query,
        rows,
        table,
        torch.tensor(LENS, dtype=torch.int32),
        read=latent_read(head, 32, query),
        backend=backend,
    )
    for i, latent in enumerate(latents):
        decoded = head.codec.decode(head.codec.encode(latent[None], head.costs), torch.float32)
        slot = torch.arange(len(latent))
        position = slot[-2:, None]
        mask = slot <= position
        if head.window is not None:
            mask = mask & (slot > position - head.window)
        own = None if angles is None else tuple(angle[:, : len(latent)] for angle in angles)
        due, _ = read_latents(head, query[i : i + 1], decoded, mask[None, None], own, 0)
        assert_same_computation(got[i : i + 1], due)


def _interpreting() -> bool:
    from cacheshrink_hybrid.kernels.numerics import INTERPRET

    return bool(INTERPRET.value)
