"""Rings of recent inputs beside states in the pool."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ...errors import ConfigError
from .pages import StatePages, StatePlace, check_state_tables


@dataclass(frozen=True, eq=False, kw_only=True)
class InputRing:
    """Inputs since a state was last written, in the frames of that state.

    Attributes:
        length: inputs that fit.
        values: where the values lie, (length, M, P).
        writes: where the vectors lie along which values are added, in the state's basis, (length,
            G, width), or (length, sum of ranks).
        groups: G.
        ranks: channels of each group, which lie back to back; None for `width` each.
        dtype: of values and writes: float32, float16 or bfloat16.
    """

    length: int
    values: StatePlace
    writes: StatePlace
    groups: int
    dtype: torch.dtype
    ranks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        faults = []
        if not 1 <= self.length <= 64:
            faults.append(f"length={self.length} must be in [1, 64]")
        if self.dtype not in (torch.float32, torch.float16, torch.bfloat16):
            faults.append(f"inputs of {self.dtype}; due is float32, float16 or bfloat16")
        if self.ranks is not None and (len(self.ranks) != self.groups or min(self.ranks) < 1):
            faults.append(f"ranks={self.ranks}; due is at least 1 for each of {self.groups} groups")
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def scalars(self) -> dict[str, StatePlace]:
        """Where the numbers lie that there are one of per head, (length, M) float32 each."""
        raise NotImplementedError

    def starts(self, pages: StatePages) -> tuple[int, ...]:
        """First channel of each group among those of a token's writes, and how many these are."""
        return (0, *accumulate(self.ranks or (pages.format.width,) * self.groups))

    def packed(self, writes: Tensor) -> Tensor:
        """Writes (..., G, width) as they lie in the ring, (..., channels)."""
        if self.ranks is None:
            return writes.flatten(-2)
        parts = [writes[..., group, :rank] for group, rank in enumerate(self.ranks)]
        return torch.cat(parts, dim=-1)

    def unpacked(self, writes: Tensor, pages: StatePages) -> Tensor:
        """The inverse of `packed`, zeros beyond a group's rank."""
        if self.ranks is None:
            return writes.unflatten(-1, (self.groups, pages.format.width))
        pad = torch.nn.functional.pad
        parts = writes.split(self.ranks, dim=-1)
        return torch.stack(
            [pad(part, (0, pages.format.width - part.shape[-1])) for part in parts], dim=-2
        )

    def shapes(self, pages: StatePages) -> dict[str, tuple[StatePlace, tuple, torch.dtype]]:
        """Place, shape and type of each part."""
        M, P = pages.format.num_heads, pages.format.head_dim
        return {
            "values": (self.values, (self.length, M, P), self.dtype),
            "writes": (self.writes, (self.length, self.starts(pages)[-1]), self.dtype),
            **{
                name: (place, (self.length, M), torch.float32)
                for name, place in self.scalars.items()
            },
        }

    def num_frames(self, pages: StatePages) -> int:
        """Frames that a table must have to reach everything, the state included."""
        parts = self.shapes(pages).values()
        frames = [
            place.num_frames(torch.Size(shape).numel() * dtype.itemsize, pages.frame_bytes)
            for place, shape, dtype in parts
        ]
        return max(pages.num_frames, *frames)


@dataclass(frozen=True, eq=False, kw_only=True)
class ReplayRing(InputRing):
    """Inputs of Mamba-2: values x, writes B, and step sizes.

    Attributes:
        steps: where step sizes lie, (length, M), float32.
    """

    steps: StatePlace

    @property
    def scalars(self) -> dict[str, StatePlace]:
        return {"steps": self.steps}


@dataclass(frozen=True, eq=False, kw_only=True)
class DeltaRing(InputRing):
    """Inputs of a gated delta rule: values, writes (keys), decays and betas.

    Attributes:
        decays: where log decays lie, (length, M), float32.
        betas: where betas lie, (length, M), float32.
    """

    decays: StatePlace
    betas: StatePlace

    @property
    def scalars(self) -> dict[str, StatePlace]:
        return {"decays": self.decays, "betas": self.betas}


def check_ring(
    pages: StatePages,
    ring: InputRing,
    batch: int,
    read_table: Tensor,
    write_table: Tensor,
    num_pending: Tensor,
) -> None:
    """Refuse tables and counts of the wrong type or shape.

    Raises:
        ConfigError: unless tables are (B, frames of state and ring) and num_pending (B,), int32; or
            a head of the state has a higher rank than its group in the ring.
    """
    check_state_tables(ring.num_frames(pages), batch, read_table, write_table)
    faults = [
        fault
        for place, _, _ in ring.shapes(pages).values()
        for fault in place.faults(pages.frame_bytes)
    ]
    if faults:
        raise ConfigError("; ".join(faults))
    _check_ranks(pages, ring)
    if num_pending.shape != (batch,) or num_pending.dtype != torch.int32:
        raise ConfigError(
            f"num_pending is {num_pending.dtype} {tuple(num_pending.shape)}; due is int32 "
            f"({batch},)"
        )


def _check_ranks(pages: StatePages, ring: InputRing) -> None:
    if ring.ranks is None:
        return
    per_group = max(1, pages.format.num_heads // ring.groups)
    for segment in pages.format.segments:
        for head in segment.heads:
            held = ring.ranks[min(head // per_group, ring.groups - 1)]
            if segment.rank > held:
                raise ConfigError(
                    f"head {head} has rank {segment.rank}, its group in the ring {held}; due is at "
                    "most that of the group"
                )


def stored_inputs(pages: StatePages, ring: InputRing, table: Tensor) -> dict[str, Tensor]:
    """All parts of the rings, (B, length, ...) float32, whatever is in them; writes as (B, length,
    G, width)."""
    parts = {}
    for name, (_, shape, dtype) in ring.shapes(pages).items():
        stored = pages.arena[part_addresses(pages, ring, name, table)]
        parts[name] = stored.view(dtype).view(-1, *shape).float()
    parts["writes"] = ring.unpacked(parts["writes"], pages)
    return parts


def store_inputs(
    pages: StatePages,
    ring: InputRing,
    table: Tensor,
    num_pending: Tensor,
    newest: dict[str, Tensor],
) -> None:
    """Put one input of each sequence, by part (B, ...), in its place; none for padding and where
    the ring is full."""
    kept = ((table[:, 0] >= 0) & (num_pending < ring.length)).nonzero()[:, 0]
    place = num_pending[kept].long()
    newest = {**newest, "writes": ring.packed(newest["writes"])}
    for name, value in newest.items():
        addresses = part_addresses(pages, ring, name, table[kept])
        _, shape, dtype = ring.shapes(pages)[name]
        by_input = addresses.unflatten(1, (shape[0], -1))
        row = value[kept].to(dtype).contiguous().flatten(1).view(torch.uint8)
        pages.arena[by_input[torch.arange(len(kept), device=table.device), place]] = row


def part_addresses(pages: StatePages, ring: InputRing, name: str, table: Tensor) -> Tensor:
    """Byte in the arena of each byte of a part of the ring, (B, bytes)."""
    place, shape, dtype = ring.shapes(pages)[name]
    num_bytes = torch.Size(shape).numel() * dtype.itemsize
    return place.addresses(table, num_bytes, pages.frame_bytes)
