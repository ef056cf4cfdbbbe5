"""Tokens whose latents stay exact beside their few-bit rows: the first ones and the most recent.

Rows hold every token. Of the sinks and of the window an exact row is kept as well, and a query at
slot t reads the exact row of slot s if s is a sink or t - s < window, the coded one otherwise. What
a query reads therefore depends on slots alone, not on how the text was fed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class ExactView:
    """Exact latents that the queries of one step may read.

    Attributes:
        sinks: of the first visible slots, (B, num_sinks, R); zeros where there are none yet.
        first: slot of each sequence's first sink, (B,).
        tail: of neighbouring slots up to the last one, the new ones included, (B, n, R).
        begin: slot of the first of them.
        window: tokens back from a query, itself included, that it reads exactly.
    """

    sinks: Tensor
    first: Tensor
    tail: Tensor
    begin: int
    window: int

    @property
    def num_sinks(self) -> int:
        return self.sinks.shape[1]

    @property
    def sink_slots(self) -> Tensor:
        """(B, num_sinks)."""
        return self.first[:, None] + torch.arange(self.num_sinks, device=self.first.device)

    def is_sink(self, slots: Tensor) -> Tensor:
        """Which of some slots (n,) are sinks, (B, n)."""
        from_first = slots - self.first[:, None]
        return (from_first >= 0) & (from_first < self.num_sinks)

    def tail_at(self, first_slot: int | Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Latents (B, count, R) of neighbouring slots, and these slots, (count,); -1 where there is
        none."""
        slots = torch.arange(count, device=self.tail.device) + first_slot
        places = slots - self.begin
        there = (places >= 0) & (places < self.tail.shape[1])
        at = places.clamp(0, self.tail.shape[1] - 1)
        return self.tail[:, at], torch.where(there, slots, -1)

    def overlaid(self, latent: Tensor, first_key: int, query_slot: int | Tensor) -> Tensor:
        """Latents (B, S, R) of the slots from `first_key` on, as the query at one slot reads them:
        with exact ones in their places. Without gradients they are written into `latent`."""
        if self.begin == first_key and self.tail.shape[1] == latent.shape[1]:
            slots = torch.arange(latent.shape[1], device=latent.device) + first_key
            due = (slots > query_slot - self.window) | self.is_sink(slots)
            return torch.where(due[..., None], self.tail.to(latent.dtype), latent)
        merged = latent.clone() if torch.is_grad_enabled() else latent
        if self.window:
            slots = torch.arange(self.window, device=latent.device) + (query_slot - self.window + 1)
            # Where the window is longer than the text, its first slot stands for those before.
            slots = slots.clamp_min(max(self.begin, first_key))
            exact = self.tail[:, slots - self.begin].to(latent.dtype)
            merged = merged.index_copy_(1, slots - first_key, exact)
        if self.num_sinks:
            slots, sinks = self.sink_slots, self.sinks.to(latent.dtype)
            there = slots <= query_slot
            # The first sink stands for those to come, or the query's own token where there is none.
            own = torch.zeros_like(slots[:, :1]) + query_slot
            slots = torch.where(there, slots, torch.where(there[:, :1], slots[:, :1], own))
            at = (slots - first_key)[..., None].expand(len(latent), -1, latent.shape[2])
            instead = torch.where(there[:, :1, None], sinks[:, :1], merged.gather(1, at))
            merged = merged.scatter_(1, at, torch.where(there[..., None], sinks, instead))
        return merged
