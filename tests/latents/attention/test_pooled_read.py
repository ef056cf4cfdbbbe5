"""Decoding from the pool by kernels gives what the module makes of decoded latents."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.errors import KernelUnavailableError
from cacheshrink_hybrid.kernels.latents.paged_rows import PagedRows
from cacheshrink_hybrid.latents.attention.dense_read import read_latents
from cacheshrink_hybrid.latents.attention.module import LatentAttention
from cacheshrink_hybrid.latents.attention.pooled_read import (
    append_to_pool,
    decode_from_pool,
    latent_read,
    row_layout,
    rows_in_pool,
)
from cacheshrink_hybrid.pool.layout import LayerRows, compile_layout
from tests.models import pair
from tests.tolerances import assert_same_computation

LENS = [21, 9]
CASES = {
    "absorbed": ("gpt2", "joint", "absorb"),
    "rebuilt": ("llama-biases", "joint", "reconstruct"),
    "rebuilt-partly-rotated": ("phi3-partial", "joint", "reconstruct"),
    "rebuilt-per-head": ("llama", "per_head", "reconstruct"),
    "rotated": ("llama", "rotate", "rotate"),
    "rebuilt-normalised": ("qwen3", "joint", "reconstruct"),
    "sinks": ("gpt_oss", "joint", "reconstruct"),
    "softcap-and-window": ("gemma2", "rotate", "rotate"),
}


def _module(case: str, method: str) -> LatentAttention:
    model = pair(case, method, 4.0, cache_bits="auto").converted
    return next(module for module in model.modules() if isinstance(module, LatentAttention))


def _stored(module: LatentAttention, latents: list[Tensor]) -> tuple[PagedRows, Tensor]:
    """Latents of sequences, in frames of a layout with another layer before this one."""
    assert module.codec is not None
    layout = compile_layout(
        [
            LayerRows(layer_idx=0, row_bytes=48),
            LayerRows(layer_idx=1, row_bytes=module.codec.row_bytes),
        ],
        tokens_per_frame=8,
    )
    arena = torch.full((9 * layout.frame_bytes,), 0xFF, dtype=torch.uint8)
    rows = rows_in_pool(
        row_layout(module, latents[0].dtype), arena, layout.frame_bytes, layout.classes[0], 1
    )
    table = torch.full((len(latents), 4), -1, dtype=torch.int32)
    frames = iter(torch.randperm(8).int() + 1)
    for i, latent in enumerate(latents):
        for frame in range(-(-len(latent) // rows.frame_tokens)):
            table[i, frame] = next(frames)
        token = torch.arange(len(latent))
        slots = table[i].long()[token // rows.frame_tokens] * rows.frame_tokens
        append_to_pool(module, latent, rows, slots + token % rows.frame_tokens, backend="torch")
    return rows, table


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_equals_the_module(name: str, backend: str) -> None:
    case, method, read_mode = CASES[name]
    module = _module(case, method)
    assert module.plan.read_mode == read_mode
    assert module.codec is not None
    if backend == "triton":
        pytest.importorskip("triton")
        if not _interpreting():
            pytest.skip("needs TRITON_INTERPRET=1 in a process without a GPU")
    latents = [torch.randn(n, module.plan.kv_lora_rank) for n in LENS]
    rows, table = _stored(module, latents)
    query = torch.randn(len(LENS), module.num_attention_heads, 2, module.head_dim)
    angles = None
    if read_mode == "reconstruct" and module.rotary is not None:
        angles = module.rotary.angles(32, query)
    got = decode_from_pool(
        module,
        query,
        rows,
        table,
        torch.tensor(LENS, dtype=torch.int32),
        read=latent_read(module, 32, query),
        backend=backend,
    )
    for i, latent in enumerate(latents):
        decoded = module.codec.decode(
            module.codec.encode(latent[None], module.latent_reach), torch.float32
        )
        slot = torch.arange(len(latent))
        position = slot[-2:, None]
        mask = slot <= position
        if module.sliding_window is not None:
            mask = mask & (slot > position - module.sliding_window)
        own = None if angles is None else tuple(angle[:, : len(latent)] for angle in angles)
        due, _ = read_latents(module, query[i : i + 1], decoded, mask[None, None], own)
        assert_same_computation(got[i : i + 1], due)


def _interpreting() -> bool:
    from cacheshrink_hybrid.kernels.numerics import INTERPRET

    return bool(INTERPRET.value)


def test_scales_per_token_are_refused() -> None:
    model = pair("llama", "joint", 4.0, cache_bits=8, scales="token").converted
    module = next(module for module in model.modules() if isinstance(module, LatentAttention))
    with pytest.raises(KernelUnavailableError, match="scales='token'"):
        row_layout(module, torch.float32)


def test_norms_over_all_heads_are_refused() -> None:
    with pytest.raises(KernelUnavailableError, match="mean square of a head's channels"):
        latent_read(_module("olmo2", "joint"), 1, torch.empty(0))
