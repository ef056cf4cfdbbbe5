"""Requests served one after the other by the tree, the policies and the placements of the package,
over frames that hold no bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ...pool.budget import frames_within
from ...pool.frame_ledger import FrameLedger, Handles
from ...pool.frame_pool import FramePool
from ...pool.layout import Layout
from ...pool.prefixes.keeper import PrefixKeeper, Prompt
from ...pool.prefixes.placement import placement_of
from ...pool.prefixes.prefill_cost import PrefillCost
from ...pool.store import SequenceStore
from .workloads import PromptRequest, Tokens

PREFILL_CHUNK = 512


class CountedFrames(FramePool):
    """Frames that are given out and taken back, and hold nothing."""

    def __init__(self, num_frames: int, frame_bytes: int) -> None:
        FrameLedger.__init__(self, num_frames)
        self.frame_bytes = frame_bytes
        self.poison = False
        self.arena = torch.empty(0, dtype=torch.uint8)

    def zero(self, handles: Handles) -> None: ...

    def copy(self, sources: Handles, targets: Handles) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a strategy saved.

    Attributes:
        requests, too_long: served, and left out because they would not fit even alone.
        asked_tokens, saved_tokens, saved_share: of all prompts.
        cold_seconds, saved_seconds: of their prefill, without and by reuse.
        hits: requests that took anything over.
        evicted: edges and states given up.
        checkpoints: mean number of states kept, over all requests.
        reasons: why no more was found, counted.
    """

    requests: int
    too_long: int
    asked_tokens: int
    saved_tokens: int
    saved_share: float
    cold_seconds: float
    saved_seconds: float
    hits: int
    evicted: int
    checkpoints: float
    reasons: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


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
    pool = CountedFrames(num_frames, layout.frame_bytes)
    store = SequenceStore(layout, pool, policy=eviction)
    strategy = placement_of(placement)
    keeper = PrefixKeeper(store, strategy) if strategy.keeps_rows else None
    store.prefixes.seconds = cost.seconds
    fitting = [
        request
        for request in requests
        if store.need(len(request.prompt) + len(request.output)) <= pool.num_frames
    ]
    asked = sum(len(request.prompt) for request in fitting)
    cold = saved_seconds = 0.0
    saved = checkpoints = 0
    for number, request in enumerate(fitting):
        found = _serve(store, keeper, number, request)
        saved += found
        cold += cost.seconds(0, len(request.prompt))
        saved_seconds += cost.seconds(0, found)
        checkpoints += store.prefixes.num_checkpoints
    statistics = store.prefixes.statistics()
    reasons = {reason: 0 for reason in (*statistics.limits, *statistics.misses)}
    for counts in (statistics.limits, statistics.misses):
        for reason, count in counts.items():
            reasons[reason] += count
    return Outcome(
        requests=len(fitting),
        too_long=len(requests) - len(fitting),
        asked_tokens=asked,
        saved_tokens=saved,
        saved_share=saved / asked if asked else 0.0,
        cold_seconds=cold,
        saved_seconds=saved_seconds,
        hits=statistics.hits,
        evicted=statistics.evicted,
        checkpoints=checkpoints / max(1, len(fitting)),
        reasons=reasons,
    )


def _serve(
    store: SequenceStore, keeper: PrefixKeeper | None, number: int, request: PromptRequest
) -> int:
    """Prefill and decode one request; tokens that it took over."""
    served = Prompt(number, request.prompt)
    store.create(number)
    found = 0
    if keeper is not None:
        found = keeper.begin(served).num_tokens
    while left := len(request.prompt) - served.num_computed:
        size = min(left, PREFILL_CHUNK)
        size = size if keeper is None else keeper.piece(served, size)
        _take(store, number, size)
        served.num_computed += size
        if keeper is not None:
            keeper.pass_on(served)
    served.tokens = np.concatenate([request.prompt, request.output])
    if len(request.output) > 1:
        _take(store, number, len(request.output) - 1)  # the last one is never fed
    if keeper is not None:
        keeper.leave(served)
    store.free(number)
    return found


def _take(store: SequenceStore, number: int, count: int) -> None:
    store.reserve([number], count)
    store.commit([number])


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
