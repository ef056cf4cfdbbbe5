"""Metrics are what happened, in a form that Prometheus reads."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace

import httpx2
import pytest

from cacheshrink_hybrid.pool.prefixes.lookup import TierStatistics
from cacheshrink_hybrid.serving.metrics import Histogram, _tier_lines
from tests.serving.live import Live, live_server, until

LINE = re.compile(r"cacheshrink_\w+(\{\w+=\"[^\"]*\"(,\w+=\"[^\"]*\")*\})? [0-9.e+-]+")


def values(live: Live) -> dict[str, float]:
    with live.http() as http:
        answer = http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = answer.text.rstrip("\n").split("\n")
    samples = [line for line in lines if not line.startswith("#")]
    assert all(LINE.fullmatch(line) for line in samples)
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    names = {re.sub(r"(_bucket|_sum|_count)?(\{.*)? .*", "", line) for line in samples}
    assert names <= typed
    return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in samples}


def test_counts_are_those_of_what_was_served() -> None:
    drafts = {"num_speculative_tokens": 3, "prompt_lookup_max": 1}
    with live_server(speculative_config=drafts) as live:
        with live.http() as http:
            body = {"prompt": "the same prompt" * 4, "max_tokens": 5, "ignore_eos": True}
            for stream in (False, True, True):
                assert http.post("/v1/completions", json=body | {"stream": stream}).is_success
            http.post("/v1/completions", json={})
            http.get("/no/such/path")
        now = values(live)
        statistics = live.llm.statistics
        name = "cacheshrink_http_requests_total"
        assert now[f'{name}{{path="/v1/completions",status="200"}}'] == 3
        assert now[f'{name}{{path="/v1/completions",status="400"}}'] == 1
        assert now[f'{name}{{path="other",status="404"}}'] == 1
        assert now["cacheshrink_generation_tokens_total"] == 15
        assert now["cacheshrink_prompt_tokens_total"] == 3 * (4 * 15 + 1)
        assert now["cacheshrink_time_to_first_token_seconds_count"] == 2
        assert now["cacheshrink_time_between_tokens_seconds_count"] == 8
        assert now["cacheshrink_requests_running"] == now["cacheshrink_requests_waiting"] == 0
        assert now["cacheshrink_prefix_hits_total"] == statistics.prefixes.hits > 0
        assert now["cacheshrink_frames"] == statistics.total_frames
        drafted = statistics.speculation
        name = "cacheshrink_spec_decode_num"
        assert now[f"{name}_drafts_total"] == drafted.drafts > 0
        assert now[f"{name}_draft_tokens_total"] == drafted.draft_tokens
        assert now[f"{name}_accepted_tokens_total"] == drafted.accepted_tokens
        kinds = [
            value for key, value in now.items() if key.startswith("cacheshrink_frames_held_by{")
        ]
        assert sum(kinds) == now["cacheshrink_frames_held"] == statistics.held_frames > 0


def test_memories_below_the_pool_are_told_apart() -> None:
    given = {"name": "host", "budget_bytes": 900, "held_bytes": 300, "kept_tokens": 7}
    counts = {"taken": 5, "refused": 4, "hits": 3, "restored_tokens": 2, "evicted": 1}
    tier = TierStatistics(checkpoints=0, **given, **counts)
    lines = list(_tier_lines([tier, replace(tier, name="disk", held_bytes=11)]))
    assert lines[2:4] == [
        'cacheshrink_prefix_tier_held_bytes{tier="host"} 300',
        'cacheshrink_prefix_tier_held_bytes{tier="disk"} 11',
    ]
    assert 'cacheshrink_prefix_tier_restored_tokens_total{tier="host"} 2' in lines
    assert lines[4] == (
        "# HELP cacheshrink_prefix_tier_taken_total "
        "Prefixes that fell out of the pool and were copied."
    )
    assert list(_tier_lines([])) == []


@pytest.mark.parametrize("stream", [True, False])
def test_tokens_of_a_client_that_left_are_counted(stream: bool) -> None:
    with live_server() as live:
        body = {"prompt": "a prompt", "max_tokens": 3000, "ignore_eos": True, "stream": stream}
        with suppress(httpx2.TimeoutException), live.http() as http:
            http.timeout = 1.0
            with http.stream("POST", "/v1/completions", json=body) as answer:
                next(answer.iter_lines())
        until(lambda: not live.llm.requests)
        until(lambda: live.engine.open.requests == 0)
        now, statistics = values(live), live.llm.statistics
        assert now["cacheshrink_prompt_tokens_total"] == len("a prompt") + 1
        generated = now["cacheshrink_generation_tokens_total"]
        # The first token is the prefill's, each other one a decode step's.
        assert 1 <= generated == statistics.decoded_tokens + 1 < 3000


def test_histograms() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0):
        histogram.add(seconds)
    lines = list(histogram.lines("x", "Words."))
    assert lines[2:5] == [
        'cacheshrink_x_bucket{le="0.1"} 2',
        'cacheshrink_x_bucket{le="1.0"} 3',
        'cacheshrink_x_bucket{le="+Inf"} 4',
    ]
    assert lines[5].split()[1] == pytest.approx("7.65")
    assert lines[6] == "cacheshrink_x_count 4"
