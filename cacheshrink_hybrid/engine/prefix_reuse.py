"""What requests take over from those before them, and what they leave behind."""

from __future__ import annotations

from ..pool.prefixes.lookup import EVERY_TOKEN, FORGOTTEN, WHOLE_PROMPTS, Lookup
from ..pool.prefixes.placement import Placement, grid_distance
from .model_stamp import ModelStamp
from .prefill_cost import PrefillCost
from .request import Request
from .runner import Runner

LEAST_GAIN = 16
"""Tokens that a checkpoint has to save where a prompt goes on otherwise: fewer are computed sooner
than a state is put aside."""


class PrefixReuse:
    """Finds prefixes of requests in the pool, and offers their sequences to it.

    Args:
        runner: whose model computes the sequences of its store.
        placement: where checkpoints are kept.

    Attributes:
        cost: of the pieces that were fed, which says what a prefix saves.
    """

    def __init__(self, runner: Runner, placement: Placement) -> None:
        self.store, self.prefixes = runner.store, runner.store.prefixes
        self.placement = placement
        wish = placement.least_distance
        self._distance = grid_distance(runner.store.layout) if wish is None else wish
        self.cost = PrefillCost()
        # Elsewhere the program goes on before a piece has been computed.
        if runner.device.type == "cpu":
            self.prefixes.seconds = self.cost.seconds
        self._in_pieces = runner.continues_in_pieces
        self._stamp = ModelStamp(runner.model)
        self._generation = 0
        """Of the model's weights, counted up when they change."""

    def begin(self, request: Request) -> None:
        """Let the empty sequence of a request take over what is kept of its tokens, and note where
        checkpoints are to be."""
        forgets = self._renew()
        request.generation, request.checkpoints = self._generation, []
        if not self._in_pieces or request.params.prompt_logprobs is not None:
            self._count_miss(request, EVERY_TOKEN if self._in_pieces else WHOLE_PROMPTS)
            return
        if forgets:
            self._count_miss(request, FORGOTTEN)
            found = Lookup(0, 0, FORGOTTEN)
        else:
            found = self.store.resume_prefix(request.seq_id, request.tokens)
        request.num_computed = request.num_kept = found.num_tokens
        if self.placement.observe is not None:
            self.placement.observe(found.num_matched)
        if self.prefixes.needs_checkpoints:
            places: list[int] = []
            if self.placement.positions is not None:
                places = self.placement.positions(len(request.tokens))
            if self.placement.at_branches and found.num_matched - found.num_tokens >= LEAST_GAIN:
                places = sorted({*places, found.num_matched})
            request.checkpoints = [place for place in places if place > found.num_tokens]

    def piece(self, request: Request, longest: int) -> int:
        """Most tokens of the next piece of a prompt, which ends where a checkpoint is to be."""
        due = (place - request.num_computed for place in request.checkpoints or ())
        return min(longest, next((count for count in due if count > 0), longest))

    def pass_on(self, request: Request) -> None:
        """Keep a sequence as it stands, if one of its positions that matter has been reached."""
        at_end = request.num_computed == len(request.tokens)
        wanted = request.num_computed in (request.checkpoints or ())
        if self.placement.at_pieces and self.prefixes.needs_checkpoints:
            wanted = wanted or request.num_computed - request.num_kept >= self._distance
        if wanted or at_end:
            self._offer(request, checkpoint=wanted or self.placement.at_ends)
            request.num_kept = request.num_computed

    def leave(self, request: Request) -> None:
        """Keep a sequence that will not go on, wherever it is."""
        self._offer(request, checkpoint=self.placement.at_ends)

    def _offer(self, request: Request, *, checkpoint: bool) -> None:
        num_tokens = self.store.num_tokens(request.seq_id)
        self._renew()
        if num_tokens and self._in_pieces and request.generation == self._generation:
            self.store.offer_prefix(
                request.seq_id, request.tokens[:num_tokens], checkpoint=checkpoint
            )

    def _renew(self) -> bool:
        """Forget all prefixes if the model has changed; whether there were any."""
        if not self._stamp.has_changed():
            return False
        self._generation += 1
        had_any = any(True for _ in self.prefixes)
        self.prefixes.clear()
        return had_any

    def _count_miss(self, request: Request, reason: str) -> None:
        self.prefixes.counts.add(len(request.tokens), Lookup(0, 0, reason))
