"""Tokens whose latents stay exact beside their few-bit rows: the first ones and the most recent.

Rows hold every token. Of the sinks and of the window a 16-bit copy is kept as well, and a query at
slot t reads the copy of slot s if s is a sink or t - s < window, the row otherwise. What a query
reads therefore depends on slots alone, not on how the text was fed. The copies of some tokens
before the window are kept too, so that removing the last tokens restores it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..codecs.straight_through import straight_through
from .plan import CROP_SLACK

FLOAT16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class ExactView:
    """Copies that the queries of one step may read.

    Attributes:
        tail: of the last slots, the new ones included, (B, n, R).
        sinks: (B, num_sinks, R).
        first: slot of each row's first sink, (B,).
        window: tokens back from a query, itself included, that it reads exactly.
    """

    tail: Tensor
    sinks: Tensor
    first: Tensor
    window: int

    def reads_exactly(self, query_slots: Tensor, key_slots: Tensor) -> Tensor:
        """Which keys each query reads exactly, (B, T, S)."""
        distance = query_slots[:, None] - key_slots
        recent = ((distance >= 0) & (distance < self.window))[None]
        from_first = key_slots - self.first[:, None]
        sink = (from_first >= 0) & (from_first < self.sinks.shape[1])
        return recent | sink[:, None]

    def overlaid(self, latent: Tensor, first_key_slot: int) -> Tensor:
        """Latents (B, S, R) of slots from `first_key_slot` on, with the copies in their place."""
        num_tail = min(self.tail.shape[1], latent.shape[1])
        split = latent.shape[1] - num_tail
        tail = self.tail[:, self.tail.shape[1] - num_tail :].to(latent.dtype)
        latent = torch.cat([latent[:, :split], tail], dim=1)
        if self.sinks.shape[1] == 0:
            return latent
        places = self.first[:, None] + torch.arange(self.sinks.shape[1], device=latent.device)
        places = places - first_key_slot
        seen = (places >= 0) & (places < latent.shape[1])
        at = places.clamp(0, latent.shape[1] - 1)[..., None].expand_as(self.sinks)
        sinks = torch.where(seen[..., None], self.sinks.to(latent.dtype), latent.gather(1, at))
        return latent.scatter(1, at, sinks)


class ExactTokens:
    """The copies of one layer.

    Args:
        num_sinks: first visible tokens of each row to keep.
        window: most recent tokens to keep.
        slack: so many tokens can be removed again by `truncate`.
    """

    def __init__(self, num_sinks: int, window: int, *, slack: int = CROP_SLACK) -> None:
        self.num_sinks = num_sinks
        self.window = window
        self.kept = window + slack if window else 0
        self.num_tokens = 0
        self._recent: Tensor | None = None
        self._sinks: Tensor | None = None

    def update(self, latent: Tensor, first_visible: Tensor) -> ExactView:
        """Take in the latents (B, T, R) of the next T slots. What is kept is constant; the view
        carries the gradients of these.

        Args:
            first_visible: slot of each row's first token that is not padding, (B,); beyond the last
                slot where there is none yet.
        """
        half = _half(latent.detach())
        exact = straight_through(latent, half)
        B, T, R = half.shape
        if self._recent is None or self._sinks is None:
            self._recent, self._sinks = half[:, :0], half.new_zeros(B, self.num_sinks, R)
        places = first_visible[:, None] + torch.arange(self.num_sinks, device=half.device)
        places = places - self.num_tokens
        new = ((places >= 0) & (places < T))[..., None]
        at = places.clamp(0, T - 1)[..., None].expand(-1, -1, R)
        sinks = torch.where(new, exact.gather(1, at), self._sinks)
        tail = torch.cat(
            [self._recent[:, max(0, self._recent.shape[1] - self.reach) :], exact], dim=1
        )
        recent = torch.cat([self._recent, half], dim=1)
        # A clone, since a slice would hold on to the whole prefill.
        self._recent = recent[:, max(0, recent.shape[1] - self.kept) :].clone()
        self._sinks = sinks.detach().to(half.dtype)
        self.num_tokens += T
        return ExactView(tail, sinks, first_visible, self.window)

    @property
    def reach(self) -> int:
        """Tokens before a step that its first query reads exactly, beside the sinks."""
        return max(0, self.window - 1)

    def resume(self, num_tokens: int, recent: Tensor, sinks: Tensor) -> None:
        """Go on behind `num_tokens` slots, whose copies `carried` gave.

        Args:
            recent: of the last slots, (B, reach, R).
            sinks: (B, num_sinks, R).
        """
        self.num_tokens, self._recent, self._sinks = num_tokens, recent, sinks

    def carried(self) -> tuple[Tensor, Tensor]:
        """What the next step needs, of a fixed size: `reach` most recent copies, zeros where there
        are fewer tokens, and the sinks."""
        assert self._recent is not None and self._sinks is not None
        recent = self._recent[:, max(0, self._recent.shape[1] - self.reach) :]
        return F.pad(recent, (0, 0, self.reach - recent.shape[1], 0)), self._sinks

    def truncate(self, num_tokens: int) -> None:
        """Forget all slots from `num_tokens` on."""
        removed = self.num_tokens - num_tokens
        if removed > 0 and self._recent is not None:
            self._recent = self._recent[:, : max(0, self._recent.shape[1] - removed)]
            self.num_tokens = num_tokens

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order."""
        if self._recent is not None and self._sinks is not None:
            self._recent = self._recent[rows.to(self._recent.device)]
            self._sinks = self._sinks[rows.to(self._sinks.device)]

    @property
    def batch_size(self) -> int:
        return 0 if self._recent is None else self._recent.shape[0]

    def tensors(self) -> tuple[Tensor, ...]:
        """What is held, for counting bytes."""
        return tuple(tensor for tensor in (self._recent, self._sinks) if tensor is not None)


class ExactMemory(ABC):
    """What a cache owes attention layers of which some tokens are to stay exact."""

    @abstractmethod
    def exact_tokens(self, layer_idx: int, num_sinks: int, window: int) -> ExactTokens:
        """The copies of one layer."""


def copy_dtype(dtype: torch.dtype) -> torch.dtype:
    """16 bits: the type of the latents if they have as many, float16 otherwise."""
    return dtype if dtype.itemsize == 2 else torch.float16


def _half(latent: Tensor) -> Tensor:
    """Latents in `copy_dtype`."""
    dtype = copy_dtype(latent.dtype)
    return latent if latent.dtype == dtype else latent.clamp(-FLOAT16_MAX, FLOAT16_MAX).to(dtype)
