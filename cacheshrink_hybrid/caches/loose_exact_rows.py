"""The exact rows of one layer in tensors of their own, for a cache without a pool."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import NotSupportedError
from ..pool.lifetime import WHOLE_STEP
from ..pool.memory import ExactRows


class LooseExactRows:
    """Rows of the first and of the most recent tokens, as many as the pool would keep.

    Args:
        num_sinks: first visible tokens of each sequence to keep.
        window: most recent tokens that a query reads, itself included.

    Attributes:
        num_tokens: slots so far.
    """

    def __init__(self, num_sinks: int, window: int) -> None:
        self.num_sinks = num_sinks
        self.window = window
        self.num_tokens = 0
        self._recent: Tensor | None = None
        self._sinks: Tensor | None = None

    def update(self, rows: Tensor, first_visible: Tensor, history: int) -> ExactRows:
        """Take in the rows (B, T, bytes) of the next T slots.

        Args:
            first_visible: slot of each sequence's first token that is not padding, (B,); beyond the
                last slot where there is none yet.
            history: tokens to keep behind the window, so that as many can be removed.
        """
        B, T, width = rows.shape
        if self._recent is None or self._sinks is None:
            self._recent, self._sinks = rows[:, :0], rows.new_zeros(B, self.num_sinks, width)
        places = first_visible[:, None].expand(B, 1) + torch.arange(
            self.num_sinks, device=rows.device
        )
        places = places - self.num_tokens
        new = ((places >= 0) & (places < T))[..., None]
        at = places.clamp(0, T - 1)[..., None].expand(-1, -1, width)
        self._sinks = torch.where(new, rows.gather(1, at), self._sinks)
        before = _last(self._recent, max(0, self.window - 1 + history))
        recent = torch.cat([before, rows], dim=1)
        kept = self.window + history if T > WHOLE_STEP or not self.window else recent.shape[1]
        # A clone, since a slice would hold on to the whole prefill.
        self._recent = _last(recent, kept).clone()
        self.num_tokens += T
        return ExactRows(self._sinks, recent, self.num_tokens - recent.shape[1])

    def check_truncate(self, num_tokens: int) -> None:
        """Refuse to forget all slots from `num_tokens` on if what comes next needs some of them.

        Raises:
            NotSupportedError: the next token would see exact rows that are gone.
        """
        if num_tokens < self.num_tokens and self._left(num_tokens) < min(
            num_tokens, self.window - 1
        ):
            raise NotSupportedError(
                f"the cache cannot go back from {self.num_tokens} to {num_tokens} tokens: exact "
                f"tokens have left their window of {self.window}; call activate_past_recording "
                "before feeding what may have to go, or keep a copy of the cache"
            )

    def truncate(self, num_tokens: int) -> None:
        """Forget all slots from `num_tokens` on, which was checked to be possible."""
        if num_tokens < self.num_tokens and self._recent is not None:
            self._recent = self._recent[:, : self._left(num_tokens)]
            self.num_tokens = num_tokens

    def _left(self, num_tokens: int) -> int:
        """Recent rows before slot `num_tokens`."""
        assert self._recent is not None
        return max(0, self._recent.shape[1] - (self.num_tokens - num_tokens))

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


def _last(rows: Tensor, count: int) -> Tensor:
    """The last rows, as many as there are."""
    return rows[:, max(0, rows.shape[1] - count) :]
