"""What can be served, and the requests that are made of it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Hashable, Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from ..end_tokens import end_tokens
from ..errors import CacheFullError, ConfigError, PromptLengthError
from ..families.vision import media_tokens
from ..pool.lifetime import TOKENS
from .grammar import GrammarRule, GrammarVocabulary, grammar_of
from .logit_rules import rules_of
from .prompts import PromptEncoder
from .request import Owner, Request
from .runner import Runner
from .sampling_params import FORMS, SamplingParams
from .speculation import NgramProposer, SpeculativeConfig
from .transcript import Decoder, Transcript
from .word_tokens import word_runs


def check_words(prompt: Sequence[int], media_tokens: Collection[int]) -> None:
    """Refuse a prompt with tokens that stand for an image, video or sound.

    Raises:
        ConfigError: it has some.
    """
    found = sorted({*prompt}.intersection(media_tokens))
    if found:
        raise ConfigError(
            f"tokens {found} of the prompt stand for images, videos or sounds, which token ids "
            "alone do not show; leave them out, or let model.generate() read the whole"
        )


class Intake:
    """Makes requests of prompts and wishes, and refuses those that can never be served.

    Args:
        runner: of the engine.
        tokenizer: None where prompts are token ids.
        speculation: how drafts are found; None for none.

    Attributes:
        max_length: positions that the model has; None for any number.
        end_tokens: after which the model says nothing more.
        encoder: of prompts as text; None without a tokenizer.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: PreTrainedTokenizerBase | None,
        speculation: SpeculativeConfig | None = None,
    ) -> None:
        self.store = runner.store
        self._speculation = speculation
        self.tokenizer = tokenizer
        self.max_length: int | None = getattr(runner.config, "max_position_embeddings", None)
        self.end_tokens = end_tokens(runner.model)
        self._media_tokens = media_tokens(runner.model.config)
        self._vocabulary: int = runner.config.vocab_size
        self._decoders: dict[bool, Decoder] = {}
        """By whether they skip special tokens."""
        self.encoder: PromptEncoder | None = None
        if tokenizer is not None:
            self.encoder = PromptEncoder(tokenizer, self.max_length)
            self._decoders = {
                skips: Decoder(tokenizer, skip_special_tokens=skips) for skips in (True, False)
            }

    def requests(
        self,
        prompt: str | tuple[int, ...],
        params: SamplingParams | None,
        outbox: Owner,
        request_id: Hashable | None = None,
    ) -> list[Request]:
        """The `n` continuations of a prompt, not queued yet.

        Raises:
            ConfigError: a prompt or wishes that cannot be served.
            CacheFullError: a continuation would not fit even alone.
        """
        params = SamplingParams() if params is None else params
        if not isinstance(params, SamplingParams):
            raise ConfigError(f"params must be SamplingParams, not {type(params).__name__}")
        ids = self._token_ids(prompt)
        self._check_tokens(params)
        if (params.stop or params.bad_words) and self.tokenizer is None:
            raise ConfigError("stop strings and bad words need the tokenizer; give it to LLM")
        ends = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            ends |= self.end_tokens
        longest = self._longest(len(ids), params)
        bad_words = word_runs(self.tokenizer, params.bad_words) if self.tokenizer else []
        grammar, drafting = grammar_of(params), self._speculation
        requests = [
            Request(
                request_id=request_id,
                prompt_ids=ids,
                params=params,
                max_length=longest,
                end_tokens=ends,
                outbox=outbox,
                transcript=self._transcript(ids, params, ends),
                generator=params.generator(index),
                rules=rules_of(params, num_prompt=len(ids), ends=sorted(ends), bad_words=bad_words),
                grammar=None if grammar is None else self._grammar_rule(grammar, len(ids)),
                tokens=list(ids),
                index=index,
                proposer=None if drafting is None else NgramProposer(drafting),
            )
            for index in range(params.n)
        ]
        if params.n > 1:
            for request in requests:
                request.twins = requests
        return requests

    def _grammar_rule(self, grammar: str, num_prompt: int) -> GrammarRule:
        return GrammarRule(self._grammar_vocabulary, grammar, num_prompt)

    @cached_property
    def _grammar_vocabulary(self) -> GrammarVocabulary:
        if self.tokenizer is None:
            raise ConfigError(f"{', '.join(FORMS)} need the tokenizer; give it to LLM")
        ends = self.end_tokens or {self.tokenizer.eos_token_id} - {None}
        if not ends:
            raise ConfigError(
                f"{', '.join(FORMS)} need a model with an end-of-sequence token; set "
                "generation_config.eos_token_id"
            )
        return GrammarVocabulary(self.tokenizer, self._vocabulary, ends)

    def need_bytes(self, prompt: tuple[int, ...], params: SamplingParams) -> int:
        """Of the pool, for all continuations of a prompt at their full length; of what grows
        without limit, for the tokens that there are.

        Raises:
            ConfigError, CacheFullError: the request can never be served.
        """
        longest = self._longest(len(prompt), params) or len(prompt)
        return params.n * self.store.need(longest) * self.store.layout.frame_bytes

    def _transcript(
        self, ids: tuple[int, ...], params: SamplingParams, ends: frozenset[int]
    ) -> Transcript | None:
        if not self._decoders:
            return None
        return Transcript(
            self._decoders[params.skip_special_tokens],
            ids,
            params.stop,
            include_stop=params.include_stop,
            min_tokens=params.min_tokens,
            silent=() if params.include_stop else ends,
        )

    def _token_ids(self, prompt: str | tuple[int, ...]) -> tuple[int, ...]:
        if isinstance(prompt, str):
            if self.encoder is None:
                raise ConfigError("a prompt of text needs the tokenizer; give it to LLM")
            prompt = self.encoder.text(prompt)
        if not prompt:
            raise ConfigError("the prompt is empty; give it at least one token")
        unknown = [token for token in prompt if not 0 <= token < self._vocabulary]
        if unknown:
            raise ConfigError(
                f"tokens {unknown[:4]} lie outside the vocabulary of {self._vocabulary}"
            )
        check_words(prompt, self._media_tokens)
        return prompt

    def _check_tokens(self, params: SamplingParams) -> None:
        unknown = [token for token in params.named_tokens if not 0 <= token < self._vocabulary]
        if unknown:
            raise ConfigError(
                f"tokens {sorted(unknown)[:4]} of logit_bias, allowed_token_ids or stop_token_ids "
                f"lie outside the vocabulary of {self._vocabulary}; leave them out"
            )

    def _longest(self, num_prompt: int, params: SamplingParams) -> int | None:
        """Tokens at which a request ends, of prompt and output together; None for any number."""
        if self.max_length is not None and num_prompt >= self.max_length:
            raise PromptLengthError(
                f"the prompt has {num_prompt} tokens, and the model has positions for "
                f"{self.max_length}, prompt and output together; shorten it"
            )
        limits = [] if self.max_length is None else [self.max_length]
        if params.max_tokens is not None:
            limits.append(num_prompt + int(params.max_tokens))
        elif (room := self._room) is not None:
            limits.append(max(room, num_prompt + 1))
        endless = params.ignore_eos or not self.end_tokens
        if not limits and endless and not params.stop_token_ids:
            raise ConfigError(
                "max_tokens=None would never end: the model has no last position and no "
                "end-of-sequence token that counts; give max_tokens"
            )
        longest = min(limits, default=num_prompt + 1)
        needed, total = self.store.need(longest), self.store.pool.num_frames
        if needed > total:
            frame_bytes = self.store.layout.frame_bytes
            raise CacheFullError(
                f"a request of {longest} tokens needs {needed * frame_bytes} bytes, and the pool "
                f"has {total * frame_bytes}; give LLM cache_memory of at least "
                f"{(needed + 1) * frame_bytes} bytes, or ask for fewer tokens"
            )
        return min(limits, default=None)

    @cached_property
    def max_model_len(self) -> int | None:
        """Most tokens of one sequence, prompt and output together: the model has positions for
        them, and the pool room; None for any number."""
        limits = [one for one in (self.max_length, self._room) if one is not None]
        return min(limits, default=None)

    @cached_property
    def _room(self) -> int | None:
        """Most tokens of one sequence in the pool; None where a sequence does not grow."""
        total = self.store.pool.num_frames
        classes = self.store.layout.classes
        slots = [x.tokens_per_frame for x in classes if x.kind == TOKENS]
        if not slots:
            return None
        return bisect_right(range(1, total * min(slots) + 1), total, key=self.store.need)
