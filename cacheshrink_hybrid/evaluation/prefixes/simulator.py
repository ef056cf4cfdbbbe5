"""Requests served one after the other by the tree, the policies and the placements of the package,
over frames that hold no bytes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...pool.budget import frames_within
from ...pool.counted_frames import counted_store
from ...pool.layout import Layout
from ...pool.prefixes.keeper import PrefixKeeper
from ...pool.prefixes.placement import placement_of
from ...pool.prefixes.prefill_cost import PrefillCost
from ...pool.prefixes.replay import replay
from .workloads import PromptRequest, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What one request took over.

    Attributes:
        arrival: of the request.
        prompt_tokens: of its prompt.
        matched_tokens: that begin a kept prefix, whether they can be gone on from or not.
        hit_tokens: that need not be computed.
        reason: why not more, see `pool.prefixes.lookup`.
        cold_seconds, saved_seconds: of its prefill, without and by reuse.
        checkpoints: states kept when it left.
    """

    arrival: float
    prompt_tokens: int
    matched_tokens: int
    hit_tokens: int
    reason: str
    cold_seconds: float
    saved_seconds: float
    checkpoints: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a strategy saved.

    Attributes:
        served: every request, in order.
        too_long: requests left out, because they would not fit even alone.
        evicted: edges and states given up.
    """

    served: tuple[Served, ...]
    too_long: int
    evicted: int

    @property
    def asked_tokens(self) -> int:
        """Of all prompts."""
        return sum(one.prompt_tokens for one in self.served)

    @property
    def saved_tokens(self) -> int:
        return sum(one.hit_tokens for one in self.served)

    @property
    def saved_share(self) -> float:
        return self.saved_tokens / self.asked_tokens if self.served else 0.0

    def to_dict(self) -> dict[str, Any]:
        """In numbers: `requests` and `hits`, those that took anything over; tokens and seconds of
        all together; the mean of `checkpoints`; and `reasons` why no more was found, counted."""
        count = len(self.served)
        return {
            "requests": count,
            "too_long": self.too_long,
            "asked_tokens": self.asked_tokens,
            "saved_tokens": self.saved_tokens,
            "saved_share": self.saved_share,
            "cold_seconds": sum(one.cold_seconds for one in self.served),
            "saved_seconds": sum(one.saved_seconds for one in self.served),
            "hits": sum(one.hit_tokens > 0 for one in self.served),
            "evicted": self.evicted,
            "checkpoints": sum(one.checkpoints for one in self.served) / max(1, count),
            "reasons": dict(Counter(one.reason for one in self.served)),
        }


def simulate(
    layout: Layout,
    requests: Sequence[PromptRequest],
    budget_bytes: int,
    *,
    placement: str,
    eviction: str,
    cost: PrefillCost,
) -> Outcome:
    """Serve requests in their order, in so many bytes for the one that runs and all prefixes.

    Args:
        layout: of the model.
        placement, eviction: names, see `pool.prefixes.placement` and `pool.eviction`.
        cost: what prefill takes.

    Raises:
        CacheFullError: the budget is too small for one state and some tokens.
        ConfigError: an unknown name.
    """
    least = len(layout.classes) + layout.state.num_frames
    num_frames = frames_within(budget_bytes, layout.frame_bytes, least=least)
    store = counted_store(layout, num_frames, policy=eviction)
    store.prefixes.seconds = cost.seconds
    strategy = placement_of(placement)
    keeper = PrefixKeeper(store, strategy) if strategy.keeps_rows else None
    served, too_long = [], 0
    for request in requests:
        count = len(request.prompt)
        if store.need(count + len(request.output)) > num_frames:
            too_long += 1
            continue
        fed = np.concatenate([request.prompt, request.output[:-1]])  # the last one never is
        found = replay(store, keeper, fed, count)
        served.append(
            Served(
                arrival=request.arrival,
                prompt_tokens=count,
                matched_tokens=found.num_matched,
                hit_tokens=found.num_tokens,
                reason=found.reason,
                cold_seconds=cost.seconds(0, count),
                saved_seconds=cost.seconds(0, found.num_tokens),
                checkpoints=store.prefixes.num_checkpoints,
            )
        )
    return Outcome(served=tuple(served), too_long=too_long, evicted=store.prefixes.evicted)


def distinct_tokens(requests: Sequence[PromptRequest]) -> int:
    """Tokens of all prompts and outputs, those that begin alike counted once."""
    seen: set[bytes] = set()
    count = 0
    for request in requests:
        text: Tokens = np.concatenate([request.prompt, request.output])
        hashed = 0
        for start in range(0, len(text), COUNTED_TOKENS):
            piece = text[start : start + COUNTED_TOKENS]
            hashed = hash((hashed, piece.tobytes()))
            key = hashed.to_bytes(8, "big", signed=True)
            count += 0 if key in seen else len(piece)
            seen.add(key)
    return count


COUNTED_TOKENS = 64
"""Tokens that `distinct_tokens` does not tell apart."""
