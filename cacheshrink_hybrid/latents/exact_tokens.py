"""Tokens whose keys and values stay exact beside their few-bit rows: the first and the most recent.

Coded rows hold every token. Of the sinks and of the window an exact row is kept as well: key and
value of all heads at 16 bits, the key normalised, but not rotated yet, since only distances between
slots matter. A query at slot t reads the exact row of slot s if s is a sink or t - s < window,
the coded one otherwise. What a query reads therefore depends on slots alone, not on how the text
was fed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False, slots=True, kw_only=True)
class ExactView:
    """Exact keys and values, side by side in 2 * J * D channels, that the queries of one step may
    read.

    Attributes:
        sinks: of the first visible slots, (B, num_sinks, 2*J*D); zeros where there are none yet.
        first: slot of each sequence's first sink, (B or 1,).
        tail: of neighbouring slots up to the last one, the new ones included, (B, n, 2*J*D).
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
        """(B or 1, num_sinks)."""
        return self.first[:, None] + torch.arange(self.num_sinks, device=self.first.device)

    def is_sink(self, slots: Tensor) -> Tensor:
        """Which of some slots (n,) are sinks, (B or 1, n)."""
        from_first = slots - self.first[:, None]
        return (from_first >= 0) & (from_first < self.num_sinks)

    def tail_at(self, first_slot: int | Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Rows (B, count, 2*J*D) of neighbouring slots, and these slots, (count,); -1 where there
        is none."""
        slots = torch.arange(count, device=self.tail.device) + first_slot
        places = slots - self.begin
        there = (places >= 0) & (places < self.tail.shape[1])
        at = places.clamp(0, self.tail.shape[1] - 1)
        return self.tail[:, at], torch.where(there, slots, -1)
