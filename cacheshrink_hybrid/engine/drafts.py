"""Steps that read drafts: what they feed, and what of it stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..pool.lifetime import WHOLE_STEP
from ..pool.store import SequenceStore
from .request import Request
from .rotary_sides import RotarySides
from .sampling import token_scores
from .speculation import SpeculativeConfig
from .statistics import SpeculationStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """What a decode step feeds of one request.

    Attributes:
        pending: its tokens that are not computed: the last one, or several behind a state that was
            taken back.
        drafts: tokens that may follow.
    """

    request: Request
    pending: list[int]
    drafts: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return self.pending + self.drafts

    @property
    def without_drafts(self) -> Feed:
        return replace(self, drafts=[])


class Drafts:
    """Proposes tokens for requests, and keeps those that they choose themselves.

    Where the model has recurrent states, these have taken in all drafts of a step. If one of them
    does not stay, the step is taken back whole, and the next one begins with the tokens that do.

    Args:
        config: how drafts are found; None for none.
        store: of the sequences.
        sides: of the model's rotary frequencies, over which no draft goes.
    """

    def __init__(
        self, config: SpeculativeConfig | None, store: SequenceStore, sides: RotarySides
    ) -> None:
        self._config, self._store, self._sides = config, store, sides
        self._has_states = store.layout.state.num_frames > 0
        self._drafts = self._drafted = self._accepted = 0

    @property
    def statistics(self) -> SpeculationStatistics:
        return SpeculationStatistics(
            drafts=self._drafts, draft_tokens=self._drafted, accepted_tokens=self._accepted
        )

    def feed(self, request: Request) -> Feed:
        """What is not computed of a request, with drafts if there are any."""
        pending = request.tokens[request.num_computed :]
        if self._config is None or request.proposer is None or not request.num_generated:
            return Feed(request=request, pending=pending)
        most = self._config.num_speculative_tokens
        # What was taken back again and again would be fed for ever.
        room = [0 if len(pending) > most + 1 else most, WHOLE_STEP - len(pending)]
        if request.max_length is not None:
            room.append(request.max_length - len(request.tokens) - 1)
        if (on_side := self._sides.room(len(request.tokens))) is not None:
            room.append(on_side)
        drafts = request.proposer(request.tokens, min(room))
        return Feed(request=request, pending=pending, drafts=drafts)

    def reserve(self, feeds: Sequence[Feed]) -> None:
        """Room for these tokens, for all or none.

        Raises:
            CacheFullError: there is none.
        """
        self._store.reserve(
            [feed.request.seq_id for feed in feeds],
            [len(feed.tokens) for feed in feeds],
            revocable=[bool(feed.drafts) for feed in feeds],
        )

    def take(self, feed: Feed, logits: Tensor) -> str | None:
        """Let a request choose its next tokens, as long as each is the draft behind which logits
        are there for another one, and count as stored what stays.

        Args:
            logits: behind each token that was fed, (T, V).

        Returns:
            Why the last token was the last one of the request, or None.

        Raises:
            Exception: what the request raises; nothing is committed then.
        """
        request, drafts = feed.request, feed.drafts
        reason, accepted = None, 0
        for place, scores in enumerate(token_scores(logits[len(feed.pending) - 1 :])):
            reason = request.take(scores)
            stays = place < len(drafts) and request.tokens[-1] == drafts[place]
            accepted += stays
            if reason is not None or not stays:
                break
        if drafts:
            self._drafts += 1
            self._drafted += len(drafts)
            self._accepted += accepted
        request.waits_for_state = self._has_states and accepted < len(drafts)
        count = 0 if request.waits_for_state else len(feed.pending) + accepted
        self._store.commit([request.seq_id], count)
        request.num_computed += count
        return reason
