"""Attention over rows of latents in the blocks of a paged cache.

What a forward pass has of several requests lies one behind the other: N new tokens, those of
request b after those of b - 1. A block of vLLM is a frame of `PagedRows`, and a slot counts as
there: block * block_size + place in the block. Tokens of a request are read by their positions,
so that neither chunks of a prompt nor blocks that other requests filled change a result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..kernels.backend import Backend
from ..kernels.latents.decode import LatentRead
from ..kernels.latents.paged_rows import PagedRows
from ..latents.attention.head import LatentHead
from ..latents.attention.kernel_view import latent_read
from ..latents.attention.pool_read import append_to_pool, read_pool


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class PagedStep:
    """The new tokens of one forward pass, and where their requests lie.

    Attributes:
        query_lens: new tokens of each request, B of them; N in all.
        context_lens: tokens of each request, the new ones included, (B,) int32.
        num_slots: at least the most of these.
        block_table: blocks of each request, (B, blocks) int32; anything behind its last one.
        slot_mapping: where each new token's row goes, (N,) int64.
    """

    query_lens: tuple[int, ...]
    context_lens: Tensor
    num_slots: int
    block_table: Tensor
    slot_mapping: Tensor

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.slot_mapping.shape[0]

    def parts(self) -> Iterator[tuple[list[int], slice | list[int], int]]:
        """What is read at once: requests, their tokens among the N, and how many of each request;
        those with one new token together, the others one by one."""
        single, tokens, first = [], [], 0
        for request, count in enumerate(self.query_lens):
            if count == 1:
                single.append(request)
                tokens.append(first)
            elif count:
                yield [request], slice(first, first + count), count
            first += count
        if single:
            yield single, tokens, 1


def attend_paged(
    writer: LatentHead,
    reader: LatentHead,
    query: Tensor,
    latent: Tensor | None,
    key_value: Tensor | None,
    positions: Tensor,
    rows: PagedRows,
    step: PagedStep,
    *,
    backend: Backend,
) -> Tensor:
    """Writes the rows of new tokens, and returns heads' outputs (N, H*D) over their requests.

    Args:
        writer: the layer with all its heads, of which rows are made.
        reader: the layer with the heads whose queries these are; another than `writer` where heads
            are split over processes.
        query: before rotation, (N, H, D).
        latent: of the new tokens, (N, R); None where keys are stored rotated.
        key_value: theirs as the source has them, (N, 2*J*D), where keys are stored rotated.
        positions: of the new tokens, (N,) int64.
        rows: the layer's blocks.
        backend: runs the kernels.
    """
    if latent is None:
        assert key_value is not None
        latent = writer.latent_in_block(key_value[:, None], positions[:, None])[:, 0]
    append_to_pool(writer, latent, rows, step.slot_mapping, backend=backend)
    asked = _rotated(reader, query, positions, step.num_slots)
    read = latent_read(reader, step.num_slots, query)
    output = query.new_empty(step.num_tokens, query.shape[1] * query.shape[2])
    for requests, tokens, count in step.parts():
        of_part = asked[tokens].unflatten(0, (len(requests), count)).transpose(1, 2)
        found = _read(reader, of_part, requests, rows, step, read, backend)
        output[tokens] = found.flatten(0, 1)
    return output


def _rotated(head: LatentHead, query: Tensor, positions: Tensor, num_slots: int) -> Tensor:
    """Queries (N, H, D) rotated by their positions."""
    angles = None
    if head.rotary is not None:
        cos, sin = head.rotary.angles(num_slots, query)
        angles = cos[:, positions], sin[:, positions]
    return head.queries(query.transpose(0, 1)[None], angles)[0].transpose(0, 1)


def _read(
    head: LatentHead,
    query: Tensor,
    requests: list[int],
    rows: PagedRows,
    step: PagedStep,
    read: LatentRead,
    backend: Backend,
) -> Tensor:
    """Heads' outputs (B, T, H*D) of rotated queries (B, H, T, D) of some requests."""
    at = torch.tensor(requests, device=query.device)
    return read_pool(
        head,
        query,
        rows,
        step.block_table.index_select(0, at),
        step.context_lens.index_select(0, at),
        read=read,
        backend=backend,
    )
