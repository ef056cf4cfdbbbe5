"""Many clients at once, some of which go away, leave nothing behind."""

from __future__ import annotations

import asyncio

from scripts.load_server import leftovers, metrics, mixed_work, run_load
from tests.engine.idle import assert_idle
from tests.serving.live import live_server


def test_clients_that_stay_go_and_are_refused() -> None:
    work = mixed_work(48, 0.3, seed=0, max_output=12)
    assert work == mixed_work(48, 0.3, seed=0, max_output=12)
    with live_server(api_keys=(), limits={"max_open": 10}) as live:
        seen = asyncio.run(run_load(live.url, work, clients=16))
        assert seen.answered + seen.refused + seen.gone == 48
        assert min(seen.answered, seen.refused, seen.gone) > 0
        assert len(seen.between) > len(seen.first) > 0
        assert asyncio.run(leftovers(live.url)) == []
        stay = mixed_work(10, 0.0, seed=1, max_output=12)
        calm = asyncio.run(run_load(live.url, stay, clients=4))
        assert (calm.answered, calm.refused, calm.gone) == (10, 0, 0)
        assert calm.tokens == sum(one.body["max_tokens"] for one in stay)
        statuses = asyncio.run(metrics(live.url))
        name = 'cacheshrink_http_requests_total{path="/v1/completions",status="429"}'
        assert statuses[name] >= seen.refused
    assert_idle(live.llm)
