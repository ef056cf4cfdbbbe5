"""Rotary frequencies that depend on how long a text is, while it is read in pieces.

Longrope has two sets of frequencies: one for texts of up to a limit, and one for longer ones, which
holds for all their positions. What a layer stores was computed with one of them, so a sequence is
of one side of the limit: all pieces of a text are read with the frequencies of the whole, one that
grows over the limit is read anew, and prefixes are kept for each side apart.

Dynamic NTK has other frequencies at every length beyond the model's positions, so that nothing is
kept of such texts.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LONGROPE, DYNAMIC = "longrope", "dynamic"


class RotarySides:
    """The sides of a model's limits. Without such frequencies all texts are of side 0.

    Args:
        model: converted or not.

    Attributes:
        limits: most tokens of a text of each side but the last, in ascending order.
        longest: tokens beyond which every length has its own frequencies; None for no such number.
    """

    def __init__(self, model: nn.Module) -> None:
        self._rotaries: list[nn.Module] = []
        limits: set[int] = set()
        ends: list[int] = []
        for module in model.modules():
            kind = getattr(module, "rope_type", None)
            kinds = kind if isinstance(kind, dict) else {None: kind}
            for layer_type, name in kinds.items():
                if name == LONGROPE:
                    limits.add(_limit(module, layer_type))
                elif name == DYNAMIC:
                    ends.append(int(module.original_max_seq_len))
            if LONGROPE in kinds.values():
                self._rotaries.append(module)
        self.limits = sorted(limits)
        self.longest = min(ends, default=None)

    def side(self, num_tokens: int) -> int:
        """Of a text of so many tokens: limits that it exceeds."""
        return bisect_left(self.limits, num_tokens)

    def room(self, num_tokens: int) -> int | None:
        """Tokens that a text may grow by on its side; None for any number."""
        beyond = self.limits[self.side(num_tokens) :]
        return beyond[0] - num_tokens if beyond else None

    @contextmanager
    def reading(self, side: int) -> Iterator[None]:
        """Frequencies of texts of a side, whatever positions this thread gives the model."""
        if not side:  # a piece is no longer than the whole
            yield
            return
        last, thread = self.limits[side - 1], threading.get_ident()

        def lengthen(_: nn.Module, args: tuple, given: dict[str, Any]) -> tuple | None:
            if threading.get_ident() != thread:
                return None
            if "position_ids" in given:
                return args, {**given, "position_ids": _with_last(given["position_ids"], last)}
            return (args[0], _with_last(args[1], last), *args[2:]), given

        def shorten(_: nn.Module, args: tuple, given: dict[str, Any], found: Any) -> Any:
            return _without_last(found) if threading.get_ident() == thread else found

        with ExitStack() as hooks:
            for module in self._rotaries:
                before = module.register_forward_pre_hook(lengthen, with_kwargs=True)
                hooks.callback(before.remove)
                after = module.register_forward_hook(shorten, with_kwargs=True)
                hooks.callback(after.remove)
            yield


def _limit(rotary: Any, layer_type: str | None) -> int:
    parameters = rotary.config.rope_parameters
    if layer_type is not None:
        parameters = parameters[layer_type]
    return int(parameters["original_max_position_embeddings"])


def _with_last(position_ids: Tensor, last: int) -> Tensor:
    """Positions (..., T) and another one behind them."""
    return torch.cat([position_ids, torch.full_like(position_ids[..., :1], last)], dim=-1)


def _without_last(angles: Any) -> Any:
    """Angles (..., T + 1, D), one tensor or several, without those of the last position."""
    if isinstance(angles, Tensor):
        return angles[..., :-1, :]
    return type(angles)(map(_without_last, angles))
