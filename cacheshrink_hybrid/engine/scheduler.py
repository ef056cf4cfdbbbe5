"""Which requests run, and what each step feeds: continuous batching over one pool.

Each step feeds one token of every sequence that is running, and a limited number of prompt tokens.
Requests are admitted first come, first served, when their tokens fit. When memory runs out, the
youngest running request gives its frames back and starts over later with what it has generated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..errors import CacheFullError
from .request import Request, RequestOutput
from .runner import Runner

TakeToken = Callable[[Request, Tensor], RequestOutput]
"""Chooses a request's next token from its logits (V,), and takes the request away by `leave` if it
was the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatistics:
    """Counts since the engine was made, and of the moment.

    Attributes:
        steps: calls of `step` that ran the model.
        prefilled_tokens, decoded_tokens: fed to the model; recomputed ones count again.
        preemptions: times that a request had to start over.
        waiting, running: requests now.
        held_frames, total_frames: of the pool now.
    """

    steps: int
    prefilled_tokens: int
    decoded_tokens: int
    preemptions: int
    waiting: int
    running: int
    held_frames: int
    total_frames: int


class Scheduler:
    """Requests that wait and run.

    Args:
        runner: feeds the model.
        max_batch: most requests that run at once.
        prefill_chunk: most tokens of prompts per step. Models that cannot continue a prompt in
            pieces get it whole.
    """

    def __init__(self, runner: Runner, *, max_batch: int, prefill_chunk: int) -> None:
        self.runner = runner
        self.store = runner.store
        self.max_batch = max_batch
        self.prefill_chunk = prefill_chunk
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._steps = self._prefilled = self._decoded = self._preemptions = 0

    @property
    def requests(self) -> list[Request]:
        """All of them, those that run first."""
        return [*self._running, *self._waiting]

    @property
    def statistics(self) -> EngineStatistics:
        pool = self.store.pool
        return EngineStatistics(
            steps=self._steps,
            prefilled_tokens=self._prefilled,
            decoded_tokens=self._decoded,
            preemptions=self._preemptions,
            waiting=len(self._waiting),
            running=len(self._running),
            held_frames=pool.num_held,
            total_frames=pool.num_frames,
        )

    def add(self, request: Request) -> None:
        """Let a request wait for its turn."""
        self._waiting.append(request)

    def leave(self, request: Request) -> None:
        """Forget a request, wherever it is, and give its frames back."""
        if request in self._waiting:
            self._waiting.remove(request)
        else:
            self._running.remove(request)
            self.store.free(request.request_id)

    def step(self, take_token: TakeToken) -> list[RequestOutput]:
        """Feed one token of each running sequence, then up to `prefill_chunk` tokens of prompts.
        Returns the outputs of the requests that got a token."""
        self._admit()
        if not self._running:
            return []
        self._steps += 1
        outputs = self._decode(take_token)
        return outputs + self._prefill(take_token)

    def _admit(self) -> None:
        """Start waiting requests, in order, as long as the first one fits."""
        while self._waiting and len(self._running) < self.max_batch:
            # What running prompts have yet to take is spoken for.
            spoken = sum(
                self.store.need(len(request.tokens)) - self.store.num_held(request.request_id)
                for request in self._running
                if _wants_prefill(request)
            )
            request = self._waiting[0]
            room = self.store.pool.num_free + self.store.num_evictable - spoken
            if room < self.store.need(len(request.tokens) + 1) and self._running:
                return
            self._waiting.popleft()
            self.store.create(request.request_id)
            self._running.append(request)

    def _decode(self, take_token: TakeToken) -> list[RequestOutput]:
        """One token for every request whose tokens are computed up to the last."""
        ready = [r for r in self._running if r.num_computed == len(r.tokens) - 1 > 0]
        ready = self._reserve(ready, [1] * len(ready))
        if not ready:
            return []
        logits = self.runner.decode([r.request_id for r in ready], [r.tokens[-1] for r in ready])
        self._decoded += len(ready)
        outputs = []
        for request, row in zip(ready, logits, strict=True):
            request.num_computed += 1
            outputs.append(take_token(request, row))
        return outputs

    def _prefill(self, take_token: TakeToken) -> list[RequestOutput]:
        """Chunks of the oldest requests whose tokens are not computed, `prefill_chunk` tokens in
        all."""
        outputs: list[RequestOutput] = []
        budget = self.prefill_chunk
        while budget > 0:
            request = next((r for r in self._running if _wants_prefill(r)), None)
            if request is None:
                break
            left = len(request.tokens) - request.num_computed
            size = min(left, budget) if self.runner.continues_in_pieces else left
            if not self._reserve([request], [size]):
                break
            chunk = request.tokens[request.num_computed : request.num_computed + size]
            logits = self.runner.prefill(request.request_id, chunk)
            self._prefilled += size
            request.num_computed += size
            budget -= size
            if request.num_computed == len(request.tokens):
                outputs.append(take_token(request, logits))
        return outputs

    def _reserve(self, requests: list[Request], counts: list[int]) -> list[Request]:
        """Reserve frames, preempting the youngest requests as needed; returns those of `requests`
        that still run."""
        while requests:
            try:
                self.store.reserve([r.request_id for r in requests], counts)
                return requests
            except CacheFullError:
                victim = self._running[-1]
                if victim is requests[0] and len(self._running) == 1:
                    raise
                self._preempt(victim)
                if victim in requests:
                    at = requests.index(victim)
                    requests = requests[:at] + requests[at + 1 :]
                    counts = counts[:at] + counts[at + 1 :]
        return requests

    def _preempt(self, request: Request) -> None:
        self._running.remove(request)
        self.store.free(request.request_id)
        request.num_computed = 0
        request.preemptions += 1
        self._preemptions += 1
        self._waiting.appendleft(request)


def _wants_prefill(request: Request) -> bool:
    """Whether more is to be computed than the last token, which decoding does."""
    return request.num_computed == 0 or request.num_computed < len(request.tokens) - 1
