"""What OpenAI's own client sees of a running server."""

from __future__ import annotations

import json
import re

import openai
import pytest

from cacheshrink_hybrid.engine import SamplingParams
from tests.serving.live import NAME, Live, live_server

PROMPT = "Return the sum of"
TALK = [{"role": "user", "content": "Return the"}]


def engine_text(live: Live, prompt: str = PROMPT, **wish) -> str:
    return live.llm.generate(prompt, SamplingParams(**wish))[0].text


def chat_text(live: Live, talk=TALK, **wish) -> str:
    return live.llm.chat(talk, SamplingParams(**wish))[0].text


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).owned_by == "cacheshrink_hybrid"
    with pytest.raises(openai.NotFoundError, match="'shipped' is"):
        client.models.retrieve("gpt-4")


def test_completion(live: Live, client: openai.OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt=PROMPT, temperature=0)
    assert answer.choices[0].text == engine_text(live, max_tokens=16)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    counts = (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    assert counts == (len(PROMPT) + 1, 16)
    assert answer.usage.total_tokens == sum(counts)
    assert answer.id.startswith("cmpl-")


def test_chat(live: Live, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=TALK, temperature=0, max_completion_tokens=12
    )
    message = answer.choices[0].message
    assert message.role == "assistant"
    assert message.content == chat_text(live, max_tokens=12)
    assert answer.id.startswith("chatcmpl-")
    parts = [{"role": "user", "content": [{"type": "text", "text": "Return the"}]}]
    again = client.chat.completions.create(model=NAME, messages=parts, temperature=0, max_tokens=12)
    assert again.choices[0].message.content == message.content


def test_tools_reach_the_template(live: Live, client: openai.OpenAI) -> None:
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {}}}
    settings = {"model": NAME, "messages": TALK, "temperature": 0, "max_tokens": 3}
    plain = client.chat.completions.create(**settings).usage.prompt_tokens
    shown = client.chat.completions.create(**settings, tools=[tool]).usage.prompt_tokens
    hidden = client.chat.completions.create(**settings, tools=[tool], tool_choice="none")
    assert shown - plain == len("look_up\n")
    assert hidden.usage.prompt_tokens == plain


def test_several_prompts_and_continuations(
    live: Live, client: openai.OpenAI, lenient: openai.OpenAI
) -> None:
    prompts = [PROMPT, "Raise"]
    settings = {"model": NAME, "prompt": prompts, "n": 2, "temperature": 1, "seed": 5}
    whole = client.completions.create(**settings, max_tokens=8)
    wish = SamplingParams(n=2, temperature=1.0, seed=5, max_tokens=8)
    due = [output.text for output in live.llm.generate(prompts, wish)]
    assert [choice.text for choice in whole.choices] == due
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    assert whole.usage.prompt_tokens == sum(len(prompt) + 1 for prompt in prompts)
    assert whole.usage.completion_tokens == 32
    texts = ["", "", "", ""]
    for chunk in lenient.completions.create(**settings, max_tokens=8, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == due


def test_token_ids_as_prompts(live: Live, client: openai.OpenAI) -> None:
    ids = live.llm.tokenizer(PROMPT).input_ids
    answers = [
        client.completions.create(model=NAME, prompt=prompt, temperature=0).choices[0].text
        for prompt in (PROMPT, ids, [ids])
    ]
    assert len(set(answers)) == 1


@pytest.mark.parametrize(
    "wish",
    [
        {"temperature": 0},
        {"temperature": 1.0, "seed": 1, "top_p": 0.9, "presence_penalty": 0.5},
        {"temperature": 1.0, "seed": 2, "n": 2, "frequency_penalty": 0.2, "logit_bias": {"9": 2}},
        {"temperature": 0, "stop": ["e", "zz"]},
    ],
    ids=["greedy", "sampled", "several", "stopped"],
)
def test_a_stream_is_the_whole_answer(client: openai.OpenAI, wish: dict) -> None:
    settings = {"model": NAME, "messages": TALK, "max_tokens": 20, **wish}
    whole = client.chat.completions.create(**settings)
    count = len(whole.choices)
    texts, ends, roles = [""] * count, [""] * count, [None] * count
    usage = None
    stream = client.chat.completions.create(
        **settings, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        assert usage is None
        if chunk.usage is not None:
            usage = chunk.usage
            assert chunk.choices == []
            continue
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        ends[choice.index] += choice.finish_reason or ""
        roles[choice.index] = roles[choice.index] or choice.delta.role
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]
    assert set(roles) == {"assistant"}
    counted = {"prompt_tokens", "completion_tokens", "total_tokens"}
    assert usage.model_dump(include=counted) == whole.usage.model_dump(include=counted)


def test_streams_end_as_they_should(live: Live) -> None:
    body = {"model": NAME, "prompt": PROMPT, "stream": True, "max_tokens": 3}
    with live.http() as http:
        answer = http.post("/v1/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")


def test_chunks_before_the_usage_have_none(live: Live) -> None:
    body = {"prompt": PROMPT, "stream": True, "max_tokens": 3}
    with live.http() as http:
        for wish in ({}, {"stream_options": {"include_usage": True}}):
            lines = http.post("/v1/completions", json=body | wish).text.splitlines()
            chunks = [json.loads(x[6:]) for x in lines if x.startswith("data: {")]
            if wish:
                *chunks, last = chunks
                assert last["usage"]["completion_tokens"] == 3
                assert all(chunk["usage"] is None for chunk in chunks)
            else:
                assert not any("usage" in chunk for chunk in chunks)


def test_tokens_of_kept_prefixes_are_told(live: Live) -> None:
    prompt = "A prompt that nobody else sends here. " * 12
    body = {"prompt": prompt, "max_tokens": 2, "temperature": 0}
    saved = live.llm.statistics.prefixes.saved_tokens
    with live.http() as http:

        def cached(**wish) -> int:
            usage = http.post("/v1/completions", json=body | wish).json()["usage"]
            return usage["prompt_tokens_details"]["cached_tokens"]

        assert cached() == 0
        # States are kept where the prompt ended, which is too far for the same one again; the
        # second request keeps them before its last token.
        saved += cached()
        again = cached()
        assert 0 < again == live.llm.statistics.prefixes.saved_tokens - saved
        assert again <= len(prompt)
        assert cached(n=3, temperature=1) == again  # the prompt is computed once
        assert cached(prompt=[prompt, prompt]) == 2 * again
        assert cached(prompt_logprobs=0) == 0  # which need every token


@pytest.mark.parametrize("num_top", [0, 2])
def test_log_probabilities_of_prompts(live: Live, num_top: int) -> None:
    wish = SamplingParams(max_tokens=1, prompt_logprobs=num_top)
    more = {"max_tokens": 1, "temperature": 0, "prompt_logprobs": num_top, "n": 2}
    with live.http() as http:
        whole = http.post("/v1/completions", json={"prompt": [PROMPT, "b"]} | more).json()
        chat = http.post("/v1/chat/completions", json={"messages": TALK} | more).json()
        for streams in ("completions", "chat/completions"):
            own = {"prompt": PROMPT} if streams == "completions" else {"messages": TALK}
            answer = http.post(f"/v1/{streams}", json=own | more | {"stream": True})
            assert answer.status_code == 400 and "not told in streams" in answer.text
        odd = {"echo": True, "logprobs": num_top + 1}
        answer = http.post("/v1/completions", json={"prompt": PROMPT} | more | odd)
        assert answer.status_code == 400 and "leave one of them out" in answer.text
    told = [choice["prompt_logprobs"] for choice in whole["choices"]]
    assert told[0] == told[1] != told[2]
    assert len(told[2]) == 2
    for found, due in (
        (told[0], live.llm.generate(PROMPT, wish)[0]),
        (chat["prompt_logprobs"], live.llm.chat(TALK, wish)[0]),
    ):
        assert found[0] is None and len(found) == len(due.prompt_ids)
        for place, one in zip(found[1:], due.prompt_logprobs[1:], strict=True):
            own = place[str(one.token_id)]
            assert own["logprob"] == pytest.approx(one.value, abs=1e-4)
            assert own["rank"] == one.rank
            assert next(iter(place)) == str(one.token_id)
            assert num_top <= len(place) <= num_top + 1
            assert {1, 2} <= {x["rank"] for x in place.values()} or num_top == 0
    assert "".join(next(iter(x.values()))["decoded_token"] for x in told[0][1:]) == PROMPT


def test_seeds_repeat(client: openai.OpenAI) -> None:
    def text(seed: int | None) -> str | None:
        answer = client.chat.completions.create(
            model=NAME, messages=TALK, temperature=1, max_tokens=24, seed=seed
        )
        return answer.choices[0].message.content

    assert text(3) == text(3) != text(4)
    assert text(None) != text(None)


def test_log_probabilities_of_chats(live: Live, client: openai.OpenAI) -> None:
    settings = {"model": NAME, "messages": TALK, "temperature": 0, "max_tokens": 6}
    told = client.chat.completions.create(**settings, logprobs=True, top_logprobs=3)
    content = told.choices[0].logprobs.content
    due = live.llm.chat(TALK, SamplingParams(max_tokens=6, logprobs=3))[0]
    assert [one.logprob for one in content] == pytest.approx(
        [one.value for one in due.logprobs], abs=1e-4
    )
    assert "".join(one.token for one in content) == told.choices[0].message.content
    assert all(bytes(one.bytes).decode() == one.token for one in content)
    assert {len(one.top_logprobs) for one in content} == {3}
    assert content[0].top_logprobs[0].token == content[0].token
    streamed = client.chat.completions.create(
        **settings, logprobs=True, top_logprobs=3, stream=True
    )
    parts = [
        one
        for chunk in streamed
        for one in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else ())
    ]
    assert [one.token for one in parts] == [one.token for one in content]


def test_log_probabilities_and_echoes_of_completions(live: Live, lenient: openai.OpenAI) -> None:
    settings = {"model": NAME, "prompt": PROMPT, "temperature": 0, "max_tokens": 4, "logprobs": 2}
    told = lenient.completions.create(**settings, echo=True).choices[0]
    assert told.text == PROMPT + engine_text(live, max_tokens=4)
    logprobs = told.logprobs
    assert logprobs.tokens == ["<s>", *told.text]
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert logprobs.text_offset == [0, *range(len(told.text))]  # <s> is not shown
    assert all(2 <= len(top) <= 3 for top in logprobs.top_logprobs[1:])
    due = live.llm.generate(PROMPT, SamplingParams(max_tokens=1, prompt_logprobs=0))[0]
    assert logprobs.token_logprobs[1 : len(PROMPT) + 1] == pytest.approx(
        [one.value for one in due.prompt_logprobs[1:]], abs=1e-4
    )
    text, tokens = "", []
    for chunk in lenient.completions.create(**settings, echo=True, stream=True):
        text += chunk.choices[0].text
        tokens += chunk.choices[0].logprobs.tokens
    assert (text, tokens) == (told.text, logprobs.tokens)


def test_an_echo_alone(client: openai.OpenAI, lenient: openai.OpenAI) -> None:
    settings = {"model": NAME, "prompt": PROMPT, "temperature": 0, "logprobs": 1, "echo": True}
    told = lenient.completions.create(**settings, max_tokens=1)
    alone = lenient.completions.create(**settings, max_tokens=0)
    choice = alone.choices[0]
    assert (choice.text, choice.finish_reason) == (PROMPT, "length")
    assert choice.logprobs.tokens == ["<s>", *PROMPT]
    assert choice.logprobs.token_logprobs == told.choices[0].logprobs.token_logprobs[:-1]
    assert alone.usage.completion_tokens == 0
    assert alone.usage.total_tokens == alone.usage.prompt_tokens == len(PROMPT) + 1
    (chunk,) = lenient.completions.create(**settings, max_tokens=0, stream=True)
    assert chunk.choices[0].text == PROMPT
    assert chunk.choices[0].logprobs == choice.logprobs


def test_wishes_of_vllm(live: Live, client: openai.OpenAI) -> None:
    more = {
        "top_k": 1,
        "min_tokens": 5,
        "repetition_penalty": 1.2,
        "bad_words": ["a"],
        "stop": "e",
        "include_stop_str_in_output": True,
    }
    answer = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=30, extra_body=more)
    due = engine_text(
        live,
        max_tokens=30,
        min_tokens=5,
        repetition_penalty=1.2,
        bad_words="a",
        stop="e",
        include_stop=True,
    )
    assert answer.choices[0].text == due
    assert "a" not in due


def test_answers_of_a_form(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}
    settings = {"model": NAME, "messages": TALK, "max_tokens": 50, "temperature": 0}
    settings["logit_bias"] = {"3": -100, "4": -100}  # no whitespace
    answer = client.chat.completions.create(**settings, response_format=form)
    found = json.loads(answer.choices[0].message.content)
    assert isinstance(found["ok"], bool) and set(found) == {"ok"}
    regex = {"structured_outputs": {"regex": "(yes|no)[.!]"}}
    answer = client.chat.completions.create(**settings, extra_body=regex)
    assert answer.choices[0].message.content in ("yes.", "yes!", "no.", "no!")
    odd = ["a+b", 'x/"y"', "[a]\\n"]
    for choice in (odd, odd[:1], odd[1:2], odd[2:]):
        wish = {"structured_outputs": {"choice": choice}}
        answer = client.chat.completions.create(**settings, extra_body=wish)
        assert answer.choices[0].message.content in choice
    del settings["logit_bias"]
    for asked in ({"json": schema}, {"json_object": True}):
        wish = {"structured_outputs": asked | {"disable_any_whitespace": True}}
        answer = client.chat.completions.create(**settings, extra_body=wish)
        assert not re.search(r'\s(?=(?:[^"]*"[^"]*")*[^"]*$)', answer.choices[0].message.content)
    lark = {"structured_outputs": {"grammar": 'start: "a" /[bc]{3}/'}}
    answer = client.chat.completions.create(**settings, extra_body=lark)
    assert re.fullmatch("a[bc]{3}", answer.choices[0].message.content)
    settings["logit_bias"] = {"3": -100, "4": -100}
    text = {"structured_outputs": {"json": json.dumps(schema)}}
    answer = client.chat.completions.create(**settings, extra_body=text)
    assert json.loads(answer.choices[0].message.content) == found
    streamed = client.chat.completions.create(**settings, stream=True, response_format=form)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert json.loads(text) == found
    for wrong, message in (
        ({"type": "json_schema"}, "has json_schema with type"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": []}}}, "cannot"),
    ):
        with pytest.raises(openai.BadRequestError, match=message):
            client.chat.completions.create(**settings, response_format=wrong)
    settings["max_tokens"] = 2
    free = client.chat.completions.create(**settings, response_format={"type": "text"})
    assert free.choices[0].message.content


def test_what_is_looked_at_has_a_head(live: Live) -> None:
    with live.http() as http:
        for path in ("/", "/pool", "/health", "/metrics", "/v1/models", f"/v1/models/{NAME}"):
            answer = http.head(path)
            assert (answer.status_code, answer.content) == (200, b""), path
        assert http.head("/v1/completions").status_code == 405


@pytest.mark.parametrize("allowed", ["https://a.example", "*"])
def test_pages_of_other_origins(live: Live, allowed: str) -> None:
    """Browsers ask before they send, without a key, and look at who may read the answer."""
    asks = {
        "Origin": "https://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    path, reads = "/v1/completions", "access-control-allow-origin"
    body = {"prompt": "a", "max_tokens": 1}
    with live_server(allowed_origins=(allowed,)) as open_one, open_one.http() as http:
        del http.headers["Authorization"]
        answer = http.options(path, headers=asks)
        assert answer.status_code == 200
        assert answer.headers[reads] == allowed
        assert "authorization" in answer.headers["access-control-allow-headers"]
        known = {"Origin": "https://a.example", "Authorization": f"Bearer {open_one.key}"}
        assert http.post(path, json=body, headers=known).headers[reads] == allowed
        refused = http.post(path, json=body, headers={"Origin": "https://a.example"})
        assert (refused.status_code, refused.headers[reads]) == (401, allowed)
        if allowed != "*":
            other = http.post(path, json=body, headers=known | {"Origin": "https://b.example"})
            assert reads not in other.headers
    with live.http() as http:
        assert http.options(path, headers=asks).status_code == 405
        assert reads not in http.post(path, json=body, headers=asks).headers
