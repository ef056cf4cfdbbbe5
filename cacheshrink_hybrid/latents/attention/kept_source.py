"""The source's attention that a module in its place may keep, to run in its stead."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import Cache

from ...cache_argument import cache_argument


class KeepsSource(nn.Module):
    """A module in the place of a source's attention.

    Attributes:
        source_attention: that attention; None where it is not kept.
        compression_disabled: calls go there.
        dropout: of probabilities, in training.
    """

    source_attention: nn.Module | None
    dropout: float
    compression_disabled: bool = False

    def keep_source(self, source: nn.Module | None) -> None:
        self.source_attention = source
        # Keeps the loader of transformers from initialising this as the family's own module; its
        # children are seen one by one.
        self._is_hf_initialized = True

    def of_source(
        self,
        hidden_states: Tensor,
        args: tuple,
        cache: Cache | None,
        named: dict[str, Any],
        others: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """What the source's attention gives.

        Args:
            named: arguments that it is given where it knows them, or they are there.
            others: all further ones.
        """
        source = self.source_attention
        assert source is not None
        known = inspect.signature(source.forward).parameters
        named = {**named, cache_argument(source.forward): cache}
        given = {n: value for n, value in named.items() if value is not None or n in known}
        return source(hidden_states, *args, **given, **others)
