"""What the server counts, in the text format of Prometheus."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from ..engine import LLM
from ..engine.statistics import EngineStatistics
from ..pool.prefixes.lookup import TierStatistics

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
PREFIX = "cacheshrink_"


class Histogram:
    """Durations, counted in buckets.

    Args:
        bounds: upper ends of all buckets but the last, in seconds.
    """

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, words: str) -> Iterator[str]:
        """As Prometheus has it."""
        yield from _head(name, words, "histogram")
        bounds = [*map(str, self.bounds), "+Inf"]
        for bound, count in zip(bounds, accumulate(self.counts), strict=True):
            yield f'{PREFIX}{name}_bucket{{le="{bound}"}} {count}'
        yield f"{PREFIX}{name}_sum {self.total:g}"
        yield f"{PREFIX}{name}_count {sum(self.counts)}"


class Counts:
    """Of requests, since the server began.

    Attributes:
        requests: by path and status.
        first_token, between_tokens: seconds until an answer began, and until it went on.
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.first_token = Histogram()
        self.between_tokens = Histogram()

    def lines(self) -> Iterator[str]:
        yield from _head("http_requests_total", "Requests answered.", "counter")
        for (path, status), count in sorted(self.requests.items()):
            yield f'{PREFIX}http_requests_total{{path="{path}",status="{status}"}} {count}'
        yield from self.first_token.lines("time_to_first_token_seconds", "Until an answer begins.")
        yield from self.between_tokens.lines("time_between_tokens_seconds", "Until it goes on.")


def engine_lines(llm: LLM) -> list[str]:
    """Of the engine, looked at between its steps."""
    now: EngineStatistics = llm.statistics
    drafts, frame_bytes = now.speculation, llm.store.layout.frame_bytes
    kinds = llm.store.pool.statistics().by_kind
    lines: list[str] = []
    for name, words, value, counts in (
        ("requests_running", "Requests in the pool.", now.running, False),
        ("requests_waiting", "Requests that wait for room.", now.waiting, False),
        ("prompt_tokens_total", "Tokens of prompts.", now.prompt_tokens, True),
        ("generation_tokens_total", "Tokens generated.", now.generated_tokens, True),
        ("steps_total", "Passes of the model.", now.steps, True),
        ("preemptions_total", "Requests that had to start over.", now.preemptions, True),
        ("frames", "Frames of the pool.", now.total_frames, False),
        ("frames_held", "Frames that are in use.", now.held_frames, False),
        ("frame_bytes", "Bytes of a frame.", frame_bytes, False),
        ("prefix_bytes", "Bytes that prefixes alone hold.", now.prefixes.held_bytes, False),
        ("prefix_lookups_total", "Prompts looked up.", now.prefixes.lookups, True),
        ("prefix_hits_total", "Prompts of which a part was kept.", now.prefixes.hits, True),
        ("prefix_saved_tokens_total", "Tokens not computed.", now.prefixes.saved_tokens, True),
        ("spec_decode_num_drafts_total", "Times of look-up that found some.", drafts.drafts, True),
        ("spec_decode_num_draft_tokens_total", "Tokens proposed.", drafts.draft_tokens, True),
        ("spec_decode_num_accepted_tokens_total", "Of these, kept.", drafts.accepted_tokens, True),
    ):
        lines += _number(name, words, value, counts)
    lines += _head("frames_held_by", "Frames in use, by what they hold.", "gauge")
    lines += [f'{PREFIX}frames_held_by{{kind="{kind}"}} {n}' for kind, n in kinds.items()]
    name = "prefix_limits_total"
    lines += _head(name, "Look-ups by why no more was found.", "counter")
    reasons = Counter(now.prefixes.limits) + Counter(now.prefixes.misses)
    lines += [f'{PREFIX}{name}{{reason="{reason}"}} {n}' for reason, n in sorted(reasons.items())]
    lines += _tier_lines(now.prefixes.tiers)
    return lines


def _tier_lines(tiers: Sequence[TierStatistics]) -> Iterator[str]:
    """Of the memories below the pool; nothing where there are none."""
    for field, words, kind in (
        ("held_bytes", "Bytes of prefixes below the pool.", "gauge"),
        ("taken", "Prefixes that fell out of the pool and were copied.", "counter"),
        ("refused", "Prefixes that were not worth their room there.", "counter"),
        ("hits", "Prompts of which more was there than in the pool.", "counter"),
        ("restored_tokens", "Tokens that were copied back.", "counter"),
    ):
        name = f"prefix_tier_{field}" + ("_total" if kind == "counter" else "")
        if tiers:
            yield from _head(name, words, kind)
        for tier in tiers:
            yield f'{PREFIX}{name}{{tier="{tier.name}"}} {getattr(tier, field)}'


def _number(name: str, words: str, value: float, counts: bool) -> Iterable[str]:
    yield from _head(name, words, "counter" if counts else "gauge")
    yield f"{PREFIX}{name} {value}"


def _head(name: str, words: str, kind: str) -> Iterable[str]:
    yield f"# HELP {PREFIX}{name} {words}"
    yield f"# TYPE {PREFIX}{name} {kind}"
