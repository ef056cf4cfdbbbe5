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
from ..kernels.latents.append import latent_append
from ..kernels.latents.decode import LatentRead
from ..kernels.latents.paged_rows import PagedRows
from ..latents.attention.head import LatentHead
from ..latents.attention.kernel_view import latent_read
from ..latents.attention.pool_read import (
    ExactTable,
    read_exact_in_frames,
    read_pool,
)
from .own_heads import SplitHead


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


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class NewTokens:
    """What one layer has computed of the new tokens of a forward pass.

    Attributes:
        query: before rotation, (N, H, D).
        latent: (N, R); None where keys are stored rotated.
        key_value: as the source has them, (N, 2*J*D), where keys are stored rotated.
        exact: the same of the heads that read, where some tokens stay exact; None elsewhere.
        positions: (N,) int64.
    """

    query: Tensor
    latent: Tensor | None
    key_value: Tensor | None
    exact: Tensor | None
    positions: Tensor

    def between(self, start: int, end: int) -> NewTokens:
        """Of the tokens from number `start` on, and before number `end`."""
        parts = (self.query, self.latent, self.key_value, self.exact, self.positions)
        query, latent, key_value, exact, positions = (
            None if part is None else part[start:end] for part in parts
        )
        assert query is not None and positions is not None
        return NewTokens(
            query=query, latent=latent, key_value=key_value, exact=exact, positions=positions
        )


def attend_paged(
    heads: SplitHead,
    new: NewTokens,
    rows: PagedRows,
    step: PagedStep,
    exact: tuple[PagedRows, PagedStep] | None = None,
    *,
    backend: Backend,
) -> Tensor:
    """Writes the rows of new tokens, and returns heads' outputs (N, H*D) over their requests.

    Args:
        heads: the layer; H are those of its process.
        rows: the layer's blocks.
        exact: blocks with its exact rows, and where those of the same tokens lie; None where no
            token stays exact.
        backend: runs the kernels.
    """
    reader, latent = heads.own, new.latent
    if latent is None:
        assert new.key_value is not None
        latent = heads.whole.latent_in_block(new.key_value[:, None], new.positions[:, None])[:, 0]
    heads.append(latent, rows, step.slot_mapping, backend)
    if exact is not None:
        assert new.exact is not None
        channels = reader.exact_channels(new.exact[None])[0]
        latent_append(channels, exact[0], exact[1].slot_mapping, backend=backend)
    query = _rotated(reader, new.query, new.positions, step.num_slots)
    read = latent_read(reader, step.num_slots, new.query)
    output = query.new_empty(step.num_tokens, query.shape[1] * query.shape[2])
    for requests, tokens, count in step.parts():
        of_part = query[tokens].unflatten(0, (len(requests), count)).transpose(1, 2)
        found = _read(reader, of_part, requests, rows, step, exact, read, backend)
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
    exact: tuple[PagedRows, PagedStep] | None,
    read: LatentRead,
    backend: Backend,
) -> Tensor:
    """Heads' outputs (B, T, H*D) of rotated queries (B, H, T, D) of some requests."""
    at = torch.tensor(requests, device=query.device)
    context_lens, beside = step.context_lens.index_select(0, at), None
    if exact is not None:
        table = ExactTable(exact[0], exact[1].block_table.index_select(0, at))
        recent = table if head.plan.exact_window else None
        first = table if head.plan.exact_sinks else None
        beside = read_exact_in_frames(head, query, recent, first, context_lens, step.num_slots)
    return read_pool(
        head,
        query,
        rows,
        step.block_table.index_select(0, at),
        context_lens,
        read=read,
        beside=beside,
        backend=backend,
    )
