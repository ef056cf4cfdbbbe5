"""Processes that hold some heads, and their part of each row, read what one with all reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cacheshrink_hybrid.errors import CheckpointError
from cacheshrink_hybrid.kernels.latents.paged_rows import PagedRows
from cacheshrink_hybrid.latents.attention.head import LatentHead
from cacheshrink_hybrid.latents.attention.kernel_view import row_layout
from cacheshrink_hybrid.vllm.memory_check import check_memory
from cacheshrink_hybrid.vllm.own_heads import Share, SplitHead
from cacheshrink_hybrid.vllm.paged_attention import NewTokens, PagedStep, attend_paged
from tests.latents.attention.heads import head_of
from tests.tolerances import assert_same_computation

TOKENS, BLOCK, RANKS = 40, 8, 2
CASES = {
    "joint": ("llama-biases", "joint", {}),
    "separate": ("llama", "separate", {}),
    "per_head": ("llama", "per_head", {}),
    "rotate": ("llama-yarn", "rotate", {}),
    "rotate_joint": ("llama", "rotate_joint", {}),
    "normalised": ("qwen3", "joint", {}),
    "uncoded": ("llama", "separate", {"cache_bits": 16}),
    "exact": ("llama", "rotate", {"exact_sinks": 3, "exact_window": 5}),
}


def _head(name: str, groups: int) -> LatentHead:
    case, method, settings = CASES[name]
    return head_of(case, method, head_groups=groups, **settings)


def _loaded(own: nn.Module, whole: nn.Module) -> nn.Module:
    """With the weights that vLLM hands to the parameters."""
    for name, parameter in own.named_parameters():
        parameter.weight_loader(parameter, whole.get_parameter(name).data)  # type: ignore[operator]
    return own


def _split(head: LatentHead, number: int) -> SplitHead:
    share = Share(number, RANKS)
    keys, values = head.key_up.projection, head.value_up.projection
    own = share.reader(
        head,
        _loaded(share.own_keys(keys, head.plan), keys),
        _loaded(share.own_values(values, head.plan), values),
    )
    return SplitHead(head, own, share)


def _memory(heads: SplitHead) -> tuple[PagedRows, PagedRows | None]:
    layout, exact = row_layout(heads.own, torch.float32), heads.own.exact_codec
    size = BLOCK * layout.row_bytes
    if exact is not None:
        size = max(size, BLOCK * exact.layout.row_bytes)
    arena = torch.zeros((1 + TOKENS // BLOCK) * size, dtype=torch.uint8)
    rows = PagedRows(arena=arena, layout=layout, frame_bytes=size, frame_tokens=BLOCK)
    return rows, None if exact is None else replace(rows, arena=arena.clone(), layout=exact.layout)


def _read(heads: SplitHead, query: Tensor, latent: Tensor | None, source: Tensor) -> Tensor:
    """Outputs (TOKENS, H*D) of a request that is fed in two pieces."""
    rows, exact = _memory(heads)
    own = heads.share.key_value(source)
    new = NewTokens(
        query=query,
        latent=latent,
        key_value=None if latent is not None else source,
        exact=None if exact is None else own,
        positions=torch.arange(TOKENS),
    )
    found = []
    for start, end in ((0, 33), (33, TOKENS)):
        step = PagedStep(
            query_lens=(end - start,),
            context_lens=torch.tensor([end], dtype=torch.int32),
            num_slots=end,
            block_table=torch.arange(1, 1 + TOKENS // BLOCK, dtype=torch.int32)[None],
            slot_mapping=torch.arange(start, end) + BLOCK,
        )
        beside = None if exact is None else (exact, step)
        part = new.between(start, end)
        found.append(attend_paged(heads, part, rows, step, beside, backend="torch"))
    return torch.cat(found)


@pytest.mark.parametrize("groups", [2, 1])
@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_processes_together_read_what_one_reads(name: str, groups: int) -> None:
    """With rows that are split, and with whole ones."""
    if groups == 1 and name == "per_head":
        pytest.skip("its rows are whole, and its keys are not: refused by support")
    head = _head(name, groups)
    torch.manual_seed(1)
    query = torch.randn(TOKENS, head.num_attention_heads, head.head_dim)
    source = torch.randn(TOKENS, head.width)
    latent = None if head.stores_rotated else torch.randn(TOKENS, head.plan.kv_lora_rank)
    due = _read(SplitHead.alone(head), query, latent, source)
    parts = [
        _read(_split(head, number), own, latent, source)
        for number, own in enumerate(query.chunk(RANKS, dim=1))
    ]
    assert_same_computation(torch.cat(parts, dim=1), due)


@pytest.mark.parametrize("name", CASES)
def test_rows_of_a_process_take_its_share(name: str) -> None:
    """Within a gain, codes that end within a byte, and nothing else."""
    head = _head(name, RANKS)
    whole, own = (row_layout(x, torch.float32) for x in (head, _split(head, 0).own))
    shares = RANKS * own.row_bytes - whole.row_bytes
    planes = sum(len(run.planes) for run in whole.runs)
    assert 0 <= shares <= (RANKS - 1) * (planes + (whole.gain_byte is not None))
    assert row_layout(_split(_head("joint", 1), 0).own, torch.float32).row_bytes == (
        row_layout(_head("joint", 1), torch.float32).row_bytes
    )


@pytest.mark.parametrize("number", range(RANKS))
@pytest.mark.parametrize("name", CASES)
def test_memory_is_tried_out_in_parts(name: str, number: int) -> None:
    heads = _split(_head(name, RANKS), number)
    rows, exact = _memory(heads)
    check_memory("layer 0", heads, torch.zeros(()), rows, exact, backend="torch")
    assert not rows.arena.any()


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_exact_keys_and_values_are_made_of_own_heads(bias: bool) -> None:
    projection, x = nn.Linear(6, 2 * 4 * 8, bias=bias), torch.randn(5, 6)
    whole = projection(x).unflatten(-1, (2, 4, 8))
    for number in range(RANKS):
        share = Share(number, RANKS)
        own = share.own_keys_values(projection)
        assert own is not None
        due = whole[:, :, 2 * number : 2 * number + 2].flatten(1)
        assert_same_computation(_loaded(own, projection)(x), due)
        assert_same_computation(share.key_value(projection(x)), due)
    assert Share(0, 1).own_keys_values(None) is None


@pytest.mark.parametrize("of", ["key_up", "value_up"])
def test_weights_that_reach_across_groups_are_refused(of: str) -> None:
    """As after training that did not keep them apart."""
    head = _head("joint", RANKS)
    projection: Any = getattr(head, of).projection
    own = {"key_up": Share.own_keys, "value_up": Share.own_values}[of](
        Share(1, RANKS), projection, head.plan
    )
    weight = projection.weight.data.clone()
    own.weight.weight_loader(own.weight, weight)  # type: ignore[union-attr, operator]
    other = head.plan.part_channels(0, RANKS)[0]
    weight[-1, other] = 1e-6
    with pytest.raises(CheckpointError, match="channels of other heads, though head_groups=2"):
        own.weight.weight_loader(own.weight, weight)  # type: ignore[union-attr, operator]
