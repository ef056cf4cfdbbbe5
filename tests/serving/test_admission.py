"""One rule for lengths, and one for the memory of a single request."""

from __future__ import annotations

import pytest

from tests.serving.live import NAME, Live, live_server

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TALK = [{"role": "user", "content": "a"}]
GREEDY = {"temperature": 0, "ignore_eos": True}


def model_len(live: Live) -> int:
    with live.http() as http:
        return http.get("/v1/models").json()["data"][0]["max_model_len"]


def test_the_context_is_what_positions_and_pool_allow(live: Live) -> None:
    assert model_len(live) == live.llm.max_length == 4096
    with live_server(cache_memory="2MiB") as small:
        limit, store = model_len(small), small.llm.store
        assert store.need(limit) <= store.pool.num_frames < store.need(limit + 1)
        assert limit < 4096


@pytest.mark.parametrize("pool", ["1MiB", "16MiB"])
def test_more_than_the_context_is_refused(pool: str) -> None:
    with live_server(cache_memory=pool) as one, one.http() as http:
        room = model_len(one) - 2
        for stream in (False, True):
            for path, body in (
                (COMPLETIONS, {"prompt": "a", "max_tokens": room + 1}),
                (COMPLETIONS, {"prompt": "a", "max_tokens": 10**30}),
                (COMPLETIONS, {"prompt": "a" * (room + 1)}),
                (CHAT, {"messages": TALK, "max_tokens": 10**9}),
                (CHAT, {"messages": TALK, "max_completion_tokens": room}),
            ):
                answer = http.post(path, json=body | {"stream": stream})
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
                assert f"{room + 2}" in error["message"] and "max_model_len" in error["message"]
                assert "LLM" not in error["message"]
        assert one.engine.open.requests == 0


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_answers_end_where_the_context_does(path: str) -> None:
    """Whether that is named or not."""
    with live_server(cache_memory="1MiB") as small, small.http() as http:
        limit = model_len(small)
        talk = [{"role": "user", "content": "a" * (limit - 40)}]
        body = {"prompt": "a" * (limit - 6)} if path == COMPLETIONS else {"messages": talk}
        answer = http.post(path, json=body | GREEDY).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        usage = answer["usage"]
        assert usage["total_tokens"] == limit
        more = {"max_tokens": usage["completion_tokens"]}
        again = http.post(path, json=body | GREEDY | more).json()
        assert again["usage"]["total_tokens"] == limit


def test_what_alone_is_too_much_is_refused_for_good() -> None:
    """Trying again would not help, so it is no 429; less of it is taken."""
    limit = 64 << 20
    with live_server(limits={"max_open_bytes": limit}) as one, one.http() as http:
        each = one.llm.store.need(3002) * one.llm.store.layout.frame_bytes
        for many in ({"n": 100}, {"prompt": ["a"] * 100}, {"n": 10, "prompt": ["a"] * 10}):
            body = {"model": NAME, "prompt": "a", "max_tokens": 3000} | many
            for stream in (False, True):
                answer = http.post(COMPLETIONS, json=body | {"stream": stream})
                assert answer.status_code == 400
                message = answer.json()["error"]["message"]
                assert f"{100 * each} bytes" in message and f"{limit} may be open" in message
                assert "max_tokens" in message and "(n, prompts)" in message
            assert one.engine.open.requests == 0
            assert http.post(COMPLETIONS, json=body | {"max_tokens": 1}).status_code == 200
