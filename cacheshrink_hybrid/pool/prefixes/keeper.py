"""What a sequence takes over from others on its way through a prompt, and leaves behind."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from typing import Any

from ..store import SequenceStore
from .history import TextHistory
from .lookup import Lookup
from .placement import Placement, grid_distance
from .prefill_cost import PrefillCost
from .prompt import Prompted
from .weight_tuning import WeightTuning

LEAST_GAIN = 16
"""Tokens that a checkpoint has to save where a prompt goes on otherwise: fewer are computed sooner
than a state is put aside."""
KNOWN_FROM_ROWS = 0.5
"""Share of the tokens up to where texts parted whose rows are still there, from which on these say
where prompts part."""

PIECE, BRANCH, PLANNED, PROMPT, END = "piece", "branch", "planned", "prompt", "end"
"""Why a position is kept: a piece of the prefill ended there, prompts part there, it was planned,
the prompt ended, or the whole sequence did."""


class PrefixKeeper:
    """Finds prefixes of prompts in a store, and offers sequences to it.

    Args:
        store: of the sequences.
        placement: where checkpoints are kept.
        tunes: whether to choose the weight of a policy that weighs two numbers, from the requests.
        history: of requests, for a placement that remembers them, which somebody else adds to; None
            for one of its own.

    Attributes:
        cost: of the pieces that were fed, which says what a prefix saves.
    """

    def __init__(
        self,
        store: SequenceStore,
        placement: Placement,
        *,
        tunes: bool = True,
        history: TextHistory | None = None,
    ) -> None:
        self.store, self.prefixes = store, store.prefixes
        self.placement = placement
        self.cost = PrefillCost()
        self._begun: dict[Hashable, int] = {}
        """Tokens of prompts under way."""
        self._grid_distance = grid_distance(store.layout, store.prefixes.kept_state)
        self._remembers = history is None
        self._history: TextHistory | None = None
        if placement.remembers and self.prefixes.needs_checkpoints:
            self._history = history or TextHistory()
        weighs = bool(store.prefixes.queue.policy.weights)
        self._tuning = WeightTuning(store, self._twin) if weighs and tunes else None

    def begin(self, prompt: Prompted) -> Lookup:
        """Let the empty sequence of a prompt take over what is kept of its tokens, and note where
        checkpoints are to be."""
        found = self.store.resume_prefix(prompt.seq_id, self._keys(prompt))
        self._begin_at(prompt, found)
        return found

    def _keys(self, prompt: Prompted) -> Any:
        """What stands for a prompt's tokens in the store: others where equal tokens have other
        rows."""
        return prompt.tokens

    def _begin_at(self, prompt: Prompted, found: Lookup) -> None:
        prompt.num_computed = prompt.num_kept = found.num_tokens
        prompt.checkpoints = {}
        count = self._begun[prompt.seq_id] = len(prompt.tokens)
        if self.placement.observe is not None:
            self.placement.observe(found.num_matched)
        if not self.prefixes.needs_checkpoints:
            return
        places: dict[int, str] = {}
        if self.placement.positions is not None:
            places = dict.fromkeys(self.placement.positions(count), PLANNED)
        parting = self._parting(prompt, found)
        if self.placement.at_branches and parting - found.num_tokens >= LEAST_GAIN:
            places[parting] = BRANCH
        due = sorted(place for place in places if place > found.num_tokens)
        prompt.checkpoints = {place: places[place] for place in due}

    def _parting(self, prompt: Prompted, found: Lookup) -> int:
        """Where a prompt goes on otherwise than those before it."""
        if self._history is not None:
            parting = self._history.parting(self._keys(prompt))
            if KNOWN_FROM_ROWS * parting > found.num_matched:
                return parting
        return found.num_matched

    def piece(self, prompt: Prompted, longest: int) -> int:
        """Most tokens of the next piece of a prompt, which ends where a checkpoint is to be."""
        due = (place - prompt.num_computed for place in prompt.checkpoints or ())
        return min(longest, next((count for count in due if count > 0), longest))

    def pass_on(self, prompt: Prompted) -> None:
        """Keep a sequence as it stands, if one of its positions that matter has been reached."""
        at_end = prompt.num_computed == len(prompt.tokens)
        wanted = (prompt.checkpoints or {}).get(prompt.num_computed)
        if wanted is None and self.placement.at_pieces and self.prefixes.needs_checkpoints:
            wish = self.placement.least_distance
            distance = self._grid_distance if wish is None else wish
            far = prompt.num_computed - prompt.num_kept >= distance
            wanted = PIECE if far else None
        if wanted is not None or at_end:
            checkpoint = wanted is not None or self.placement.at_prompts
            self._offer(prompt, checkpoint=checkpoint, kind=wanted or PROMPT)
            prompt.num_kept = prompt.num_computed

    def forget(self, prompt: Prompted) -> int:
        """Keep nothing of a sequence that will not go on; the tokens of its prompt, 0 where they
        were never begun."""
        return self._begun.pop(prompt.seq_id, 0)

    def leave(self, prompt: Prompted) -> None:
        """Keep a sequence that will not go on, wherever it is."""
        self._offer(prompt, checkpoint=self.placement.at_ends, kind=END)
        num_fed = self.store.num_tokens(prompt.seq_id)
        num_prompt_tokens = min(self.forget(prompt), num_fed)
        if not num_prompt_tokens:
            return
        fed = self._keys(prompt)[:num_fed]
        if self._history is not None and self._remembers:
            self._history.add(fed)
        if self._tuning is not None:
            self._tuning.serve(fed, num_prompt_tokens)
            if self._tuning.is_done:
                self._tuning = None

    def break_off(self, prompt: Prompted) -> None:
        """Keep what was computed of a prompt whose last piece failed, where rows alone are enough
        to go on from; a state may have been written in part."""
        if not self.prefixes.needs_checkpoints:
            self.store.commit([prompt.seq_id], 0)
            self.leave(prompt)

    def _offer(self, prompt: Prompted, *, checkpoint: bool, kind: str) -> None:
        num_tokens = self.store.num_tokens(prompt.seq_id)
        if num_tokens:
            self.store.offer_prefix(
                prompt.seq_id, self._keys(prompt)[:num_tokens], checkpoint=checkpoint, kind=kind
            )

    def _twin(self, store: SequenceStore) -> PrefixKeeper:
        """A keeper that does the same in another store."""
        placement = replace(self.placement, observe=None)
        return PrefixKeeper(store, placement, tunes=False, history=self._history)

    def count_miss(self, num_tokens: int, reason: str) -> None:
        """A prompt of so many tokens was not looked up, or could not be."""
        self.prefixes.counts.add(num_tokens, Lookup(0, 0, reason))
