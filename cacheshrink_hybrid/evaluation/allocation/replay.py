"""Requests replayed over an allocator, in ticks of one decode step.

`replay` queues requests first come, first served, and admits the head of the queue when it fits.
A running sequence that cannot grow makes the youngest one stop; that one starts over later with
what it has generated so far (a preemption). No sequence ever loses memory that it goes on using.

`replay_without_admission` is the rule of simulators that take every request at once, drop the pages
of the least recently used live request when memory runs out, and still count that one as completed.
Its figures are printed beside the number of requests that were corrupted so.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .allocator import Allocator, Sizes
from .traces import Request

CHECK_TICKS = 997
LAST_TRIES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Figures of one replay.

    Attributes:
        concurrency: mean running sequences while others wait.
        useful_share: mean of useful bytes / capacity while others wait.
        held_share: the same of bytes that sequences hold.
        refusals: ticks on which the head of the queue did not fit.
        preemptions, recomputed_tokens: running sequences that had to start over, and their tokens.
        moved_bytes: copied by the allocator to make room.
        completed: requests served to their end.
        rejected: requests that do not fit an empty cache; dropped.
        corrupted: requests that went on after losing memory.
        ticks: until the last request was done.
    """

    concurrency: float
    useful_share: float
    held_share: float
    refusals: int
    preemptions: int
    recomputed_tokens: int
    moved_bytes: int
    completed: int
    rejected: int
    corrupted: int
    ticks: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class _Job:
    name: int
    prompt: int
    output: int
    done: int = 0
    reach: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt + self.done


def capacity_for(sizes: Sizes, requests: Sequence[Request], concurrency: int) -> int:
    """Bytes for about `concurrency` requests of mean size at once, and at least two of the
    largest."""
    useful = [sizes.useful(r.prompt_tokens + r.output_tokens) for r in requests]
    return max(concurrency * sum(useful) // len(useful), 2 * max(useful) + (max(useful) >> 3))


def replay(allocator: Allocator, requests: Sequence[Request]) -> Outcome:
    """Serve all requests; see the module."""
    sizes = allocator.sizes
    waiting: deque[_Job] = deque()
    coming = deque(sorted(enumerate(requests), key=lambda pair: (pair[1].arrival, pair[0])))
    running: list[_Job] = []
    tick = refusals = preemptions = recomputed = completed = rejected = 0
    pressed = concurrency = 0
    useful_share = held_share = 0.0
    while coming or waiting or running:
        while coming and coming[0][1].arrival <= tick:
            number, request = coming.popleft()
            waiting.append(
                _Job(name=number, prompt=request.prompt_tokens, output=request.output_tokens)
            )
        # Finish, then grow, the oldest first; the youngest gives way.
        still = []
        for job in running:
            if job.done >= job.output:
                allocator.release(job.name)
                completed += 1
            else:
                still.append(job)
        running = still
        i = 0
        while i < len(running):
            job = running[i]
            job.done += 1
            while job.tokens > job.reach:
                if allocator.grow(job.name, job.tokens):
                    job.reach = allocator.reach(job.tokens)
                    break
                victim = running.pop()
                allocator.release(victim.name)
                if victim is job:
                    job.done -= 1
                preemptions += 1
                recomputed += victim.tokens
                waiting.appendleft(victim)
                if victim is job:
                    break
            i += 1
        while waiting:
            job = waiting[0]
            # One more token, so that the newcomer does not have to leave on the next tick.
            if not allocator.admit(job.name, job.tokens + 1):
                refusals += 1
                if running:
                    break
                # An allocator that shifts capacity step by step may need several attempts.
                if not any(allocator.admit(job.name, job.tokens + 1) for _ in range(LAST_TRIES)):
                    rejected += 1
                    waiting.popleft()
                    continue
            job.reach = allocator.reach(job.tokens + 1)
            running.append(waiting.popleft())
        if waiting:
            pressed += 1
            concurrency += len(running)
            useful = sum(sizes.useful(job.tokens) for job in running)
            useful_share += useful / allocator.capacity
            held_share += allocator.held_bytes / allocator.capacity
        if tick % CHECK_TICKS == 0:
            allocator.check()
        tick += 1
    allocator.check()
    pressed = max(1, pressed)
    return Outcome(
        concurrency=concurrency / pressed,
        useful_share=useful_share / pressed,
        held_share=held_share / pressed,
        refusals=refusals,
        preemptions=preemptions,
        recomputed_tokens=recomputed,
        moved_bytes=allocator.moved_bytes,
        completed=completed,
        rejected=rejected,
        corrupted=0,
        ticks=tick,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LooseOutcome:
    """Figures under the loose rule.

    Attributes:
        oom_events: allocations that failed even after one eviction.
        completed: requests counted as completed, corrupted ones included.
        corrupted: requests whose memory was dropped while they ran, or that never had any.
        goodput: completed per second of the simulator.
    """

    oom_events: int
    completed: int
    corrupted: int
    goodput: float


def replay_without_admission(allocator: Allocator, requests: Sequence[Request]) -> LooseOutcome:
    """Every arrival allocates at once; see the module. A request occupies its prompt's tokens and
    its output's in ticks, and grows by 16 tokens at a time."""
    began = time.perf_counter()
    events = sorted(
        [(r.arrival, 1, i) for i, r in enumerate(requests)]
        + [(r.arrival + r.prompt_tokens + r.output_tokens, 0, i) for i, r in enumerate(requests)]
        + [
            (r.arrival + r.prompt_tokens + grown, 2, i)
            for i, r in enumerate(requests)
            for grown in range(16, r.output_tokens, 16)
        ]
    )
    used: dict[int, None] = {}  # in order of last use
    tokens: dict[int, int] = {}
    harmed: set[int] = set()
    oom_events = 0

    def evict() -> bool:
        victim = next(iter(used), None)
        if victim is None:
            return False
        allocator.release(victim)
        del used[victim]
        harmed.add(victim)
        return True

    for _, kind, i in events:
        if kind == 0:
            if i in used:
                allocator.release(i)
                del used[i]
            continue
        if kind == 1:
            tokens[i] = requests[i].prompt_tokens
            fits = allocator.admit(i, tokens[i]) or (evict() and allocator.admit(i, tokens[i]))
        else:
            if i not in used:
                continue
            tokens[i] += 16
            used[i] = used.pop(i)
            fits = allocator.grow(i, tokens[i])
            if not fits and evict():
                fits = i in used and allocator.grow(i, tokens[i])
        if fits:
            used[i] = used.pop(i, None)
        else:
            oom_events += 1
            harmed.add(i)
    return LooseOutcome(
        oom_events=oom_events,
        completed=len(requests),
        corrupted=len(harmed),
        goodput=len(requests) / (time.perf_counter() - began),
    )
