"""Requests that are read on tables of blocks, in whatever pieces, get what the module computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cacheshrink_hybrid.kernels.backend import Backend
from cacheshrink_hybrid.kernels.latents.paged_rows import PagedRows
from cacheshrink_hybrid.kernels.numerics import INTERPRET
from cacheshrink_hybrid.latents.attention.dense_read import read_latents
from cacheshrink_hybrid.latents.attention.head import LatentHead
from cacheshrink_hybrid.latents.attention.kernel_view import row_layout
from cacheshrink_hybrid.vllm.paged_attention import PagedStep, attend_paged
from tests.latents.attention.heads import head_of
from tests.tolerances import assert_same_computation

BLOCK = 4
LENS = (21, 9, 6)
STEPS = ((13, 0, 0), (5, 8, 0), (1, 1, 5), (2, 0, 1))
"""New tokens of each request: of long prompts, of single tokens beside prompts, and of few."""
CASES = {
    "absorbed": ("gpt2", "joint"),
    "rebuilt": ("llama-biases", "joint"),
    "rebuilt-per-head": ("llama", "per_head"),
    "rotated": ("llama-yarn", "rotate"),
    "rotated-joint": ("llama", "rotate_joint"),
    "rebuilt-normalised": ("qwen3", "joint"),
    "softcap-and-window": ("gemma2", "rotate"),
}
BY_KERNELS = ("absorbed", "rebuilt-per-head", "rotated")
"""Cases that Triton's interpreter, which takes long, runs as well: one of each way to meet keys."""


def _blocks(head: LatentHead) -> PagedRows:
    """A cache of 16 blocks; the first one belongs to nobody."""
    layout = row_layout(head, torch.float32)
    size = BLOCK * layout.row_bytes
    arena = torch.full((17 * size,), 0xFF, dtype=torch.uint8)
    return PagedRows(arena=arena, layout=layout, frame_bytes=size, frame_tokens=BLOCK)


def _tables() -> Tensor:
    """Blocks of the requests in no order, with block 0 behind the last one of each."""
    table = torch.zeros(len(LENS), 6, dtype=torch.int32)
    free = iter((torch.randperm(16) + 1).tolist())
    for request, length in enumerate(LENS):
        for block in range(-(-length // BLOCK)):
            table[request, block] = next(free)
    return table


def _due(head: LatentHead, query: Tensor, latent: Tensor) -> Tensor:
    """What each token of one request reads, (S, H*D), of latents (S, R) as they are read back."""
    decoded = latent[None]
    if head.codec is not None:
        decoded = head.codec.decode(head.codec.encode(decoded, head.costs), torch.float32)
    angles = None if head.rotary is None else head.rotary.angles(len(latent), query)
    slot = torch.arange(len(latent))
    mask = slot <= slot[:, None]
    if head.window is not None:
        mask = mask & (slot > slot[:, None] - head.window)
    rotated = head.queries(query.transpose(0, 1)[None], angles)
    return read_latents(head, rotated, decoded, mask[None, None], angles, 0)[0][0]


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, "torch") for name in CASES),
        *(pytest.param(name, "triton", marks=pytest.mark.slow) for name in BY_KERNELS),
    ],
)
@torch.no_grad()
def test_pieces_of_requests_equal_the_module(name: str, backend: Backend) -> None:
    if backend == "triton" and not INTERPRET.value:
        pytest.skip("needs TRITON_INTERPRET=1 in a process without a GPU")
    case, method = CASES[name]
    head = head_of(case, method)
    if head.stores_rotated:  # in more than one block of slots, which are not those of the cache
        head = replace(head, plan=replace(head.plan, block_slots=16))
    queries = [torch.randn(n, head.num_attention_heads, head.head_dim) for n in LENS]
    sources = latents = [torch.randn(n, head.plan.kv_lora_rank) for n in LENS]
    if head.stores_rotated:
        sources = [torch.randn(n, head.width) for n in LENS]
        latents = [head.latent_in_block(source[None], 0)[0] for source in sources]
    due = [_due(head, *given) for given in zip(queries, latents, strict=True)]

    rows, table, done = _blocks(head), _tables(), [0] * len(LENS)
    for step in STEPS:
        positions = [torch.arange(d, d + n) for d, n in zip(done, step, strict=True)]
        done = [d + n for d, n in zip(done, step, strict=True)]
        slots = [
            t.long()[p // BLOCK] * BLOCK + p % BLOCK for t, p in zip(table, positions, strict=True)
        ]
        new = torch.cat([s[p] for s, p in zip(sources, positions, strict=True)])
        got = attend_paged(
            head,
            head,
            torch.cat([q[p] for q, p in zip(queries, positions, strict=True)]),
            None if head.stores_rotated else new,
            new if head.stores_rotated else None,
            torch.cat(positions),
            rows,
            PagedStep(
                query_lens=step,
                context_lens=torch.tensor(done, dtype=torch.int32),
                num_slots=max(done),
                block_table=table,
                slot_mapping=torch.cat(slots),
            ),
            backend=backend,
        )
        wanted = torch.cat([d[p] for d, p in zip(due, positions, strict=True)])
        assert_same_computation(got, wanted)
    assert done == list(LENS)
    assert (rows.arena[: rows.frame_bytes] == 0xFF).all()
