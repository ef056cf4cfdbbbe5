"""One request on its way through the engine, and what the caller sees of it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from .grammar import GrammarRule
from .log_probabilities import LogProbability, log_probabilities
from .logit_rules import LogitRule, ruled_scores
from .sampling import TokenScores, check_scores, choose_token
from .sampling_params import SamplingParams
from .speculation import NgramProposer
from .transcript import Transcript


@dataclass(frozen=True, kw_only=True)
class RequestOutput:
    """What a request has come to.

    Attributes:
        prompt_ids, token_ids: of the prompt, and generated so far.
        new_token_ids: generated since the request's previous output.
        finished: nothing more will come.
        finish_reason: `stop` (end of sequence or stop string), `length` or `abort`.
        preemptions: times that the request had to start over.
        num_cached_tokens: of the prompt, that were taken from kept prefixes.
        index: which of the `n` continuations of the prompt this is.
        logprobs: of each generated token, if they were asked for.
        prompt_logprobs: of each token of the prompt if they were asked for; None for the first one,
            which nothing comes before.
    """

    request_id: Hashable
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    new_token_ids: tuple[int, ...]
    finished: bool
    finish_reason: str | None
    preemptions: int
    num_cached_tokens: int = 0
    index: int = 0
    logprobs: tuple[LogProbability, ...] | None = field(default=None, repr=False)
    prompt_logprobs: tuple[LogProbability | None, ...] | None = field(default=None, repr=False)
    transcript: Transcript | None = field(default=None, repr=False, compare=False)

    @cached_property
    def text(self) -> str:
        """Of the generated tokens, up to a stop string or token; empty without a tokenizer.

        The decoded prompt and this are the decoded whole, spaces between them included. Until the
        request is finished, characters that later tokens could change or take away are held back,
        so each text begins with the one before: parts of a character, and what may turn out to be
        a stop string.
        """
        if self.transcript is None:
            return ""
        return self.transcript.text_after(self.token_ids, finished=self.finished)

    def __getstate__(self) -> dict[str, Any]:
        """With the text in the place of the tokenizer, for other processes and for files."""
        state = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return state | {"transcript": None, "text": self.text}


class Owner(Protocol):
    """Who hears of a request: the outbox of its caller.

    Attributes:
        num_open: its requests that are not over.
    """

    num_open: int

    def put(self, request: Request) -> None:
        """A request has got a token, or is over."""


@dataclass(slots=True, eq=False)
class Request:
    """A request that is waiting or running, or over.

    Attributes:
        index: which continuation of its prompt it is.
        twins: all continuations of the prompt, itself included; empty for a single one.
        max_length: most tokens, of prompt and output together; None for any number.
        end_tokens: those after which nothing more comes.
        outbox: of the caller whose request this is.
        transcript: its text; None without a tokenizer.
        rules: what its wishes make of the model's logits.
        grammar: the rule before these, for a text of a form; None for any text.
        tokens: prompt and generated tokens.
        num_computed: tokens whose rows and states are in the pool.
        num_cached: tokens of the prompt that were taken from kept prefixes when it was first begun.
        logprobs, prompt_logprobs: of tokens so far, where they were asked for.
        num_read: generated tokens that the caller has had in outputs.
        error: what ended it, if it ended by itself with no output.
        checkpoints, num_kept: see `pool.prefixes.keeper.Prompted`.
        generation: of the model's weights that computes it, see `PrefixReuse`.
        side: of the text whose rotary frequencies its rows have, see `RotarySides`.
        proposer: of drafts; None without speculation.
        waits_for_state: its last tokens followed drafts that were taken back, and the state with
            them: the next step computes them again.
    """

    request_id: Hashable
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    max_length: int | None
    end_tokens: frozenset[int]
    outbox: Owner
    transcript: Transcript | None
    generator: torch.Generator | None
    rules: list[LogitRule]
    tokens: list[int]
    grammar: GrammarRule | None = None
    index: int = 0
    twins: list[Request] = field(default_factory=list)
    logprobs: list[LogProbability] = field(default_factory=list)
    prompt_logprobs: list[LogProbability | None] = field(default_factory=lambda: [None])
    num_computed: int = 0
    num_cached: int | None = None
    num_read: int = 0
    preemptions: int = 0
    finish_reason: str | None = None
    error: Exception | None = None
    checkpoints: dict[int, str] | None = None
    num_kept: int = 0
    generation: int = 0
    side: int = 0
    proposer: NgramProposer | None = None
    waits_for_state: bool = False

    @property
    def seq_id(self) -> Hashable:
        """Name of its sequence in the store."""
        return (self.request_id, self.index)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self.prompt_ids)

    @property
    def over(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    @property
    def wants_prefill(self) -> bool:
        """Whether more is to be computed than what decoding does: the last token, or the last ones
        behind a state that was taken back."""
        if self.waits_for_state:
            return False
        return self.num_computed == 0 or self.num_computed < len(self.tokens) - 1

    @property
    def reads_prompt(self) -> bool:
        """Whether log-probabilities of the prompt are asked for and not known yet."""
        asked = self.params.prompt_logprobs is not None
        return asked and len(self.prompt_logprobs) < len(self.prompt_ids)

    def follow(self, twin: Request) -> None:
        """Go on from what another continuation of the prompt has computed of it."""
        self.num_computed, self.num_kept = twin.num_computed, twin.num_kept
        self.checkpoints, self.generation = {}, twin.generation
        self.side = twin.side
        self.prompt_logprobs = list(twin.prompt_logprobs)
        if self.num_cached is None:
            self.num_cached = twin.num_cached

    def read_prompt(self, begin: int, logits: Tensor) -> None:
        """Note what the model said of the prompt's tokens behind some positions.

        Args:
            begin: the first of these positions.
            logits: (T, V).
        """
        first = len(self.prompt_logprobs)  # after a preemption some are known
        told = self.prompt_ids[first : begin + len(logits) + 1]
        rows = logits[first - 1 - begin :][: len(told)]
        assert self.params.prompt_logprobs is not None
        self.prompt_logprobs += log_probabilities(rows, told, self.params.prompt_logprobs)

    def take(self, scores: TokenScores) -> str | None:
        """Choose the next token; why it was the last one, or None."""
        check_scores(scores)
        rules = self.rules if self.grammar is None else [self.grammar, *self.rules]
        ruled = ruled_scores(scores, rules, self.tokens)
        token = choose_token(ruled, self.params, self.generator)
        if self.params.logprobs is not None:
            self.logprobs += log_probabilities(scores.logits[None], [token], self.params.logprobs)
        self.tokens.append(token)
        self.outbox.put(self)
        if token in self.end_tokens or self._find_stop():
            return "stop"
        if self.grammar is not None and self.grammar.is_complete(self.tokens):
            return "stop"
        return "length" if len(self.tokens) == self.max_length else None

    def _find_stop(self) -> bool:
        """Whether the last token completed a stop string."""
        if not self.params.stop or self.transcript is None:
            return False
        return self.transcript.extend(self.tokens[len(self.prompt_ids) :])

    def end(self, reason: str | None, error: Exception | None = None) -> None:
        """Nothing more will come."""
        self.finish_reason, self.error = reason, error
        self.outbox.num_open -= 1
        self.outbox.put(self)

    @property
    def has_unread(self) -> bool:
        """Whether there are tokens that the caller has not had yet."""
        return self.num_read < self.num_generated

    def unread_outputs(
        self, step: int | None = None, most: int | None = None
    ) -> list[RequestOutput]:
        """Outputs of what the caller has not had yet, each with `step` new tokens, or one with all
        of them.

        Args:
            most: so many of them at most; None for all.
        """
        outputs: list[RequestOutput] = []
        total = self.num_generated
        while self.num_read < total and (most is None or len(outputs) < most):
            begin = self.num_read
            self.num_read = total if step is None else begin + step
            outputs.append(self.output(begin, self.num_read))
        if not outputs and self.num_read == total and self.finish_reason is not None:
            outputs.append(self.output(total, total))
        return outputs

    def output(self, begin: int, end: int) -> RequestOutput:
        """What there was after `end` generated tokens, of which those from `begin` on are new."""
        first = len(self.prompt_ids)
        generated = tuple(self.tokens[first : first + end])
        finished = self.finish_reason is not None and end == self.num_generated
        return RequestOutput(
            request_id=self.request_id,
            prompt_ids=self.prompt_ids,
            token_ids=generated,
            new_token_ids=generated[begin:],
            finished=finished,
            finish_reason=self.finish_reason if finished else None,
            preemptions=self.preemptions,
            num_cached_tokens=self.num_cached or 0,
            index=self.index,
            logprobs=tuple(self.logprobs[:end]) if self.params.logprobs is not None else None,
            prompt_logprobs=self._prompt_logprobs(),
            transcript=self.transcript,
        )

    def _prompt_logprobs(self) -> tuple[LogProbability | None, ...] | None:
        return None if self.params.prompt_logprobs is None else tuple(self.prompt_logprobs)
