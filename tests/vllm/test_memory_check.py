"""Memory whose rows are not found where they were written is found out before it serves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.errors import KernelUnavailableError
from cacheshrink_hybrid.kernels.latents.paged_rows import PagedRows
from cacheshrink_hybrid.latents.attention.head import LatentHead
from cacheshrink_hybrid.latents.attention.kernel_view import row_layout
from cacheshrink_hybrid.vllm import memory_check
from cacheshrink_hybrid.vllm.memory_check import check_memory
from cacheshrink_hybrid.vllm.own_heads import SplitHead
from tests.latents.attention.heads import head_of

CASES = {
    "absorbed": ("gpt2", "joint", {}),
    "rebuilt-normalised": ("qwen3", "joint", {}),
    "rotated": ("llama", "rotate", {}),
    "uncoded": ("llama", "joint", {"cache_bits": 16}),
    "exact": ("llama", "joint", {"exact_sinks": 3, "exact_window": 5}),
    "exact-rotated": ("llama", "rotate", {"exact_sinks": 3, "exact_window": 5}),
}
EXACT = [name for name, (*_, settings) in CASES.items() if "exact_window" in settings]


def _memory(head: LatentHead, num_blocks: int) -> tuple[PagedRows, PagedRows | None]:
    """Coded rows, of 16 tokens, and exact ones, of two, in the same blocks."""
    layout, exact = row_layout(head, torch.float32), None
    size = 16 * layout.row_bytes
    if head.exact_codec is not None:
        size = max(size, 2 * head.exact_codec.layout.row_bytes)
    arena = torch.zeros(num_blocks * size, dtype=torch.uint8)
    rows = PagedRows(arena=arena, layout=layout, frame_bytes=size, frame_tokens=16)
    if head.exact_codec is not None:
        exact = replace(rows, layout=head.exact_codec.layout, frame_tokens=2)
    return rows, exact


def _check(name: str, num_blocks: int = 40) -> PagedRows:
    case, method, settings = CASES[name]
    head = head_of(case, method, **settings)
    rows, exact = _memory(head, num_blocks)
    heads = SplitHead.alone(head)
    check_memory("layer 0", heads, torch.zeros(()), rows, exact, backend="torch")
    return rows


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("num_blocks", [1, 2, 3, 5, 40])
def test_good_memory_is_left_as_it_was(name: str, num_blocks: int) -> None:
    assert not _check(name, num_blocks).arena.any()


@pytest.mark.parametrize("name", CASES)
def test_rows_that_overwrite_others_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if addresses of the last blocks lost their upper bits."""
    attend = memory_check.attend_paged

    def folded(blocks: Tensor, size: int = 1) -> Tensor:
        return torch.where(blocks // size >= 39, blocks - 39 * size, blocks)

    def attend_folded(*given: Any, backend: str) -> Tensor:
        heads, new, rows, step, exact = given
        if rows.num_frames == 40:
            step = replace(
                step,
                block_table=folded(step.block_table),
                slot_mapping=folded(step.slot_mapping, rows.frame_tokens),
            )
        return attend(heads, new, rows, step, exact, backend=backend)

    monkeypatch.setattr(memory_check, "attend_paged", attend_folded)
    with pytest.raises(KernelUnavailableError, match="of layer 0 in blocks") as refusal:
        _check(name)
    assert "--kv-cache-memory-bytes" in str(refusal.value)


@pytest.mark.parametrize("name", EXACT)
def test_exact_rows_at_another_place_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = memory_check.attend_paged

    def attend_shifted(*given: Any, backend: str) -> Tensor:
        heads, new, rows, step, exact = given
        if exact is not None and rows.num_frames == 40:
            exact = exact[0], replace(exact[1], slot_mapping=exact[1].slot_mapping + 2)
        return attend(heads, new, rows, step, exact, backend=backend)

    monkeypatch.setattr(memory_check, "attend_paged", attend_shifted)
    with pytest.raises(KernelUnavailableError, match="layer 0"):
        _check(name)
