"""Requests that are read on tables of blocks, in whatever pieces, get what the module computes."""

from __future__ import annotations

from collections.abc import Iterator
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
from cacheshrink_hybrid.vllm.own_heads import SplitHead
from cacheshrink_hybrid.vllm.paged_attention import NewTokens, PagedStep, attend_paged
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
EXACT = {"exact_sinks": 3, "exact_window": 5}
EXACT_BLOCK = 2
"""Tokens of a block of exact rows."""
EXACT_CASES = ("absorbed", "rebuilt-per-head", "rotated", "rebuilt-normalised")
BY_KERNELS = ("absorbed", "rebuilt-per-head", "rotated")
"""Cases that Triton's interpreter, which takes long, runs as well: one of each way to meet keys."""


def _blocks(head: LatentHead) -> tuple[PagedRows, PagedRows | None]:
    """A cache of 64 blocks, for coded rows and for exact ones; the first one belongs to nobody."""
    layout = row_layout(head, torch.float32)
    size = BLOCK * layout.row_bytes
    if head.exact_codec is not None:
        size = max(size, EXACT_BLOCK * head.exact_codec.layout.row_bytes)
    arena = torch.full((65 * size,), 0xFF, dtype=torch.uint8)
    rows = PagedRows(arena=arena, layout=layout, frame_bytes=size, frame_tokens=BLOCK)
    if head.exact_codec is None:
        return rows, None
    exact = replace(rows, layout=head.exact_codec.layout, frame_tokens=EXACT_BLOCK)
    return rows, exact


def _tables(block_tokens: int, free: Iterator[int]) -> Tensor:
    """Blocks of the requests in no order, with block 0 behind the last one of each."""
    table = torch.zeros(len(LENS), 12, dtype=torch.int32)
    for request, length in enumerate(LENS):
        for block in range(-(-length // block_tokens)):
            table[request, block] = next(free)
    return table


def _slots(table: Tensor, positions: list[Tensor], block_tokens: int) -> Tensor:
    return torch.cat(
        [
            t.long()[p // block_tokens] * block_tokens + p % block_tokens
            for t, p in zip(table, positions, strict=True)
        ]
    )


def _give_back(exact: PagedRows, table: Tensor, done: list[int]) -> None:
    """What no later query reads of exact rows is somebody else's."""
    for request, length in enumerate(done):
        behind = max(0, length - EXACT["exact_window"] + 1) // EXACT_BLOCK
        for block in range(-(-EXACT["exact_sinks"] // EXACT_BLOCK), behind):
            first = int(table[request, block]) * exact.frame_bytes
            exact.arena[first : first + exact.frame_bytes] = 0xFF
            table[request, block] = 0


def _due(head: LatentHead, query: Tensor, latent: Tensor, source: Tensor | None) -> Tensor:
    """What each token of one request reads, (S, H*D), of latents (S, R) as they are read back, and
    of [k; v] (S, 2*J*D) where tokens stay exact."""
    decoded = latent[None]
    if head.codec is not None:
        decoded = head.codec.decode(head.codec.encode(decoded, head.costs), torch.float32)
    angles = None if head.rotary is None else head.rotary.angles(len(latent), query)
    slot = torch.arange(len(latent))
    mask = slot <= slot[:, None]
    if head.window is not None:
        mask = mask & (slot > slot[:, None] - head.window)
    rotated = head.queries(query.transpose(0, 1)[None], angles)
    if source is None:
        return read_latents(head, rotated, decoded, mask[None, None], angles, 0)[0][0]
    assert head.exact_codec is not None
    channels = head.exact_codec.decode(
        head.exact_codec.encode(head.exact_channels(source[None])), torch.float32
    )
    keys, values = head.exact_keys_values(channels, angles)
    is_exact = (slot < EXACT["exact_sinks"]) | (slot > slot[:, None] - EXACT["exact_window"])
    products = torch.where(
        is_exact,
        head.products(rotated, keys),
        head.products(rotated, head.keys(decoded, angles, 0)),
    )
    weights = head.scores(products).masked_fill(~mask, -torch.inf).softmax(-1)
    read = head.averages(weights * is_exact, values)
    return (read + head.averages(weights * ~is_exact, head.values(decoded)))[0]


@pytest.mark.parametrize(
    ("name", "backend", "exact"),
    [
        *((name, "torch", False) for name in CASES),
        *((name, "torch", True) for name in EXACT_CASES),
        *(pytest.param(name, "triton", False, marks=pytest.mark.slow) for name in BY_KERNELS),
        pytest.param("rotated", "triton", True, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_pieces_of_requests_equal_the_module(name: str, backend: Backend, exact: bool) -> None:
    if backend == "triton" and not INTERPRET.value:
        pytest.skip("needs TRITON_INTERPRET=1 in a process without a GPU")
    case, method = CASES[name]
    head = head_of(case, method, **(EXACT if exact else {}))
    if head.stores_rotated:  # in more than one block of slots, which are not those of the cache
        head = replace(head, plan=replace(head.plan, block_slots=16))
    queries = [torch.randn(n, head.num_attention_heads, head.head_dim) for n in LENS]
    latents = [torch.randn(n, head.plan.kv_lora_rank) for n in LENS]
    sources = [torch.randn(n, head.width) for n in LENS]
    if head.stores_rotated:
        latents = [head.latent_in_block(source[None], 0)[0] for source in sources]
    kept = sources if exact else [None] * len(LENS)
    due = [_due(head, *given) for given in zip(queries, latents, kept, strict=True)]

    rows, exact_rows = _blocks(head)
    free = iter((torch.randperm(64) + 1).tolist())
    table, exact_table = _tables(BLOCK, free), _tables(EXACT_BLOCK, free)
    done = [0] * len(LENS)
    for step in STEPS:
        positions = [torch.arange(d, d + n) for d, n in zip(done, step, strict=True)]
        done = [d + n for d, n in zip(done, step, strict=True)]

        def new(of: list[Tensor], positions: list[Tensor] = positions) -> Tensor:
            return torch.cat([x[p] for x, p in zip(of, positions, strict=True)])

        paged = PagedStep(
            query_lens=step,
            context_lens=torch.tensor(done, dtype=torch.int32),
            num_slots=max(done),
            block_table=table,
            slot_mapping=_slots(table, positions, BLOCK),
        )
        beside = None
        if exact_rows is not None:
            slots = _slots(exact_table, positions, EXACT_BLOCK)
            beside = (
                exact_rows,
                replace(paged, block_table=exact_table.clone(), slot_mapping=slots),
            )
        got = attend_paged(
            SplitHead.alone(head),
            NewTokens(
                query=new(queries),
                latent=None if head.stores_rotated else new(latents),
                key_value=new(sources) if head.stores_rotated else None,
                exact=new(sources) if exact else None,
                positions=torch.cat(positions),
            ),
            rows,
            paged,
            beside,
            backend=backend,
        )
        assert_same_computation(got, new(due))
        if exact_rows is not None:
            _give_back(exact_rows, exact_table, done)
    assert done == list(LENS)
    assert (rows.arena[: rows.frame_bytes] == 0xFF).all()
