"""Which requests run, and what each step feeds: continuous batching over one pool.

Each step feeds one token of every sequence that is running, with drafts of the next ones behind it
where there are any, and a limited number of prompt tokens.
Requests are admitted first come, first served, when their tokens fit. When memory runs out, kept
prefixes give their frames back first, and then the youngest running request, which starts over
later with what it has generated. So does a request that grows over a length at which rotary
frequencies change. So do all running ones after a step that was cut short by an error
or an interrupt: what it had written by then is not used.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial

from torch import Tensor

from ..errors import CacheFullError
from .drafts import Drafts, Feed
from .prefix_reuse import PrefixReuse
from .request import Request
from .runner import Runner
from .sampling import token_scores
from .speculation import SpeculativeConfig
from .statistics import EngineStatistics


class Scheduler:
    """Requests that wait and run.

    Args:
        runner: feeds the model.
        max_batch: most requests that run at once.
        prefill_chunk: most tokens of prompts per step. Models that cannot continue a prompt in
            pieces get it whole.
        reuse: of prefixes; None for none.
        speculation: how drafts are found; None for none.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        max_batch: int,
        prefill_chunk: int,
        reuse: PrefixReuse | None,
        speculation: SpeculativeConfig | None = None,
    ) -> None:
        self.runner = runner
        self.reuse = reuse
        self.store = runner.store
        self._drafts = Drafts(speculation, runner.store, runner.sides)
        self.max_batch = max_batch
        self.prefill_chunk = prefill_chunk
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._steps = self._prefilled = self._decoded = self._preemptions = 0
        self._prompts = self._generated = 0

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
            prompt_tokens=self._prompts,
            generated_tokens=self._generated,
            preemptions=self._preemptions,
            waiting=len(self._waiting),
            running=len(self._running),
            held_frames=pool.num_held,
            total_frames=pool.num_frames,
            prefixes=self.store.prefixes.statistics(),
            speculation=self._drafts.statistics,
        )

    def add(self, request: Request) -> None:
        """Let a request wait for its turn."""
        self._waiting.append(request)
        request.side = self.runner.sides.side(len(request.tokens))
        request.outbox.num_open += 1
        if self.reuse is not None:
            self.reuse.expect(request)

    def leave(self, request: Request, reason: str | None, error: Exception | None = None) -> None:
        """Forget a request, wherever it is, give its frames back, and tell its owner. Nothing to do
        for one that is not here. After an error nobody knows what its sequence holds."""
        if request in self._running:
            self._running.remove(request)
            if self.reuse is not None and error is None:
                self.reuse.leave(request)
            self.store.free(request.seq_id)
        elif request in self._waiting:
            self._waiting.remove(request)
        else:
            return
        if self.reuse is not None:
            self.reuse.forget(request)
        request.end(reason, error)

    def step(self) -> None:
        """Feed the last token of each running sequence, with drafts, then up to `prefill_chunk`
        tokens of prompts.

        An error that concerns one request alone ends that request.

        Raises:
            Exception: any other; no request is lost, and none holds frames.
        """
        try:
            self._admit()
            if self._running:
                self._steps += 1
                self._decode()
                self._prefill()
        except BaseException:
            self._start_over()
            raise

    def _admit(self) -> None:
        """Start waiting requests, in order, as long as the first one fits."""
        while self._waiting and len(self._running) < self.max_batch:
            request = self._waiting[0]
            if self._room() < self._num_needed(request) and self._running:
                return
            self.store.create(request.seq_id)
            self._running.append(self._waiting.popleft())

    def _room(self) -> int:
        """Frames that nobody needs; what running prompts have yet to take is spoken for."""
        return self.store.num_available - sum(
            self.store.need(len(request.tokens)) - self.store.num_held(request.seq_id)
            for request in self._running
            if request.wants_prefill
        )

    def _num_needed(self, request: Request) -> int:
        """Frames that a waiting request takes for its tokens and one more, beside those that it
        shares with running ones."""
        needed = self.store.need(len(request.tokens) + 1)
        if self.reuse is not None:
            needed -= self.reuse.num_pinned(request)
        return needed

    def _decode(self) -> None:
        """One token or more for every request whose tokens are computed up to the last ones."""
        self._change_sides()
        ready = [r for r in self._running if not r.wants_prefill and r.num_computed < len(r.tokens)]
        feeds = self._with_room([self._drafts.feed(request) for request in ready])
        self._decoded += sum(len(feed.tokens) for feed in feeds)
        single = [feed.request for feed in feeds if len(feed.tokens) == 1]
        if single:
            names, last = [r.seq_id for r in single], [r.tokens[-1] for r in single]
            logits = self.runner.decode(names, last)
            for request in single:
                request.num_computed += 1
            self._take(single, logits)
        longer = [feed for feed in feeds if len(feed.tokens) > 1]
        if longer:
            names = [feed.request.seq_id for feed in longer]
            found = self.runner.verify(names, [feed.tokens for feed in longer])
            for feed, rows in zip(longer, found, strict=True):
                self._choose(feed.request, partial(self._drafts.take, feed, rows))

    def _change_sides(self) -> None:
        """Let requests start over whose rows have the rotary frequencies of shorter texts."""
        if self.runner.sides.limits:
            for request in self._running[::-1]:
                if self.runner.sides.side(len(request.tokens)) != request.side:
                    self._preempt(request)

    def _with_room(self, feeds: list[Feed]) -> list[Feed]:
        """Reserve frames for them; those of requests that still run. Nobody starts over for the
        sake of drafts, which are left out where they find no room."""
        if any(feed.drafts for feed in feeds):
            try:
                self._drafts.reserve(feeds)
                return feeds
            except CacheFullError:
                feeds = [feed.without_drafts for feed in feeds]
        requests = [feed.request for feed in feeds]
        running = set(self._reserve(requests, [len(feed.tokens) for feed in feeds]))
        return [feed for feed in feeds if feed.request in running]

    def _prefill(self) -> None:
        """Chunks of the oldest requests whose tokens are not computed, `prefill_chunk` tokens in
        all."""
        budget = self.prefill_chunk
        while budget > 0:
            wanting = (r for r in self._running if r.wants_prefill)
            request = next((r for r in wanting if not self._follows(r)), None)
            if request is None:
                break
            if self.reuse is not None and request.checkpoints is None:
                found = self.reuse.begin(request)
                if request.num_cached is None:
                    request.num_cached = found.num_tokens
                continue
            size = left = len(request.tokens) - request.num_computed
            if self.runner.continues_in_pieces:
                size = min(left, budget)
                size = size if self.reuse is None else self.reuse.piece(request, size)
            if not self._reserve([request], [size]):
                break
            chunk = request.tokens[request.num_computed : request.num_computed + size]
            began = time.perf_counter()
            reads = request.reads_prompt
            try:
                logits = self.runner.prefill(
                    request.seq_id, chunk, every_token=reads, side=request.side
                )
                if reads:
                    request.read_prompt(request.num_computed, logits)
                    logits = logits[-1]
            except Exception as error:  # its owner gets it
                self.leave(request, None, error)
                continue
            self._prefilled += size
            request.num_computed += size
            budget -= size
            if self.reuse is not None:
                done = request.num_computed
                self.reuse.cost.observe(done - size, done, time.perf_counter() - began)
                self.reuse.pass_on(request)
            if request.num_computed == len(request.tokens):
                self._take([request], logits[None])

    def _take(self, requests: list[Request], logits: Tensor) -> None:
        """One more token of each of these requests, from logits (B, V)."""
        for computed, scores in zip(requests, token_scores(logits), strict=True):
            for request in (computed, *self._fork(computed)):
                self._choose(request, partial(request.take, scores))

    def _choose(self, request: Request, take: Callable[[], str | None]) -> None:
        """Let a request take what comes next, and leave if that says why it is over."""
        before = request.num_generated
        if not (before or request.index):
            self._prompts += len(request.prompt_ids)
        try:
            reason = take()
        except Exception as error:  # its owner gets it
            self.leave(request, None, error)
            return
        finally:
            self._generated += request.num_generated - before
        if reason is not None:
            self.leave(request, reason)

    def _follows(self, request: Request) -> bool:
        """Whether another continuation of the same prompt is about to have computed it."""
        return request.num_computed == 0 and any(
            twin.num_computed > 0 and not twin.num_generated for twin in request.twins
        )

    def _fork(self, request: Request) -> list[Request]:
        """Other continuations of a prompt that has just been computed, which go on from it; those
        that find no room compute it themselves when they do."""
        joined: list[Request] = []
        if request.num_generated:
            return joined
        layout = self.store.layout
        first_writes = len(layout.classes) + layout.state.num_frames
        for twin in request.twins:
            if twin is request or twin.num_computed or twin.num_generated:
                continue
            if twin in self._running:
                self.store.free(twin.seq_id)
            elif twin in self._waiting:
                if len(self._running) >= self.max_batch or self._room() < first_writes:
                    break
                self._waiting.remove(twin)
                self._running.append(twin)
            else:  # is over
                continue
            self.store.fork(request.seq_id, twin.seq_id)
            twin.follow(request)
            joined.append(twin)
        return joined

    def _reserve(self, requests: list[Request], counts: list[int]) -> list[Request]:
        """Reserve frames, preempting the youngest requests as needed; returns those of `requests`
        that still run."""
        while requests:
            try:
                self.store.reserve([r.seq_id for r in requests], counts)
                return requests
            except CacheFullError as error:
                victim = self._running[-1]
                if len(self._running) == 1:
                    self.leave(victim, None, error)
                else:
                    self._preempt(victim)
                if victim in requests:
                    at = requests.index(victim)
                    requests = requests[:at] + requests[at + 1 :]
                    counts = counts[:at] + counts[at + 1 :]
        return requests

    def _start_over(self) -> None:
        """Let all running requests wait, wherever a step was left."""
        self.store.free(*self.store.seq_ids)
        for request in reversed(self._running.copy()):
            self._preempt(request)
        self._waiting = deque(dict.fromkeys(self._waiting))

    def _preempt(self, request: Request) -> None:
        self._waiting.appendleft(request)
        self._running.remove(request)
        if request.seq_id in self.store:
            if self.reuse is not None:
                self.reuse.leave(request)
            self.store.free(request.seq_id)
        request.num_computed, request.checkpoints = 0, None
        request.side = self.runner.sides.side(len(request.tokens))
        request.waits_for_state = False
        request.preemptions += 1
        self._preemptions += 1
