"""A context that a model has read into its cache, and what it makes of continuations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from ..end_tokens import end_tokens
from .cached_forward import cached_logits, new_cache
from .defaults import DEFAULT_CHUNK


class LiveContext:
    """Tokens in a live cache, from which any number of continuations are read, each from here.

    The cache holds all tokens but the last, which every continuation begins with. So what is said
    of a continuation was read from what the cache stores, as in generation.

    Args:
        model: converted or not.
        ids: tokens of the context, at least one.
        chunk_length: tokens per forward pass.
    """

    def __init__(
        self, model: PreTrainedModel, ids: Sequence[int], chunk_length: int = DEFAULT_CHUNK
    ) -> None:
        self.model = model
        self.ids = tuple(ids)
        self.chunk_length = chunk_length
        self.cache = new_cache(model)
        _exhaust(self._read(self.ids[:-1], self.cache))

    def extended(self, ids: Sequence[int]) -> LiveContext:
        """This context with more tokens behind it; itself it stays as it is."""
        longer = copy.copy(self)
        longer.ids = (*self.ids, *ids)
        longer.cache = copy.deepcopy(self.cache)
        _exhaust(self._read(longer.ids[len(self.ids) - 1 : -1], longer.cache))
        return longer

    def log_probabilities(self, continuation: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of each of the T tokens of a continuation, at least one: its log-probability (T,), in
        nats, and whether no token is more likely (T,)."""
        fed = (self.ids[-1], *continuation[:-1])
        values, likeliest, start = [], [], 0
        for logits in self._read(fed, copy.deepcopy(self.cache)):
            due = torch.tensor(continuation[start : start + len(logits)], device=logits.device)
            found = torch.log_softmax(logits.float(), dim=-1).gather(1, due[:, None])[:, 0]
            values.append(found.cpu())
            likeliest.append((logits.argmax(-1) == due).cpu())
            start += len(logits)
        return torch.cat(values), torch.cat(likeliest)

    def greedy(
        self, max_new_tokens: int, enough: Callable[[list[int]], bool] = lambda new: False
    ) -> list[int]:
        """The most likely continuation, token by token, up to one of the model's end tokens.

        Args:
            enough: whether to stop after these new tokens.
        """
        cache = copy.deepcopy(self.cache)
        ends = end_tokens(self.model)
        last = self.ids[-1]
        new: list[int] = []
        while len(new) < max_new_tokens and not (new and last in ends) and not enough(new):
            (logits,) = self._read((last,), cache)
            last = int(logits[-1].argmax())
            new.append(last)
        return new

    @torch.no_grad()
    def _read(self, ids: Sequence[int], cache: Cache) -> Iterator[Tensor]:
        """Feed tokens piece by piece; gives the logits (T, V) behind the T tokens of each."""
        if ids:
            given = torch.tensor([ids])
            for _, logits in cached_logits(self.model, given, self.chunk_length, cache):
                yield logits[0]


def _exhaust(pieces: Iterator[Tensor]) -> None:
    for _ in pieces:
        pass
