"""What requests take over from those before them, as long as the model stays what it is."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ..pool.prefixes.keeper import PrefixKeeper
from ..pool.prefixes.lookup import EVERY_TOKEN, FORGOTTEN, WHOLE_PROMPTS, Lookup
from ..pool.prefixes.placement import Placement
from ..pool.prefixes.prompt import Prompted
from .model_stamp import ModelStamp
from .runner import Runner


class Served(Prompted, Protocol):
    """A prompt of a model.

    Attributes:
        generation: of the model's weights that computes it, counted up when they change.
        side: of the text whose rotary frequencies its rows have, see `RotarySides`.
        reads_prompt: whether what the model says of its tokens is asked for, and not known yet.
    """

    generation: int
    side: int

    @property
    def reads_prompt(self) -> bool: ...


class PrefixReuse(PrefixKeeper):
    """Finds prefixes of requests in the pool, and offers their sequences to it.

    Args:
        runner: whose model computes the sequences of its store.
        placement: where checkpoints are kept.
    """

    def __init__(self, runner: Runner, placement: Placement) -> None:
        super().__init__(runner.store, placement)
        # Elsewhere the program goes on before a piece has been computed.
        if runner.device.type == "cpu":
            self.prefixes.seconds = self.cost.seconds
        self._in_pieces = runner.continues_in_pieces
        self._stamp = ModelStamp(runner.model)
        self._generation = 0
        self._num_tokens: int = runner.config.vocab_size

    def expect(self, prompt: Served) -> None:
        """A prompt waits, and will be begun soon."""
        if self._in_pieces and not prompt.reads_prompt:
            self.prefixes.expect(self._keys(prompt))

    def num_pinned(self, prompt: Served) -> int:
        """Frames that running requests hold of what a prompt would begin with."""
        return self.prefixes.num_pinned(self._keys(prompt))

    def begin(self, prompt: Served) -> Lookup:  # type: ignore[override]
        forgets = self._renew()
        prompt.generation, prompt.checkpoints = self._generation, {}
        reason = None
        if not self._in_pieces:
            reason = WHOLE_PROMPTS
        elif prompt.reads_prompt:
            reason = EVERY_TOKEN
        elif forgets:
            reason = FORGOTTEN
        if reason is None:
            return super().begin(prompt)
        found = Lookup(0, 0, reason)
        self.count_miss(len(prompt.tokens), reason)
        if self._in_pieces:
            self._begin_at(prompt, found)
        return found

    def _keys(self, prompt: Served) -> Any:  # type: ignore[override]
        """Tokens of each side are counted on from those of the one before it."""
        if not prompt.side:
            return prompt.tokens
        return np.asarray(prompt.tokens, dtype=np.int64) + prompt.side * self._num_tokens

    def _offer(  # type: ignore[override]
        self, prompt: Served, *, checkpoint: bool, kind: str
    ) -> None:
        self._renew()
        if self._in_pieces and prompt.generation == self._generation:
            super()._offer(prompt, checkpoint=checkpoint, kind=kind)

    def _renew(self) -> bool:
        """Forget all prefixes if the model has changed; whether there were any."""
        if not self._stamp.has_changed():
            return False
        self._generation += 1
        had_any = any(True for _ in self.prefixes)
        self.prefixes.clear()
        return had_any
