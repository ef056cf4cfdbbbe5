"""What was found of a prompt among the prefixes that are kept, and why not more."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

ALL = "all but the last token"
NO_PREFIX = "no such prefix"
NO_CHECKPOINT = "no checkpoint"
LAST_TOKEN = "checkpoint behind the last token"
EVICTED = "evicted"
FORGOTTEN = "model changed"
WHOLE_PROMPTS = "model takes prompts whole"
TOO_LONG = "prompt longer than the memory"
UNEVEN = "padding that no cache has"
EVERY_TOKEN = "every token asked for"
NO_ROOM = "no room for the state"
OTHER_ANGLES = "angles of every length differ"
REASONS = (
    ALL,
    NO_PREFIX,
    NO_CHECKPOINT,
    LAST_TOKEN,
    EVICTED,
    FORGOTTEN,
    WHOLE_PROMPTS,
    TOO_LONG,
    UNEVEN,
    EVERY_TOKEN,
    NO_ROOM,
    OTHER_ANGLES,
)
"""Why a look-up went no further: nothing was left to find, since the last token is computed in any
case; no request went on so; recurrent states or windows are kept at other positions only; of these
only behind the last token; they, or the rows, were given up for memory; they were of the model as
it was before a change; the model continues no prompt by several tokens at once; the prompt would
not fit, even alone; in a padded batch, states are written anew at other tokens than without
padding, or keys are stored for other slots; what the model says of every token was asked for;
running requests leave no frames for the state, which is kept in a code; rotary angles change with
every token of so long a prompt."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """What a new sequence begins with.

    Attributes:
        num_tokens: that it need not compute.
        num_matched: tokens that begin a kept prefix, the last one asked for left out; more than
            `num_tokens` where no layer, or not every layer, can go on there.
        reason: why not more, one of `REASONS`.
    """

    num_tokens: int
    num_matched: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TierStatistics:
    """A memory below the pool in numbers.

    Attributes:
        name: `host` or `disk`.
        budget_bytes, held_bytes: of its frames, and of those that hold something.
        kept_tokens, checkpoints: on all paths, and positions with a recurrent state, now.
        taken, refused: prefixes that fell out of the memory above and were copied here, and those
            that were not worth their room.
        hits, restored_tokens: prompts that it had more of than the memory above, and how many
            tokens more.
        evicted: edges and states given up so far.
    """

    name: str
    budget_bytes: int
    held_bytes: int
    kept_tokens: int
    checkpoints: int
    taken: int
    refused: int
    hits: int
    restored_tokens: int
    evicted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixStatistics:
    """Prefixes in numbers: counts since the beginning, and of the moment.

    Attributes:
        lookups, hits: all, and those that found something.
        asked_tokens, saved_tokens: of the prompts looked up, and those that were found.
        limits: look-ups that found something, by the reason why they did not find more.
        misses: look-ups that found nothing, by reason.
        kept_tokens, checkpoints: on all paths, and positions with a recurrent state, now.
        held_bytes: of frames that prefixes alone hold, which running requests get when they
            need them.
        evicted: edges and states given up so far.
        tiers: memories below the pool, the nearest first.
    """

    lookups: int
    hits: int
    asked_tokens: int
    saved_tokens: int
    limits: dict[str, int]
    misses: dict[str, int]
    kept_tokens: int
    checkpoints: int
    held_bytes: int
    evicted: int
    tiers: tuple[TierStatistics, ...] = ()


@dataclass(slots=True)
class LookupCounts:
    """Look-ups so far, counted."""

    asked_tokens: int = 0
    saved_tokens: int = 0
    limits: Counter[str] = field(default_factory=Counter)
    misses: Counter[str] = field(default_factory=Counter)

    def add(self, asked_tokens: int, found: Lookup) -> None:
        self.asked_tokens += asked_tokens
        self.saved_tokens += found.num_tokens
        (self.limits if found.num_tokens else self.misses)[found.reason] += 1
