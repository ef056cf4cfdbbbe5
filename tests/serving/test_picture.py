"""The page at `/`, and what it draws."""

from __future__ import annotations

import re

import httpx2
import openai

from cacheshrink_hybrid.engine import LLM
from cacheshrink_hybrid.model.attached_plan import plan_of
from cacheshrink_hybrid.serving.picture import page, picture
from tests.models import pair
from tests.serving.live import NAME, Live


def test_the_page_needs_no_key_and_no_network(live: Live) -> None:
    answer = httpx2.get(f"{live.url}/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.text == page()
    assert not re.search(r"https?://|\bsrc=|<link", answer.text)
    assert httpx2.get(f"{live.url}/pool").status_code == 401


def test_the_picture_of_the_pool(live: Live, lenient: openai.OpenAI) -> None:
    stream = lenient.completions.create(
        model=NAME, prompt="abcd", max_tokens=2000, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    with live.http() as http:
        now = http.get("/pool").json()
    stream.close()
    (request,) = now["requests"]
    assert request["running"]
    assert (request["prompt"], request["longest"]) == (5, 2005)
    assert 5 <= request["computed"] <= request["tokens"]
    assert sum(now["held"].values()) >= 1
    assert (now["frames"] + 1) * now["frame_bytes"] == live.llm.store.pool.nbytes  # one is a sink
    assert now["bytes_per_token"] is None  # it is not converted
    assert now["model"] == NAME


def test_bytes_of_a_token() -> None:
    model = pair("llama", "auto", ratio=4.0, metric="activation").converted
    llm = LLM(model, cache_memory="1MiB")
    now = picture(llm, "small")
    assert now["bytes_per_token"] == plan_of(model).bytes_per_token
    assert now["bytes_per_token"] * 3.9 < now["bytes_per_token_16_bit"]
    assert now["requests"] == []
    assert all(frames == 0 for frames in now["held"].values())


def test_the_page_reads_what_the_picture_has(live: Live) -> None:
    with live.http() as http:
        now = http.get("/pool").json()
    for name, has in (
        ("now", now),
        ("told", {**now["prefixes"], "error": 0, "choices": 0}),
        ("one", now),
    ):
        read = set(re.findall(rf"\b{name}\.(\w+)", page()))
        assert read and read <= set(has), read - set(has)
